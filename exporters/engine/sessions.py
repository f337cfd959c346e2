"""Opening onnxruntime sessions: options, providers, and errors as one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from exporters.engine.devices import CPU, CUDA, check_placement, physical_cores
from exporters.file import mapped
from gpt2kit.errors import EngineError
from gpt2kit.taps import axes_of


def costly(output: str) -> bool:
    """Whether an output is a tap that is not of the residual stream.

    onnxruntime computes all outputs of a graph and gives each its own memory, even if it is not
    fetched. The residual stream is computed and kept anyway; other taps cost time.
    """
    try:
        axes_of(output)
    except KeyError:  # logits, a cache, or an output of a file that gpt2kit did not make
        return False
    return output != "ln_f" and ".resid_" not in output


_FATAL = 4  # errors are raised as well; onnxruntime's red lines would stand beside ours


def session_options(threads: int | None) -> ort.SessionOptions:
    """Options of a quiet session. threads: by default one for each physical core."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or physical_cores()
    # Threads wait for the next node by spinning. Soon after a run they must leave the processor to
    # the next session: while generating, that is the readout of each step.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    return options


def run_options(cuda_graph: int = -1) -> ort.RunOptions:
    """Options of one run. cuda_graph: the number of the CUDA graph to capture or replay, or -1.

    It is set on the CPU too: where it is not set, onnxruntime searches for it at every run.
    """
    options = ort.RunOptions()
    options.log_severity_level = _FATAL
    options.add_run_config_entry("gpu_graph_id", str(cuda_graph))
    return options


def providers(device: str, *, cuda_graphs: bool = False) -> list[Any]:
    """Execution providers of a device. cuda_graphs: whether runs may be captured."""
    if device != "cuda":
        return [CPU]
    # TF32 would round float32 products to 10 bits, and parity would not hold.
    return [(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1" if cuda_graphs else "0"}), CPU]


def open_session(
    file: Path, device: str, threads: int | None, *, lean: bool = False
) -> tuple[ort.InferenceSession, bool]:
    """Open a session. Returns it, and whether it can capture CUDA graphs.

    lean: leave out the taps that are `costly`.
    Raises EngineError, with the reason as one line.
    """
    options = session_options(threads)
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for cuda_graphs in (True, False) if device == "cuda" else (False,):
        try:
            session = mapped.session(
                file,
                options,
                costly if lean else None,
                providers=providers(device, cuda_graphs=cuda_graphs),
            )
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            if cuda_graphs and "graph capture" in str(error):
                continue  # a node runs on the CPU, so that nothing can be captured
            raise EngineError(f"{file}: {reason(str(error))}") from error
        if device == "cuda":
            check_placement(session)
        return session, cuda_graphs
    raise AssertionError("unreachable")


def reason(message: str, doing: str = "load") -> str:
    """onnxruntime's message as one line that says what to do."""
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
