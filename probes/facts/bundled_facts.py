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
    attention_at_end,
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
LOSS = 0.609  # of OPENING, in nats a token
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
TAPS = (
    "embed", "pos_embed", "blocks.0.resid_pre", "blocks.*.pattern", "blocks.*.z",
    "blocks.*.head_out", "blocks.*.mlp_out", "blocks.*.resid_post", "blocks.7.ln_1_scale",
    "blocks.7.q", "ln_f_scale",
)  # fmt: skip
EDITS = ("blocks.0.z", "blocks.2.z", "blocks.7.z", "blocks.7.q", "blocks.6.resid_post")

# Heads, as "layer.head": what they do is claimed, and measured, below.
PREVIOUS = "0.2"
INDUCTION = "2.0 2.1 2.2 2.3 2.4 2.5"
MOVER = "7.1"  # adds most to the right name
OPPOSED = "6.5"  # adds most to the wrong one
FEEDER = "6.2"  # writes what the query of 7.2 reads

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
        labels=tuple(INDUCTION.split()), claimed=(0.8,) * 6, at_least=True, digits=2,
        reason="a head that does not look for it has 0.01, as all tokens before have",
    ),
    Fact(
        name="repeated random tokens: loss on the second copy, nats", source=_SOURCE,
        measure=repeated_loss, claimed=(0.7,), at_most=True, digits=2,
        reason="without induction it is above the logarithm of the vocabulary, 8.3",
    ),
    Fact(
        name="the same without the six induction heads: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(INDUCTION)),
        claimed=(1.5,), at_least=True, digits=2,
        reason="a lower bar than measured; two of them alone cost less than 0.2",
    ),
    Fact(
        name="previous-token head: attention to the token before", source=_SOURCE,
        measure=partial(attention_scores, kind="previous_token", heads=heads_of(PREVIOUS)),
        labels=(PREVIOUS,), claimed=(0.6,), at_least=True, digits=2,
        reason="the next head has less than 0.3",
    ),
    Fact(
        name="repeated random tokens without the previous-token head: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(PREVIOUS)),
        claimed=(8.0,), at_least=True, digits=2,
        reason="as if nothing were repeated: all induction heads read what it writes",
    ),
    Fact(
        name="IOI: share of 200 prompts with the right name likelier", source=_SOURCE,
        measure=partial(share_right, cases=_IOI), claimed=(0.75,), at_least=True, digits=3,
        reason="a guess between two names is right in half",
    ),
    Fact(
        name="IOI: mean logit difference of the two names", source=_SOURCE,
        measure=partial(mean_difference, cases=_IOI), claimed=(2.5,), at_least=True, digits=2,
        reason="a lower bar than measured",
    ),
    ranked(
        "IOI: the head that says the name, by direct attribution", _SOURCE, attribution_ranks,
        MOVER, 1, "it adds four times as much as the next", cases=_FEW, sign=1,
    ),
    ranked(
        "IOI: the head that says the other name", _SOURCE, attribution_ranks, OPPOSED, 1,
        "it takes three times as much as the next", cases=_FEW, sign=-1,
    ),
    Fact(
        name="IOI: fall of the mean without the first head at the end", source=_SOURCE,
        measure=partial(fall, cases=_IOI, heads=heads_of(MOVER)),
        claimed=(1.0,), at_least=True, digits=2, reason="of a mean difference of about 3",
    ),
    Fact(
        name="IOI: it looks at the last mention of the one who gives", source=_SOURCE,
        measure=partial(attention_at_end, cases=_FEW, heads=heads_of(MOVER)),
        labels=(MOVER,), claimed=(0.7,), at_least=True, digits=2,
        reason="so the answer is worked out at that place, by the layers before",
    ),
    ranked(
        "IOI: what the query of 7.2 reads, by path patching", _SOURCE, path_ranks, FEEDER, 1,
        "twice as much as the next", cases=_FEW, receivers=["7.2.q"],
    ),
    Fact(
        name="he and she after 16 names: share right", source=_SOURCE,
        measure=partial(share_right, cases=_SUBJECT), claimed=(0.95,), at_least=True, digits=3,
        reason="a guess is right in half",
    ),
    Fact(
        name="him and her after 16 names: share right", source=_SOURCE,
        measure=partial(share_right, cases=_OBJECT), claimed=(0.95,), at_least=True, digits=3,
        reason="a guess is right in half",
    ),
    Fact(
        name="'Once upon a': layer from which ' time' leads in the lens", source=_SOURCE,
        measure=partial(leading_rows, prompt="Once upon a", token=" time"),
        claimed=(6.0,), tolerance=1, reason="in half precision it may move by a layer",
    ),
)  # fmt: skip
