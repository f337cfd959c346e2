"""Opening onnxruntime sessions: options, providers, and errors as one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from exporters.engine.devices import CPU, CUDA, check_placement, physical_cores
from exporters.file import mapped
from exporters.file.names import data_file
from gpt2kit.errors import EngineError
from gpt2kit.taps import axes_of


def costly(output: str) -> bool:
    """Whether an output is a tap beside the residual stream: onnxruntime computes all outputs that
    a graph has, and gives each memory of its own, fetched or not."""
    try:
        axes_of(output)
    except KeyError:  # logits, a cache, or an output of somebody else's file
        return False
    return output != "ln_f" and ".resid_" not in output


class Opened:
    """A file, and the weights beside it, as they were when it was opened."""

    def __init__(self, path: Path) -> None:
        self.known = {part: _identity(part) for part in (path, data_file(path))}

    def check(self) -> None:
        """Raise EngineError if another file has taken the place of one: reading on from it would
        mix two models."""
        for part, known in self.known.items():
            if (found := _identity(part)) != known:
                if found is None:
                    raise EngineError(f"{part}: was removed since it was opened; export it again")
                raise EngineError(f"{part}: changed since it was opened; open it again")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def session_options(threads: int | None) -> ort.SessionOptions:
    """Quiet, on so many threads: by default one a physical core."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or physical_cores()
    # Threads wait for the next node by spinning; soon after a run they must leave the processor to
    # the next one, which may be of another session: the readout of a step, while generating.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    return options


def run_options(graph: int = -1) -> ort.RunOptions:
    """Options of one run. graph: which CUDA graph to capture or replay, -1: none.

    (It is set even on the CPU, where onnxruntime would look for it in vain at every run.)
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def providers(device: str, graphs: bool = False) -> list[Any]:
    """Execution providers of a device. graphs: whether CUDA graphs may be captured."""
    if device != "cuda":
        return [CPU]
    # TF32 would round float32 products to 10 bits, and parity would not hold.
    return [(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1" if graphs else "0"}), CPU]


def open_session(
    file: Path, device: str, threads: int | None, *, lean: bool = False
) -> tuple[ort.InferenceSession, bool]:
    """The session, and whether it can capture CUDA graphs.

    lean: without the taps that are `costly`.
    """
    options = session_options(threads)
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for graphs in (True, False) if device == "cuda" else (False,):
        try:
            session = mapped.session(
                file, options, costly if lean else None, providers=providers(device, graphs)
            )
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if graphs and "graph capture" in str(error):
                continue  # a graph with a node on the CPU runs without
            raise EngineError(f"{file}: {reason(str(error))}") from error
        if device == "cuda":
            check_placement(session)
        return session, graphs
    raise AssertionError("unreachable")


def reason(message: str, doing: str = "load") -> str:
    """Onnxruntime's message as one line that says what to do."""
    if "INVALID_PROTOBUF" in message or "No graph was found" in message:
        return "not an ONNX file, or a damaged one; export it again"
    if lost := re.search(r'External data path does not exist: "(.*)"', message):
        return f"its external data {lost[1]} is missing; keep that file beside it"
    if "escapes model directory" in message or "Absolute path not allowed" in message:
        return "refused: its external data points outside its folder"
    if re.search("given file_length|external data size mismatch", message):
        return "its external data is not of the right length; copy or export it again"
    # "[ONNXRuntimeError] : 1 : FAIL : Load model from … failed:/path/file.cc:256 type f(…) text"
    text = message.split(" : ", 3)[-1].split(" failed:", 1)[-1]
    text = re.sub(r"^\S+\.(cc|h):\d+ .*?\) ", "", text, flags=re.DOTALL)
    return f"onnxruntime {ort.__version__} cannot {doing} it: {' '.join(text.split())}"
