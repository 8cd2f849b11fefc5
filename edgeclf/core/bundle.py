"""The deployable file: a TFLite flatbuffer, and behind it a stored zip with `labels.txt` and `edgeclf.json`, the model card.

Clients that know nothing of the card read the flatbuffer and ignore the rest; phone libraries find the labels in the zip.
An ONNX file has the card as an entry `edgeclf.json` of its own metadata. Its SHA-256 there is of the bytes without that entry.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edgeclf.core import onnx
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.flatbuffer import Flatbuffer, Table
from edgeclf.core.tflite import IDENTIFIER, TfliteModel, read_model, scheme

LABELS, CARD, CORE_ML = "labels.txt", "edgeclf.json", ".mlpackage"
CARD_SHA256 = "edgeclf.json.sha256"  # in ONNX alone; the zip has checksums of its own
METADATA, METADATA_IDENTIFIER = "TFLITE_METADATA", b"M001"
# Slots of ModelMetadata and SubGraphMetadata, and AssociatedFileType TENSOR_AXIS_LABELS, of TFLite's metadata_schema.fbs.
SUBGRAPHS, INPUT_TENSORS, OUTPUT_TENSORS, AXIS_LABELS = 3, 2, 3, 2

MAX_MODEL_BYTES = 1 << 30
MAX_TAIL_BYTES = 16 << 20
MAX_ENTRIES = 64

_END = struct.Struct("<4s4H2LH")  # of the central directory: signature, disks, entries, bytes, offset, comment length
_LOCAL_HEADER, _ZIP64_LOCATOR_BYTES = b"PK\x03\x04", 20
_CARD_HEADER = re.compile(re.escape(_LOCAL_HEADER) + b".{26}" + re.escape(CARD.encode()), re.DOTALL)
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError, struct.error, zlib.error, lzma.LZMAError
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A deployable file, read and checked.

    `model` is the flatbuffer alone, or the ONNX model without its card. `card` is None for a file that edgeclf did not
    write; `labels` then come from its TFLite Metadata, empty when that names none. `name` is what messages call the file,
    and tells one kind from the other.
    """

    model: bytes
    card: ModelCard | None = None
    labels: tuple[str, ...] = ()
    name: str = "model"

    @cached_property
    def structure(self) -> TfliteModel:
        """Tensors, operators and metadata of the model. Raises ModelError."""
        return read_model(self.model, self.name)

    @cached_property
    def graph(self) -> onnx.OnnxModel:
        """The same of an ONNX model. Raises ModelError."""
        return onnx.read_model(self.model, self.name)

    @property
    def precision(self) -> str:
        """The compression scheme that the tensors show. Raises ModelError."""
        return onnx.scheme(self.graph) if onnx.is_onnx(self.name) else scheme(self.structure)

    def with_card(self, card: ModelCard) -> bytes:
        """The whole file, with `card` in it. Raises ModelError."""
        return attach_onnx(self.model, card) if onnx.is_onnx(self.name) else attach(self.model, card)


def read_bundle(path: Path | str) -> Bundle:
    """The deployable file at `path`, checked: whole, unaltered since its export, as many labels as outputs.

    Raises ModelError, saying which of these fails. A file without a card is only checked to be whole.
    """
    return parse_bundle(model_bytes(Path(path)), str(path))


def parse_bundle(data: bytes, where: str) -> Bundle:
    """As `read_bundle`, for bytes that are already in memory; `where` names them in messages."""
    if onnx.is_onnx(where):
        return _parse_onnx(data, where)
    model, entries = _split(data, where)
    card = _checked_card(model, entries, where) if CARD in entries else None
    structure = read_model(model, where)
    labels = card.labels if card else _foreign_labels(structure, entries, where)
    classes = structure.output.shape[-1] if structure.output.shape else 0
    if labels and classes != len(labels):
        raise ModelError(f"{where}: it has {len(labels)} labels for {classes} outputs; export it again with one label per class")
    return Bundle(model, card, labels, where)


