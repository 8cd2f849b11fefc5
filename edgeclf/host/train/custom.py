"""A user's own network: `path/to/file.py:build`, a function that is called as `build(shape, classes, **options)`.

The file is Python and runs as such, by the user's choice. It is copied into the run folder, so that a run can be resumed and
used when the original is gone; so it must be one file that imports installed packages only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, EdgeclfError
from edgeclf.core.recipe import ImageSection, ModelSection, Recipe
from edgeclf.host.keras import keras

FUNCTION = "build"
SIZE = 96  # pixels, where --image-size says nothing else


def is_spec(architecture: str) -> bool:
    """Whether that names a file of the user's own: `file.py`, or `file.py:function`."""
    return _parts(architecture)[0].endswith(".py")


def source(architecture: str, folder: Path | None = None) -> Path:
    """The file that `path.py:function` names; a relative path counts from `folder`, or from here. Raises ConfigError."""
    path = Path(_parts(architecture)[0])
    path = path if path.is_absolute() or folder is None else folder / path
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the path of a Python file, as in: models/mine.py:build")
    return path


def recipe(architecture: str) -> Recipe:
    """What a user's own network is trained with unless options say otherwise: the defaults of every section, 96 pixels.

    Raises ConfigError when there is no such file.
    """
    path = source(architecture)
    model = ModelSection(f"{path.resolve()}:{_parts(architecture)[1]}")
    return Recipe(path.stem, f"the network that {path.name} builds", model, ImageSection(SIZE))


def keep(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as it stands in a run folder, where the file of a user's own network is copied to; others stay as they are."""
    if not is_spec(recipe.model.architecture):
        return recipe
    path = source(recipe.model.architecture)
    files.write_bytes(folder / path.name, path.read_bytes())
    return replace(recipe, model=replace(recipe.model, architecture=f"{path.name}:{_parts(recipe.model.architecture)[1]}"))


def load_builder(architecture: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `path.py:function` names (`build` when none is named); its file is run.

    What it returns is checked: a `tf_keras.Model` with one picture as input that ends in logits, which comes back flat.
    Raises ConfigError when the file fails or has no such function.
    """
    path, function = source(architecture, folder), _parts(architecture)[1]
    found = getattr(_module(path), function, None)
    if not callable(found):
        raise ConfigError(f"{path}: has no function {function!r}; define {function}(shape, classes, **options)")

    def build(shape: tuple[int, int, int], classes: int, **options: Any) -> Any:
        try:
            model = found(shape, classes, **options)
        except EdgeclfError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{path}: {function} failed with {_line_of(error, path)}; run again as: edgeclf --debug …"
            ) from error
        return _checked(model, shape, classes, f"{path}: {function}")

    return build


@contextlib.contextmanager
def known_layers(architecture: str, folder: Path) -> Iterator[None]:
    """Layers that a user's own file defines are known to Keras inside; for other architectures it does nothing."""
    if not is_spec(architecture):
        yield
        return
    module = _module(source(architecture, folder))
    layer = keras().layers.Layer
    own = {name: value for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, layer)}
    with keras().utils.custom_object_scope(own):
        yield


def _parts(architecture: str) -> tuple[str, str]:
    path, colon, function = architecture.rpartition(":")
    return (path, function) if colon and path.endswith(".py") else (architecture, FUNCTION)


def _module(path: Path) -> Any:
    """The file, run once as it is now, under a name of its own."""
    data = path.read_bytes()
    name = f"edgeclf_custom_{hashlib.sha256(str(path.resolve()).encode() + data).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    keras()  # sets TensorFlow up, so that `tensorflow.keras` in the file is tf-keras
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        hint = "; it must be one file that imports installed packages only" if isinstance(error, ImportError) else ""
        raise ConfigError(f"{path}: cannot be run: {_line_of(error, path)}{hint}") from error
    return module


def _line_of(error: Exception, path: Path) -> str:
    """The error in words, with the last line of that file that it passed."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    at = f" in line {lines[-1]}" if lines else f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())[:200]}"


def _checked(model: Any, shape: tuple[int, int, int], classes: int, where: str) -> Any:
    from edgeclf.host import graphs
    from edgeclf.host.imports import house

    if not isinstance(model, keras().Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        hint = "; build it with tf_keras: import tf_keras as keras" if kind.startswith("keras.") else ""
        raise ConfigError(f"{where} returned a {kind}, not a tf_keras.Model{hint}")
    if not graphs.is_graph(model) or len(model.inputs or ()) != 1 or len(model.outputs) != 1:
        raise ConfigError(f"{where} returned a network that is no functional model of one input and one output")
    found = tuple(model.inputs[0].shape)[1:], tuple(model.outputs[0].shape)[1:]
    if found != (shape, (classes,)):
        raise ConfigError(f"{where} returned a network from {found[0]} to {found[1]}; asked for {shape} to {(classes,)}")
    squash = house.squash_of(model)
    if squash:
        raise ConfigError(
            f"{where} returned a network that ends in {squash}; leave it out: the last layer gives logits, "
            "and softmax is added at export"
        )
    return graphs.rebuild(model) if any(graphs.is_graph(layer) for layer in model.layers) else model
