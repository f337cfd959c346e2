"""External data: the files beside an exported file that hold its weights.

An export ends its data with the sha256 of all bytes before it, and the graph's metadata holds the
same digest. Thus data of another export is noticed by reading 32 bytes, whatever it shares with
the right data. Data that changed later, within its length, takes a digest of all bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from pathlib import Path, PurePath

import onnx
from google.protobuf.message import DecodeError

from exporters.file import mapped
from exporters.file.metadata import DataStamp, data_stamp
from gpt2kit.errors import EngineError

_SEAL = hashlib.sha256().digest_size  # bytes at the end of the data


def seal(data: Path) -> DataStamp:
    """End finished data with its digest; returns what the metadata must say of it."""
    digest = _sha256(data, data.stat().st_size)
    with data.open("ab") as file:
        file.write(digest)
    return DataStamp(data.stat().st_size, digest.hex())


def read_graph(path: Path) -> onnx.ModelProto | None:
    """The model without its weights; None if the file is not ONNX."""
    try:
        return mapped.load_proto(path)
    except DecodeError:
        return None


def entries(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of a model: key -> text."""
    return {entry.key: entry.value for entry in model.metadata_props}


def files_of(path: Path, model: onnx.ModelProto | None) -> list[Path]:
    """The file itself, then the files of external data that its graph names."""
    places = set() if model is None else _ends(model, path).keys() - {path.name}
    return [path, *(path.parent / place for place in sorted(places))]


def check_data(path: Path, model: onnx.ModelProto, *, whole: bool = False) -> None:
    """Raise EngineError if external data is missing, short, not a file, or of another export.

    whole: read all of it, to notice changes within its length.
    """
    stamp = data_stamp(entries(model), path)
    for place, end in _ends(model, path).items():
        if PurePath(place).is_absolute() or ".." in PurePath(place).parts:
            continue  # onnxruntime refuses it
        size = _size(path, place)
        if size < end or (stamp and place != path.name and size != stamp.length):
            raise EngineError(
                f"{path}: its external data {place} is not of the right length "
                f"({size} bytes); copy or export it again"
            )
        if stamp and place != path.name:
            _check_seal(path, place, stamp, whole)


def _check_seal(path: Path, place: str, stamp: DataStamp, whole: bool) -> None:
    data = path.parent / place
    with data.open("rb") as file:
        file.seek(-min(_SEAL, stamp.length), os.SEEK_END)
        sealed = file.read()
    if sealed.hex() != stamp.sha256:
        raise EngineError(
            f"{path}: its external data {place} belongs to another export; copy both files "
            "together, or export it again"
        )
    if whole and _sha256(data, stamp.length - _SEAL).hex() != stamp.sha256:
        raise EngineError(
            f"{path}: its external data {place} has changed since the export; copy or export "
            "it again"
        )


def _ends(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """Location -> the number of bytes that it must have at least."""
    ends: dict[str, int] = {}
    try:
        for weight in model.graph.initializer:
            entry = {entry.key: entry.value for entry in weight.external_data}
            if place := entry.get("location"):
                end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
                ends[place] = max(ends.get(place, 0), end)
    except ValueError as error:
        raise EngineError(f"{path}: a damaged ONNX file ({error}); export it again") from error
    return ends


def _size(path: Path, place: str) -> int:
    try:
        found = (path.parent / place).stat()
    except (OSError, ValueError) as error:  # ValueError: not a possible name
        raise EngineError(
            f"{path}: its external data {place} is missing; keep that file beside it"
        ) from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise EngineError(f"{path}: its external data {place} is not a file; export it again")
    return found.st_size


def _sha256(data: Path, length: int) -> bytes:
    """Digest of the first `length` bytes, more than none."""
    with data.open("rb") as file, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as part:
        return hashlib.sha256(part).digest()