def attach(model: bytes, card: ModelCard) -> bytes:
    """`model` with `card` and its labels behind it; what was attached before is replaced. Same input, same bytes.

    The card's `sha256` is set here. Raises ModelError when `model` is no TFLite model or has not one output per label.
    """
    model, _ = _split(model, card.name)
    card = replace(card, sha256=hashlib.sha256(model).hexdigest())
    buffer = io.BytesIO()
    buffer.write(model)
    # Mode "a" writes offsets from the start of the file in every Python, as the clients' zip readers expect.
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name, text in ((LABELS, _labels_text(card.labels)), (CARD, card.to_json())):
            archive.writestr(_entry(name), text.encode("utf-8"))
    data = buffer.getvalue()
    parse_bundle(data, card.name)
    return data


def attach_onnx(model: bytes, card: ModelCard) -> bytes:
    """As `attach`, for an ONNX model: two entries of its metadata, at the end of the file, the card and its checksum."""
    model, _, _ = _split_onnx(model, card.name)
    text = replace(card, sha256=hashlib.sha256(model).hexdigest()).to_json()
    data = onnx.with_metadata(onnx.with_metadata(model, CARD, text), CARD_SHA256, _sha256_of(text))
    _parse_onnx(data, card.name)
    return data


def _split_onnx(data: bytes, where: str) -> tuple[bytes, str | None, str | None]:
    """(the model, its card, the checksum of that); the latter two None where there are none."""
    data, text = onnx.split_metadata(data, CARD, where)
    model, checksum = onnx.split_metadata(data, CARD_SHA256, where)
    return model, text, checksum


def _parse_onnx(data: bytes, where: str) -> Bundle:
    """A card with neither checksum was put there by other means than `attach_onnx`, and there is nothing to compare."""
    model, text, checksum = _split_onnx(data, where)
    bundle = Bundle(model, name=where)
    classes = bundle.graph.outputs[0].shape[-1:]
    if text is None and checksum is None:
        return bundle
    altered = ModelError(f"{where}: its model card was altered after its export; export or copy it again")
    if text is None or checksum not in (None, _sha256_of(text)):
        raise altered
    card = ModelCard.from_json(text, where)
    if bool(card.sha256) != (checksum is not None):
        raise altered
    if card.sha256:
        _check_sha256(model, card, where)
    if classes not in ((), (-1,), (len(card.labels),)):
        raise ModelError(
            f"{where}: it has {len(card.labels)} labels for {classes[0]} outputs; export it again with one label per class"
        )
    return replace(bundle, card=card, labels=card.labels)


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o100644 << 16
    return info


def _labels_text(labels: tuple[str, ...]) -> str:
    """One label a line; readers drop the empty line that follows the last line break, and only that."""
    return "".join(f"{label}\n" for label in labels)


def model_bytes(path: Path) -> bytes:
    """The bytes of a model file, of a bounded size. Raises ModelError."""
    if path.suffix == CORE_ML:
        raise ModelError(f"{path}: a Core ML package, which runs on Apple's systems alone; here take a .tflite or .onnx file")
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path}: {size >> 20} MB is more than the limit of {MAX_MODEL_BYTES >> 20} MB for a model")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _checked_card(model: bytes, entries: dict[str, bytes], where: str) -> ModelCard:
    card = ModelCard.from_json(entries[CARD], where)
    _check_sha256(model, card, where)
    if entries.get(LABELS) != _labels_text(card.labels).encode("utf-8"):
        raise ModelError(f"{where}: {LABELS} and the labels in the model card differ; export it again")
    return card


def _check_sha256(model: bytes, card: ModelCard, where: str) -> None:
    if hashlib.sha256(model).hexdigest() != card.sha256:
        raise ModelError(
            f"{where}: the model was altered after its export (SHA-256 differs from its card); export or copy it again"
        )


