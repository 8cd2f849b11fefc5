"""Desk: classifies what people send, with a classifier of its own in a thread of its own, so that the loop is not slowed."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from edgeclf.core.errors import EdgeclfError, ModelError
from edgeclf.core.image import Pixels, prepare
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import INVALID, Rules, State, decide
from edgeclf.runtime.engine import Scores
from edgeclf.runtime.heatmap import overlay
from edgeclf.runtime.occlusion import occlude
from edgeclf.runtime.scoring import scorer
from edgeclf.runtime.web.pictures import jpeg, read_upload

WAITING = 4  # pictures that may wait for their turn
TOP = 5
LESS_URGENT = 5  # added to the nice value of the thread, where threads have one


class Busy(EdgeclfError):
    """As many pictures wait as may."""


class Closing(EdgeclfError):
    """The run ends, so what was begun is given up."""


class Desk:
    """`ask` from any thread; the answer comes as a Future of JSON."""

    def __init__(self, classifier: Classifier, rules: Rules) -> None:
        """The classifier is loaded again with the first picture, on one thread; the one given here is not used itself."""
        self._model = classifier
        self._rules = replace(rules, smooth=0.0, top=TOP)
        self._own: Classifier | None = None
        self._pool = ThreadPoolExecutor(1, "edgeclf-desk", initializer=give_way)
        self._room = threading.BoundedSemaphore(WAITING + 1)
        self._closing = threading.Event()

    def ask(self, data: bytes, explain: bool) -> Future[dict[str, Any]]:
        """Classify an encoded picture; `explain` adds an occlusion heatmap. Raises Busy when too many wait.

        The future raises DataError for a picture that cannot be read and ModelError when the model fails.
        """
        if not self._room.acquire(blocking=False):
            raise Busy("too many pictures are waiting to be classified; try again in a second")
        try:
            future = self._pool.submit(self._answer, data, explain)
        except RuntimeError as error:
            self._room.release()
            raise Closing("the run is ending") from error
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Give up what is waiting and, between two inferences, what is being worked on."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, data: bytes, explain: bool) -> dict[str, Any]:
        image = read_upload(data)
        if self._own is None:
            self._own = self._model.another(1)
        own = self._own
        scored = scorer(own)(image)
        _, decision = decide(State(), scored.probabilities, own.labels, self._rules, scored.energy)
        if decision.label == INVALID:
            raise ModelError("the model answered with scores that are not numbers")
        return {
            "label": decision.label,
            "score": round(decision.score, 5),
            "top": [{"label": label, "score": round(score, 5)} for label, score in decision.top],
            "width": image.shape[1],
            "height": image.shape[0],
            "resize_ms": round(scored.resize_s * 1000, 3),
            "invoke_ms": round(scored.invoke_s * 1000, 3),
            **(self._explained(own, image, decision.top[0][0]) if explain else {}),
        }

    def _explained(self, own: Classifier, image: Pixels, label: str) -> dict[str, Any]:
        found = occlude(
            lambda batch: self._one_by_one(own, batch),
            prepare(image, own.card.image),
            own.labels.index(label),
            own.card.temperature,
        )
        picture = base64.b64encode(jpeg(overlay(image, found.heat, own.card.image), 85)).decode("ascii")
        return {"explained": label, "heatmap": f"data:image/jpeg;base64,{picture}"}

    def _one_by_one(self, own: Classifier, batch: Pixels) -> Scores:
        """As the engine does it, but it can be given up in between."""
        answers = []
        for picture in batch:
            if self._closing.is_set():
                raise Closing("the run is ending")
            answers.append(own.engine.infer(picture[None])[0])
        return np.asarray(answers)


def give_way() -> None:
    """Make this thread less urgent than those of the loop; only Linux gives threads nice values of their own."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + LESS_URGENT))
