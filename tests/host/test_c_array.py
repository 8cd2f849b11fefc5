"""C source of an int8 file: it compiles, holds the very bytes and labels, and says what a microcontroller must know."""

import dataclasses
import importlib.util
import shutil
import subprocess

import pytest

from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.errors import ConfigError, QualityError
from edgeclf.host.export import c_array, micro, micro_child

COMPILER = shutil.which("cc")
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
ODD_LABELS = ('a "quoted" one', "back\\slash", "überraschend 猫", "what??/")
PRINTER = """#include <stdio.h>
#include "odd-int8.h"
int main(void) {
    if ((size_t)odd_int8_data % 16 != 0) return 1;
    fwrite(odd_int8_data, 1, odd_int8_size, stdout);
    for (int i = 0; i < ODD_INT8_CLASSES; i++) printf("%s%c", odd_int8_labels[i], 10);
    return 0;
}
"""


@pytest.fixture
def odd(fixtures_folder, tmp_path):
    """The int8 fixture with labels that a C string must escape."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    path = tmp_path / "odd-int8.tflite"
    path.write_bytes(attach(bundle.model, dataclasses.replace(bundle.card, labels=ODD_LABELS)))
    return path


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_compiled_source_gives_the_same_bytes_and_labels(odd, tmp_path):
    """Aligned to 16, without a warning in strict C11."""
    written = c_array.write(odd)
    (tmp_path / "main.c").write_text(PRINTER)
    command = [COMPILER, "-std=c11", *STRICT, "-o", tmp_path / "main", tmp_path / "main.c", written.source]
    subprocess.run(command, check=True)
    out = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    model = read_bundle(odd).model
    assert out == model + "".join(f"{label}\n" for label in ODD_LABELS).encode()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_source_is_cpp_too(odd):
    """Arduino and others compile everything as C++."""
    written = c_array.write(odd)
    subprocess.run(["c++", "-std=c++11", "-x", "c++", *STRICT, "-fsyntax-only", written.source], check=True)


def test_the_header_says_size_scale_and_arena(odd):
    """What must be put into the input, and how to read the output."""
    text = c_array.write(odd).header.read_text()
    for line in (
        "#define ODD_INT8_WIDTH 16", "#define ODD_INT8_CHANNELS 3", "#define ODD_INT8_CLASSES 4",
        "#define ODD_INT8_INPUT_ZERO_POINT 128", "#define ODD_INT8_OUTPUT_SCALE 0.00390625f",
        "// Each uint8 of the input holds the pixel itself.", "//   resolver.AddConv2D();", "//   resolver.AddFullyConnected();",
    ):  # fmt: skip
        assert f"{line}\n" in text, line
    assert read_bundle(odd).card.sha256 in text
    assert "#define ODD_INT8_INPUT_SCALE 0.0078" in text


def test_an_estimated_arena_says_that_it_is_one(odd, monkeypatch):
    """Without the package nothing was measured."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    written = c_array.write(odd)
    assert not written.arena.measured
    assert "arena: an ESTIMATE, not measured, from the lifetimes" in written.header.read_text()
    assert f"#define ODD_INT8_ARENA_BYTES {written.arena.arena_bytes}\n" in written.header.read_text()


def fake_micro(monkeypatch, folder, body):
    """A package `tflite_micro` whose Interpreter.from_bytes(model, arena_size) runs `body`."""
    package = folder / "tflite_micro/python/tflite_micro"
    package.mkdir(parents=True)
    for place in (package, *package.parents[:2]):
        (place / "__init__.py").touch()
    (package / "runtime.py").write_text(
        f"class Interpreter:\n    @staticmethod\n    def from_bytes(model, arena_size):\n        {body}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    info = folder / "tflite_micro-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tflite-micro\nVersion: 1.0\n")


def test_a_measured_arena_is_the_smallest_that_the_interpreter_takes(odd, tmp_path, monkeypatch):
    """Found by halving, in a child process, to 16 bytes."""
    fake_micro(monkeypatch, tmp_path / "site", "if arena_size < 5000: raise RuntimeError('too little')")
    found = micro.arena_of(read_bundle(odd).model, "x")
    assert (found.arena_bytes, found.measured, found.source.split(" on ")[0]) == (5008, True, "tflite-micro 1.0")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import sys; print('no op for code 99', file=sys.stderr); raise RuntimeError('failed')", "failed (no op for code 99"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_model_that_the_interpreter_refuses_or_crashes_on_is_refused(body, reason, odd, tmp_path, monkeypatch):
    """With its own words; no C files appear."""
    fake_micro(monkeypatch, tmp_path / "site", body)
    with pytest.raises(QualityError) as caught:
        c_array.write(odd)
    assert "TensorFlow Lite Micro refuses it" in str(caught.value)
    assert reason in str(caught.value)
    assert not list(tmp_path.glob("odd-int8.[ch]"))


@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="needs the micro extra")
def test_the_real_interpreter_gives_about_what_is_estimated(odd):
    """The estimate is meant to be enough."""
    found = micro.arena_of(read_bundle(odd).model, "x")
    assert found.measured
    assert 0.8 < found.arena_bytes / micro.arena.estimate(read_bundle(odd).structure, "x") <= 1


def test_other_variants_and_bare_files_are_refused_in_one_line(fixtures_folder, tmp_path):
    """Float ends, other schemes, no card, a name that C cannot include."""
    for name in ("tiny-float32", "tiny-dynamic-w8", "tiny-w8a16"):
        with pytest.raises(ConfigError, match="TensorFlow Lite Micro wants int8"):
            c_array.write(fixtures_folder / f"{name}.tflite")
    with pytest.raises(ConfigError, match="no model card"):
        c_array.write(fixtures_folder / "foreign-float32.tflite")
    with pytest.raises(ConfigError, match="rename it"):
        c_array.write(tmp_path / 'a"b.tflite')


@pytest.mark.parametrize(
    ("stem", "name"),
    [("compact-photos-int8", "compact_photos_int8"), ("3 cats", "model_3_cats"), ("猫", "model"), ("_x__y", "x_y")],
)
def test_any_file_name_becomes_a_name_that_c_allows(stem, name):
    """No leading digit, nothing reserved."""
    assert c_array.identifier(stem) == name


def test_the_child_says_when_the_package_is_missing(capsys, monkeypatch):
    """So that the parent estimates instead."""
    monkeypatch.setattr(micro_child.sys, "argv", ["child", '{"path": [], "guess": 16}'])
    monkeypatch.setitem(micro_child.sys.modules, "tflite_micro", None)
    assert micro_child.main() == micro_child.NOT_INSTALLED
