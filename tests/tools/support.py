"""What the tests of the tools share: a small recipe, and stories of a few sentences."""

from names import BOYS, GIRLS
from recipe import Recipe

NAMES = (*BOYS[:6], *GIRLS[:6])
SMALL = Recipe(
    vocab_size=332, n_positions=32, n_embd=16, n_layer=2, n_head=2, steps=6, short_steps=2,
    batch_rows=5, repeat_rows=2, children_rows=1, children_step=4, renamed=1.0, warmup=2,
)  # fmt: skip


def story(i: int) -> str:
    a, b = NAMES[i % 12], NAMES[(i * 5 + 1) % 12]
    return f"{a} and {b} went to the park.\n{a} gave the ball to {b}. {b} said thank you to {a}."
