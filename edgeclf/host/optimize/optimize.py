"""Optimize: a trained run in, the best file for a board out: many are made, measured on validation pictures, and one chosen.

Only the chosen file meets the test part, through the gates of `host.export.export`. The folder of a search keeps what was
measured: the same search with other limits or another board measures no file again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from edgeclf.core import files
from edgeclf.core.card import Io
from edgeclf.core.errors import ConfigError, EdgeclfError, MissingExtra, ModelError, QualityError, StorageError
from edgeclf.core.progress import Bar, no_bar
from edgeclf.host.export.export import Exported, need_tflite
from edgeclf.host.optimize import choice as optimize_choice
from edgeclf.host.optimize import cost as optimize_cost
from edgeclf.host.optimize import trial as optimize_trial
from edgeclf.host.optimize.choice import Choice, Entrant, Limits
from edgeclf.host.optimize.cost import Board, Costs
from edgeclf.host.optimize.space import TRAININGS, Configuration, Network
from edgeclf.host.optimize.study import Study, Trial, open_study
from edgeclf.host.optimize.trial import Bench
from edgeclf.host.quiet import hushed
from edgeclf.host.report import timing
from edgeclf.host.run import CARD, MODEL, Run, sha256_of
from edgeclf.host.train.checkpoint import OnEpoch
from edgeclf.host.train.fitting import Listeners
from edgeclf.host.tune import settled
from edgeclf.host.tune.study import Asked, optuna

if TYPE_CHECKING:
    from edgeclf.host.ray_workers import Workers

VERB = "optimize"
NETWORKS, STRUCTURES = "networks", "structures"  # folders of a search
USUAL_TRIALS = 40  # where networks are trained; else every file that can be made
OPEN = 4  # networks that are kept ready at once

OnTrial: TypeAlias = Callable[[Trial, int], None]


@dataclass(frozen=True)
class Watch:
    """Who hears of a search: each trial with the number of trials in all, each network before it is trained, each epoch."""

    on_trial: OnTrial = lambda trial, trials: None
    on_network: Callable[[Network], None] = lambda network: None
    on_epoch: OnEpoch | None = None
    bar: Bar = no_bar


@dataclass(frozen=True, eq=False)
class Search:
    """A search as it was started: `folder` is its own, `out` that of the winner; `train` names what may be trained."""

    run: Run
    folder: Path
    out: Path
    train: tuple[str, ...]
    epochs: int | None
    io: Io
    settings: dict[str, Any]

    def folder_of(self, network: Network) -> Path:
        """Where the compressed run of that network lies."""
        return self.folder / NETWORKS / network.name

    def network(self, network: Network, watch: Watch) -> Run:
        """The run of a network, trained when it is not there yet."""
        if not network.name:
            return self.run
        if not (self.folder_of(network) / CARD).is_file():
            watch.on_network(network)
        with watch.bar(f"training {network.name}") as report:
            listeners = Listeners(watch.on_epoch, report)
            return optimize_trial.compressed(self.run, network, self.folder / NETWORKS, self.epochs, listeners)


@dataclass(frozen=True, eq=False)
class Optimized:
    """What was found. `front` are numbers of `entrants`; `refused` says which winners export's gates would not write.

    `choice` and `exported` are None when no file holds the limits.
    """

    search: Search
    limits: Limits
    board: Board
    costs: Costs
    trials: tuple[Trial, ...]
    entrants: tuple[Entrant, ...]
    front: frozenset[int]
    choice: Choice | None
    exported: Exported | None
    refused: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why this file, or why none."""
        if self.choice:
            return _reason(self.choice, self.entrants, self.limits, self.board)
        if self.refused:
            return f"no file was written: {'; '.join(self.refused)}"
        return optimize_choice.refusal(self.entrants, self.limits)

    @property
    def file(self) -> Exported:
        """The winner. Raises QualityError, in one line that names what is nearest, when there is none."""
        if self.exported is None:
            raise QualityError(f"{self.reason}; all that was measured: {self.search.folder}")
        return self.exported


