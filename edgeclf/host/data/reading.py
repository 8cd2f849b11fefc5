"""Pictures of a catalogue read once, on all cores, and prepared for every size that is asked for; memory stays flat."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgeclf.core.catalogue import Catalogue, reader
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec, Pixels, prepare
from edgeclf.host.data.shards.records import records_of
from edgeclf.runtime.engine import cores

TASKS_EACH = 4  # of one batch for each worker, so that all end together


def prepared_for(catalogue: Catalogue, spec: ImageSpec) -> Catalogue:
    """`catalogue`. Raises DataError for shards of pictures that were prepared for a network of another size, fit or colour."""
    if records := records_of(catalogue):
        records.matching(spec)
    return catalogue


class Reading:
    """A context in which `take` gives prepared pictures; `refused` collects {index: reason} of the unreadable ones.

    Their rows are zeros. Raises DataError as `prepared_for` does.
    """

    def __init__(self, catalogue: Catalogue, specs: Collection[ImageSpec]) -> None:
        self.refused: dict[int, str] = {}
        self._catalogue, self._specs = catalogue, tuple(dict.fromkeys(specs))
        for spec in self._specs:
            prepared_for(catalogue, spec)
        self._local, self._pool = threading.local(), ThreadPoolExecutor(cores())

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, indices: npt.NDArray[np.int64]) -> dict[ImageSpec, Pixels]:
        """Pictures by index, in that order, for each spec: uint8 (len(indices), *spec.shape)."""
        out = {spec: np.zeros((len(indices), *spec.shape), np.uint8) for spec in self._specs}

        def work(rows: npt.NDArray[np.int64]) -> None:
            if not hasattr(self._local, "read"):
                self._local.read = reader(self._catalogue)
            for row in rows.tolist():
                try:
                    picture = self._local.read(int(indices[row]))
                    for spec, rows_of_spec in out.items():
                        rows_of_spec[row] = prepare(picture, spec)
                except DataError as error:
                    self.refused[int(indices[row])] = str(error)

        tasks = np.array_split(np.arange(len(indices)), min(max(1, len(indices)), cores() * TASKS_EACH))
        list(self._pool.map(work, tasks))
        return out
