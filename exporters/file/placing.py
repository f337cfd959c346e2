"""Moving finished files to their places, all or none.

A draft folder has two parts: `beside` holds the ONNX file and what lies beside it, `sidecars` the
files for other clients, which may belong one folder up. While files are moved, `older` holds the
files that they replace and `absent` an empty file for each name that was free; with these, a
draft whose process died is rolled back by the next export.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from exporters.file.names import parity_file, sidecar_folder
from gpt2kit.errors import ExportError

PARTS = ("sidecars", "beside")  # the ONNX file comes last


def homes(draft: Path) -> dict[str, Path]:
    """Part of a draft -> the folder that its files are for. The draft lies beside the ONNX file."""
    return {"sidecars": sidecar_folder(draft), "beside": draft.parent}


def check_target(target: Path) -> None:
    """Raise ExportError if an ONNX file of this name cannot be written."""
    if target.suffix != ".onnx":
        raise ExportError(f"{target}: give a file name that ends in .onnx")
    if target.is_dir():
        raise ExportError(f"{target}: is a folder; give a file name")
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist")
    for folder in dict.fromkeys([target.parent, sidecar_folder(target)]):
        if not os.access(folder, os.W_OK):
            raise ExportError(f"{target}: the folder {folder} cannot be written to")
    if os.name == "posix" and target.parent.stat().st_dev != sidecar_folder(target).stat().st_dev:
        raise ExportError(
            f"{target}: {sidecar_folder(target)}, where config.json belongs, is on another disk; "
            "give the folder another name than `onnx`"
        )


def check_free(files: Iterable[Path]) -> None:
    """Raise ExportError if one of these names is taken by something other than a file."""
    for file in files:
        if file.exists() and not file.is_file():
            kind = "a folder" if file.is_dir() else "not a file"
            raise ExportError(f"{file}: is {kind}, and the export would replace it; move it away")


def place(draft: Path, target: Path, obsolete: Iterable[str] = ()) -> None:
    """Move the files of a draft to where they belong; after a failure, `roll_back` undoes it.

    obsolete: names beside the target that the new file does without.
    The ONNX file comes last. If more than its report changes with it, the older one goes first:
    no client can then open it with data or a tokenizer of the new one, whenever the process dies.
    """
    new = [(part, file.name) for part in PARTS for file in _files(draft / part)]
    new.sort(key=lambda file: file[1] == target.name)
    gone = [("beside", name) for name in obsolete]
    home = homes(draft)
    check_free(home[part] / name for part, name in new)
    for part, name in reversed([*gone, *new]):  # the ONNX file first; see `roll_back`
        _set_aside(draft, part, home[part] / name)
    if gone or {name for _, name in new} - {target.name, parity_file(target).name}:
        target.unlink(missing_ok=True)
    for part, name in gone:
        (home[part] / name).unlink(missing_ok=True)
    for part, name in new:
        (draft / part / name).replace(home[part] / name)


def roll_back(draft: Path) -> None:
    """Undo what `place` has done, unless it came to its end: then the ONNX file has moved.

    Nothing is undone if somebody has since put another ONNX file there.
    """
    older, home = draft / "older", homes(draft)
    for model in _files(draft / "beside"):
        if model.suffix != ".onnx":
            continue
        current, kept = draft.parent / model.name, older / "beside" / model.name
        if current.exists() and not (kept.exists() and current.samefile(kept)):
            continue
        for part in PARTS:
            for mark in _files(draft / "absent" / part):
                if not (draft / part / mark.name).exists():  # it has moved
                    (home[part] / mark.name).unlink(missing_ok=True)
            for file in sorted(_files(older / part), key=lambda file: file.name == model.name):
                file.replace(home[part] / file.name)
        shutil.rmtree(older, ignore_errors=True)


def _set_aside(draft: Path, part: str, file: Path) -> None:
    """Keep a second name of a file that will be replaced, or a mark that there was none."""
    kind = "older" if os.path.lexists(file) else "absent"
    kept = draft / kind / part / file.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    if kind == "absent":
        kept.touch()
        return
    try:
        os.link(file, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without hard links
        file.replace(kept)


def _files(folder: Path) -> list[Path]:
    """The files of a folder, by name; none if there is no such folder."""
    return sorted(file for file in folder.iterdir() if not file.is_dir()) if folder.exists() else []
