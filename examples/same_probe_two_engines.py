"""Run one probe on two engines: torch, and onnxruntime with a file that is exported first.

You see the same logit lens twice, and the largest difference between them, which is rounding.

    python examples/same_probe_two_engines.py [--model bundled] [--prompt TEXT]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import gpt2kit
from exporters import export_onnx, open_onnx
from probes import logit_lens


def main() -> None:
    """Export, open, and compare the two answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--prompt", default="Tom and Lily went to the park. Tom gave the")
    given = parser.parse_args()
    gpt2 = gpt2kit.load(given.model, device="cpu")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(gpt2, path, taps=["blocks.0.resid_pre", "blocks.*.resid_post"])
        by_onnx = logit_lens(open_onnx(path, device="cpu"), given.prompt)
    by_torch = logit_lens(gpt2, given.prompt)
    print(by_torch)
    print(by_onnx)

    largest = np.abs(by_torch.top_logprobs - by_onnx.top_logprobs).max()
    same = (by_torch.top_ids[..., 0] == by_onnx.top_ids[..., 0]).mean()
    print(f"log-probabilities differ by {largest:.1e} nats at most; {same:.0%} of top tokens agree")


if __name__ == "__main__":
    main()
