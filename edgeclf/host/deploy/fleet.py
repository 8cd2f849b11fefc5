"""A classifier on many boards: each by a deploy of its own, so many at once; one that fails leaves the others alone."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from edgeclf.core.errors import EXIT_UNFORESEEN, BoardError, ConfigError, EdgeclfError, StorageError
from edgeclf.core.inventory import BoardEntry, Inventory
from edgeclf.core.live_settings import read_settings
from edgeclf.core.progress import Report
from edgeclf.core.text import redacted
from edgeclf.host.deploy import settings as deploy_settings
from edgeclf.host.deploy import unit as deploy_unit
from edgeclf.host.deploy import wheelhouse
from edgeclf.host.deploy.deploy import Deploy, Deployed, Wanted
from edgeclf.host.deploy.ssh import Address, Children, connected
from edgeclf.host.deploy.wheel import own_wheel

AT_ONCE = 4
INTERRUPTED = "interrupted before it was done"


@dataclass(frozen=True)
class Task:
    """One board: its name in the inventory, how ssh reaches it, and what it is to get."""

    name: str
    address: Address
    wanted: Wanted


@dataclass(frozen=True)
class Outcome:
    """What became of a board after `seconds`: `deployed`, or the reason in one line and the exit code that stands for it."""

    name: str
    seconds: float
    deployed: Deployed | None = None
    error: str = ""
    exit_code: int = 0

    @property
    def result(self) -> str:
        """For a table."""
        if self.deployed is None:
            return "not done" if self.error == INTERRUPTED else "failed"
        return self.deployed.state

    def to_json(self) -> dict[str, Any]:
        """For the file with the figures."""
        head = {"deployed": self.deployed is not None, "seconds": round(self.seconds, 1)}
        if self.deployed is None:
            return {**head, "error": self.error, "exit_code": self.exit_code}
        return {**head, **self.deployed.to_json()}


@dataclass(frozen=True)
class Outcomes:
    """Of every board that was asked for, in the inventory's order; `interrupted` when Ctrl-C ended the work."""

    boards: tuple[Outcome, ...]
    interrupted: bool = False

    @property
    def failed(self) -> list[Outcome]:
        """Those that are to be tried again."""
        return [outcome for outcome in self.boards if outcome.deployed is None]


class Watcher(Protocol):
    """Who is told, from several threads: `at` is what a board does now, `step` what it did and the seconds that took."""

    def at(self, name: str, what: str) -> None: ...

    def step(self, name: str, what: str, seconds: float) -> None: ...

    def warn(self, name: str, message: str) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


def tasks_of(
    inventory: Inventory, boards: dict[str, BoardEntry], base: Wanted, ssh: tuple[str, ...] = ("ssh",), port: int | None = None
) -> list[Task]:
    """What each board gets: what its entry says, else `base`; reached by `ssh` with the entry's options, at its port or `port`.

    Raises ConfigError, naming the board, for what cannot be used, before any board is asked.
    """
    folder = inventory.path.parent
    settings, house = cache(read_settings), cache(wheelhouse.read)
    tasks = []
    for name, board in boards.items():
        try:
            config_file = folder / board.config if board.config else base.config_file
            wanted = replace(
                base,
                config_file=config_file,
                settings=settings(config_file) if config_file else base.settings,
                wheels=house(folder / board.wheelhouse) if board.wheelhouse else base.wheels,
                service=base.service if board.service is None else board.service,
                secrets=folder / board.secrets if board.secrets else base.secrets,
                profile=wheelhouse.profile_of(board.profile) if board.profile else base.profile,
                extras=wheelhouse.checked_extras((*base.extras, *board.extras)),
                python=board.python or base.python,
            )
            if board.secrets:
                if not wanted.service:
                    raise ConfigError("secrets are for the service; add: service = true")
                deploy_unit.check_secrets(folder / board.secrets)
            if wanted.python.startswith("-"):
                raise ConfigError(f"python = {wanted.python}: expected the name or path of an interpreter")
            deploy_settings.second_model(wanted.settings, config_file, wanted.file)
            address = Address(board.target, board.port or port, (*ssh, *board.ssh_options))
        except ConfigError as error:
            raise ConfigError(f"{inventory.path}: {name}: {error}") from error
        tasks.append(Task(name, address, wanted))
    return tasks


@contextlib.contextmanager
def with_one_wheel(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """The tasks with edgeclf's own wheel, which is made once for all that bring none. Raises EdgeclfError."""
    with tempfile.TemporaryDirectory(prefix="edgeclf-") as made:
        own = cache(lambda: own_wheel(Path(made)))
        yield [
            task if task.wanted.wheel or task.wanted.wheels else replace(task, wanted=replace(task.wanted, wheel=own()))
            for task in tasks
        ]


def deploy_all(
    tasks: Sequence[Task],
    watcher: Watcher,
    at_once: int = AT_ONCE,
    deploy: Callable[[Task, Watcher, Children], Deployed] | None = None,
) -> Outcomes:
    """Deploy to every board, `at_once` of them side by side, to the end of all of them.

    Ctrl-C (KeyboardInterrupt) ends the ssh processes, waits for their threads and returns what was done until then. `deploy`
    does one board; it is this module's own when None.
    """
    children, one = Children(), deploy or _deploy
    with ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="deploy") as pool:
        running = [pool.submit(_outcome, one, task, watcher, children) for task in tasks]
        try:
            wait(running)
        except KeyboardInterrupt:
            children.end()
            pool.shutdown(wait=True, cancel_futures=True)
    ended = (
        Outcome(task.name, 0.0, error=INTERRUPTED, exit_code=BoardError.exit_code) if work.cancelled() else work.result()
        for task, work in zip(tasks, running, strict=True)
    )
    return Outcomes(tuple(ended), children.ended)


def _outcome(one: Callable[[Task, Watcher, Children], Deployed], task: Task, watcher: Watcher, children: Children) -> Outcome:
    since = time.monotonic()

    def ended(deployed: Deployed | None = None, error: str = "", exit_code: int = 0) -> Outcome:
        stopped = deployed is None and children.ended
        outcome = Outcome(task.name, time.monotonic() - since, deployed, INTERRUPTED if stopped else error, exit_code)
        watcher.ended(outcome)
        return outcome

    try:
        return ended(one(task, watcher, children))
    except EdgeclfError as error:
        return ended(error=_reason(task, str(error)), exit_code=error.exit_code)
    except OSError as error:
        return ended(
            error=_reason(task, f"{error.filename or 'here'}: {error.strerror or error}"), exit_code=StorageError.exit_code
        )
    except Exception as error:  # of one board; the others go on
        return ended(error=f"unforeseen {type(error).__name__}: {error}", exit_code=EXIT_UNFORESEEN)


def _reason(task: Task, message: str) -> str:
    """The message as one line, without the board's name in front."""
    line = redacted(" ".join(message.split()))
    return line.removeprefix(f"{task.name}: ").removeprefix(f"{task.address.target}: ")


def _deploy(task: Task, watcher: Watcher, children: Children) -> Deployed:
    @contextlib.contextmanager
    def bar(description: str) -> Iterator[Report]:
        yield lambda done, total: watcher.at(task.name, f"{description}, {done} of {total}")

    def tell(what: str, seconds: float) -> None:
        watcher.step(task.name, what, seconds)

    watcher.at(task.name, "connecting")
    with connected(task.address, children) as remote:
        return Deploy(remote, task.name, task.wanted, tell, bar, lambda message: watcher.warn(task.name, message)).run()
