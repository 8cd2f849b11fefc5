"""The frame of the program: help with examples, exit codes, errors in one line, the traceback only on demand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import Answer, Cli

from edgeclf.cli import info, main
from edgeclf.core import errors

VERBS = (
    "quickstart", "train", "tune", "crossval", "import", "compress", "export", "optimize", "debug-quant", "report", "probe",
    "compare", "errors", "predict", "classify", "explain", "run", "evaluate", "calibrate", "bench", "verify", "doctor",
    "deploy", "wheelhouse", "service", "inspect", "models",
    "devices",
)  # fmt: skip
EXIT_CODES = {
    "EdgeclfError": 1, "ConfigError": 2, "SourceError": 3, "ModelError": 4, "DataError": 5, "MissingExtra": 6,
    "QualityError": 7, "StorageError": 8, "BoardError": 9, "ClusterError": 10,
}  # fmt: skip


def test_every_verb_is_listed(cli_here: Cli) -> None:
    """`edgeclf --help` names each verb, and there is none that the tests do not know."""
    answer = cli_here("--help")
    assert answer.code == 0
    assert sorted(command.name or command.callback.__name__ for command in main.program().registered_commands) == sorted(VERBS)
    assert all(f" {verb} " in answer.stdout for verb in VERBS)


def test_a_start_imports_the_verb_that_is_asked_for_alone(cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """All thirty take a tenth of a second, and half of one on a board; an option before the verb changes nothing."""
    asked: list[str] = []
    monkeypatch.setattr(main.importlib, "import_module", lambda name: asked.append(name) or sys.modules[name])
    for words in (["models", "--json"], ["--debug", "models", "--json"]):
        assert cli_here(*words).code == 0
    assert asked == ["edgeclf.cli.info"] * 2


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example(verb: str, cli_here: Cli) -> None:
    """An example that can be copied, and the same with -h."""
    answer = cli_here(verb, "--help")
    assert answer.code == 0
    assert f"edgeclf {verb}" in answer.stdout.partition("xample")[2]
    assert cli_here(verb, "-h").stdout == answer.stdout


def test_no_arguments_show_the_help(cli_here: Cli) -> None:
    """A bare `edgeclf` is a question, so it is answered; click's exit code for it is 2."""
    answer = cli_here()
    assert "Usage" in answer.text
    assert answer.code == 2


def test_the_version_is_that_of_the_installed_package(cli_here: Cli) -> None:
    """`edgeclf --version` agrees with the package metadata."""
    assert cli_here("--version") == Answer(0, f"edgeclf {version('edgeclf')}\n", "")


def test_an_unknown_verb_or_option_is_a_usage_error(cli_here: Cli) -> None:
    """Exit code 2, as for every option that cannot be used."""
    for arguments in (("trian",), ("models", "--jsno"), ("predict",)):
        answer = cli_here(*arguments)
        assert answer.code == 2, arguments
        assert "Traceback" not in answer.text


def test_the_exit_codes_are_those_of_the_documented_table() -> None:
    """Scripts depend on these numbers, so a change must be meant."""
    tree = {
        c.__name__: c.exit_code
        for c in (errors.EdgeclfError, *errors.EdgeclfError.__subclasses__())
        if c.__module__ == errors.__name__
    }
    assert tree == EXIT_CODES
    drawn = dict(re.findall(r"(\w+)\s+(\d+)  \S", errors.__doc__ or ""))
    assert drawn == {name: str(code) for name, code in EXIT_CODES.items()}
    assert (errors.EXIT_UNFORESEEN, errors.EXIT_RESTART, errors.EXIT_INTERRUPTED) == (70, 75, 130)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the verb `models` raise `error`."""

    def models() -> None:
        raise error

    monkeypatch.setattr(info, "models", models)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_a_foreseen_error_is_one_line_and_its_exit_code(name: str, cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line breaks inside a message are flattened; nothing goes to standard output."""
    fail_with(monkeypatch, getattr(errors, name)("photos/x.jpg:\n  is empty"))
    assert cli_here("models") == Answer(EXIT_CODES[name], "", "edgeclf: photos/x.jpg: is empty\n")