def start(run: Run, train: Sequence[str] = (), epochs: int | None = None, io: Io = "uint8", out: Path | None = None) -> Search:
    """Plan a search; where its folder holds the same one already, to go on with it.

    The folder is `optimize` in the run folder, with what is trained in its name, or `out`, where the winner then lies too.
    `epochs` are of every step of a training. Raises ConfigError for what cannot be searched or a folder that holds something
    else, MissingExtra without Optuna, ModelError when the network is gone.
    """
    optuna(VERB)
    need_tflite(run)
    unknown = [name for name in train if name not in TRAININGS]
    if unknown:
        raise ConfigError(f"--train {unknown[0]}: expected one of: {', '.join(TRAININGS)}")
    if train and run.model_file.name != MODEL:
        raise ConfigError(
            f"--train {train[0]}: {run.folder} was imported without a Keras network, so nothing of it can be trained"
        )
    if epochs is not None and not train:
        raise ConfigError(f"--epochs {epochs}: is about what --train trains; give --train too, or leave it out")
    if io not in get_args(Io):
        raise ConfigError(f"io {io!r}: expected one of: {', '.join(get_args(Io))}")
    chosen = tuple(name for name in TRAININGS if name in train)
    settings = {
        "verb": VERB, "network": sha256_of(run.model_file), "data": Path(run.data).name,
        "fingerprint": run.card.provenance.get("fingerprint", ""), "train": list(chosen), "epochs": epochs, "io": io,
    }  # fmt: skip
    folder = out or run.folder / "-".join((VERB, *chosen))
    settled.check(folder, settings)
    return Search(run, folder, out or run.folder, chosen, epochs, io, settings)


def optimize(
    search: Search,
    limits: Limits | None = None,
    board: Board | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    rounds: int = timing.ROUNDS,
    watch: Watch | None = None,
    workers: Workers | None = None,
) -> Optimized:
    """Go on until there are `trials` trials in all, or `minutes` are over and the last is done; then choose, export and write.

    Default: every file that can be made or, with training, 40. Trials are seeded by their number, and none is made twice; one
    that Ctrl-C cut short counts for nothing. With `workers`, networks are trained and files made and scored side by side on
    Ray (`host.optimize.ray_optimize`), and latency is measured here while no worker is at work. Raises EdgeclfError when no
    file can be made.
    """
    limits, board, watch = limits or Limits(), board or optimize_cost.board(None), watch or Watch()
    with files.locked(search.folder), hushed("tensorflow"):
        settled.settle(search.folder, search.settings)
        benches = _Benches(search, watch)
        found = _search(search, benches, trials, minutes, watch, workers)
        done = [trial for trial in found if trial.state == "done"]
        if not done:
            raise EdgeclfError(f"{search.folder}: no file could be made{f'; the last: {found[-1].reason}' if found else ''}")
        return _judged(search, benches, found, limits, board, rounds, watch)


class _Benches:
    """Networks that are ready to be made files of: the run's own, and the last few that were asked for."""

    def __init__(self, search: Search, watch: Watch) -> None:
        self.own = optimize_trial.open_bench(search.run, search.io, watch.bar)
        self.float32 = self.own.float32()
        self.failed: dict[Network, EdgeclfError] = {}
        self._open = functools.lru_cache(OPEN)(
            lambda network: optimize_trial.open_bench(search.network(network, watch), search.io, watch.bar)
        )

    def of(self, network: Network) -> Bench:
        """Trains what was not trained yet. What failed before fails again at once."""
        if not network.name:
            return self.own
        if network in self.failed:
            raise self.failed[network]
        try:
            return self._open(network)
        except (StorageError, MissingExtra):
            raise
        except EdgeclfError as error:
            self.failed[network] = error
            raise


@dataclass(frozen=True, eq=False)
class Session:
    """A search under way: its trials so far, how many there shall be, and relative times that are known, by structure."""

    search: Search
    study: Study
    benches: _Benches
    watch: Watch
    found: list[Trial]
    wanted: int
    deadline: float | None
    known: dict[str, float] = field(default_factory=dict)

    def ask(self, most: int = 1) -> list[Asked[Configuration]]:
        """Up to so many files to make next, all different; none when the search is over."""
        asked: list[Asked[Configuration]] = []
        while len(asked) < min(most, self.wanted - len(self.found)) and not self._out_of_time:
            taken = {trial.configuration for trial in self.found} | {other.proposal for other in asked}
            another = self.study.ask(len(self.found) + len(asked) + 1, taken)
            if another is None:
                break
            asked.append(another)
        return asked

    @property
    def _out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def tell(self, asked: Asked[Configuration], trial: Trial) -> None:
        """Keep what came of it, and let others hear."""
        self.study.tell(asked, trial)
        self.found.append(trial)
        self.watch.on_trial(trial, self.wanted)


def _search(
    search: Search, benches: _Benches, trials: int | None, minutes: float | None, watch: Watch, workers: Workers | None
) -> list[Trial]:
    deadline = None if minutes is None else time.monotonic() + minutes * 60
    run = search.run
    with open_study(search.folder, search.train, run.trained_for_int8, _pruned(run), run.recipe.training.seed) as study:
        found = study.trials()
        usual = USUAL_TRIALS if search.train else len(study.points)
        known = {trial.structure: trial.relative_time for trial in found if trial.structure}
        session = Session(search, study, benches, watch, found, min(trials or usual, len(study.points)), deadline, known)
        if workers is None:
            _in_turn(session)
        else:
            from edgeclf.host.optimize import ray_optimize

            ray_optimize.side_by_side(session, workers)
    return found


