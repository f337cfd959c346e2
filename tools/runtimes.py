"""Which onnxruntime runs which file: the tables of docs/clients.md.

    python tools/runtimes.py [VERSION ...]

Exports a small random model in every opset, profile and precision, runs each file in an
environment of each version, and compares the logits of six steps with torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters import export_onnx
from exporters.parity.compare import TOLERANCE, relative_error
from exporters.tracing.plan import OPSETS, PROFILES
from gpt2kit import GPT2, GPT2Config, TorchRunner

ROOT = Path(__file__).parents[1]
VERSIONS = (
    "1.16.3",
    "1.18.1",
    "1.20.1",
    "1.22.1",
    "1.24.4",
    "1.26.0",
    "1.28.0",
    "1.30.0",
    "1.32.0",
)
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
}
CONFIG = GPT2Config(
    vocab_size=96,
    n_positions=48,
    n_embd=64,
    n_layer=2,
    n_head=2,
    bos_token_id=None,
    eos_token_id=None,
)
IDS, STEPS = [5, 17, 3, 80, 41, 2, 66], 6
# Runs in the other environment; the program beside it is one of the tested clients.
TRY_FILES = """
import json, sys
sys.argv, (folder, request) = [""], sys.argv[1:]
sys.path.insert(0, folder)
from onnxruntime_client import generate
for path, ids, count in json.loads(request):
    try:
        tokens, logits = generate(path, ids, count)
        print(json.dumps({"path": path, "tokens": tokens, "logits": logits}))
    except Exception as error:
        print(json.dumps({"path": path, "error": str(error)}))
"""


def random_model() -> TorchRunner:
    """A model whose attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    model = GPT2(CONFIG)
    for name, weight in model.named_parameters():
        norm = "ln_" in name and name.endswith("weight")
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1 + float(norm)
    return TorchRunner(model.eval().requires_grad_(False))


def export_all(runner: TorchRunner, folder: Path) -> dict[tuple[str, str, int], Path]:
    """(profile, precision, opset) -> its file."""
    files = {}
    for profile in PROFILES:
        for precision, options in PRECISIONS.items():
            for opset in OPSETS:
                path = folder / f"{profile}-{precision}-{opset}.onnx"
                export_onnx(runner, path, profile=profile, opset=opset, **options)
                files[profile, precision, opset] = path
                print(path.name, file=sys.stderr)
    return files


def environment(version: str) -> Path:
    """The Python of an environment that has this onnxruntime."""
    folder = ROOT / ".clients" / f"onnxruntime-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = [f"onnxruntime=={version}", "numpy<2"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def try_files(version: str, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Path -> what onnxruntime of this version made of the file."""
    request = json.dumps([(str(path), IDS, STEPS) for path in paths])
    programs = ROOT / "tests" / "clients" / "programs"
    command = [str(environment(version)), "-c", TRY_FILES, str(programs), request]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {result["path"]: result for result in map(json.loads, output.splitlines())}


def verdict(runner: TorchRunner, result: dict[str, Any], precision: str) -> str:
    """The precision if the file ran as it should, else a sign that says how it failed."""
    if "error" in result:
        print(Path(result["path"]).name, result["error"][:300], file=sys.stderr)
        return ""
    ids = IDS + result["tokens"][:-1]
    logits = runner.run(ids).logits
    assert logits is not None
    got = np.array(result["logits"], np.float32)
    error = relative_error(logits[0, len(IDS) - 1 :], got)
    return precision if error <= TOLERANCE[precision] else f"{precision} WRONG"


def cell(
    runner: TorchRunner,
    tried: dict[str, dict[str, Any]],
    files: dict[tuple[str, str, int], Path],
    profile: str,
    opset: int,
) -> str:
    """The precisions that one version runs, or "-"."""
    found = [verdict(runner, tried[str(files[profile, p, opset])], p) for p in PRECISIONS]
    return ", ".join(filter(None, found)) or "-"


def main(versions: tuple[str, ...]) -> None:
    """Print a table for each profile."""
    runner = random_model()
    with tempfile.TemporaryDirectory() as folder:
        files = export_all(runner, Path(folder))
        tried = {version: try_files(version, list(files.values())) for version in versions}
        for profile in PROFILES:
            print(f"\n| {profile} | {' | '.join(versions)} |")
            print(f"|{' --- |' * (len(versions) + 1)}")
            for opset in OPSETS:
                cells = [
                    cell(runner, tried[version], files, profile, opset) for version in versions
                ]
                print(f"| opset {opset} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or VERSIONS)