def test_an_unforeseen_error_is_one_line_and_asks_for_debug(cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 70; the traceback is for those who ask."""
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    answer = cli_here("models")
    assert answer.code == errors.EXIT_UNFORESEEN
    assert answer.stderr.count("\n") == 1
    assert "ZeroDivisionError" in answer.stderr
    assert "--debug" in answer.stderr


def test_ctrl_c_exits_with_130(cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells expect of an interrupted program."""
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli_here("models") == Answer(errors.EXIT_INTERRUPTED, "", "edgeclf: interrupted\n")


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    """The same failure with and without --debug, in a child process."""
    absent = tmp_path / "absent.tflite"
    short, long = cli("inspect", absent), cli("--debug", "inspect", absent)
    assert short.code == 4 or short.code == 5
    assert short.stderr.count("\n") == 1
    assert "Traceback" in long.stderr
    assert long.code == short.code
    assert str(absent) in short.stderr
    assert str(absent) in long.stderr


@pytest.mark.parametrize("arguments", [("models",), ("models", "--json")])
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...]) -> None:
    """`edgeclf models | head -c 0`: exit code 0 and silence."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "edgeclf", *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", ["models", "devices"])
def test_a_listing_is_json_on_demand(verb: str, cli_here: Cli) -> None:
    """Every shipped recipe or device, by name, as one JSON document."""
    answer = cli_here(verb, "--json")
    listed = json.loads(answer.stdout)
    assert {entry["name"] for entry in listed} >= ({"compact", "resnet8"} if verb == "models" else {"raspberry-pi-4"})


def test_shell_completion_is_offered(cli_here: Cli) -> None:
    """Typer's own completion is not switched off."""
    assert "--install-completion" in cli_here("--help").stdout


def test_help_loads_neither_numpy_nor_opencv_nor_tensorflow() -> None:
    """What is not imported costs no time: a quarter of a second is the budget of `edgeclf --help`."""
    code = (
        "import sys; sys.argv = ['edgeclf', '--help']\nfrom edgeclf.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'numpy', 'cv2', 'ai_edge_litert', 'tensorflow', 'tf_keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_an_opencv_that_cannot_be_loaded_is_explained(tmp_path: Path) -> None:
    """A board without libGL gets one line with the two ways out, not an ImportError."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    code = "import sys; sys.argv = ['edgeclf', 'predict', 'x.tflite', 'x.jpg']\nfrom edgeclf.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("\n") == 1
    assert "apt-get install libgl1" in done.stderr
    assert "opencv-python-headless" in done.stderr


def in_a_shell(redirection: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The program with its streams as a shell's `redirection` makes them."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "edgeclf", *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(redirection: str, fixtures_folder: Path) -> None:
    """As a service manager may start it; the answer then goes nowhere."""
    done = in_a_shell(redirection, "predict", fixtures_folder / "tiny-int8.tflite", fixtures_folder / "pictures/grey.png")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")
@pytest.mark.parametrize(
    "arguments", [("models",), ("devices", "--json"), ("run", "FILE", "-s", "synthetic", "--max-frames=2", "--json")]
)
def test_a_full_disk_behind_standard_output_is_named(arguments: tuple[str, ...], fixtures_folder: Path) -> None:
    """Exit code 8 and one line, not an unforeseen error, nor Python's own complaint at its end."""
    file = str(fixtures_folder / "tiny-int8.tflite")
    done = in_a_shell(">/dev/full", *(file if word == "FILE" else word for word in arguments))
    assert done.returncode == errors.StorageError.exit_code
    assert done.stderr == b"edgeclf: standard output: cannot write: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")
def test_a_full_disk_behind_standard_error_changes_no_exit_code(fixtures_folder: Path) -> None:
    """What cannot be said is not said, and the answer stays."""
    pictures = fixtures_folder / "pictures"
    done = in_a_shell(
        "2>/dev/full", "predict", fixtures_folder / "tiny-int8.tflite", pictures / "truncated.jpg", pictures / "grey.png"
    )
    assert done.returncode == errors.DataError.exit_code
    assert b"grey.png: " in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize(("encoding", "shown"), [("utf-8:strict", b"caf\xe9.png: "), ("ascii:strict", rb"caf\udce9.png: ")])
def test_a_file_name_that_no_encoding_holds_is_answered(
    encoding: str, shown: bytes, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Cameras and old cards write such names; in UTF-8 the very bytes come out."""
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes((fixtures_folder / "pictures/grey.png").read_bytes())
    done = in_a_shell("", "predict", fixtures_folder / "tiny-int8.tflite", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout


def test_a_name_that_is_too_long_is_one_line(cli_here: Cli, fixtures_folder: Path) -> None:
    """The system refuses to look for it, which is foreseen for every verb that takes a path."""
    model, long = fixtures_folder / "tiny-int8.tflite", "x" * 5000
    for arguments in (("predict", model, long), ("predict", long, long), ("inspect", long), ("evaluate", model, long)):
        answer = cli_here(*arguments)
        assert answer.code in (4, 5, 8), (arguments[0], answer.code)
        assert answer.stderr.count("\n") == 1


def test_ctrl_c_while_the_program_is_imported_exits_with_130() -> None:
    """The imports take most of the time of a short command; no traceback then either."""
    code = (
        "import sys\nfrom edgeclf.__main__ import main\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (errors.EXIT_INTERRUPTED, b"")
