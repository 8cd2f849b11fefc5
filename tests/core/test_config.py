"""TOML to frozen dataclasses: strict, and with messages that name the file, the key and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgeclf.core import config
from edgeclf.core.errors import ConfigError


@dataclass(frozen=True)
class Lens:
    """A nested section."""

    focal_mm: float = 4.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Camera:
    """Something with a field of every kind."""

    width: int
    height: int = 480
    live: bool = True
    mode: Literal["mjpg", "yuyv"] = "mjpg"
    lens: Lens = Lens()
    note: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def build(text: str) -> Camera:
    import tomllib

    return config.build(Camera, tomllib.loads(text), "cam.toml")


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    """The message is enough to correct the file."""
    with pytest.raises(ConfigError, match=r"cam\.toml: unknown key 'heigth'; did you mean 'height'\?"):
        build("width = 1\nheigth = 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cam\.toml: missing key 'width'"),
        ("width = '1'", r"cam\.toml: width: expected int, got '1'"),
        ("width = 1.0", r"width: expected int, got 1\.0"),
        ("width = true", r"width: expected int, got True"),
        ("width = 1\nlive = 1", r"live: expected bool, got 1"),
        ("width = 1\nmode = 'raw'", r"mode: 'raw' is not one of: mjpg, yuyv"),
        ("width = 1\nlens = 3", r"lens: expected a section, got 3"),
        ("width = 1\n[lens]\nfocal = 3", r"lens: unknown key 'focal'"),
        ("width = 1\n[lens]\nnames = 'x'", r"names: expected a list, got 'x'"),
        ("width = 1\n[lens]\nnames = [1]", r"names: expected str, got 1"),
        ("width = 1\noptions = 5", r"options: expected a section, got 5"),
    ],
)
def test_every_wrong_value_is_named_with_its_key(text: str, message: str) -> None:
    """Nothing is converted in silence."""
    with pytest.raises(ConfigError, match=message):
        build(text)


def test_whole_numbers_are_taken_for_floats_unless_too_large() -> None:
    """`focal_mm = 4` is what people write."""
    assert build("width = 1\n[lens]\nfocal_mm = 4").lens.focal_mm == 4.0
    with pytest.raises(ConfigError, match="too large"):
        config.build(Lens, {"focal_mm": 10**400}, "x")


def test_what_is_written_is_read_back_equal() -> None:
    """With quotes, backslashes and line breaks in text, and dictionaries."""
    import tomllib

    camera = Camera(3, 4, False, "yuyv", Lens(0.5, ('a"b', "c\\d", "e\nf")), "n", {"depth": 3, "wide": True})
    assert config.build(Camera, tomllib.loads(config.to_toml(camera)), "x") == camera


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    """With the line, which tomllib knows."""
    path = tmp_path / "x.toml"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"x\.toml: not valid TOML: .*line 2"):
        config.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read"):
        config.read(path)


def test_a_name_that_is_not_shipped_gets_a_suggestion() -> None:
    """And a path must exist; a name never reaches outside the folder."""
    with pytest.raises(ConfigError, match="did you mean 'resnet8'"):
        config.find("models", "resnet9")
    with pytest.raises(ConfigError, match="no such file"):
        config.find("models", "gone.toml")
    with pytest.raises(ConfigError, match="unknown model"):
        config.find("models", "../models/resnet8")
