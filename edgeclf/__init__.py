"""edgeclf: from a folder of pictures to a classifier that runs live on a small board.

import cv2, edgeclf

for prediction in edgeclf.load("x-int8.tflite").classify(cv2.imread("picture.jpg")):
    print(prediction.label, prediction.score)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeclf.core.errors import EdgeclfError as EdgeclfError
    from edgeclf.runtime.classifier import Classifier as Classifier
    from edgeclf.runtime.classifier import Prediction as Prediction
    from edgeclf.runtime.classifier import load as load

_HOMES = {
    "Classifier": "edgeclf.runtime.classifier",
    "EdgeclfError": "edgeclf.core.errors",
    "Prediction": "edgeclf.runtime.classifier",
    "load": "edgeclf.runtime.classifier",
}

__all__ = ["Classifier", "EdgeclfError", "Prediction", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import edgeclf` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("edgeclf")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeclf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
