"""Text from outside: what is left out of it before anyone sees it."""

from __future__ import annotations

import pytest

from edgeclf.core.text import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://ann:my secret word@cam.local/1: no answer", "rtsp://cam.local/1: no answer"),
        ("rtsp://ann:p@ss word@cam.local/1", "rtsp://cam.local/1"),
        ("rtsp://ann:pa/ss wo?rd#1@cam.local/1", "rtsp://cam.local/1"),
        ("rtsp://:only a password@cam.local", "rtsp://cam.local"),
        ("rtsp://ann@cam.local", "rtsp://cam.local"),
        ("mqtt://a:b c@one and mqtts://d:e f@two", "mqtt://one and mqtts://two"),
        ("http://host:8080/x: not found\nask joe@example.org", "http://host:8080/x: not found\nask joe@example.org"),
        ("http://host/x: not found, ask joe@example.org", "http://host/x: not found, ask joe@example.org"),
        ("http://host: not found, ask joe@example.org", "http://host: not found, ask joe@example.org"),
    ],
)
def test_user_and_password_of_an_address_are_left_out(text: str, shown: str) -> None:
    """Also a password with spaces, slashes or an @ in it; what is no address stays."""
    assert redacted(text) == shown
