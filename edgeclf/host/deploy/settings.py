"""The settings of `edgeclf run` as they go to a board: a second model that they name here is carried along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeclf.core import config
from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import LiveSettings
from edgeclf.runtime import shipped
from edgeclf.runtime.comparing import check_labels


def second_model(settings: LiveSettings, config_file: Path | None, first: Path) -> Path | None:
    """The file here that `compare.file` names: from the current folder, as `run` reads it, or beside the settings.

    None without one, for a model that comes with edgeclf, and for an absolute path that only the board may have. Raises
    ConfigError for a relative path to nothing, ModelError for a file that is altered or has other labels than `first`.
    """
    named = settings.compare.file
    if not named or (shipped.is_name(named) and named in shipped.names()):
        return None
    beside = config_file.parent if config_file else Path()
    path = next((path for path in (Path(named), beside / named) if path.is_file()), None)
    if path is None and Path(named).is_absolute():
        return None
    if path is None:
        raise ConfigError(
            f"{config_file}: compare.file = {named!r}: no such file here to take along; one that is on the board already needs "
            "its absolute path there"
        )
    own, other = read_bundle(first).card, read_bundle(path).card
    if own and other:
        check_labels(own.labels, other.labels, str(path))
    return path


def there(settings: LiveSettings, second: str) -> str:
    """The settings as TOML, every default written out, with the second model's place on the board."""
    return config.to_toml(replace(settings, compare=replace(settings.compare, file=second)))
