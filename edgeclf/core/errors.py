"""The errors that a user can meet, and the exit code of each.

    EdgeclfError          1  anything else that was foreseen
    ├── ConfigError       2  an option, a recipe or a device profile cannot be used
    ├── SourceError       3  a camera, video or stream cannot be opened
    ├── ModelError        4  a model file is broken, altered, or not an image classifier
    ├── DataError         5  pictures or labels cannot be used
    ├── MissingExtra      6  this verb needs an optional package that is not installed
    ├── QualityError      7  the result failed a gate, so no file was written; or a file does not compute what was shipped
    ├── StorageError      8  the disk refused (full, read-only, no permission)
    ├── BoardError        9  a board cannot be reached over ssh, or a step failed there; what ran there before still does
    └── ClusterError     10  a cluster cannot be reached or started, or its machines have other versions than this one

Ctrl-C exits with 130, a run that wants to be started afresh with 75; an error that nobody foresaw exits with 70 and asks
for `--debug`.
Every message is one line: what was wrong, where, what to do next.
"""

from __future__ import annotations

EXIT_UNFORESEEN = 70
EXIT_RESTART = 75  # a run ended itself so that a supervisor starts it afresh
EXIT_INTERRUPTED = 130


class EdgeclfError(Exception):
    """Base of every foreseen error; `str()` of it is one line for the person at the keyboard."""

    exit_code = 1


class ConfigError(EdgeclfError):
    """An option, a recipe or a device profile cannot be used as it is."""

    exit_code = 2


class SourceError(EdgeclfError):
    """A camera, a video or a stream cannot be opened."""

    exit_code = 3


class ModelError(EdgeclfError):
    """A model file is broken, altered, or not an image classifier that can run here."""

    exit_code = 4


class DataError(EdgeclfError):
    """Pictures or labels cannot be used."""

    exit_code = 5


class MissingExtra(EdgeclfError):
    """An optional package is not installed; the message names the extra to install."""

    exit_code = 6

    @classmethod
    def for_extra(cls, extra: str, because: str) -> MissingExtra:
        """The usual message: `because` says what is missing, `extra` is the name in pyproject.toml."""
        return cls(f"{because}; install it with: pip install 'edgeclf[{extra}]'")


class QualityError(EdgeclfError):
    """A result failed a gate (constant output, NaN, too great a loss), so nothing was written."""

    exit_code = 7


class StorageError(EdgeclfError):
    """The disk refused: full, read-only or no permission."""

    exit_code = 8


class BoardError(EdgeclfError):
    """A board cannot be reached over ssh, or a step of a deploy failed there; what ran there before still does."""

    exit_code = 9


class ClusterError(EdgeclfError):
    """A cluster cannot be reached or started, or its machines have other versions than this one."""

    exit_code = 10
