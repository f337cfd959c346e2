"""Facts about the bundled model, with the functions that measure them again.

All numbers are our own measurements of the shipped weights in float32, with `<|endoftext|>` before
every prompt. Where a fact is a bar ("at least", "at most"), the bar leaves room for weights in half
precision and int8. `gpt2kit facts --model bundled` shows each claim beside what it measures: after
training the model anew, replace the claims by that, heads included.
"""

from __future__ import annotations

from functools import partial

from gpt2kit.config import GPT2Config
from probes.facts.cases import ioi_cases, pronoun_cases
from probes.facts.contrasts import (
    attribution_ranks,
    fall,
    mean_difference,
    path_ranks,
    share_right,
)
from probes.facts.fact import Fact
from probes.facts.identity import Identity
from probes.facts.measures import (
    attention_scores,
    leading_rows,
    loss,
    next_ranks,
    repeated_loss,
    repeated_rise,
)
from probes.facts.ranked import heads_of, ranked

OPENING = "Once upon a time, there was a little girl named Lily. She liked to play in the park."
LOSS = 1.03  # of OPENING, in nats a token
LILY = 403  # the id of " Lily"
BUNDLED = Identity(
    "the bundled model",
    GPT2Config(
        vocab_size=4096, n_positions=256, n_embd=192, n_layer=8, n_head=6,
        bos_token_id=4095, eos_token_id=4095,
    ),
    " Lily", LILY, OPENING, LOSS,
)  # fmt: skip

# What a file exported from it must carry to answer every fact.
TAPS = ("*",)
EDITS = ("*",)

# Heads, as "layer.head": what they do is claimed, and measured, below.
PREVIOUS = "1.2"
INDUCTION = "5.2 5.3"
DUPLICATE = "5.2"
MOVERS = "6.1 5.5"
FEEDERS = "4.5"  # write what the movers' queries read

_SOURCE = "measured on the shipped weights"
_ROUNDED = "half precision and int8 move it by less"
SIMPLE = (
    ("Once upon a", " time"),
    ("They lived happily ever", " after"),
    ('She said, "Thank', " you"),
    ("From that day", " on"),
    ("The moral of the story", " is"),
)
_IOI, _FEW = partial(ioi_cases, n=200), partial(ioi_cases, n=20)
_SUBJECT = partial(
    pronoun_cases, his=" he", her=" she",
    templates=("One day, {} was happy because", "After lunch, {} was tired, so"),
)  # fmt: skip
_OBJECT = partial(
    pronoun_cases, his=" him", her=" her",
    templates=("Then {} fell down. Mom hugged", "One day, {} was sad, so Dad hugged"),
)  # fmt: skip

FACTS: tuple[Fact, ...] = (
    Fact(
        name="loss on the opening of a story, nats a token", source=_SOURCE,
        measure=partial(loss, text=OPENING), claimed=(LOSS,), tolerance=0.02, digits=3,
        reason=_ROUNDED,
    ),
    Fact(
        name="simple sentences: rank of the next word", source=_SOURCE,
        measure=partial(next_ranks, followed=SIMPLE), labels=tuple(word for _, word in SIMPLE),
        claimed=(1.0,) * len(SIMPLE), reason="no other word comes near",
    ),
    Fact(
        name="induction heads: attention to what came after the earlier copy", source=_SOURCE,
        measure=partial(attention_scores, kind="induction", heads=heads_of(INDUCTION)),
        labels=tuple(INDUCTION.split()), claimed=(0.8,) * 2, at_least=True, digits=2,
        reason="the strongest heads are near 1, others near 0",
    ),
    Fact(
        name="repeated random tokens: loss on the second copy, nats", source=_SOURCE,
        measure=repeated_loss, claimed=(1.0,), at_most=True, digits=2,
        reason="without induction it is the logarithm of the vocabulary, 8.3",
    ),
    Fact(
        name="the same without the induction heads: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(INDUCTION)),
        claimed=(1.0,), at_least=True, digits=2, reason="",
    ),
    Fact(
        name="previous-token head: attention to the token before", source=_SOURCE,
        measure=partial(attention_scores, kind="previous_token", heads=heads_of(PREVIOUS)),
        labels=tuple(PREVIOUS.split()), claimed=(0.5,), at_least=True, digits=2, reason="",
    ),
    Fact(
        name="repeated random tokens without the previous-token head: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(PREVIOUS)),
        claimed=(1.0,), at_least=True, digits=2, reason="",
    ),
    Fact(
        name="duplicate-token head: attention to the earlier copy", source=_SOURCE,
        measure=partial(attention_scores, kind="duplicate_token", heads=heads_of(DUPLICATE)),
        labels=tuple(DUPLICATE.split()), claimed=(0.3,), at_least=True, digits=2, reason="",
    ),
    Fact(
        name="IOI: share of 200 prompts with the right name likelier", source=_SOURCE,
        measure=partial(share_right, cases=_IOI), claimed=(0.85,), at_least=True, digits=3,
        reason="",
    ),
    Fact(
        name="IOI: mean logit difference of the two names", source=_SOURCE,
        measure=partial(mean_difference, cases=_IOI), claimed=(2.0,), tolerance=0.1, digits=2,
        reason=_ROUNDED,
    ),
    ranked(
        "IOI: name movers, by direct attribution", _SOURCE, attribution_ranks, MOVERS, 3,
        "", cases=_FEW, sign=1,
    ),
    Fact(
        name="IOI: fall of the mean without the name movers at the end", source=_SOURCE,
        measure=partial(fall, cases=_IOI, heads=heads_of(MOVERS)),
        claimed=(1.0,), at_least=True, digits=2, reason="",
    ),
    ranked(
        "IOI: what the movers' queries read, by path patching", _SOURCE, path_ranks, FEEDERS, 3,
        "", cases=_FEW, receivers=[f"{head}.q" for head in MOVERS.split()],
    ),
    Fact(
        name="he and she after 16 names: share right", source=_SOURCE,
        measure=partial(share_right, cases=_SUBJECT), claimed=(0.9,), at_least=True, digits=3,
        reason="",
    ),
    Fact(
        name="him and her after 16 names: share right", source=_SOURCE,
        measure=partial(share_right, cases=_OBJECT), claimed=(0.9,), at_least=True, digits=3,
        reason="",
    ),
    Fact(
        name="'Once upon a': layer from which ' time' leads in the lens", source=_SOURCE,
        measure=partial(leading_rows, prompt="Once upon a", token=" time"),
        claimed=(3.0,), tolerance=1, reason="",
    ),
)  # fmt: skip
