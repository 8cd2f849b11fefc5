"""The preview page: what the live loop sees, in a browser. Nothing of it is imported unless `--web` is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeclf.core.errors import MissingExtra
from edgeclf.core.live_settings import WebSection
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Rules

if TYPE_CHECKING:
    from edgeclf.runtime.web.server import Web


def open_web(
    settings: WebSection, names: Sequence[str], classifier: Classifier, rules: Rules, warn: Callable[[str], None]
) -> Web:
    """The page as a sink, listening; `names` are those of the sources. Raises MissingExtra, ConfigError."""
    try:
        from edgeclf.runtime.web.server import Web
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11"):
            raise
        raise MissingExtra.for_extra("web", f"--web needs {error.name}, which is not installed") from error
    return Web(settings, names, classifier, rules, warn)
