"""TensorFlow and tf-keras, imported one way: with the legacy Keras that quantisation-aware training needs."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.host.quiet import quiet

# What TensorFlow reads when it is imported. On CPUs without AVX-512 it leaves oneDNN off; with AVX2 alone it trains resnet8
# 2.2 times as fast with it.
ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


@functools.cache
def tensorflow() -> Any:
    """The module `tensorflow`, set to use tf-keras. Takes seconds the first time. Raises MissingExtra."""
    if "tensorflow" not in sys.modules:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
        raise ConfigError("TensorFlow was imported without TF_USE_LEGACY_KERAS=1; set it before importing TensorFlow")
    try:
        with quiet():
            import tensorflow as tf

            tf.config.list_physical_devices()  # finds the devices now, while the search for a GPU may complain unheard
    except ImportError as error:
        raise MissingExtra.for_extra("train", "TensorFlow is not installed") from error
    return tf


def keras() -> Any:
    """The module `tf_keras`. Raises MissingExtra."""
    tensorflow()
    try:
        import tf_keras
    except ImportError as error:
        raise MissingExtra.for_extra("train", "tf-keras is not installed") from error
    return tf_keras


@functools.cache
def tfmot() -> Any:
    """The module `tensorflow_model_optimization`, which works on tf-keras alone. Raises MissingExtra."""
    keras()
    try:
        with quiet():
            import tensorflow_model_optimization as found
    except ImportError as error:
        raise MissingExtra.for_extra("train", "tensorflow-model-optimization is not installed") from error
    return found


def saved_model_messages() -> tuple[Any, Any]:
    """Empty protocol buffers: a SavedModel, and what Keras 2 writes beside one."""
    tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2
    from tf_keras.protobuf import saved_metadata_pb2

    return saved_model_pb2.SavedModel(), saved_metadata_pb2.SavedMetadata()
