"""What every test may ask for: the program as a function, the fixture files, a cache of its own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

CHILD_SECONDS = 300

# Tests in these files watch the clock or a real program's: nothing runs beside them (make test).
ALONE = frozenset(
    f"test_{name}"
    for name in (
        "camera", "capture", "captures", "cli_run", "cli_run_files", "cli_sinks", "cli_web", "command", "comparing", "gate",
        "gpio", "keeping", "latency", "live", "metrics", "monitor", "mqtt", "sinks", "source_cameras", "source_pipes",
        "source_rtsp", "source_secrets", "source_v4l2", "state", "table", "threads", "watchdog", "web", "web_browser", "webhook",
    )
)  # fmt: skip

# The same few examples at every run: a suite that fails only now and then is not believed.
settings.register_profile(
    "stable", derandomize=True, max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "stable"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker("alone")


@dataclass(frozen=True)
class Answer:
    """What a run of the program left: exit code, standard output and standard error as text."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


Cli = Callable[..., Answer]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Shards go to a folder of this session, so no test reads what another session left; the terminal is 200 wide."""
    wanted = {
        "EDGECLF_CACHE": str(tmp_path_factory.mktemp("cache")),
        "TF_USE_LEGACY_KERAS": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        for name in ("EDGECLF_DEBUG", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> Iterator[None]:
    """Under nohup, or in the background of a script, SIGINT and SIGHUP are ignored, here and in every child."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def fixtures_folder() -> Path:
    """The small files kept with the tests."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the program as a child process: `cli("predict", file, picture, cwd=…, env={…}, stdin=…) -> Answer`."""

    def run(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, stdin: str = "") -> Answer:
        # A user's shell does not set what this session sets for TensorFlow: the program has to do it.
        shell = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
        done = subprocess.run(
            [sys.executable, "-m", "edgeclf", *map(str, arguments)],
            cwd=cwd, env={**shell, **(env or {})}, input=stdin, capture_output=True, text=True, timeout=CHILD_SECONDS,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def cli_here(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The same in this process, faster: `cli_here("models", "--json") -> Answer`; environment changes are undone."""

    def run(*arguments: object, cwd: Path | None = None) -> Answer:
        from edgeclf.cli.main import main

        out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
        monkeypatch.setattr(sys, "argv", ["edgeclf", *map(str, arguments)])
        if cwd is not None:
            monkeypatch.chdir(cwd)
        code: object = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            code = end.code
        finally:
            os.environ.clear()
            os.environ.update(before)
        return Answer(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a tiny disk of its own at `tmp_path/disk`; called again, another one in its place."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str = "2m", *more: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *more)), "tmpfs", place], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
        return place

    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("needs root and mount")
    yield mount
    while place.is_mount():
        subprocess.run(["umount", "-l", place], check=True)
