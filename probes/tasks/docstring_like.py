"""Python docstrings that name the arguments in order.

Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only
transformer".
"""

from __future__ import annotations

from gpt2kit.tokenizer import Tokenizer
from probes.tasks.pairs import Pairs, make_pairs
from probes.tasks.sampling_words import draw_words, seeded, single_tokens
from probes.tasks.word_lists import ARGUMENTS, WORDS

DOCSTRING = (
    "def {name}(self, {args[0]}, {args[1]}, {args[2]}, {args[3]}):\n"
    '    """Give the {w[0]} {w[1]}\n\n'
    "    :param {args[0]}: {w[2]} {w[3]}\n"
    "    :param {args[1]}: {w[4]} {w[5]}\n"
    "    :param"
)


def docstring_like(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> Pairs:
    """A Python function whose docstring names the third argument next.

    The wrong answer is the fourth argument. Corrupted: the third argument is another word, so that
    the answer does not appear in the prompt. Raises InputError if too few words are one token each.
    """
    random = seeded(n, seed)
    arguments = single_tokens(tokenizer, "docstring_like", "argument names", ARGUMENTS, 6)
    words = single_tokens(tokenizer, "docstring_like", "words", WORDS, 6)
    prompts, corrupt, answers = list[str](), list[str](), list[tuple[str, str]]()
    for _ in range(n):
        name, *args, other = draw_words(random, arguments, 6)
        described = draw_words(random, words, 6)
        changed = [*args[:2], other, args[3]]
        for texts, these in ((prompts, args), (corrupt, changed)):
            texts.append(DOCSTRING.format(name=name, args=these, w=described))
        answers.append((f" {args[2]}", f" {args[3]}"))
    return make_pairs(tokenizer, "docstring_like", prompts, corrupt, ["docstring"] * n, answers)
