"""Imports go one way, cli → host → runtime → core, and a device needs nothing of the training machine."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgeclf"
LAYERS = "core", "runtime", "host", "cli"  # each may use itself and what stands before it
HEAVY = {"tensorflow", "tf_keras", "tensorflow_model_optimization", "sklearn", "matplotlib", "scipy", "keras"}
ENGINES = {"ai_edge_litert", "tflite_runtime", "onnxruntime"}
TRAINING = HEAVY | {
    "litert_quantizer",
    "ai_edge_quantizer",
    "onnx",
    "tf2onnx",
    "flatbuffers",
    "h5py",
    "jinja2",
    "markupsafe",
    "threadpoolctl",
}
LIVE = {"libcamera", "picamera2", "starlette", "uvicorn", "h11", "paho", "prometheus_client", "gpiozero"}
CLUSTER = {"ray", "pyarrow", "fsspec"}
COREML = {"coremltools"}
ALLOWED = {
    "core": {"numpy", "cv2"},
    "runtime": {"numpy", "cv2", "rich", *LIVE} | ENGINES | CLUSTER,
    "host": {"numpy", "cv2", "optuna", "sqlalchemy", "mlflow", "tflite_micro", "pip"} | ENGINES | TRAINING | CLUSTER | COREML,
    "cli": {"typer", "click", "rich", "numpy", "cv2"},
    "": set[str](),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `at_load` is false inside a function and under TYPE_CHECKING."""

    module: str
    line: int
    at_load: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> list[Import]:
    """Every import of a file, those inside functions included."""
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), True))


def _walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_load) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute here"
            module = child.module or ""
            names = [f"{module}.{alias.name}" for alias in child.names] if module == "edgeclf" else [module]
            yield from (Import(name, child.lineno, at_load) for name in names)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _walk(child, at_load and not inside and not typing_only)


def layer_of(path: Path) -> str:
    """The folder under edgeclf/ that decides; empty for edgeclf/__init__.py and __main__.py."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_layer_allows(path: Path) -> None:
    """Third-party packages per layer; the layer above is never named, not even inside a function."""
    layer = layer_of(path)
    above = {f"edgeclf.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]} if layer else set()
    for found in imports_of(path):
        where = f"{path.name}:{found.line}: {found.module}"
        if found.top == "edgeclf":
            assert ".".join(found.module.split(".")[:2]) not in above, f"{where} belongs to a layer above {layer}"
        elif found.top not in sys.stdlib_module_names:
            assert found.top in ALLOWED[layer], f"{where} is not allowed in {layer or 'the top'}"


def test_only_the_picture_code_of_core_knows_opencv() -> None:
    """core is numpy alone but for image.py, so files and cards are read where OpenCV is missing."""
    users = {p.name for p in MODULES if layer_of(p) == "core" for i in imports_of(p) if i.top == "cv2"}
    assert users == {"image.py"}


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(p) in ("cli", "")], ids=lambda p: p.name)
def test_the_program_loads_nothing_heavy_before_a_verb_runs(path: Path) -> None:
    """`edgeclf --help` answers in a blink: numpy, OpenCV, runtime and host are imported inside the verb."""
    light = {"edgeclf.cli", "edgeclf.core.errors", "edgeclf.core.files", "edgeclf.core.progress"}
    for found in imports_of(path):
        if found.at_load and found.top not in sys.stdlib_module_names and found.top not in ("typer", "click"):
            assert any(found.module.startswith(name) for name in light), f"{path.name}:{found.line}: {found.module} at load"


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(p) == "host"], ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_host_modules_import_tensorflow_only_when_called(path: Path) -> None:
    """A host module can be imported before TensorFlow is set up, and keras.py alone names it."""
    for found in imports_of(path):
        if found.top in ("tensorflow", "tf_keras"):
            assert path.name == "keras.py", f"{path.name}:{found.line}: ask edgeclf.host.keras for {found.top}"
            assert not found.at_load


BLOCKED_RUN = '''
import sys

class Hiding:
    """A finder that does not see the training packages; everything else is as the inner one says."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {heavy!r} else self.inner.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.argv = ["edgeclf", *{arguments!r}]
from edgeclf.cli.main import main
main()
'''


def run_without_training(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program in a fresh interpreter in which none of the training packages can be imported."""
    code = BLOCKED_RUN.format(heavy=HEAVY, arguments=[str(a) for a in arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_a_picture_is_classified_where_tensorflow_cannot_be_imported(fixtures_folder: Path) -> None:
    """The device path, end to end, in an interpreter without the training packages."""
    picture = next(p for p in sorted((fixtures_folder / "pictures").rglob("*")) if p.suffix in (".png", ".jpg"))
    done = run_without_training("predict", fixtures_folder / "tiny-int8.tflite", picture, "--json")
    assert done.returncode == 0, done.stderr
    assert '"label"' in done.stdout


def test_a_file_is_verified_where_tensorflow_cannot_be_imported(fixtures_folder: Path) -> None:
    """A board proves by itself that it computes what was shipped."""
    done = run_without_training("verify", fixtures_folder / "tiny-int8.tflite")
    assert (done.returncode, "bit-exact" in done.stdout) == (0, True), done.stderr


def test_files_are_measured_calibrated_and_compared_where_tensorflow_cannot_be_imported(
    fixtures_folder: Path, tmp_path: Path
) -> None:
    """Arithmetic of a few lines each, so a board can do it."""
    for part in ("val", "test"):
        for name in ("red-square", "green-disc", "blue-cross", "yellow-bars"):
            (tmp_path / part / name.replace("-", " ")).mkdir(parents=True)
            shutil.copy(fixtures_folder / "pictures" / f"{name}.png", tmp_path / part / name.replace("-", " "))
    file, other = shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path), fixtures_folder / "tiny-float32.tflite"
    for verb in (("calibrate", file, tmp_path), ("evaluate", file, tmp_path), ("compare", file, other, "--data", tmp_path)):
        done = run_without_training(*verb)
        assert (done.returncode, "ECE" in done.stdout or "No difference" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("verb", [("train", "compact", "digits"), ("export", "--int8"), ("report",), ("quickstart",)])
def test_a_training_verb_names_the_extra_to_install(verb: tuple[str, ...]) -> None:
    """Exit code 6 and one line, rather than an import error."""
    done = run_without_training(*verb)
    assert done.returncode == 6, done.stderr
    assert "pip install 'edgeclf[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_python_api_loads_where_tensorflow_cannot_be_imported(fixtures_folder: Path) -> None:
    """`edgeclf.load` needs the runtime only."""
    code = BLOCKED_RUN.format(heavy=HEAVY, arguments=[]).partition("from edgeclf.cli")[0]
    code += f"import edgeclf, numpy as np\nmodel = edgeclf.load({str(fixtures_folder / 'tiny-int8.tflite')!r})\n"
    code += "best = model.classify(np.zeros((48, 64, 3), np.uint8))[0]\nprint(best.label, best.score)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[-1]) <= 1
