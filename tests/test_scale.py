"""docs/scale.md agrees with the results files, and its arithmetic is what its text says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCALE = {
    "machine": {"cores": 2, "vector_units": ["AVX2"]},
    "classify": [
        {
            "data": "a.zip", "file": "n.tflite", "pixels": 1024, "bytes": 1000, "decode_us": 100.0, "resize_us": 50.0,
            "invoke_us": 200.0, "whole_us": 400.0,
        }
    ],
    "row_bytes": 50.0,
    "scheduler": {"driver_cpu_ms": 20.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/scale_figures.py; that folder is no package."""
    spec = importlib.util.spec_from_file_location("scale_figures", REPOSITORY / "tools" / "scale_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_document_is_that_of_the_results_files(tool: ModuleType) -> None:
    """A figure typed by hand, or an old one, shows here."""
    text = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    assert tool.written(text, tool.tables()) == text
    assert set(re.findall(r"<!-- (\w+):begin -->", text)) == set(tool.tables())


def test_a_billion_pictures_cost_what_one_costs(tool: ModuleType) -> None:
    """400 µs each are 111,111 core-hours; 1000 bytes each are a terabyte; the network takes most of them."""
    picture = tool.Picture.of(SCALE["classify"][0])
    row = [cell.strip() for cell in tool.billion([picture], 50.0).splitlines()[-1].strip("|").split("|")]
    assert row[2:6] == ["111", "1.0 TB", "50 GB", "1,000,000,000"]
    assert row[-1] == "invoke"


def test_the_bottleneck_is_what_is_busy_longest(tool: ModuleType) -> None:
    """The start-up of few pictures, the CPU of many on one machine; single objects are limited by requests, and a cluster
    that reads shards by its scheduler."""
    picture, starts = tool.Picture.of(SCALE["classify"][0]), {"local": 3.0, "ray": 8.0}

    def worst(count: int, cores: int, place: str) -> str:
        return str(tool.worst(tool.seconds(picture, count, cores, SCALE, starts), place))

    assert worst(1000, 2, "disks") == "start-up"
    assert worst(10**9, 16, "disks") == worst(10**9, 16, "shards in object storage") == "CPU"
    assert worst(10**9, 16, "single objects") == "requests"
    assert worst(10**9, 4096, "shards in object storage") == "scheduler"
    assert tool.seconds(picture, 10**9, 16, SCALE, starts)["CPU"] == pytest.approx(25_000)


def test_parts_are_counted_as_classify_cuts_them(tool: ModuleType) -> None:
    """The same arithmetic as the job's own."""
    from edgeclf.runtime.bulk.inputs import FILE, Item
    from edgeclf.runtime.bulk.job import parts

    assert [tool.parts(count) for count in (1, 1024, 1025)] == [1, 1, 2]
    items = (Item(0, FILE, "", b"x", 1, 1) for _ in range(100_000))
    assert tool.parts(100_000) == sum(1 for _ in parts(items))
