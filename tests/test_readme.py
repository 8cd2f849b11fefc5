"""What the README says is so: its commands run or at least exist, its tables agree with the code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from edgeclf.core import errors

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = "README.md", "CONTRIBUTING.md", "docs/live.md", "docs/cluster.md", "docs/scale.md"
SHAPES = {
    "red square": "red-square.png",
    "green disc": "green-disc.png",
    "blue cross": "blue-cross.png",
    "yellow bars": "yellow-bars.png",
}
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>\w+) -->\s*)?^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def blocks(mark: str) -> list[str]:
    """The README's blocks that carry that mark."""
    return [found["text"] for found in BLOCK.finditer(text_of("README.md")) if found["mark"] == mark]


def commands_of(document: str) -> list[list[str]]:
    """Every command of the shell blocks, as words."""
    texts = [found["text"] for found in BLOCK.finditer(text_of(document)) if found["language"] == "sh"]
    lines = [shlex.split(line, comments=True) for text in texts for line in text.splitlines()]
    return [words for words in lines if words]


def inline_commands(document: str) -> list[list[str]]:
    """Every `edgeclf …` between backticks in running text and tables."""
    return [found.split() for found in re.findall(r"`(edgeclf [^`]+)`", text_of(document))]


@cache
def help_of(*verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgeclf", *verb, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"edgeclf {' '.join(verb)} is documented, but: {done.stderr}"
    return done.stdout


PROGRAM_LINES = [words for d in DOCUMENTS for words in [*commands_of(d), *inline_commands(d)] if words[0] == "edgeclf"]


@pytest.mark.parametrize("words", PROGRAM_LINES, ids=" ".join)
def test_a_documented_command_has_its_verb_and_options(words: list[str]) -> None:
    """No option in a document that `--help` does not show."""
    verb = next((word for word in words[1:] if not word.startswith("-") and word != "…"), None)
    shown = help_of(*words[1:3]) if verb == "data" else help_of(*filter(None, [verb]))
    for option in (word for word in words[1:] if word.startswith("--")):
        if not (verb and words.index(option) < words.index(verb)):
            assert re.search(rf"{option}\b", shown), f"edgeclf {verb} has no {option}"


def test_every_verb_is_in_the_readme() -> None:
    """A verb that nobody hears of is of no use."""
    from edgeclf.cli.main import program

    verbs = {command.name or command.callback.__name__ for command in program().registered_commands if command.callback}
    documented = {words[1] for words in inline_commands("README.md")}
    assert verbs <= documented


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documented_make_target_or_tool_exists(document: str) -> None:
    """`make X` names a target, `python tools/x.py` a file, and an extra is one of pyproject.toml."""
    makefile, project = text_of("Makefile"), text_of("pyproject.toml")
    for target in re.findall(r"\bmake ([a-z]+)\b(?=`|$| UPGRADE)", text_of(document), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for tool in re.findall(r"tools/[\w/]+\.py", text_of(document)):
        assert (REPOSITORY / tool).is_file(), tool
    for extra in re.findall(r"edgeclf\[([\w-]+)\]", text_of(document)):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documented_path_exists(document: str) -> None:
    """Links and folders of the checkout that the text names."""
    folder = (REPOSITORY / document).parent
    named = [folder / path for path in re.findall(r"\]\((?!https?:)([\w./-]+)(?:#[\w-]+)?\)", text_of(document))]
    in_code = re.findall(r"`((?:edgeclf|tests|tools|locks|models|devices)/[\w./-]*?)`", text_of(document))
    named += [REPOSITORY / path for path in in_code]
    assert named
    for path in named:
        assert "NAME" in str(path) or path.exists(), path


def test_the_exit_code_table_is_that_of_the_code() -> None:
    """Numbers, names and meanings as in core/errors.py."""
    rows = re.findall(r"^\| (\d+) \| ?`?(\w*)`? \| (.+?) \|$", text_of("README.md"), re.MULTILINE)
    table = {int(code): (name, means) for code, name, means in rows}
    drawn = re.findall(r"(\w+)\s+(\d+)  (\S.*)", errors.__doc__ or "")
    assert {code: row for code, row in table.items() if 0 < code < 70} == {int(c): (n, m) for n, c, m in drawn}
    assert {0, errors.EXIT_UNFORESEEN, errors.EXIT_RESTART, errors.EXIT_INTERRUPTED} == {c for c in table if not 0 < c < 70}


def test_the_two_commands_come_first() -> None:
    """Before any heading but the title."""
    head = text_of("README.md").partition("\n## ")[0]
    assert "\nmake quickstart\nmake test\n" in head


def load_tool(name: str) -> ModuleType:
    """A file of tools/ as a module; that folder is no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def between(begin: str, end: str) -> str:
    """What the README says between two marks, which must be there."""
    return text_of("README.md").split(begin)[1].split(end)[0].strip()


def test_the_model_table_is_that_of_the_results_files() -> None:
    """tools/record_results.py writes it from models/*.results.json; a figure typed by hand, or an old one, shows here."""
    tool, models = load_tool("record_results"), REPOSITORY / "models"
    assert between(tool.BEGIN, tool.END) == f"{tool.table(models)}\n\n{tool.machines(models)}".strip()


def test_the_benchmarks_are_those_of_the_results_files() -> None:
    """tools/write_measured.py writes them from tools/results/*.json."""
    tool = load_tool("write_measured")
    assert between(tool.BEGIN, tool.END) == tool.table()


def test_the_benchmarks_name_the_machine_that_measured_them() -> None:
    """Cores and processor, where a result says them; and a tool and a place in the table for every results file."""
    tool = load_tool("write_measured")
    assert {path.stem for path in tool.RESULTS.glob("*.json")} == set(tool.TOOLS)
    for path in tool.RESULTS.glob("*.json"):
        machine = json.loads(path.read_text(encoding="utf-8")).get("machine")
        assert machine is None or f"On {machine['cores']} cores of an {machine['cpu']}" in text_of("README.md")
    for name in tool.TOOLS.values():
        assert (REPOSITORY / "tools" / name).is_file()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, fixtures_folder: Path) -> Path:
    """A folder with the files that the README names, made from the fixtures."""
    folder = tmp_path_factory.mktemp("reader")
    for label, name in SHAPES.items():
        (folder / "photos" / label).mkdir(parents=True)
        shutil.copy(fixtures_folder / "pictures" / name, folder / "photos" / label)
    shutil.copy(fixtures_folder / "pictures" / "red-square.png", folder / "photo.jpg")
    shutil.copy(fixtures_folder / "tiny-int8.tflite", folder / "compact-photos-int8.tflite")
    return folder


def run_line(line: str, folder: Path) -> str:
    words = shlex.split(line)
    command = [sys.executable, "-m", *words] if words[0] == "edgeclf" else words
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("line", [line for text in blocks("run") for line in text.splitlines()])
def test_a_quick_command_runs_as_it_stands(line: str, work: Path) -> None:
    """And answers with JSON where it says so."""
    out = run_line(line, work)
    assert out.strip()
    if line.endswith("--json"):
        json.loads(out)


def test_the_python_example_runs_as_it_stands(work: Path) -> None:
    """The likeliest class of the picture comes first, with its score."""
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("red square 0."), done.stdout + done.stderr


def draw_photos(folder: Path, pictures: int) -> None:
    """Plain coloured pictures with noise, in three classes that even a short training tells apart."""
    import cv2
    import numpy as np

    random = np.random.RandomState(1)
    for label, colour in {"red": (30, 30, 200), "green": (40, 180, 40), "blue": (210, 60, 30)}.items():
        (folder / label).mkdir(parents=True)
        for i in range(pictures):
            noise = random.randint(-30, 30, (40, 40, 3))
            cv2.imwrite(str(folder / label / f"{i}.png"), np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.mark.slow
def test_the_walk_from_pictures_to_live_runs_as_it_stands(tmp_path: Path) -> None:
    """The README's five commands, one after another, on small pictures; only the training is cut to three epochs."""
    pytest.importorskip("tensorflow")
    draw_photos(tmp_path / "photos", 80)
    (walk,) = blocks("walk")
    for line in walk.splitlines():
        run_line(f"{line} --epochs 3 --batch-size 16" if " train " in line else line, tmp_path)
    run = tmp_path / "runs" / "compact-photos"
    documented = set(
        re.findall(r"`([\w-]+\.[a-z]+)`", text_of("README.md").partition("### What a run folder holds")[2].partition("\n## ")[0])
    )
    written = {path.name.replace("compact-photos", "NAME") for path in run.iterdir()}
    assert documented <= written
    assert (run / "report.html").stat().st_size > 10_000
