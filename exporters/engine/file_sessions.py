"""The sessions over one exported file, for as long as that file is unchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import onnxruntime as ort

from exporters.engine.devices import choose
from exporters.engine.sessions import open_session, reason, run_options
from exporters.file.external import data_files
from exporters.file.names import existing
from gpt2kit.errors import EngineError

T = TypeVar("T")


class FileSessions:
    """One file on one device: a lean session, and a whole one when it is needed.

    The lean session leaves out all taps except the residual stream's, since they cost time even
    if nobody fetches them. When a run first asks for such a tap, the whole session is opened beside
    the lean one, and serves the runs that ask. It holds the weights once more in memory.

    Attributes: path; device, "cpu" or "cuda"; lean; cuda_graphs, whether the lean session can
    capture CUDA graphs; run_options, for runs that capture none.
    """

    def __init__(
        self,
        state: FileState,
        device: str,
        lean: ort.InferenceSession,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self._state, self.path, self.device = state, state.path, device
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
        state = FileState(file)  # before the session reads it
        try:
            session, cuda_graphs = open_session(file, chosen, threads, lean=True)
        except EngineError:
            if (device, chosen) != ("auto", "cuda"):
                raise
            chosen = "cpu"
            session, cuda_graphs = open_session(file, chosen, threads, lean=True)
        return cls(state, chosen, session, cuda_graphs=cuda_graphs)

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
        self._state.check()

    def attempt(self, run: Callable[[], T]) -> T:
        """Call `run`; raise onnxruntime's errors as an EngineError of one line."""
        try:
            return run()
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise EngineError(f"{self.path}: {reason(str(error), 'run')}") from error


class FileState:
    """A file, and the weights beside it, as they were when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {part: _identity(part) for part in (path, *data_files(path))}

    def check(self) -> None:
        """Raise EngineError if either file was replaced or removed."""
        for part, known in self._known.items():
            if (found := _identity(part)) != known:
                if found is None:
                    raise EngineError(f"{part}: was removed since it was opened; export it again")
                raise EngineError(f"{part}: changed since it was opened; open it again")


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Size, time of change and inode; None if there is no such file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
