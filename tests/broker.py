"""A real mosquitto on loopback for the tests, and a listener that keeps what it hears."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
DEADLINE_S = 30


def wait_for(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait until `condition` is truthy, which is returned; fails after the deadline."""
    limit = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < limit, "the condition was not met in time"
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Broker:
    """mosquitto, which forgets everything when it is stopped; with `passwords`, only those users may connect."""

    def __init__(self, folder: Path, passwords: dict[str, str] | None = None, tls: tuple[Path, Path] | None = None) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed")
        self.port = free_port()
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", f"user {getpass.getuser()}"]
        if passwords:
            file = folder / "passwords"
            for user, password in passwords.items():
                create = ["-c"] if not file.exists() else []
                subprocess.run(["mosquitto_passwd", *create, "-b", file, user, password], check=True, capture_output=True)
            lines += ["allow_anonymous false", f"password_file {file}"]
        else:
            lines.append("allow_anonymous true")
        if tls:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self._settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._answers)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Listener:
    """A client that keeps every message of a broker: `heard` as (topic, text, retained), `latest` by topic."""

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.heard: list[tuple[str, str, bool]] = []
        self.latest: dict[str, str] = {}
        self._client = Client(CallbackAPIVersion.VERSION2)
        if user:
            self._client.username_pw_set(user, password)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_message = lambda _client, _data, message: self._hear(message)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _hear(self, message: Any) -> None:
        text = message.payload.decode()
        self.heard.append((message.topic, text, message.retain))
        self.latest[message.topic] = text

    def ending(self, end: str) -> Any:
        """The newest payload of the topic with that end, parsed where it is JSON; None when there is none."""
        for topic, text in list(self.latest.items()):
            if topic.endswith(end):
                return json.loads(text) if text.startswith("{") else text
        return None

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
