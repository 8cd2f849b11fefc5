"""The sinks that tell other programs, as the settings ask for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeclf.core.card import ModelCard
from edgeclf.core.live_settings import LiveSettings
from edgeclf.runtime.decision import check_answers
from edgeclf.runtime.sinks.sink import Sink
from edgeclf.runtime.sinks.telling import Selected, changes
from edgeclf.runtime.sinks.watchdog import open_watchdog
from edgeclf.runtime.state import Keeper

HOOKS = 64  # changes that wait for a webhook
COUNTED = 4096  # events that wait to be counted
COUNTED_S = 0.5  # between counts: a thread that wakes for every frame would take turns with the loop
NEWEST = 1


def outward(
    settings: LiveSettings,
    card: ModelCard,
    sources: Sequence[str],
    warn: Callable[[str], None],
    tell: Callable[[str], None] = lambda message: None,
) -> Iterator[Sink]:
    """The sinks one by one, each open. Raises ConfigError and MissingExtra, but not for a server that does not answer.

    `tell` is given where results can be found. What is not asked for is not imported: each takes a megabyte of memory or more.
    """
    actions, service = settings.actions, settings.service
    check_answers(actions.labels, "actions.labels: the model has no label", card.labels)
    check_answers(actions.gpio_labels, "--gpio: the model has no label", card.labels)
    if service.metrics:
        from edgeclf import __version__
        from edgeclf.runtime.sinks.metrics import Metrics

        metrics = Metrics(service.metrics, card.name, sources, __version__)
        tell(f"metrics: {metrics.page.url}")
        yield Selected("metrics", metrics, lambda event: True, COUNTED, warn=warn, apart_s=COUNTED_S)
    if actions.gpio_pin >= 0:
        from edgeclf.runtime.sinks.gpio import GpioPin, open_pin

        pin = GpioPin(open_pin(actions.gpio_pin), actions.gpio_labels, warn)
        yield Selected("gpio", pin, pin.is_due, NEWEST, warn=warn)
    if actions.command:
        from edgeclf.runtime.sinks.command import Command

        ending = threading.Event()
        command = Command(actions.command, actions.command_s, ending, warn)
        yield Selected("command", command, changes(actions.labels), NEWEST, ending, warn)
    if actions.webhook:
        from edgeclf.runtime.sinks.webhook import Webhook

        ending = threading.Event()
        webhook = Webhook(actions.webhook, actions.webhook_s, ending, warn)
        yield Selected("webhook", webhook, changes(actions.labels), HOOKS, ending, warn)
    if settings.mqtt.address:
        from edgeclf.runtime.sinks.mqtt import open_mqtt

        mqtt = open_mqtt(settings.mqtt, card.name, sources, warn)
        tell(f"mqtt: topics under {mqtt.topic}")
        yield mqtt
    watchdog = open_watchdog(os.environ, settings.gate)
    if watchdog:
        yield watchdog


def keeper_of(settings: LiveSettings, card: ModelCard, warn: Callable[[str], None]) -> Keeper | None:
    """What keeps the answers over a restart, when the settings name a file for them; its sink is `keeping`."""
    path = settings.service.state
    return Keeper(Path(path).expanduser(), card.labels, warn) if path else None


def keeping(keeper: Keeper, warn: Callable[[str], None]) -> Sink:
    return Selected("state", keeper, keeper.is_due, NEWEST, warn=warn)
