"""Addresses of network cameras: which can be read, how they are shown, whether anything listens there."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
PROBE_S = 0.5


def scheme_of(text: str) -> str | None:
    """The scheme, in lower case, when `text` is an address."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return scheme[1].lower() if scheme else None


def redact(text: str) -> str:
    """`text` as it may be shown: an address without user, password, query, fragment and `name=value` path parts.

    A password may hold any character, unescaped too, so everything up to the last `@` is hidden; and everything at all
    when it cannot be told where the host begins.
    """
    scheme, mark, address = text.partition("://")
    hidden, at, host = (address if mark else text).rpartition("@")
    if not mark:
        return f"***@{_bare(host)}" if at and ":" in hidden else text
    if at and re.search(r"[?#]", hidden):
        return f"{scheme}://***"
    return f"{scheme}://{'***@' if at else ''}{_bare(host)}"


def answers(url: str) -> bool:
    """Whether a TCP connection to the address's host and port can be made within PROBE_S; nothing is sent."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        with socket.create_connection((parts.hostname or "", port), PROBE_S):
            return True
    except (OSError, ValueError, KeyError, UnicodeError):
        return False


def _bare(address: str) -> str:
    """Host and path without query, fragment and path parts such as `password=x`."""
    bare = re.split(r"[?#]", address, maxsplit=1)[0]
    kept = re.sub(r"[^/]*=.*", "***", bare, count=1, flags=re.DOTALL)
    return kept + ("?***" if len(bare) < len(address) else "")
