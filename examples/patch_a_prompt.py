"""Find where a model keeps one word of a prompt, by activation patching.

Two prompts differ in one word, and so do their likely continuations. The corrupt prompt is run many
times, each time with one value of the residual stream taken from the clean prompt. You see a grid
of the effects: 1 means that this value alone restores the right answer. A second grid shows the
same for the output of each head at the last token.

    python examples/patch_a_prompt.py [--model bundled]
"""

import argparse

import numpy as np

import gpt2kit
from probes import Metric, activation_patching

CLEAN, CORRUPT = "The girl lost", "The boy lost"
RIGHT, WRONG = " her", " his"


def main() -> None:
    """Patch the residual stream, then the heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    gpt2 = gpt2kit.load(parser.parse_args().model)

    metric = Metric.logit_diff(RIGHT, WRONG)
    stream = activation_patching(gpt2, CLEAN, CORRUPT, metric=metric)
    print(stream)
    word = [a != b for a, b in zip(stream.clean_tokens, stream.corrupt_tokens, strict=True)]
    at_word, at_end = stream.normalised[:, word.index(True)], stream.normalised[:, -1]
    layer = int((at_end > at_word).argmax())
    print(
        f"in layer {layer} it moves to the last token: {at_end[layer]:.2f} of the effect is there,"
    )
    print(f"{at_word[layer]:.2f} is left at {stream.clean_tokens[word.index(True)]!r}\n")

    heads = activation_patching(gpt2, CLEAN, CORRUPT, metric=metric, over="z", positions=[-1])
    print(heads)
    best, head, _ = np.unravel_index(heads.normalised.argmax(), heads.normalised.shape)
    print(f"head {best}.{head} moves the largest part of it: {heads.normalised.max():.2f}")


if __name__ == "__main__":
    main()
