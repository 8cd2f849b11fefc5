"""Trained weights to start from: a file of the user's, Keras' cache, or Keras' address, which is announced beforehand."""

from __future__ import annotations

import hashlib
import importlib
import os
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.progress import Bar, no_bar
from edgeclf.core.recipe import Recipe
from edgeclf.host.architectures.backbones import WANTED
from edgeclf.host.keras import keras
from edgeclf.host.train.weight_files import MAX_FILE_BYTES

TIMEOUT_S, CHUNK_BYTES = 20, 1 << 18

Say = Callable[[str], None]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: where it is, and its SHA-256."""

    path: Path
    sha256: str

    def provenance(self) -> dict[str, str]:
        """For the model card: the name alone, since paths are the maker's."""
        return {"file": self.path.name, "sha256": self.sha256}


@dataclass(frozen=True)
class Published:
    """A file of ImageNet weights without top, as Keras has it: its name in the cache, its address, and its hash or ""."""

    name: str
    url: str
    digest: str


def find(recipe: Recipe, given: str | Path | None = None, say: Say = print, bar: Bar = no_bar) -> WeightsFile | None:
    """The weights that a recipe starts from; None for none.

    `given` is a file of the user's; else the recipe's ImageNet weights, from Keras' cache or by download, which `say`
    announces with name, size and place. Raises ConfigError when there are none for this network or size, ModelError for a
    missing or damaged file and for a download that fails.
    """
    if not given and recipe.transfer.weights == "none":
        return None
    if recipe.image.colour != "rgb" and recipe.model.architecture in WANTED:
        raise ConfigError(f"image.colour = {recipe.image.colour!r}: trained weights want rgb")
    if given:
        return _file(Path(given))
    published = imagenet(recipe)
    path = cache() / published.name
    if not path.is_file():
        _download(published, path, say, bar)
    return _file(path, published.digest)


def cache() -> Path:
    """Where Keras keeps weights: $KERAS_HOME/models, else ~/.keras/models."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def imagenet(recipe: Recipe) -> Published:
    """The file of ImageNet weights for a recipe. Raises ConfigError where Keras has none, or none for that size."""
    name, options, size = recipe.model.architecture, recipe.model.options, recipe.image.size
    if name not in FILES:
        raise ConfigError(
            f"architecture {name!r}: there are no ImageNet weights for it; give a file with --weights, or take none"
        )
    source, sizes, file = FILES[name]
    if sizes and size not in sizes:
        known = ", ".join(map(str, sizes))
        raise ConfigError(
            f"image.size = {size}: ImageNet weights for {name!r} are published for {known} pixels; take one of these "
            "with --image-size, or give a file with --weights"
        )
    module = importlib.import_module(getattr(keras().applications, source).__module__)
    try:
        return file(module, options, size)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"architecture {name!r}: no ImageNet weights are published for the options {options}") from error


def _v1(module: Any, options: dict[str, Any], size: int) -> Published:
    text = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}[float(options.get("alpha", 1.0))]
    name = f"mobilenet_{text}_{size}_tf_no_top.h5"
    return Published(name, module.BASE_WEIGHT_PATH + name, "")


def _v2(module: Any, options: dict[str, Any], size: int) -> Published:
    name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(options.get('alpha', 1.0))}_{size}_no_top.h5"
    return Published(name, module.BASE_WEIGHT_PATH + name, "")


def _v3(kind: str) -> Callable[[Any, dict[str, Any], int], Published]:
    def published(module: Any, options: dict[str, Any], size: int) -> Published:
        plain = "_minimalistic" if options.get("minimalistic") else ""
        model = f"{kind}{plain}_224_{float(options.get('alpha', 1.0))}_float"
        name = f"weights_mobilenet_v3_{model}_no_top_v2.h5"
        return Published(name, module.BASE_WEIGHT_PATH + name, module.WEIGHTS_HASHES[model][1])

    return published


def _fixed(name: str, key: str = "", digest: str = "", url_name: str = "") -> Callable[[Any, dict[str, Any], int], Published]:
    """One file whatever the options; its hash is Keras' own, or given where Keras has it inside a function."""

    def published(module: Any, options: dict[str, Any], size: int) -> Published:
        return Published(name, module.BASE_WEIGHTS_PATH + (url_name or name), module.WEIGHTS_HASHES[key][1] if key else digest)

    return published


_KERNELS = "weights_tf_dim_ordering_tf_kernels_notop.h5"
_resnet50 = _fixed(f"resnet50_{_KERNELS}", "resnet50")
_densenet121 = _fixed(f"densenet121_{_KERNELS}", digest="30ee3e1110167f948a6b9946edeeb738")
_nasnet = _fixed("nasnet_mobile_no_top.h5", digest="1ed92395b5b598bdda52abe5c0dbfd63", url_name="NASNet-mobile-no-top.h5")

# Architecture: the builder in keras.applications, the sizes its files are published for (all where empty), and the file.
FILES: dict[str, tuple[str, tuple[int, ...], Callable[[Any, dict[str, Any], int], Published]]] = {
    "mobilenet-v1": ("MobileNet", (128, 160, 192, 224), _v1),
    "mobilenet-v2": ("MobileNetV2", (96, 128, 160, 192, 224), _v2),
    "mobilenet-v3-small": ("MobileNetV3Small", (), _v3("small")),
    "mobilenet-v3-large": ("MobileNetV3Large", (), _v3("large")),
    "efficientnet-b0": ("EfficientNetB0", (), _fixed("efficientnetb0_notop.h5", "b0")),
    "efficientnet-v2-b0": ("EfficientNetV2B0", (), _fixed("efficientnetv2-b0_notop.h5", "b0")),
    "resnet50": ("ResNet50", (), _resnet50),
    "densenet121": ("DenseNet121", (), _densenet121),
    "nasnet-mobile": ("NASNetMobile", (), _nasnet),
}


def _file(path: Path, published: str = "") -> WeightsFile:
    """The file with its SHA-256. `published` is the SHA-256 or MD5 that it must have, "" when none is known."""
    try:
        size = path.stat().st_size
        if not path.is_file() or not 0 < size <= MAX_FILE_BYTES:
            raise ModelError(f"{path}: no file of weights; those have at most {MAX_FILE_BYTES >> 20} MB")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; give an .h5, .weights.h5 or .keras file") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if published and published not in (sha256, hashlib.md5(data, usedforsecurity=False).hexdigest()):
        raise ModelError(f"{path}: is not the file that Keras publishes under this name, or is damaged; remove it")
    return WeightsFile(path, sha256)


def _download(published: Published, path: Path, say: Say, bar: Bar) -> None:
    """Fetch a file into Keras' cache, whole or not at all. Raises ModelError when that fails."""
    host = urllib.parse.urlsplit(published.url).hostname
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_S) as answer:  # an https address of Keras' own
            size = int(answer.headers.get("Content-Length") or 0)
            say(f"downloading {published.name} ({size / 1e6:.1f} MB) from {host} into {path.parent}")
            with bar(f"downloading {published.name}") as report, files.writing(path) as temporary, temporary.open("wb") as file:
                done = 0
                while chunk := answer.read(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    if done > MAX_FILE_BYTES:
                        raise ModelError(
                            f"{published.name}: more than {MAX_FILE_BYTES >> 20} MB came from {host}; download refused"
                        )
                    report(done, max(size, done))
                if done < size:
                    raise ModelError(f"{published.name}: only {done:,} of {size:,} bytes came from {host}; try again")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"{published.name}: cannot be downloaded from {host} ({reason}); put the file into {path.parent}, "
            "give it with --weights, or train from nothing with --set transfer.weights=none"
        ) from error
