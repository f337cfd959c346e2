"""One engine in one process, controlled by `compare.py` with a line of JSON each way.

    python worker.py ENGINE PATH THREADS           # serve requests on standard input
    python worker.py convert ENGINE CHECKPOINT OUT # make the engine's own file from the checkpoint

It runs in the environment of its engine, so the modules that it imports need numpy alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from converters import CONVERT
from engine_base import Engine
from ours import Ours, OursOnTorch
from peers import CTranslate2, CTranslate2Int8, LlamaCpp, Optimum, TransformerLens, Transformers

ENGINES = {
    "gpt2kit": Ours,
    "gpt2kit-torch": OursOnTorch,
    "transformers": Transformers,
    "transformer_lens": TransformerLens,
    "optimum": Optimum,
    "ctranslate2": CTranslate2,
    "ctranslate2-int8": CTranslate2Int8,
    "llama.cpp": LlamaCpp,
}


def memory() -> dict[str, float]:
    """Resident megabytes of this process: now, and at most since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return {"now": int(found["VmRSS"]) * 1.024e-3, "peak": int(found["VmHWM"]) * 1.024e-3}


def answer(engine: Engine, request: dict[str, Any]) -> Any:
    """Carry out one request: {"do": name of a method, "ids": …} and its other arguments."""
    task = request.pop("do")
    if task == "memory":
        return memory()
    ids = np.array(request.pop("ids"), dtype=np.int64)
    if task == "logits":
        np.save(request["to"], engine.logits(ids))
        return None
    return getattr(engine, task)(ids, **request)


def main() -> None:
    """Convert, or serve until standard input ends."""
    if sys.argv[1] == "convert":
        CONVERT[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        return
    reply = sys.stdout
    sys.stdout = sys.stderr  # engines may print; replies must be JSON alone
    for module in ENGINES[sys.argv[1]].modules:
        importlib.import_module(module)
    start = time.perf_counter()
    engine = ENGINES[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps(1e3 * (time.perf_counter() - start)), file=reply, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=reply, flush=True)


if __name__ == "__main__":
    main()
