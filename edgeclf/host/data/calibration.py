"""Calibration pictures: which training pictures set the ranges of an int8 file, drawn by class, streamed, and listed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import DataError
from edgeclf.core.image import Pixels
from edgeclf.host.data.dataset import Dataset

BATCH = 10  # pictures read at once: they lie far apart, and each maps more of its shard than itself

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Training pictures by catalogue index, sorted; `seed` drew them."""

    dataset: Dataset
    indices: Indices
    seed: int

    def batches(self, progress: Callable[[int, int], None] | None = None) -> Iterator[Pixels]:
        """The pictures, read as they are asked for: uint8 (up to 10, height, width, channels)."""
        for first in range(0, len(self.indices), BATCH):
            chosen = self.indices[first : first + BATCH]
            yield self.dataset.shards.take(chosen)
            self.dataset.shards.release()
            if progress:
                progress(first + len(chosen), len(self.indices))

    def manifest(self) -> dict[str, Any]:
        """What the model card says of them: `indices` counts in the catalogue's order, `names_sha256` is over the names."""
        catalogue = self.dataset.catalogue
        counts = np.bincount(catalogue.classes[self.indices], minlength=len(catalogue.labels))
        names = "\n".join(catalogue.names[i] for i in self.indices)
        return {
            "part": "train",
            "pictures": len(self.indices),
            "per_class": dict(zip(catalogue.labels, counts.tolist(), strict=True)),
            "seed": self.seed,
            "indices": " ".join(map(str, self.indices.tolist())),
            "names_sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        }


def draw(dataset: Dataset, count: int, seed: int, part: str = "train") -> CalibrationSet:
    """`count` pictures of the training part, each class by its share and with at least one; all of them when there are fewer.

    Raises DataError when another part is asked for: ranges that were set on held-out pictures flatter the accuracy on them.
    """
    if part != "train":
        raise DataError(f"calibration pictures come from the training part; {part!r} is held out for measuring")
    pool = dataset.parts["train"]
    held_out = np.concatenate([dataset.parts["val"], dataset.parts["test"]])
    if np.intersect1d(pool, held_out).size:
        raise DataError("some training pictures are held out too; the split is damaged, so train again")
    classes, random = dataset.catalogue.classes[pool], np.random.RandomState(seed)
    quotas = shares(np.bincount(classes, minlength=len(dataset.labels)), count)
    chosen = [random.permutation(pool[classes == i])[:quota] for i, quota in enumerate(quotas)]
    return CalibrationSet(dataset, np.sort(np.concatenate(chosen)), seed)


def shares(members: npt.NDArray[np.integer[Any]], count: int) -> list[int]:
    """`count` dealt out in proportion to `members` (classes,) by largest remainder; at least 1 where there is one.

    The sum exceeds `count` only when there are more classes than that.
    """
    if count >= members.sum():
        return [int(m) for m in members]
    exact = members * (count / members.sum())
    dealt = np.minimum(members, np.maximum(1, np.floor(exact).astype(np.int64)))
    for i in np.argsort(-(exact - dealt), kind="stable"):
        if dealt.sum() < count and dealt[i] < members[i]:
            dealt[i] += 1
    return [int(d) for d in dealt]
