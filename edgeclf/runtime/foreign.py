"""Files that edgeclf did not write: what their tensors and TFLite Metadata say, as a model card; or why they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from edgeclf.core.bundle import INPUT_TENSORS, METADATA, Bundle, metadata_tensor
from edgeclf.core.card import Io, ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import MOST, Colour, ImageSpec
from edgeclf.core.text import has_control_character
from edgeclf.core.tflite import TfliteModel, logits_tensor, scheme
from edgeclf.runtime.engine import Normalize

INPUT_TYPES = ("uint8", "int8", "int16", "float32")
OUTPUT_TYPES = ("uint8", "int8", "int16", "float32")
NORMALIZATION = 1  # ProcessUnitOptions NormalizationOptions of TFLite's metadata_schema.fbs
UNKNOWN_NORMALIZATION = (
    "{where}: takes float pixels, and neither a model card nor its metadata says how they are normalised; "
    "say it: --normalize MEAN,STD (often 127.5,127.5 or 0,255 or 0,1)"
)


def card_of(bundle: Bundle, labels: tuple[str, ...] = (), normalize: Normalize | None = None) -> ModelCard:
    """The card that a file carries; without one, the card that its tensors, its metadata and the caller give.

    `labels` go before those of the metadata; without either, classes are called by their number. `normalize` is
    (mean, std): a float network sees (pixel - mean) / std. Raises ModelError when the file is no image classifier, label
    and output counts differ, or a float file's normalisation is unknown; ConfigError when the caller contradicts a card.
    """
    if bundle.card is None:
        return _made_up(bundle, labels, normalize)
    refuse_overrides(bundle.name, labels, normalize)
    check_ports(bundle.structure, bundle.card.image, bundle.name)
    return bundle.card


def refuse_overrides(where: str, labels: tuple[str, ...], normalize: Normalize | None) -> None:
    """Raise ConfigError when a file with a card is given labels or normalisation besides."""
    if labels or normalize:
        raise ConfigError(f"{where}: its model card holds labels and normalisation; leave out --labels and --normalize")


def fit_labels(labels: tuple[str, ...], classes: int, where: str) -> tuple[str, ...]:
    """`labels`, or class numbers when there are none. Raises ModelError unless there is one for each output, each different."""
    labels = labels or tuple(str(i) for i in range(classes))
    if len(labels) != classes:
        raise ModelError(f"{where}: {len(labels)} labels for {classes} outputs; give one label a line for each output")
    check_labels(labels, where)
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line, UTF-8, with or without a byte order mark. Raises ModelError, naming the line, for anything else."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ModelError(f"{path}: the label file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: the label file is not UTF-8; save it as UTF-8") from error
    labels = tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n"))
    check_labels(labels, str(path))
    return labels


def check_labels(labels: tuple[str, ...], where: str) -> None:
    """Raise ModelError for a blank label or one that occurs twice, naming the lines."""
    lines: dict[str, int] = {}
    for line, label in enumerate(labels, 1):
        if not label.strip():
            raise ModelError(f"{where}: label {line} is blank; remove the line or name the class")
        if has_control_character(label):
            raise ModelError(f"{where}: label {line} has a control character; remove it")
        if label in lines:
            raise ModelError(f"{where}: {label!r} is both label {lines[label]} and label {line}; make them differ")
        lines[label] = line


def check_ports(model: TfliteModel, image: ImageSpec | None, where: str, single: bool = False) -> None:
    """Raise ModelError unless the model has one picture as input and one row of scores as first output.

    `single` allows a single score, from which an import makes two.
    """
    if len(model.inputs) != 1:
        names = ", ".join(model.tensors[i].name for i in model.inputs)
        raise ModelError(f"{where}: it takes {len(model.inputs)} inputs ({names}); an image classifier takes one picture")
    given, shape = model.input, model.input.shape
    if len(shape) != 4:
        raise ModelError(f"{where}: its input has shape {_shape(shape)}; a picture has (1, height, width, channels)")
    if shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise ModelError(f"{where}: its input {_shape(shape)} has channels first; convert it with channels last (NHWC)")
    if shape[3] not in (1, 3) or shape[0] not in (1, -1) or min(shape[1:3]) < 1:
        raise ModelError(f"{where}: its input has shape {_shape(shape)}; expected (1, height, width, 1 or 3)")
    if given.type not in INPUT_TYPES:
        raise ModelError(f"{where}: its input is {given.type}; expected one of: {', '.join(INPUT_TYPES)}")
    if image is not None and shape[1:] != image.shape:
        raise ModelError(
            f"{where}: its input has shape {_shape(shape)}, its model card says {_shape((1, *image.shape))}; export it again"
        )
    _check_output(model, where, 1 if single else 2)


def _check_output(model: TfliteModel, where: str, least: int) -> None:
    given = model.output
    if given.type not in OUTPUT_TYPES:
        raise ModelError(f"{where}: its output is {given.type}; expected one of: {', '.join(OUTPUT_TYPES)}")
    if not given.shape or any(size not in (1, -1) for size in given.shape[:-1]) or given.shape[-1] < 1:
        raise ModelError(
            f"{where}: its output has shape {_shape(given.shape)}; a classifier gives one row of scores (1, classes)"
        )
    if given.shape[-1] < least:
        raise ModelError(f"{where}: it has a single output; a classifier needs one output per class, at least 2")


def _made_up(bundle: Bundle, labels: tuple[str, ...], normalize: Normalize | None) -> ModelCard:
    model, where = bundle.structure, bundle.name
    check_ports(model, None, where)
    labels = fit_labels(labels or bundle.labels, model.output.shape[-1], where)
    mean, std = normalize or normalization(model, where)
    _, height, width, channels = model.input.shape
    colour: Colour = "grey" if channels == 1 else "rgb"
    io: Io = model.input.type if model.input.type in get_args(Io) else "float32"  # type: ignore[assignment]
    ends_in_softmax = logits_tensor(model) is not None
    return ModelCard(
        name=Path(where).stem, labels=labels, image=ImageSpec(width, height, "stretch", colour, mean, std),
        variant=scheme(model), io=io, outputs="probabilities" if ends_in_softmax else "logits",
    )  # fmt: skip


def normalization(model: TfliteModel, where: str) -> Normalize:
    """(mean, std) from the metadata; for a quantised input, where the tensor takes pixels, what makes its table the identity."""
    given = model.input
    if given.type in ("uint8", "int8"):
        scale = given.scales[0] if given.scales and given.scales[0] > 0 else 1 / 128
        if not 1 / MOST <= scale <= MOST:
            raise ModelError(f"{where}: its input has the scale {scale:g}, which fits no picture; convert it again")
        zero = given.zero_points[0] if given.zero_points else 0
        # (pixel - mean) / std / scale + zero point = pixel, or pixel - 128 for int8
        return float(zero + (128 if given.type == "int8" else 0)), 1 / scale
    found = _metadata_normalization(model.metadata.get(METADATA, b""), where)
    if found is None:
        raise ModelError(UNKNOWN_NORMALIZATION.format(where=where))
    return found


def _metadata_normalization(metadata: bytes, where: str) -> Normalize | None:
    """The NormalizationOptions of the first input (slots of metadata_schema.fbs)."""
    given = metadata_tensor(metadata, INPUT_TENSORS, where)
    if given is None:
        return None
    units = [unit.table(1) for unit in given.tables(4) if unit.number(0, "<B") == NORMALIZATION]
    if not units or units[0] is None:
        return None
    return _one_value(units[0].vector(0, "f"), "mean", where), _one_value(units[0].vector(1, "f"), "std", where)


def _one_value(values: tuple[Any, ...], what: str, where: str) -> float:
    if len(set(values)) != 1:
        raise ModelError(f"{where}: its metadata has a {what} for each channel {values}; only one for all channels is supported")
    return float(values[0])


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("?" if size < 0 else str(size) for size in shape) + ")"
