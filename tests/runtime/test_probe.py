"""A file never seen before runs in a child first: it may crash, hang or eat memory there, and the parent says so in a line."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import pytest

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.errors import ModelError
from edgeclf.core.files import cache_folder
from edgeclf.core.tflite import logits_view
from edgeclf.runtime import probe
from edgeclf.runtime.engine import open_engine


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which no verdict is remembered."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_runtime(folder: Path, load: str) -> str:
    """A runtime module whose interpreter does `load` when it is made; returns the module's name."""
    (folder / "fake_runtime.py").write_text(
        "import ctypes, os, time\n"
        "class Interpreter:\n"
        f"    def __init__(self, model_content, num_threads):\n        {load}\n"
        "    def allocate_tensors(self): pass\n"
        "    def invoke(self): pass\n"
        "    def get_output_details(self): return [{'index': 0}]\n"
        "    def get_tensor(self, index): pass\n"
    )
    return "fake_runtime"


def verdicts() -> list[Path]:
    return sorted((cache_folder() / "probes").glob("*.json"))


@pytest.mark.usefixtures("own_cache")
def test_a_good_file_is_probed_once(fixtures_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdict is remembered by its checksum, so the second opening starts no process."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    open_engine(bundle)
    assert len(verdicts()) == 1
    monkeypatch.setattr(probe, "_open_in_child", lambda *_: pytest.fail("probed again"))
    open_engine(bundle)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("ctypes.string_at(0)", r"crashes the runtime \(SIGSEGV\)"),
        ("os.abort()", r"crashes the runtime \(SIGABRT\)"),
        ("time.sleep(60)", "computes for more than 1 s"),
        ("raise ValueError('unknown operator 99')", "cannot run it: unknown operator 99"),
        ("bytearray(8 << 30)", "needs too much memory"),
    ],
)
def test_what_happens_in_the_child_is_one_line_here(
    load: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash, a hang, an error, a memory hog: the parent lives, and remembers nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "GRACE_SECONDS", 0.0)
    with pytest.raises(ModelError, match=message) as caught:
        probe.check(b"model", "x.tflite", fake_runtime(tmp_path, load), "fake 1", seconds=1)
    assert str(caught.value).startswith("x.tflite: ")
    assert not verdicts()


@pytest.mark.usefixtures("own_cache")
def test_an_endless_computation_ends_by_its_limit_of_cpu_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the parent were gone."""
    monkeypatch.syspath_prepend(tmp_path)
    start = time.monotonic()
    with pytest.raises(ModelError, match="computes for more than 1 s"):
        probe.check(b"model", "x.tflite", fake_runtime(tmp_path, "exec('while True: pass')"), "fake 1", seconds=1)
    assert time.monotonic() - start < 30


def test_another_runtime_probes_again(fixtures_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one version survives another may not."""
    model = logits_view(read_bundle(fixtures_folder / "tiny-int8.tflite").model)
    probe.check(model, "x", "ai_edge_litert.interpreter", "old 1")
    tried = []
    monkeypatch.setattr(probe, "_open_in_child", lambda *_: tried.append(1))
    probe.check(model, "x", "ai_edge_litert.interpreter", "new 2")
    assert tried == [1]
    assert len(verdicts()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="writes under /proc as a folder that refuses")
def test_a_cache_that_cannot_be_written_is_no_obstacle(fixtures_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only device."""
    monkeypatch.setenv("EDGECLF_CACHE", "/proc/edgeclf")
    assert open_engine(read_bundle(fixtures_folder / "tiny-int8.tflite")).threads == 1


@pytest.mark.usefixtures("own_cache")
def test_flipped_bytes_in_the_graph_never_end_this_process(fixtures_folder: Path) -> None:
    """Twenty files with a few bytes overwritten, without the checksum that would refuse them all."""
    whole = read_bundle(fixtures_folder / "foreign-float32.tflite").model
    card = read_bundle(fixtures_folder / "tiny-float32.tflite").card
    dice, opened = random.Random(1), 0
    for _ in range(20):
        data = bytearray(whole)
        for _ in range(4):
            data[dice.randrange(8, len(data))] = dice.randrange(256)
        with contextlib.suppress(ModelError):
            open_engine(Bundle(bytes(data), card, (), "flipped.tflite"))
            opened += 1
    assert 0 < opened < 20


@pytest.mark.usefixtures("own_cache")
def test_what_passed_on_another_kind_of_machine_is_tried_again(fixtures_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PC and a board may share a home folder, and kernels differ between them."""
    bundle, tried = read_bundle(fixtures_folder / "tiny-int8.tflite"), []
    open_engine(bundle)
    (verdict,) = verdicts()
    verdict.write_text(verdict.read_text().replace(os.uname().machine, "riscv64"))
    monkeypatch.setattr(probe, "_open_in_child", lambda *_: tried.append(1))
    open_engine(bundle)
    assert tried
