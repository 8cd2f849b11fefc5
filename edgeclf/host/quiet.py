"""Keeping native libraries' chatter from the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def hushed(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Only the errors of these loggers, by name, while the block runs; of libraries that tell what is no news.

    With a higher `level`, not even those: of libraries whose errors are told in another way.
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    for logger in named:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(named, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what native code writes to standard output and error while the block runs.

    TensorFlow and its converters log below Python, so only the file descriptors catch it. With EDGECLF_DEBUG set, as
    `edgeclf --debug` does, nothing is held back. Not for blocks in which other threads print.
    """
    if os.environ.get("EDGECLF_DEBUG"):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as held:
        try:
            os.dup2(held.fileno(), 1)
            os.dup2(held.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