def _split(data: bytes, where: str) -> tuple[bytes, dict[str, bytes]]:
    """(the flatbuffer, the files in the zip behind it); every file is read whole, so that its checksum is compared."""
    if data[:4] == _LOCAL_HEADER and data[4:8] != IDENTIFIER:
        raise ModelError(f"{where}: a zip archive, not a TFLite model")
    end = _end_of_zip(data)
    if end is None:
        if _CARD_HEADER.search(data):
            raise ModelError(f"{where}: is cut short (the end of its model card is missing); copy it again")
        return data, {}
    try:
        declared = _checked_count(data, end, where)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) != declared:
                raise zipfile.BadZipFile(f"{len(infos)} files listed, {declared} declared")
            border = min(info.header_offset for info in infos)
            entries = _entries(archive, infos, len(data) - border, where)
    except _ZIP_ERRORS as error:
        raise ModelError(f"{where}: labels and model card behind the model are damaged ({error}); copy it again") from error
    return data[:border], entries


def _end_of_zip(data: bytes) -> int | None:
    """Where the end record of a zip lies that reaches to the last byte; None when there is none."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - 0xFFFF))
    if at < 0 or at + _END.size > len(data):
        return None
    return at if at + _END.size + _END.unpack_from(data, at)[-1] == len(data) else None


def _checked_count(data: bytes, end: int, where: str) -> int:
    """How many files the zip declares, found allowable before the list is read."""
    *_, declared, directory_bytes, _offset, _comment = _END.unpack_from(data, end)
    zip64 = data[max(0, end - _ZIP64_LOCATOR_BYTES) :].startswith(b"PK\x06\x07")
    if not 1 <= declared <= MAX_ENTRIES or directory_bytes > MAX_TAIL_BYTES or zip64:
        raise ModelError(f"{where}: {declared} attached files; between 1 and {MAX_ENTRIES} are allowed")
    return int(declared)


def _entries(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], tail_bytes: int, where: str) -> dict[str, bytes]:
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise ModelError(f"{where}: two attached files have one name")
    if max(tail_bytes, sum(info.file_size for info in infos)) > MAX_TAIL_BYTES:
        raise ModelError(f"{where}: the attached files are larger than {MAX_TAIL_BYTES >> 20} MB")
    return {info.filename: archive.read(info) for info in infos}


def _foreign_labels(structure: TfliteModel, entries: dict[str, bytes], where: str) -> tuple[str, ...]:
    """The labels that standard TFLite Metadata names for the first output; empty when it names none."""
    name = _label_file(structure.metadata.get(METADATA, b""), where)
    if name is None:
        return ()
    if name not in entries:
        raise ModelError(f"{where}: is cut short ({name}, which its metadata names, is missing); copy it again")
    try:
        text = entries[name].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: its label file {name} is not UTF-8") from error
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _label_file(metadata: bytes, where: str) -> str | None:
    """The associated file of labels of the first output (slots of metadata_schema.fbs)."""
    output = metadata_tensor(metadata, OUTPUT_TENSORS, where)
    if output is None:
        return None
    return next((t.text(0) for t in output.tables(6) if t.number(2, "<b") == AXIS_LABELS), None)


def metadata_tensor(metadata: bytes, tensors: int, where: str) -> Table | None:
    """ModelMetadata → subgraph 0 → its first tensor in the slot `tensors` (INPUT_TENSORS, OUTPUT_TENSORS).

    None when `metadata` is of another kind or describes no such tensor. Raises ModelError when it is damaged.
    """
    if metadata[4:8] != METADATA_IDENTIFIER:
        return None
    file = Flatbuffer(metadata, f"{where}: TFLite Metadata")
    tables = [Table(file, file.follow(0))]
    for slot in (SUBGRAPHS, tensors):
        tables = tables[0].tables(slot)[:1]
        if not tables:
            return None
    return tables[0]
