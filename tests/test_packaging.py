"""The built wheel in a base-only environment outside the checkout, and the locks that go with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = REPOSITORY / "locks"
SHAPES = {
    "red square": "red-square.png",
    "green disc": "green-disc.png",
    "blue cross": "blue-cross.png",
    "yellow bars": "yellow-bars.png",
}
HEADLESS = "opencv-python-headless" in {canonicalize_name(d.metadata["Name"]) for d in distributions()}
NO_NETWORK = "Failed to establish a new connection", "Temporary failure in name resolution", "Max retries exceeded"


def pinned(name: str) -> dict[str, str]:
    """Package → version in that lock and in those that it includes."""
    versions: dict[str, str] = {}
    for line in (LOCKS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            versions |= pinned(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            package, _, version = line.partition(" ;")[0].partition("==")
            versions[canonicalize_name(package)] = version
    return versions


@pytest.mark.parametrize(("lock", "extra"), [("base.lock", None), ("train.lock", "train"), ("dev.lock", "dev")])
def test_a_lock_pins_all_that_the_project_names_within_its_ranges(lock: str, extra: str | None) -> None:
    """pyproject.toml and the locks cannot drift apart unseen."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    versions = pinned(lock)
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement.name}; run: make lock"
        assert requirement.specifier.contains(version), f"{lock}: {requirement.name} {version} is outside {requirement}"


def test_the_locks_agree_with_what_is_installed_and_is_needed_by_it() -> None:
    """Every transitive package is pinned, at the version that these tests run with."""
    done = subprocess.run(
        [sys.executable, "tools/lock.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does, from a copy so that nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source") / "edgeclf", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".venv*", ".git", "runs", "dist", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("edgeclf-*.whl")
    return built


def test_the_wheel_carries_recipes_devices_and_the_report_template(wheel: Path) -> None:
    """What the program reads at run time travels inside; tests and tools stay out."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("models", "devices"):
        files = {f"edgeclf/{kind}/{p.name}" for p in (REPOSITORY / kind).iterdir()}
        assert files
        assert files <= names
    templates = {p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "edgeclf/host").rglob("*.j2")}
    assert {f"edgeclf/host/{name}" for name in ("report/report.html.j2", "understand/gallery.html.j2")} < templates
    assert templates | {"edgeclf/py.typed"} <= names
    assert all(name.startswith(("edgeclf/", "edgeclf-")) for name in names)


@dataclass(frozen=True)
class Installation:
    """A base-only environment and a folder elsewhere to work in."""

    binaries: Path
    work: Path

    def run(self, *arguments: object, program: str = "edgeclf") -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = [str(self.binaries / program), *map(str, arguments)]
        return subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def answer(self, *arguments: object) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory, fixtures_folder: Path) -> Installation:
    """The wheel beside the packages of base.lock and nothing else, and a small data set to work on."""
    top = tmp_path_factory.mktemp("base-only")
    venv.create(top / "env", with_pip=True, symlinks=True)
    pip = [str(top / "env/bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _pip([*pip, "--only-binary=:all:", "-r", str(LOCKS / "base.lock")])
    _pip([*pip, "--no-deps", "--no-index", str(wheel)])
    if HEADLESS:  # as make does where the libraries of a desktop are missing
        _pip([*pip[:-2], "uninstall", "--quiet", "--yes", "opencv-python"])
        _pip([*pip, "--no-deps", f"opencv-python-headless=={pinned('base.lock')['opencv-python']}"])
    work = top / "work"
    for label, name in SHAPES.items():
        (work / "shapes" / "test" / label).mkdir(parents=True)
        shutil.copy(fixtures_folder / "pictures" / name, work / "shapes" / "test" / label)
    shutil.copy(fixtures_folder / "tiny-int8.tflite", work / "tiny-int8.tflite")
    return Installation(top / "env/bin", work)


def _pip(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr


PICTURE = "shapes/test/red square/red-square.png"
Check = Callable[[str], bool]
WORKS: dict[str, tuple[tuple[str, ...], Check]] = {
    "version": (("--version",), lambda out: out.startswith("edgeclf ")),
    "models": (("models", "--json"), lambda out: {"compact", "resnet8"} <= {m["name"] for m in json.loads(out)}),
    "devices": (("devices", "--json"), lambda out: "raspberry-pi-4" in {d["name"] for d in json.loads(out)}),
    "predict": (("predict", "tiny-int8.tflite", PICTURE), lambda out: "red square" in out),
    "inspect": (("inspect", "tiny-int8.tflite"), lambda out: "int8" in out and "yellow bars" in out),
    "verify": (("verify", "tiny-int8.tflite"), lambda out: "bit-exact; here " in out),
    "shipped model": (("predict", "compact-cifar10", PICTURE, "--json"), lambda out: '"score"' in out),
    "inspect data": (("inspect", "shapes"), lambda out: "yellow bars" in out),
    "evaluate": (("evaluate", "tiny-int8.tflite", "shapes", "--json"), lambda out: json.loads(out)["accuracy"]["top1"] == 1.0),
    "bench": (("bench", "tiny-int8.tflite", "--json"), lambda out: "p50_ms" in out),
    "device report": (
        ("bench", "tiny-int8.tflite", "--seconds", "0.5", "--device-report", "pi.json", "--data", "shapes"),
        lambda out: "best: --threads" in out,
    ),
    "doctor": (("doctor",), lambda out: "compact-digits computes what was shipped, bit-exact" in out),
    "run": (("run", "tiny-int8.tflite", "--source", "shapes/test", "--jsonl", "-"), lambda out: "blue cross" in out),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORKS)
def test_a_base_install_works_from_another_folder(verb: str, installed: Installation) -> None:
    """Every verb of the device, from the wheel, without TensorFlow and far from the checkout."""
    arguments, right = WORKS[verb]
    out = installed.answer(*arguments)
    assert right(out), out


@pytest.mark.slow
def test_a_base_install_has_nothing_of_the_training_machine(installed: Installation) -> None:
    """The environment is as small as it says, so the tests above show what they claim."""
    out = installed.run("-m", "pip", "list", "--format=json", program="python").stdout
    names = {canonicalize_name(package["name"]).replace("-headless", "") for package in json.loads(out)}
    assert names - {"pip", "setuptools", "wheel"} == set(pinned("base.lock")) | {"edgeclf"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("train", "compact", "shapes"), ("export", "--int8"), ("report",), ("quickstart",)])
def test_a_training_verb_of_a_base_install_names_the_extra(arguments: tuple[str, ...], installed: Installation) -> None:
    """Exit code 6, one line, and what to type."""
    done = installed.run(*arguments)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "pip install 'edgeclf[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_python_api_of_a_base_install_classifies(installed: Installation) -> None:
    """The five lines of the README, on a picture whose answer is known."""
    code = f"import cv2, edgeclf; print(edgeclf.load('tiny-int8.tflite').classify(cv2.imread({PICTURE!r}))[0].label)"
    assert installed.run("-c", code, program="python").stdout == "red square\n"
