"""Door: who may come in. Pure decisions about tokens, cookies, Host and Origin; what a refusal says."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgeclf.core.errors import ConfigError

TOKEN_VARIABLE = "EDGECLF_WEB_TOKEN"
LEAST_TOKEN = 12  # characters
MOST_TOKEN = 256
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
PUBLIC = frozenset(("/style.css", "/icon.svg"))  # what the page that asks for the token is made of


@dataclass(frozen=True)
class Refusal:
    """The HTTP status and one line for the person or the program that asked."""

    status: int
    reason: str


@dataclass(frozen=True)
class Door:
    """The rules of one server.

    `token` empty asks for none. `names` are the hosts by which the page may be called; empty allows every one, which is
    right only where a token is asked for: a page of a stranger that has its own name resolve to this machine (DNS rebinding)
    sends that name as Host.
    """

    token: str
    port: int
    names: frozenset[str] = frozenset()

    @property
    def cookie_name(self) -> str:
        """Browsers keep cookies by host and not by port, so the port is part of the name."""
        return f"edgeclf-{self.port}"

    @property
    def cookie_value(self) -> str:
        """Made from the token and not the token, so that it opens this page alone; the same after a restart."""
        return hmac.new(self.token.encode(), self.cookie_name.encode(), hashlib.sha256).hexdigest()

    def opens(self, token: str) -> bool:
        """Whether that is the token; takes the same time for every wrong one."""
        return _same(token, self.token)

    def refuses(self, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Why a request is turned away; `headers` by lower-case name. None lets it in."""
        host = headers.get("host", "")
        if self.names and host_name(host) not in self.names:
            return Refusal(421, "this page does not answer to that host name; see web.hosts")
        if path.startswith("/api/") and (foreign := self._foreign(host, headers)):
            return foreign
        if not self.token or path in PUBLIC or self._knows(headers):
            return None
        return Refusal(401, "a token is needed: open the address with ?token=… once, or send it as Authorization: Bearer …")

    def _foreign(self, host: str, headers: Mapping[str, str]) -> Refusal | None:
        """Another site's page must neither read pictures nor have some classified, not even where no token is asked for."""
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if site in ("same-origin", "none") and (origin is None or self._is_own(origin, host)):
            return None
        return Refusal(403, "pages of other sites may not ask here")

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        return place.lower() == host.lower() or host_name(place) in self.names - LOCAL_NAMES

    def _knows(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.opens(given.strip()):
            return True
        # Not http.cookies: before Python 3.11.10 its time grows with the square of a value full of backslashes.
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == self.cookie_name and _same(value, self.cookie_value) for name, _, value in cookies)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def host_name(host: str) -> str:
    """The name in a Host header, lower case, without port and brackets; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches an address or name; False for a name that is not known."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def given_token(file: str, environment: Mapping[str, str] | None = None) -> str:
    """The token in EDGECLF_WEB_TOKEN, else in the first line of `file`; empty when there is neither. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    token, where = environment.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if not token and file:
        where = file
        try:
            with Path(file).open(encoding="utf-8") as lines:
                token = lines.readline(MOST_TOKEN + 2).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"web.token_file: {file}: cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
            ) from error
        if not token:
            raise ConfigError(f"web.token_file: {file}: its first line is empty; the token stands there")
    if token and not (LEAST_TOKEN <= len(token) <= MOST_TOKEN and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            f"{where}: a token has {LEAST_TOKEN} to {MOST_TOKEN} letters, digits or signs and no spaces; "
            "make one with: openssl rand -hex 16"
        )
    return token


def new_token() -> str:
    """A random token, of 192 bits."""
    return secrets.token_urlsafe(24)
