"""GPIO: a pin that is high while the lasting answer of any live source is one of some labels; by gpiozero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.runtime.events import Event, Seen, SourceChanged
from edgeclf.runtime.sinks.telling import Complaints

GONE = ("reconnecting", "ended")  # states in which the last answer says nothing of what is there now


class GpioPin:
    """A writer that sets the pin: low at the start and, with the pin released, at the end.

    It has a thread of its own like the others, for some ways to the pins go through a server.
    """

    def __init__(self, pin: Any, labels: Collection[str], warn: Callable[[str], None]) -> None:
        """`pin` has on(), off() and close(); it is low."""
        self.lost = 0
        self._pin, self._labels, self._complaints = pin, frozenset(labels), Complaints(warn)
        self._sources: frozenset[str] = frozenset()  # those whose answer is one of the labels

    def is_due(self, event: Event) -> bool:
        """Whether the pin is to change; asked by the loop for every event."""
        if isinstance(event, Seen):
            high = event.decision.stable in self._labels
        elif isinstance(event, SourceChanged) and event.state in GONE:
            high = False
        else:
            return False
        if high == (event.source in self._sources):
            return False
        before = bool(self._sources)
        self._sources = self._sources | {event.source} if high else self._sources - {event.source}
        return before != bool(self._sources)

    def write(self, events: Sequence[Event]) -> None:
        self._do(self._pin.on if self._sources else self._pin.off)

    def close(self) -> None:
        self._do(self._pin.off)
        self._do(self._pin.close)

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # each way to the pins has errors of its own
            self.lost += 1
            self._complaints.say("trouble", f"gpio: the pin cannot be set: {error}")
        else:
            self._complaints.well()


def open_pin(number: int) -> Any:
    """The pin, low. Raises ConfigError when there is none such or it is in use, MissingExtra without gpiozero."""
    try:
        import gpiozero
    except ImportError as error:
        raise MissingExtra.for_extra("gpio", "--gpio needs gpiozero") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each way to the pins that is not installed
            return gpiozero.OutputDevice(number, initial_value=False)
    except gpiozero.BadPinFactory as error:
        raise ConfigError("--gpio: the pins of this machine cannot be reached; on a Raspberry Pi: pip install lgpio") from error
    except Exception as error:  # each way to the pins has errors of its own
        raise ConfigError(f"--gpio: pin {number} cannot be used: {error or type(error).__name__}") from error
