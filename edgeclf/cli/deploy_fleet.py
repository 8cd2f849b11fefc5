"""`deploy --inventory`: many boards at once, a line for each step and each result, one file and one table of all figures."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclf.cli.common import console, need_training, print_json, progress, say
from edgeclf.core.errors import BoardError, ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from edgeclf.host.deploy.deploy import Wanted
    from edgeclf.host.deploy.fleet import Outcome, Outcomes, Watcher
    from edgeclf.host.run import Run


@dataclass(frozen=True)
class Order:
    """What `deploy` was told of a fleet: the file of boards, which of them, how many at once, where figures go, whose report."""

    inventory: Path
    groups: Sequence[str]
    only: Sequence[str]
    at_once: int
    offline: bool
    out: Path
    report: Path | None
    as_json: bool


def deploy_fleet(order: Order, base: Wanted, ssh: tuple[str, ...], port: int | None) -> None:
    """Deploy to the boards, write and print what came back. Raises BoardError when one failed, as all do that `deploy` raises."""
    from edgeclf.core import inventory
    from edgeclf.core.bundle import read_bundle
    from edgeclf.host.deploy import fleet

    read_bundle(base.file)  # an altered file is refused once, before any board is asked
    found = inventory.read(order.inventory)
    chosen = found.chosen(inventory.words(order.groups), inventory.words(order.only))
    tasks = fleet.tasks_of(found, chosen, base, ssh, port)
    without = next((task.name for task in tasks if order.offline and not task.wanted.wheels), None)
    if without:
        raise ConfigError(f"{without}: --offline needs --wheelhouse DIR, or wheelhouse = 'DIR' in {order.inventory}")
    run = _run_of(order.report, base) if order.report else None
    with fleet.with_one_wheel(tasks) as ready, watching([task.name for task in ready], base.dry_run) as watcher:
        outcomes = fleet.deploy_all(ready, watcher, order.at_once)
    if base.dry_run:
        say("nothing was changed")
    else:
        document = _write(order, base, outcomes, list(found.boards))
        if order.as_json:
            print_json(document)
        else:
            _print(outcomes, order.out)
        _merge(document, run, outcomes.interrupted)
    _complain(outcomes)


def _run_of(folder: Path, base: Wanted) -> Run:
    """The run that the report is about. Raises ConfigError when the file is none of its."""
    from edgeclf.core.files import sha256
    from edgeclf.host.run import open_run

    need_training("report")
    run = open_run(folder)
    if sha256(base.file) not in [sha256(path) for path in run.exports()]:
        raise ConfigError(f"--report {folder}: {base.file.name} is no file of this run")
    if not base.measure:
        raise ConfigError("--report needs what bench measures there; leave --no-measure out")
    return run


def _write(order: Order, base: Wanted, outcomes: Outcomes, known: Sequence[str]) -> dict[str, Any]:
    """The figures of all boards in one file, each board's device report beside it; boards that were not asked keep theirs."""
    from edgeclf.cli.deploy_figures import report_beside
    from edgeclf.core.files import sha256, write_json
    from edgeclf.host.deploy.deploy import fit_for_a_name

    digest = sha256(base.file)
    boards = {name: entry for name, entry in _before(order.out, digest).items() if name in known}
    for outcome in outcomes.boards:
        entry = outcome.to_json()
        if outcome.deployed and outcome.deployed.bench:
            path = report_beside(order.out, fit_for_a_name(outcome.name))
            write_json(path, outcome.deployed.bench)
            entry["device_report"] = str(path)
        boards[outcome.name] = entry
    document = {"file": str(base.file), "sha256": digest, "inventory": str(order.inventory), "boards": boards}
    write_json(order.out, document)
    return document


def _before(path: Path, digest: str) -> dict[str, Any]:
    """What an earlier deploy of the same file wrote of its boards."""
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(found, dict) and found.get("sha256") == digest and isinstance(found.get("boards"), dict)
    return dict(found["boards"]) if same else {}


