"""Watch a prediction form, layer by layer, at the last words of a story.

You see a grid: layers upwards, the last tokens of the story to the right, and in each cell what the
model would say next if it stopped there. Then, for the token that really comes next, at which layer
it first leads.

    python examples/lens_on_a_story.py [--model bundled]
"""

import argparse

import numpy as np

import gpt2kit
from probes import logit_lens

STORY = (
    "Once upon a time there was a little girl who lived with her mother in a small house. "
    "One day the little girl went into the wood, and there she met an old woman. "
    "'Good morning,' said the old woman to the little girl"
)


def main() -> None:
    """One lens, printed and then read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    gpt2 = gpt2kit.load(parser.parse_args().model)

    lens = logit_lens(gpt2, STORY, positions=slice(-12, None))
    print(lens)

    for column, position in enumerate(lens.positions[:-1]):
        token, following = lens.prompt_tokens[position], lens.prompt_tokens[position + 1]
        leads = np.flatnonzero(lens.next_ranks[:, column] == 0)
        where = f"first leads after {lens.rows[leads[0]]}" if len(leads) else "never leads"
        print(f"after {token!r:12} the next, {following!r:12} {where}")


if __name__ == "__main__":
    main()
