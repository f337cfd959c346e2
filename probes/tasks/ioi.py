"""Indirect object identification: Wang et al. 2022, arXiv 2211.00593; our own wording."""

from __future__ import annotations

from gpt2kit.tokenizer import Tokenizer
from probes.tasks.pairs import Pairs, make_pairs
from probes.tasks.sampling_words import draw_words, seeded, single_tokens
from probes.tasks.word_lists import NAMES, OBJECTS, PLACES

# {a} and {b} are the two people in order of appearance; {s} is the one who appears again. Each
# starts with words of its own: at the start of a text, a name is not one token for every tokenizer.
TEMPLATES = (
    "One day, {a} and {b} went to the {place}. {s} gave the {thing} to",
    "One sunny day, {a} and {b} were in the {place}. {s} showed the {thing} to",
    "When {a} and {b} came to the {place}, {s} gave the {thing} to",
    "Then {a} and {b} found a big {thing} in the {place}. {s} gave it to",
    "The next day, {a} saw {b} in the {place}. {s} brought the {thing} to",
)


def ioi(tokenizer: Tokenizer, n: int, *, seed: int = 0) -> Pairs:
    """Two children of a simple story; one of them acts, and the other is the answer.

    Half of the prompts name the answer first ("ABBA": answer, subject, subject), half the subject
    ("BABA"). Corrupted: the subject's second mention is a third person ("ABC"), so that no name
    appears twice and the answer is undetermined.
    Raises InputError if too few names, places or things are one token each.
    """
    random = seeded(n, seed)
    names = single_tokens(tokenizer, "ioi", "names", NAMES, 3)
    places = single_tokens(tokenizer, "ioi", "places", PLACES, 1)
    things = single_tokens(tokenizer, "ioi", "things", OBJECTS, 1)
    prompts, corrupt, kinds = list[str](), list[str](), list[str]()
    answers = list[tuple[str, str]]()
    for i in range(n):
        order, template = ("ABBA", "BABA")[i % 2], int(random.integers(len(TEMPLATES)))
        answer, subject, third = draw_words(random, names, 3)
        a, b = (answer, subject) if order == "ABBA" else (subject, answer)
        place, thing = draw_words(random, places, 1)[0], draw_words(random, things, 1)[0]
        for texts, s in ((prompts, subject), (corrupt, third)):
            texts.append(TEMPLATES[template].format(a=a, b=b, s=s, place=place, thing=thing))
        kinds.append(f"{order} {template}")
        answers.append((f" {answer}", f" {subject}"))
    return make_pairs(tokenizer, "ioi", prompts, corrupt, kinds, answers)
