"""Find the heads that copy repeated text, and see how the loss grows without the best of them.

You see where every head looks in random tokens that come twice, a grid of the attention of the best
induction head, and how the loss on the second half rises as induction heads are knocked out.

    python examples/find_induction_heads.py [--model bundled]
"""

import argparse

import numpy as np

import gpt2kit
from gpt2kit import Edit
from probes import attention_patterns, head_scores, repeated_tokens

LENGTH = 40


def main() -> None:
    """Score every head, show the best one, then knock the best ones out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    gpt2 = gpt2kit.load(parser.parse_args().model)

    scores = head_scores(gpt2, length=LENGTH)
    print(scores)

    layer, head, _ = scores.leading("induction", 1)[0]
    repeated = " Tom saw a big red ball and a small dog. Tom saw a big red ball and a"
    print(attention_patterns(gpt2, repeated).show(layer, head))

    ids = repeated_tokens(gpt2.config.vocab_size, batch=8, length=LENGTH)
    for count in (0, 1, 3, 6, 12):
        heads = scores.leading("induction", count)
        edits = [Edit.zero(f"blocks.{layer}.z", head=head) for layer, head, _ in heads]
        print(f"loss on the second half without {count} induction heads: {loss(gpt2, ids, edits)}")


def loss(gpt2: gpt2kit.Runner, ids: np.ndarray, edits: list[Edit]) -> str:
    """Mean nats per token of the second copy."""
    logits = gpt2.run(ids, edits=edits).logits[:, LENGTH:-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return f"{-np.take_along_axis(logprobs, ids[:, LENGTH + 1 :, None], -1).mean():.2f}"


if __name__ == "__main__":
    main()
