"""Snippets: the Python ones run and agree with edgeclf, those for phones say what the file needs."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import ImageSpec, prepare
from edgeclf.host.export import snippets
from edgeclf.host.export.snippets import folder_of, phones_refuse, write
from edgeclf.runtime.engine import input_table

PICTURES = ("red-square.png", "green-disc.png", "blue-cross.png", "yellow-bars.png", "exif-rotated.jpg")


@pytest.fixture
def remade(fixtures_folder, tmp_path):
    """A fixture under another name, with changes to its card's image."""

    def make(variant="int8", name=None, **image):
        bundle = read_bundle(fixtures_folder / f"tiny-{variant}.tflite")
        path = tmp_path / (name or f"photos-{variant}.tflite")
        card = dataclasses.replace(bundle.card, image=dataclasses.replace(bundle.card.image, **image))
        path.write_bytes(attach(bundle.model, card))
        return path

    return make


def run(script, *arguments):
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def imported(script):
    """A snippet as a module."""
    spec = importlib.util.spec_from_file_location("snippet", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("variant", "fit"), [("int8", "stretch"), ("float32", "crop"), ("w8a16", "pad")])
def test_the_python_snippets_answer_as_predict_does(variant, fit, remade, fixtures_folder, cli_here):
    """Run as they stand, on real pictures, in a process that the plain one shares with nothing of edgeclf."""
    path, pictures = remade(variant, fit=fit), [fixtures_folder / "pictures" / name for name in PICTURES]
    folder = write(path).folder
    images = json.loads(cli_here("predict", path, *pictures, "--json").stdout)["images"]
    expected = [f"{image['image']}: {image['predictions'][0]['label']} " for image in images]
    for script in ("plain_litert.py", "with_edgeclf.py"):
        lines = run(folder / script, *pictures)
        assert [line.startswith(start) for line, start in zip(lines, expected, strict=True)] == [True] * len(PICTURES), lines
    assert "edgeclf" not in re.sub(r'""".*?"""', "", (folder / "plain_litert.py").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_the_plain_snippet_prepares_the_same_bytes_as_edgeclf(fit, colour, tmp_path, remade):
    """Wide, tall, large, small and odd pictures."""
    path, image = remade(), ImageSpec(20, 14, fit, colour)
    bundle = read_bundle(path)
    values = snippets._values(path, bundle, dataclasses.replace(bundle.card, image=image))
    (tmp_path / "plain.py").write_text(snippets.render("snippet_litert.py.j2", values))
    module, random = imported(tmp_path / "plain.py"), np.random.RandomState(0)
    for rows, columns in ((240, 320), (33, 17), (14, 20), (1, 1), (3, 200), (121, 57), (7, 10)):
        frame = random.randint(0, 256, (rows, columns, 3), dtype=np.uint8)
        assert np.array_equal(module.prepare(frame), prepare(frame, image)), (rows, columns)


@pytest.mark.parametrize(
    ("kind", "scale", "zero", "mean"),
    [("uint8", 1 / 128, 128, 128.0), ("int8", 1 / 128, 0, 128.0), ("uint8", 0.02, 117, 127.5), ("float32", 0, 0, 127.5)],
)
def test_the_conversion_is_what_the_engine_does(kind, scale, zero, mean, fixtures_folder):
    """For all 256 pixels, in the type of the input."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    quantised = {"scales": (scale,), "zero_points": (zero,)} if scale else {"scales": (), "zero_points": ()}
    given = dataclasses.replace(bundle.structure.input, type=kind, **quantised)
    card = dataclasses.replace(bundle.card, image=ImageSpec(16, 16, mean=mean))
    names = {"np": np, "pixels": np.arange(256).astype(np.uint8), "MEAN": card.image.mean, "STD": card.image.std}
    found, expected = eval(snippets._conversion(given, card), names), input_table(given, card.image)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_snippets_for_phones_name_file_classes_and_size(remade):
    """MediaPipe stretches by itself, so nothing else is to do."""
    kotlin, swift = ((write(remade()).folder / f"PictureClassifier.{end}").read_text() for end in ("kt", "swift"))
    assert 'setModelAssetPath("photos-int8.tflite")' in kotlin
    assert 'forResource: "photos-int8", ofType: "tflite"' in swift
    assert "const val CLASSES = 4" in kotlin
    assert "static let width = 16" in swift
    assert "fitted(" not in kotlin + swift


@pytest.mark.parametrize(("fit", "words"), [("crop", "The largest centred part"), ("pad", "centred on grey 128")])
def test_another_fit_is_spelled_out_for_phones(fit, words, remade):
    """The app must do it before MediaPipe stretches; brackets are balanced and nothing is left to fill in."""
    for end in ("kt", "swift"):
        text = (write(remade(fit=fit)).folder / f"PictureClassifier.{end}").read_text()
        assert words in text
        assert text.count("fitted(") == 2, "defined and called"
        assert text.count("{") == text.count("}")
        assert text.count("(") == text.count(")")
        assert not re.search(r"\{\{|\{%|Undefined", text)


def test_what_phones_refuse_gets_no_snippets_for_them_and_a_note(remade):
    """Grey and BGR pictures; the Python ones are written all the same."""
    for colour in ("bgr", "grey"):
        written = write(remade(name=f"{colour}.tflite", colour=colour))
        assert {path.name for path in written.files} == {"with_edgeclf.py", "plain_litert.py"}
        assert f"{colour}.tflite: no snippets for phones: MediaPipe Tasks hands over RGB" in written.note


def test_int8_ends_and_odd_scales_are_refused_for_phones(fixtures_folder):
    """With the --io that helps."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    given, answer = bundle.structure.input, bundle.structure.output
    assert "--io uint8" in phones_refuse(dataclasses.replace(given, type="int8"), answer, bundle.card)
    assert "--io float32" in phones_refuse(dataclasses.replace(given, scales=(0.02,)), answer, bundle.card)
    assert phones_refuse(dataclasses.replace(given, scales=(1 / 128,)), answer, bundle.card) == ""


def test_odd_file_names_stay_inside_their_quotes(remade, fixtures_folder):
    """In three languages and their comments."""
    path = remade(name='a"$b\\ """ü.tflite')
    folder = write(path).folder
    (line,) = run(folder / "plain_litert.py", fixtures_folder / "pictures/red-square.png")
    assert "red square" in line
    kotlin = (folder / "PictureClassifier.kt").read_text()
    assert r'setModelAssetPath("a\"\$b\\ \"\"\"ü.tflite")' in kotlin


def test_a_file_without_card_is_refused(fixtures_folder, tmp_path):
    """One line, and no folder is left."""
    path = tmp_path / "foreign.tflite"
    path.write_bytes((fixtures_folder / "foreign-float32.tflite").read_bytes())
    with pytest.raises(ConfigError, match="no model card"):
        write(path)
    assert not folder_of(path).exists()
