"""What zeros bring at run time: pruned networks as dense and as sparse files; sizes, time here, instructions on emulated boards.

    python tools/bench_sparse.py [--rounds 20] [--device pi4 pi5] [--home DIR] [--out results.json]

Networks are untrained and pruned in the file by magnitude, each kernel of 1,024 weights or more, so their answers mean nothing;
that dense and sparse files give the same ones is checked. Time is of one picture and one thread, all files of a network in
turns; instructions are a count under emulation and no latency.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.files import write_json
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe, override
from edgeclf.core.tflite import read_model
from edgeclf.host import architectures
from edgeclf.host.export import activations, quantize, sparse_file
from edgeclf.host.export.faces import packed, take_in
from edgeclf.host.inside import look_inside, stored_weights
from edgeclf.host.keras import keras
from edgeclf.host.report import emulate, timing
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.latency import noise_frame, this_machine

CLASSES, SMALL, MAIN = 10, 1024, 0.8  # MAIN is the share of zeros at which other variants are made too
SYMMETRIC = {"symmetric": True}
# Recipe, side in pixels, options, shares of zeros; 2:4 is two of every four along the input channels.
NETWORKS: dict[str, tuple[str, int, dict[str, Any], tuple[float | str, ...]]] = {
    "mobilenet-v1-0.25 symmetric, 96 px": ("mobilenet-v1-0.25", 96, SYMMETRIC, (0.7, 0.8, 0.9, "2:4")),
    "mobilenet-v1-0.25 symmetric, 224 px": ("mobilenet-v1-0.25", 224, SYMMETRIC, (0.8,)),
    "mobilenet-v1-0.25, 96 px": ("mobilenet-v1-0.25", 96, {}, (0.8,)),
    "compact, 32 px": ("compact", 32, {}, (0.8,)),
}


def main() -> None:
    """Measure every network and print what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=timing.ROUNDS)
    options.add_argument("--device", choices=emulate.QEMU_CPUS, nargs="*", default=list(emulate.QEMU_CPUS))
    options.add_argument("--home", type=Path, default=emulate.default_home(), help="default: %(default)s")
    options.add_argument("--out", type=Path, help="write the JSON here too")
    given = options.parse_args()
    found = {name: measure(*spec, given) for name, spec in NETWORKS.items()}
    result = {"machine": vars(this_machine()), "threads": 1, "networks": found}
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def measure(
    recipe: str, side: int, extra: dict[str, Any], shares: tuple[float | str, ...], given: argparse.Namespace
) -> dict[str, Any]:
    """All files of one network."""
    dense = quantize.to_float32(quantize.with_softmax(built(recipe, side, extra)))
    bundles = {f"{share} {v}": bundle(model, v, side) for share in shares for v, model in files(dense, share, side).items()}
    engines = {name: open_engine(found, 1, probed=True) for name, found in bundles.items()}
    picture = noise_frame(side, side)[None]
    times = timing.interleaved({name: lambda e=e: e.infer(picture) for name, e in engines.items()}, given.rounds)
    answers = {name: engine.infer(picture) for name, engine in engines.items()}
    rows = {}
    for name, found in bundles.items():
        share, _, variant = name.partition(" ")
        floats = f"{share} float32"
        rows[name] = {
            **sizes(found.model),
            "p50_ms": round(times[name].latency.p50_ms, 4),
            "times_as_fast_as_dense_float32": dataclasses.asdict(timing.speedup(times[floats], times[name])),
            "largest_difference_from_dense_float32": float(np.abs(answers[name] - answers[floats]).max()),
            "instructions": counts(found, given) if variant != "float32" or share == str(MAIN) else {},
        }
        print(name, rows[name], file=sys.stderr)
    return {"runtime": engines[f"{MAIN} float32"].runtime, "files": rows}


def sizes(model: bytes) -> dict[str, float]:
    """The share of zeros, and the bytes of the file as it is and after gzip level 9."""
    zeros, zipped = look_inside(model).zeros, gzip.compress(model, 9, mtime=0)
    return {"zeros": round(zeros, 4), "file_bytes": len(model), "gzip_bytes": len(zipped)}


def counts(found: Bundle, given: argparse.Namespace) -> dict[str, int]:
    """Instructions of one inference by board."""
    return {board: emulate.count(found, board, given.home.resolve()).instructions for board in given.device}


def files(dense: bytes, share: float | str, side: int) -> dict[str, bytes]:
    """The pruned network as files of the variants that are compared; those of MAIN besides the sparse one."""
    pruned = with_zeros(dense, share)
    noise = np.random.RandomState(0).randint(0, 256, (8, side, side, 3), dtype=np.uint8)
    made = {variant: quantize.quantize(pruned, variant) for variant in ("float32", "float32-sparse")}
    if share == MAIN:
        made["float16-sparse"] = quantize.quantize(pruned, "float16-sparse")
        made["int8"] = quantize.quantize(pruned, "int8", activations.record_ranges(pruned, [noise]))
    return made


def built(recipe: str, side: int, extra: dict[str, Any]) -> Any:
    """The untrained network, with weights of a size that lets pictures through to the logits."""
    wanted = override(load_recipe(recipe), image__size=side)
    wanted = dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, options={**wanted.model.options, **extra}))
    keras().utils.set_random_seed(0)
    return architectures.build(wanted, CLASSES)


def with_zeros(model: bytes, share: float | str) -> bytes:
    """The float32 file with so many zeros in each large kernel; what stays is scaled so that its maps keep their size."""
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model)
    take_in(tree, model)
    structure = read_model(model, "model")
    for operator in structure.operators:
        if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        tensor = structure.tensors[stored_weights(operator, structure)]
        values = np.frombuffer(bytes(tree.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape).copy()
        if operator.name in sparse_file.KINDS and values.size >= SMALL:
            values *= two_of_four(values) if share == "2:4" else largest(values, 1 - float(share))
        maps = values.shape[-1] if operator.name == "DEPTHWISE_CONV_2D" else values.shape[0]
        values *= np.sqrt(2 * maps / np.sum(values**2))
        tree.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    return packed(tree, schema)


def largest(values: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.bool_]:
    """Where that share of the values with the largest magnitude is."""
    kept: npt.NDArray[np.bool_] = np.abs(values) > np.quantile(np.abs(values), 1 - share)
    return kept


def two_of_four(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where the two larger of every four along the last dimension are."""
    fours = np.abs(values).reshape(-1, 4)
    kept: npt.NDArray[np.bool_] = (fours.argsort(axis=1).argsort(axis=1) >= 2).reshape(values.shape)
    return kept


def bundle(model: bytes, variant: str, side: int) -> Bundle:
    """The model as a file with a card would give it."""
    labels = tuple(f"class {i}" for i in range(CLASSES))
    card = ModelCard(variant, labels, ImageSpec(side, side), variant, "uint8" if variant == "int8" else "float32")
    return Bundle(model, card, labels, f"{variant}.tflite")


if __name__ == "__main__":
    main()
