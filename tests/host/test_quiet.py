"""Chatter of native libraries is held back."""

import os

from edgeclf.host.quiet import quiet


def test_what_native_code_writes_is_held_back_and_later_output_is_not(capfd):
    """Only the block is silent."""
    with quiet():
        os.write(1, b"chatter")
        os.write(2, b"chatter")
    os.write(1, b"answer")
    assert capfd.readouterr() == ("answer", "")


def test_debug_shows_everything(capfd, monkeypatch):
    """`edgeclf --debug` is for seeing what the libraries say."""
    monkeypatch.setenv("EDGECLF_DEBUG", "1")
    with quiet():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == "chatter"
