"""External data: the files beside an exported file that hold its weights."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from exporters.file import mapped


def data_files(path: Path) -> list[Path]:
    """The files of external data that the graph names; none if the file is not ONNX."""
    try:
        model = mapped.load_proto(path)
    except DecodeError:
        return []
    places = {
        entry.value
        for weight in model.graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }
    return [path.parent / place for place in sorted(places - {path.name})]
