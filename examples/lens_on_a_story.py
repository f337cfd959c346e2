"""Watch a prediction form, layer by layer, at the last words of a story.

You see a grid with one row per layer and one column per token of the end of the story. Each cell
shows the next token that the model would predict if it stopped at that layer. Below the grid: the
layer at which the token that really comes next first leads.

    python examples/lens_on_a_story.py [--model bundled]
"""

import argparse

import numpy as np

import gpt2kit
from probes import logit_lens

STORY = (
    "Once upon a time, there was a girl named Lily. She had a red ball. One day, Lily went to "
    "the park with her friend Tom. Tom wanted to play with the ball, so Lily gave the ball to Tom"
)


def main() -> None:
    """Print one lens, then read numbers from it."""
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
