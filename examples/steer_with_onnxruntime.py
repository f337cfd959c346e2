"""Steer an exported model without gpt2kit: onnxruntime is enough.

The file must carry one tap that can also be edited:

    gpt2kit export --onnx out/gpt2.onnx --taps blocks.4.resid_post --edits blocks.4.resid_post
    python examples/steer_with_onnxruntime.py out/gpt2.onnx

Each edit is two optional inputs: the value becomes keep * value + add. You see a continuation, and
two more in which the difference of two prompts' activations is added or subtracted (Turner et al.
2023, arXiv 2308.10248). The loop reads the whole text at each step; for a cache, use `present.*`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

TAP, PROMPT, STRENGTH = "blocks.4.resid_post", "The doctor lost", 2.0
TOWARDS, AWAY = "The girl lost", "The boy lost"


def main() -> None:
    """Find a direction in two runs, then generate without and with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    ort.set_default_logger_severity(3)  # no warning that optional inputs are not constants
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(file.with_name("tokenizer.json")))
    if f"{TAP}.keep" not in [i.name for i in session.get_overridable_initializers()]:
        sys.exit(f"{file} cannot be edited at {TAP}; export it as this program's first lines say")
    past = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    dtype = np.float16 if past[0].type == "tensor(float16)" else np.float32

    def run(output: str, tokens: list[int], edit: dict[str, np.ndarray]) -> np.ndarray:
        ids = np.array([tokens], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **edit}
        feeds["position_ids"] = np.arange(ids.shape[1])[None]
        feeds |= {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), dtype) for i in past}
        value: np.ndarray = session.run([output], feeds)[0]
        return value[:, -1:]  # at the last token

    towards, away, prompt = (tokenizer.encode(text).ids for text in (TOWARDS, AWAY, PROMPT))
    direction = run(TAP, towards, {}) - run(TAP, away, {})  # (1, 1, d_model)
    print(f"direction: {TOWARDS!r} minus {AWAY!r}, {TAP}")
    keep = np.ones((1, 1, 1), np.float32)
    for strength in (0.0, STRENGTH, -STRENGTH):
        edit = {f"{TAP}.keep": keep, f"{TAP}.add": np.float32(strength) * direction}
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(run("logits", ids, edit).argmax()))
        print(f"{strength:+.0f} x direction: {tokenizer.decode(ids)!r}")


if __name__ == "__main__":
    main()
