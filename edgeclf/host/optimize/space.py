"""What `optimize` may make of a run: networks to compress it to, the files to make of each, and every point among them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from edgeclf.core.recipe import CompressionSection
from edgeclf.host.compress.compression import suffix
from edgeclf.host.export.activations import ESTIMATORS
from edgeclf.host.export.quantize import CALIBRATED, MIXED, VARIANTS

Training = Literal["qat", "channels", "sparsity", "clustering"]
TRAININGS: tuple[Training, ...] = get_args(Training)
CHANNELS = 0.0, 0.25, 0.5, 0.75  # shares of the multiply-accumulates that leave with whole channels
SPARSITIES = 0.0, 0.5, 0.8
CLUSTERS = 0, 16, 64  # values that each kernel keeps
KEPT = 1, 2, 4, 8  # layers of a mixed file in floats
TREATMENTS = "plain", "corrected", "equalised"
SPARSE = "float16-sparse"  # where half the weights or more may be zero
TRAINED = "trained"  # ranges that quantisation-aware training found
_TREATED = {"corrected": ", biases corrected", "equalised": ", layers equalised and biases corrected"}

Value: TypeAlias = float | int | str | bool
Choose: TypeAlias = Callable[[str, tuple[Value, ...]], Any]
"""`choose(name, values)` gives one of the values."""


@dataclass(frozen=True)
class Network:
    """What is done to the network before files are made of it, as `[compression]` names it; nothing is the run's own."""

    prune_channels: float = 0.0
    prune: float = 0.0
    cluster: int = 0
    qat: bool = False

    @property
    def name(self) -> str:
        """`channels50-qat`; empty for the run's own."""
        return suffix(self.section(CompressionSection()))

    def section(self, base: CompressionSection) -> CompressionSection:
        """`base`, which says how steps are trained, with what this network wants."""
        return replace(base, **asdict(self))


@dataclass(frozen=True)
class Configuration:
    """One file that can be made. `ranges` is an estimator or `trained`, `kept` the number of layers in floats.

    Fields that a variant does not know are empty.
    """

    variant: str
    ranges: str = ""
    treatment: str = ""
    kept: int = 0
    network: Network = Network()

    @property
    def name(self) -> str:
        """In words, as the guard of `export` names its ways."""
        found = self.variant
        if self.variant in ("int8", MIXED):
            found += f", {self.ranges} ranges{_TREATED.get(self.treatment, '')}"
        if self.kept:
            found += f", {self.kept} layer{'s' if self.kept > 1 else ''} in floats"
        return f"{self.network.name}: {found}" if self.network.name else found

    @property
    def label(self) -> str:
        """A few letters for a figure."""
        parts = self.network.name, self.variant, self.ranges, self.treatment.replace("plain", ""), f"{self.kept or ''}"
        return " ".join(part for part in parts if part)


def configurations(
    train: Collection[str] = (), trained: bool = False, pruned: bool = False
) -> dict[Configuration, dict[str, Value]]:
    """Every point of the space, the simplest first, with the choices that lead to it."""
    found, paths = dict[Configuration, dict[str, Value]](), [list[Value]()]
    while paths:
        point, choices = _follow(paths.pop(), paths, train, trained, pruned)
        found[point] = choices
    return found


def _follow(
    path: list[Value], paths: list[list[Value]], train: Collection[str], trained: bool, pruned: bool
) -> tuple[Configuration, dict[str, Value]]:
    """The point at the end of a path of choices, its first values taken where the path is too short; others go to `paths`."""
    made = dict[str, Value]()

    def choose(name: str, values: tuple[Value, ...]) -> Value:
        if len(made) < len(path):
            made[name] = path[len(made)]
        else:
            paths.extend([*made.values(), other] for other in reversed(values[1:]))
            made[name] = values[0]
        return made[name]

    return configuration(choose, train, trained, pruned), made


def configuration(choose: Choose, train: Collection[str] = (), trained: bool = False, pruned: bool = False) -> Configuration:
    """The point that `choose` leads to. `train` names what may be trained; `trained`: the run itself has trained ranges.

    What was trained for int8 keeps its ranges; they fit no equalised layers. Where weights were pruned, here or (`pruned`) in
    the run itself, a sparse file can be made too.
    """
    network = Network(
        choose("channels", CHANNELS) if "channels" in train else 0.0,
        choose("sparsity", SPARSITIES) if "sparsity" in train else 0.0,
        choose("clusters", CLUSTERS) if "clustering" in train else 0,
        choose("qat", (False, True)) if "qat" in train else False,
    )
    rounded = network.qat or (trained and not network.name)
    if network.prune or pruned:
        variant = choose("variant of pruned weights", (*VARIANTS, MIXED, SPARSE))
    else:
        variant = choose("variant", (*VARIANTS, MIXED))
    if variant not in ("int8", MIXED):
        return Configuration(variant, ("robust" if not rounded else TRAINED) if variant in CALIBRATED else "", network=network)
    ranges = TRAINED if rounded else choose("ranges", ESTIMATORS)
    if variant == MIXED:
        return Configuration(variant, ranges, kept=choose("kept", KEPT), network=network)
    treatment = choose("treatment of trained ranges", TREATMENTS[:2]) if rounded else choose("treatment", TREATMENTS)
    return Configuration(variant, ranges, treatment, network=network)
