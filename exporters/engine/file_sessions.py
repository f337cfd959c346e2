"""The sessions over one exported file, for as long as that file is unchanged."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import onnx
import onnxruntime as ort

from exporters.engine.devices import choose
from exporters.engine.sessions import open_session, reason, run_options
from exporters.file.external import check_data, files_of, read_graph
from exporters.file.names import existing
from gpt2kit.errors import EngineError

T = TypeVar("T")


class FileSessions:
    """One file on one device: a lean session, and a whole one when it is needed.

    The lean session leaves out all taps except the residual stream's, since they cost time even
    if nobody fetches them. When a run first asks for such a tap, the whole session is opened beside
    the lean one, and serves the runs that ask. It holds the weights once more in memory.

    Attributes: state, of the file and its data; path; model, without its weights, as it was opened
    (None if the file is not ONNX); device, "cpu" or "cuda"; lean; cuda_graphs, whether the lean
    session can capture CUDA graphs; run_options, for runs that capture none.
    """

    def __init__(
        self,
        state: FileState,
        model: onnx.ModelProto | None,
        device: str,
        lean: ort.InferenceSession,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self.state, self.path, self.model, self.device = state, state.path, model, device
        self.lean, self.cuda_graphs = lean, cuda_graphs
        self.run_options = run_options()
        self._lean_outputs = {output.name for output in lean.get_outputs()}

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], device: str, threads: int | None = None
    ) -> FileSessions:
        """Open the lean session. Raises EngineError if the file or the device cannot be used.

        device: "cpu", "cuda", or "auto": CUDA where it works and can run this file, else the CPU.
        """
        file = existing(path)
        chosen = choose(device)
        if chosen == "cuda":
            ort.preload_dlls()
        model = read_graph(file)
        state = FileState(files_of(file, model))  # before the session reads them
        if model is not None:
            check_data(file, model)
        try:
            session, cuda_graphs = open_session(file, chosen, threads, lean=True)
        except EngineError:
            if (device, chosen) != ("auto", "cuda"):
                raise
            chosen = "cpu"
            session, cuda_graphs = open_session(file, chosen, threads, lean=True)
        return cls(state, model, chosen, session, cuda_graphs=cuda_graphs)

    @property
    def provider(self) -> str:
        """What computes: "CPUExecutionProvider" or "CUDAExecutionProvider"."""
        return str(self.lean.get_providers()[0])

    @property
    def threads(self) -> int:
        """Number of threads that share one operator on the CPU."""
        return int(self.lean.get_session_options().intra_op_num_threads)

    def carrying(self, outputs: Iterable[str]) -> ort.InferenceSession:
        """The session that gives these outputs: the lean one if it can, else the whole one."""
        return self.lean if self._lean_outputs.issuperset(outputs) else self._whole

    @cached_property
    def _whole(self) -> ort.InferenceSession:
        self.check_unchanged()
        return open_session(self.path, self.device, self.threads)[0]

    def check_unchanged(self) -> None:
        """Raise EngineError if the file has changed: reading on would mix two models."""
        self.state.check()

    def attempt(self, run: Callable[[], T]) -> T:
        """Call `run`; raise onnxruntime's errors as an EngineError of one line.

        A file that was written to since it was opened is refused first: onnxruntime maps it, so a
        run would read other weights, or kill the process where the file has become shorter.
        """
        self.state.check_in_place()
        try:
            return run()
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise EngineError(f"{self.path}: {reason(str(error), 'run')}") from error


class FileState:
    """A file, and the external data of its weights, as they were when it was opened.

    files: the file first. size: bytes of all.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.path = files[0]
        self._known = {file: _identity(file) for file in files}
        self.size = sum(known[0] for known in self._known.values() if known)
        self._held = {file: _hold(file, self) for file, known in self._known.items() if known}

    def check(self) -> None:
        """Raise EngineError if a file was replaced, removed or written to."""
        for part, known in self._known.items():
            if (found := _identity(part)) != known:
                if found is None:
                    raise EngineError(f"{part}: was removed since it was opened; export it again")
                raise EngineError(f"{part}: changed since it was opened; open it again")

    def check_in_place(self) -> None:
        """Raise EngineError if a file was written to. Other names and new files do not matter."""
        for part, held in self._held.items():
            if held is not None and _identity(held) != self._known[part]:
                raise EngineError(f"{part}: changed since it was opened; open it again")


def _hold(file: Path, owner: object) -> int | None:
    """A descriptor of a file, as long as its owner lives: it stays with the file that is mapped.

    None on Windows, which lets no one shorten a file that is mapped.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not wait
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def _identity(file: Path | int) -> tuple[int, int, int] | None:
    """Size, time of change and inode of a path or descriptor; None if it cannot be looked at."""
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file)
    except (OSError, ValueError):  # ValueError: not a possible name
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
