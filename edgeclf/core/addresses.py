"""Addresses of servers in settings, and the passwords that go with them; neither user, password nor path is ever shown."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from edgeclf.core.errors import ConfigError

MQTT_PORTS = {"mqtt": 1883, "mqtts": 8883}
HTTP_PORTS = {"http": 80, "https": 443}
LONGEST_SECRET = 4096  # bytes

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Address:
    """Where a server is. `target` is path and query as sent, `user` and `password` are decoded; `str()` shows neither."""

    scheme: str
    host: str
    port: int
    target: str = field(default="/", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """Host and port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def broker_address(text: str) -> Address:
    """`mqtt://[user[:password]@]host[:port]`, or mqtts. The password may hold any character. Raises ConfigError."""
    example = "expected mqtt://HOST, mqtt://USER@HOST:1883 or mqtts://HOST:8883"
    scheme, rest = _split(text, MQTT_PORTS, example)
    credentials, _, server = rest.rpartition("@")
    return _address(scheme, credentials, server.removesuffix("/"), "/", MQTT_PORTS, example)


def web_address(text: str) -> Address:
    """`http://[user:password@]host[:port][/path][?query]`, or https. Raises ConfigError.

    An `@` after the host must be written %40: it would be the end of a password in which a `/` was left as it is.
    """
    example = "expected http://HOST/PATH or https://HOST/PATH"
    scheme, rest = _split(text, HTTP_PORTS, example)
    authority, target = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in target:
        raise ConfigError(f"{example}; write @ as %40 in the path, and / ? # in a password as %2F %3F %23")
    if "#" in target or not re.fullmatch(r"[!-~]*", target):
        raise ConfigError(f"{example}, without spaces, accents or #; write such characters as %XX")
    credentials, _, server = authority.rpartition("@")
    return _address(scheme, credentials, server, target if target.startswith("/") else f"/{target}", HTTP_PORTS, example)


def _split(text: str, ports: Mapping[str, int], example: str) -> tuple[str, str]:
    scheme, mark, rest = text.partition("://")
    if not mark or scheme.lower() not in ports:
        raise ConfigError(example)
    return scheme.lower(), rest


def _address(scheme: str, credentials: str, server: str, target: str, ports: Mapping[str, int], example: str) -> Address:
    match = _HOST.fullmatch(server)
    if match is None or not _is_host(match["host"]):
        raise ConfigError(f"{example}; what stands for the host is none")
    port = int(match["port"] or ports[scheme])
    if not 1 <= port <= 65535:
        raise ConfigError(f"{example}; a port lies between 1 and 65535")
    user, _, password = credentials.partition(":")
    return Address(scheme, match["host"].strip("[]"), port, target, unquote(user), unquote(password))


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            return ipaddress.ip_address(host.strip("[]")).version == 6
        except ValueError:
            return False
    return len(host) <= 253 and all(0 < len(part) <= 63 for part in host.removesuffix(".").split("."))


def secret(variable: str, file: str) -> str:
    """The password in that environment variable, else the first line of that file; empty where neither is given.

    Raises ConfigError, which names the variable and the file only.
    """
    given = os.environ.get(variable, "")
    if given or not file:
        return given
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            data = opened.read(LONGEST_SECRET + 1)
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the password: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    if len(data) > LONGEST_SECRET or not lines or not lines[0]:
        raise ConfigError(f"{path}: expected one line with the password, of at most {LONGEST_SECRET} bytes")
    return lines[0]
