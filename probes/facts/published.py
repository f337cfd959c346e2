"""Facts about gpt2 (124M) as published, with the functions that measure them again.

Numbers are of the raw model in float32, with `<|endoftext|>` before every prompt. Claims about
heads that were published in words or pictures are checked by rank: by a stated measurement, the
named heads come early among all heads. How early is our choice, given with its reason.
"""

from __future__ import annotations

from functools import partial

from probes.facts.cases import DEMO, demo_cases
from probes.facts.contrasts import (
    attribution_ranks,
    differences,
    fall,
    mean_difference,
    patching_ranks,
)
from probes.facts.fact import Fact
from probes.facts.measures import (
    attention_ranks,
    copying,
    ids_of_tokens,
    loss,
    matching_ids,
    probabilities,
)
from probes.facts.ranked import ranked
from probes.facts.real_gpt2 import HELLO, LOSS, MARY
from probes.facts.year_measures import years, years_patching


def _looking(
    name: str, source: str, kind: str, names: str, first: int,
    why: str = "other heads do it too; which leads depends on the tokens drawn",
) -> Fact:  # fmt: skip
    """The claim that heads rank among the first by how they attend to repeated tokens."""
    why = f"{why}; first {first} of 144"
    return ranked(name, source, attention_ranks, names, first, why, kind=kind)


JOHN = 1757  # the id of " John"
MILK = "After John and Mary went to the store, John gave a bottle of milk to"
DUTY = (
    "No duty is imposed on the rich, rights of the poor is a hollow phrase...) "
    "Enough languishing in custody. Equality"
)
DUTY_IDS = (
    2949, 7077, 318, 10893, 319, 262, 5527, 11, 2489, 286, 262, 3595,
    318, 257, 20596, 9546, 23029, 31779, 2786, 3929, 287, 10804, 13, 31428,
)  # fmt: skip
_VOCABULARY, _LENS = "gpt2's vocabulary", "TransformerLens tests"
_DEMO = "TransformerLens 2.15.4, exploratory demo"
_WANG, _OLSSON = "Wang et al. 2022, arXiv 2211.00593", "Olsson et al. 2022, arXiv 2209.11895"
_HANNA, _MCDOUGALL = (
    "Hanna et al. 2023, arXiv 2305.00586",
    "McDougall et al. 2023, arXiv 2310.04625",
)
_ROUNDED = "published rounded, and float32 sums run in another order"

FACTS: tuple[Fact, ...] = (
    Fact(
        name="token ids", source=_VOCABULARY, labels=("Mary", "John"),
        measure=partial(ids_of_tokens, tokens=(" Mary", " John")), claimed=(MARY, JOHN),
        reason="ids are exact",
    ),
    Fact(
        name="'No duty is imposed …': tokens, and those that are as published", source=_VOCABULARY,
        measure=partial(matching_ids, text=DUTY, ids=DUTY_IDS), labels=("tokens", "equal"),
        claimed=(24, 24), reason="ids are exact",
    ),
    Fact(
        name=f"loss on {HELLO!r}, nats", source=_LENS, measure=partial(loss, text=HELLO),
        claimed=(LOSS,), tolerance=1e-4, digits=5, reason="float32 sums run in another order",
    ),
    Fact(
        name="'… John gave a bottle of milk to': probabilities", source=_DEMO,
        measure=partial(probabilities, prompt=MILK, tokens=(" Mary", " the", " John")),
        labels=("Mary", "the", "John"), claimed=(0.7007, 0.0467, 0.0453), tolerance=2e-4, digits=4,
        reason=_ROUNDED,
    ),
    Fact(
        name="IOI: logit differences of the 8 prompts", source=_DEMO,
        measure=partial(differences, cases=demo_cases),
        labels=tuple(right.strip() for _, right, *_ in DEMO),
        claimed=(3.337, 3.202, 2.709, 3.797, 1.720, 5.281, 2.601, 5.767), tolerance=2e-3, digits=3,
        reason=_ROUNDED,
    ),
    Fact(
        name="IOI: their mean", source=_DEMO, measure=partial(mean_difference, cases=demo_cases),
        claimed=(3.552,), tolerance=2e-3, digits=3, reason=_ROUNDED,
    ),
    Fact(
        name="IOI: their mean without head 9.9 at the end", source=_DEMO,
        measure=partial(mean_difference, cases=demo_cases, without=[(9, 9)]),
        claimed=(2.917,), tolerance=0.02, digits=3,
        reason="TransformerLens moves the values' bias to the output's, so that its zero leaves a "
        "constant in; it nearly cancels between the two orders of names",
    ),
    ranked(
        "IOI: name movers, by direct attribution", _WANG, attribution_ranks, "9.9 10.0 9.6", 5,
        "the paper's prompts are others, and backup name movers come near",
        cases=demo_cases, sign=1,
    ),
    ranked(
        "IOI: negative name movers, the same", _WANG, attribution_ranks, "10.7 11.10", 2,
        "no other head is known to be as negative", cases=demo_cases, sign=-1,
    ),
    ranked(
        "IOI: S-inhibition, by patching z", _WANG, patching_ranks, "7.3 7.9 8.6 8.10", 12,
        "name movers, induction and duplicate-token heads matter as well; first 12 of 144",
        cases=demo_cases,
    ),
    _looking("induction heads, repeated tokens", _OLSSON, "induction", "5.5 6.9 7.10 5.1 7.2", 7),
    _looking(
        "IOI: its other induction heads, the same", _WANG, "induction", "5.8 5.9", 72,
        "no rank of them is published, and they do little",
    ),
    _looking("duplicate-token heads, the same", _WANG, "duplicate_token", "0.1 0.10 3.0", 10),
    _looking("previous-token heads, the same", _WANG, "previous_token", "2.2 4.11", 10),
    Fact(
        name="greater-than: P(later) - P(earlier)", source=_HANNA, measure=years, claimed=(0.817,),
        tolerance=0.15, digits=3,
        reason="8 prompts with events and centuries of our own; published deviation: 0.193",
    ),
    ranked(
        "greater-than: MLPs, by patching in 01", _HANNA, years_patching, "8 9 10 11", 5,
        "found there by paths, here in total; first 5 of 12", argument="places", over="mlp_out",
    ),
    ranked(
        "greater-than: heads, the same", _HANNA, years_patching,
        "9.1 8.11 7.10 6.9 5.5 8.8 5.1", 15,
        "found there by paths, here in total; first 15 of 144", argument="places", over="z",
    ),
    Fact(
        name="copy suppression: share of 10.7 that it explains", source=_MCDOUGALL, measure=None,
        claimed=(0.769,), digits=3,
        reason="1 - KL(all but copy suppression ablated) / KL(mean ablated) is a mean over "
        "OpenWebText, with means of that text, which is not here",
    ),
    Fact(
        name="copy suppression: what 10.7 adds to IOI", source=_MCDOUGALL,
        measure=partial(fall, cases=demo_cases, heads=[(10, 7)]),
        claimed=(0.0,), at_most=True, digits=3, reason="the sign alone",
    ),
    Fact(
        name="copy suppression: copying score of 10.7", source=_MCDOUGALL,
        measure=partial(copying, head=(10, 7)), claimed=(0.0,), at_most=True, digits=3,
        reason="the sign alone",
    ),
)  # fmt: skip
