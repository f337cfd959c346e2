"""Steer a model with the difference of two sets of prompts.

Half of the prompts are about women, half about men. The mean difference of the residual stream at
their last token is a direction. Added while the model continues a neutral prompt, the direction
decides between "her" and "his". You see the probability of both words, and the text, at several
strengths.

    python examples/steer.py [--model bundled]
"""

import argparse

import numpy as np

import gpt2kit
from probes import mean_difference, steer

WOMEN = ["The girl lost", "The mom put on", "The woman took", "The queen opened", "Lily held"]
MEN = ["The boy lost", "The dad put on", "The man took", "The king opened", "Tom held"]
PROMPT, STRENGTHS = "The doctor lost", (-2.0, -1.0, 0.0, 1.0, 2.0)


def main() -> None:
    """Find the direction, measure its effect, and generate with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    gpt2 = gpt2kit.load(parser.parse_args().model)
    assert gpt2.tokenizer is not None

    tap = f"blocks.{gpt2.config.n_layer // 2}.resid_post"
    direction = mean_difference(gpt2, WOMEN, MEN, tap=tap)
    print(repr(direction))

    ids, words = gpt2.tokenizer.encode(PROMPT), (" her", " his")
    for strength in STRENGTHS:
        logits = gpt2.run(ids, edits=[direction.edit(strength)], last_only=True).logits[0, 0]
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        shown = "  ".join(f"{word!r} {p[gpt2.tokenizer.single(word)]:.3f}" for word in words)
        print(f"{strength:+.0f} x direction: {shown}")

    print(steer(gpt2, PROMPT, direction, STRENGTHS, max_new_tokens=12))


if __name__ == "__main__":
    main()
