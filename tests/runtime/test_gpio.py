"""GPIO: when the pin is high, with gpiozero's own mock of a board."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
from broker import wait_for

from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Event, Seen, SourceChanged, Stages
from edgeclf.runtime.sinks.gpio import GpioPin, open_pin
from edgeclf.runtime.sinks.telling import Selected

gpiozero = pytest.importorskip("gpiozero", reason="gpiozero is not installed")


def seen(stable: str, source: str = "cam") -> Seen:
    return Seen(0.0, source, 1, Decision(stable, 0.9, stable, False, ()), Stages(0, 1, 2, 0, 5), 30.0)


@pytest.fixture
def board() -> Iterator[Any]:
    from gpiozero.pins.mock import MockFactory

    before, gpiozero.Device.pin_factory = gpiozero.Device.pin_factory, MockFactory()
    yield gpiozero.Device.pin_factory
    gpiozero.Device.pin_factory.reset()
    gpiozero.Device.pin_factory = before


def sink_of(number: int, *labels: str) -> Selected:
    pin = GpioPin(open_pin(number), labels, print)
    return Selected("gpio", pin, pin.is_due, 1)


def levels(pin: Any, sink: Selected, *events: Event) -> list[int]:
    """The level of the pin after each of these events, once it has settled."""
    found = []
    for event in events:
        sink.emit(event)
        wait_for(lambda: bool(pin.state) == bool(sink._writer._sources))
        found.append(int(pin.state))
    return found


def test_the_pin_is_high_while_the_answer_is_one_of_the_labels(board: Any) -> None:
    """It is set when it is to change only; low and released at the end, and free for others."""
    pin = board.pin(17)
    sink = sink_of(17, "cat", "dog")
    assert (pin.function, pin.state) == ("output", 0)
    pin.clear_states()
    answers = ("", "bird", "cat", "cat", "dog", "bird", "bird", "dog")
    assert levels(pin, sink, *map(seen, answers)) == [0, 0, 1, 1, 1, 0, 0, 1]
    assert [state.state for state in pin.states] == [False, True, False, True]
    assert sink.close()
    assert pin.states[-1].state is False
    assert pin.function == "input"
    open_pin(17).close()


def test_a_source_that_is_gone_keeps_no_pin_high_and_one_that_returns_does(board: Any) -> None:
    """A stall of a moment is no reason to let go; several sources share the pin."""
    pin = board.pin(4)
    sink = sink_of(4, "cat")
    stalled, lost = SourceChanged(0, "one", "stalled", ""), SourceChanged(0, "one", "reconnecting", "")
    assert levels(pin, sink, seen("cat", "one"), stalled, lost, seen("cat", "one")) == [1, 1, 0, 1]
    ended = SourceChanged(0, "two", "ended", "")
    assert levels(pin, sink, seen("cat", "two"), seen("bird", "one"), ended) == [1, 1, 0]
    sink.close()


def test_a_pin_that_fails_is_told_once_and_the_run_goes_on() -> None:
    """Failures are counted."""

    class Broken:
        def on(self) -> None:
            raise OSError("gone")

        off = close = on

    warnings: list[str] = []
    pin = GpioPin(Broken(), ("cat",), warnings.append)
    for _ in range(3):
        pin.write(())
    pin.close()
    assert warnings == ["gpio: the pin cannot be set: gone"]
    assert pin.lost == 5


def test_a_pin_that_cannot_be_used_is_one_line(board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In use, none such, no pins at all, no gpiozero."""
    pin = open_pin(17)
    with pytest.raises(ConfigError, match="--gpio: pin 17 cannot be used"):
        open_pin(17)
    pin.close()
    with pytest.raises(ConfigError, match="--gpio: pin 99 cannot be used"):
        open_pin(99)
    monkeypatch.setattr(gpiozero.Device, "pin_factory", None)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "native")
    with pytest.raises(ConfigError, match="--gpio: "):
        open_pin(17)
    usual = builtins.__import__

    def without(name: str, *more: Any, **kwargs: Any) -> Any:
        if name == "gpiozero":
            raise ImportError(name)
        return usual(name, *more, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"edgeclf\[gpio\]"):
        open_pin(17)