def _merge(document: dict[str, Any], run: Run | None, interrupted: bool) -> None:
    """One report of the run with every board that was measured, or the command that makes it."""
    from edgeclf.cli.deploy_figures import report_command

    reports = [Path(entry["device_report"]) for entry in document["boards"].values() if "device_report" in entry]
    if not reports or interrupted:
        return
    if run is None:
        command = report_command(Path(document["file"]), reports)
        say(f"all boards in one report, beside the full model's figures: {command}")
        return
    from edgeclf.host.report.report import HTML, make_report

    make_report(run, bar=progress, add=reports)
    say(f"report: {run.folder / HTML}")


def _print(outcomes: Outcomes, figures: Path) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edgeclf.cli.deploy_figures import frame_ms

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("board", overflow="fold")
    table.add_column("result")
    for head in ("frame to label, ms", "p99, ms", "took, s"):
        table.add_column(head, justify="right")
    for outcome in outcomes.boards:
        p50, p99 = frame_ms(outcome.deployed.bench if outcome.deployed else None)
        cells = outcome.name, outcome.result, p50, p99, f"{outcome.seconds:.1f}"
        table.add_row(*(Text(cell) for cell in cells))
    console().print(table)
    for outcome in outcomes.failed:
        print(f"{outcome.name}: {_in_words(outcome)}")
    print(f"figures in {figures}")


def _complain(outcomes: Outcomes) -> None:
    """Ctrl-C or the boards that failed, with the command that tries those again."""
    failed = outcomes.failed
    if failed:
        say(f"only those again: {again(sys.argv[1:], [outcome.name for outcome in failed])}")
    if outcomes.interrupted:
        raise KeyboardInterrupt
    if failed:
        names = ", ".join(outcome.name for outcome in failed)
        raise BoardError(f"{len(failed)} of {len(outcomes.boards)} boards failed: {names}")


def again(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The command of those arguments with only these boards."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--only":
            next(words, None)
        elif not word.startswith("--only="):
            kept.append(word)
    return shlex.join(["edgeclf", *kept, "--only", ",".join(names)])


class Lines:
    """For a pipe or a log: every step and every result is a line that begins with the board's name."""

    def at(self, name: str, what: str) -> None:
        """What a board does now is not told, only what it did."""

    def step(self, name: str, what: str, seconds: float) -> None:
        first, *more = what.splitlines()
        self.tell("\n".join([f"{name}: {seconds:6.1f} s  {first}", *(f"{name}: {line}" for line in more)]))

    def warn(self, name: str, message: str) -> None:
        self.tell(f"{name}: warning: {message}")

    def ended(self, outcome: Outcome) -> None:
        self.tell(f"{outcome.name}: {_in_words(outcome)}")

    def tell(self, line: str) -> None:
        say(line)


class Rows(Lines):
    """For a terminal: a row for each board at work with what it does now, above them a line for each that ended."""

    def __init__(self, shown: Progress, total: int) -> None:
        self._shown, self._lock = shown, threading.Lock()
        self._rows: dict[str, TaskID] = {}
        self._all = shown.add_task("", board="boards", total=total)
        self._ended = self._failed = 0
        self._count()

    def at(self, name: str, what: str) -> None:
        with self._lock:
            if name in self._rows:
                self._shown.update(self._rows[name], description=what)
            else:
                self._rows[name] = self._shown.add_task(what, board=name, total=None)

    def step(self, name: str, what: str, seconds: float) -> None:
        self.at(name, what.splitlines()[0])

    def ended(self, outcome: Outcome) -> None:
        with self._lock:
            if outcome.name in self._rows:
                self._shown.remove_task(self._rows.pop(outcome.name))
            self._ended += 1
            self._failed += outcome.deployed is None
        self._count()
        super().ended(outcome)

    def _count(self) -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        what = f"{self._ended} of {self._shown.tasks[0].total:.0f} ended{failed}"
        self._shown.update(self._all, completed=self._ended, description=what)

    def tell(self, line: str) -> None:
        self._shown.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _in_words(outcome: Outcome) -> str:
    if outcome.deployed is None:
        return f"{outcome.result}: {outcome.error}"
    return f"done in {outcome.seconds:.1f} s, release {outcome.deployed.release} {outcome.result}"


@contextlib.contextmanager
def watching(names: Sequence[str], plain: bool) -> Iterator[Watcher]:
    """Rows on a terminal, lines elsewhere and where `plain` asks for them."""
    if plain or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.fields[board]}", markup=False), TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield Rows(shown, len(names))