def _pruned(run: Run) -> bool:
    """Whether its weights were pruned when it was compressed."""
    section = run.recipe.compression
    return "compressed_from" in run.card.provenance and bool(section.prune or section.prune_2_4)


def _in_turn(session: Session) -> None:
    """One file after the other, in this process."""
    while batch := session.ask():
        (asked,) = batch
        try:
            trial = _attempt(asked, session)
        except BaseException:
            session.study.drop(asked)
            raise
        session.tell(asked, trial)


def _attempt(asked: Asked[Configuration], session: Session) -> Trial:
    began, wanted, folder = time.monotonic(), asked.proposal, session.search.folder / STRUCTURES
    try:
        bench = session.benches.of(wanted.network)
        measured = optimize_trial.measure(bench, wanted, session.benches.float32, session.known, folder)
    except (StorageError, MissingExtra):
        raise
    except EdgeclfError as error:
        return failed(asked, error, time.monotonic() - began)
    return Trial(asked.number, "done", wanted, round(time.monotonic() - began, 1), **vars(measured))


def failed(asked: Asked[Configuration], error: EdgeclfError, seconds: float) -> Trial:
    """A file that could not be made."""
    return Trial(asked.number, "failed", asked.proposal, round(seconds, 1), reason=" ".join(str(error).split()))


def _judged(
    search: Search, benches: _Benches, found: Sequence[Trial], limits: Limits, board: Board, rounds: int, watch: Watch
) -> Optimized:
    """Time and count, choose, export the winner, and write what was found."""
    from edgeclf.host.optimize import files as optimize_files

    data = benches.own.setting.dataset
    structures = list(dict.fromkeys(trial.structure for trial in found if trial.structure))
    picture = data.shards.take(data.parts["val"][:1])
    costs = optimize_cost.measure(search.folder / STRUCTURES, structures, board, picture, rounds, watch.bar)
    entrants = tuple(_entrant(trial, costs, board) for trial in found if trial.state == "done")
    running = [e for e in entrants if not board.counted or e.instructions is not None]
    if not running:
        raise ModelError(f"no file could be counted on the emulated {board.title}; leave --device out, or build it again")
    optimized = Optimized(
        search, limits, board, costs, tuple(found), entrants, frozenset(optimize_choice.front(running)), None, None
    )
    optimized = _exported(optimized, [e for e in running if optimize_choice.holds(e, limits)], benches, watch.bar)
    optimize_files.write(optimized)
    return optimized


def _entrant(trial: Trial, costs: Costs, board: Board) -> Entrant:
    if trial.drop is None:
        raise ValueError(f"trial {trial.number} was not measured")
    instructions = costs.instructions(trial.structure, board)
    return Entrant(
        trial.number, trial.configuration, trial.drop, trial.file_bytes, trial.gzip_bytes,
        costs.timings[trial.structure], instructions,
    )  # fmt: skip


def _exported(found: Optimized, holding: list[Entrant], benches: _Benches, bar: Bar) -> Optimized:
    """With the winner written; where export's gates refuse it, with the next one."""
    refused: list[str] = []
    while choice := optimize_choice.choose(holding):
        try:
            return replace(found, choice=choice, exported=_export(found, choice, benches, bar), refused=tuple(refused))
        except (QualityError, ModelError) as error:
            refused.append(f"{choice.winner.configuration.name}: {error}")
            holding = [entrant for entrant in holding if entrant is not choice.winner]
    return replace(found, refused=tuple(refused))


def _export(found: Optimized, choice: Choice, benches: _Benches, bar: Bar) -> Exported:
    search, configuration = found.search, choice.winner.configuration
    bench = benches.of(configuration.network)
    candidate = bench.candidate(configuration, {VERB: _record(found, choice)})
    path = search.out / f"{search.run.name}-optimized-{candidate.card.variant}.tflite"
    return bench.finish(candidate, path, found.limits.file_bytes, bar)


def _record(found: Optimized, choice: Choice) -> dict[str, Any]:
    """What the model card says of the search. `created` is that of the run's card, which a compressed network does not have."""
    drop = choice.winner.drop
    return {
        "created": found.search.run.card.provenance.get("created", ""),
        "limits": found.limits.to_json(), "device": found.board.name, "considered": len(found.entrants),
        "holding": choice.holding, "reason": _reason(choice, found.entrants, found.limits, found.board),
        "part": "val", "drop": drop.drop, "drop_low": drop.interval.low, "drop_high": drop.interval.high,
    }  # fmt: skip


def _reason(choice: Choice, entrants: Sequence[Entrant], limits: Limits, board: Board) -> str:
    return optimize_choice.reason(choice, len(entrants), limits, board.ranked_on)
