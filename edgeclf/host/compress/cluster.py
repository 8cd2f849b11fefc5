"""Weight clustering: each kernel keeps few distinct values, by tensorflow-model-optimization.

Han et al. 2016, "Deep Compression". Fewer values make a file smaller when it is compressed, and nothing faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core.errors import ConfigError
from edgeclf.host.compress.sparsity import copy_of, is_pruned
from edgeclf.host.keras import keras, tfmot


def wrap(model: Any, clusters: int, keep_zeros: bool) -> Any:
    """The network whose large kernels have `clusters` values each, trained together; zeros stay zero with `keep_zeros`.

    Raises ConfigError when no kernel is large enough.
    """
    clustering = tfmot().clustering.keras
    chosen = {layer.name for layer in model.layers if is_pruned(layer)}
    if not chosen:
        raise ConfigError("no layer is large enough to be clustered; use --qat for a network as small as this")
    options = {"preserve_sparsity": True} if keep_zeros else {}

    def wrapped(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        # By density and not k-means++, whose draws would make two runs differ.
        start = clustering.CentroidInitialization.DENSITY_BASED
        return clustering.cluster_weights(layer, number_of_clusters=clusters, cluster_centroids_init=start, **options)

    return keras().models.clone_model(copy_of(model), clone_function=wrapped)


def distinct_values(model: Any) -> int:
    """The most distinct values of any kernel that is large enough to be clustered."""
    kernels = [layer.kernel.numpy() for layer in model.layers if is_pruned(layer)]
    return max((len(np.unique(k)) for k in kernels), default=0)
