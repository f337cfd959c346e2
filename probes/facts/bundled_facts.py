"""Facts about the bundled model, with the functions that measure them again.

All numbers are our own measurements of the shipped weights in float32, with `<|endoftext|>` before
every prompt. Where a fact is a bar ("at least", "at most"), the bar leaves room for weights in half
precision and int8. `gpt2kit facts --model bundled` shows each claim beside what it measures: after
training the model anew, take the heads from its card (`tools/circuits.py`), the numbers from there.
"""

from __future__ import annotations

from functools import partial

from gpt2kit.config import GPT2Config
from probes.facts.cases import ioi_cases, outsider_cases, pronoun_cases
from probes.facts.contrasts import (
    attention_at_end,
    attribution,
    attribution_ranks,
    lens_turn,
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
    next_probabilities,
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
    "embed", "pos_embed", "blocks.0.resid_pre", "blocks.*.resid_post", "blocks.7.ln_1_scale",
    "blocks.7.q", "blocks.7.v", "blocks.*.pattern", "blocks.*.z", "blocks.*.head_out",
    "blocks.*.mlp_out", "ln_f_scale",
)  # fmt: skip
EDITS = (
    "blocks.0.z", "blocks.1.z", "blocks.2.z", "blocks.6.z", "blocks.7.z", "blocks.6.resid_post",
    "blocks.7.q", "blocks.7.v",
)  # fmt: skip

# Heads, as "layer.head". What they do is claimed, and measured, below; the card's tables show how
# they stand out among all heads.
PREVIOUS = "0.2"
INDUCTION = "2.0 2.1 2.2 2.3 2.4 2.5"  # those with the highest scores
ALL_INDUCTION = f"1.1 1.4 {INDUCTION}"
MOVERS = "7.1 7.2 6.3"
SUPPRESSOR = "7.1"  # rules out the one who acts
SELECTED, SELECTOR = "7.2", "6.2"  # says a name; writes what the query of that one reads

_SOURCE = "measured on the shipped weights"
_SIMPLE = (
    ("Once upon a", " time"),
    ("They lived happily ever", " after"),
    ('She said, "Thank', " you"),
    ("It was a sunny", " day"),
    ("The dog wagged its", " tail"),
)
_FORMING = _SIMPLE[:3]
_IOI, _FEW, _FEWER = (partial(ioi_cases, n=n) for n in (200, 12, 6))
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
        reason="int8 weights change it by less",
    ),
    Fact(
        name="plain sentences: probability of the next word", source=_SOURCE,
        measure=partial(next_probabilities, followed=_SIMPLE),
        labels=tuple(token.strip() for _, token in _SIMPLE), claimed=(0.9,) * 5, at_least=True,
        digits=2, reason="each stands in many stories, and hardly anything else follows",
    ),
    Fact(
        name="induction heads: attention to what came after the earlier copy", source=_SOURCE,
        measure=partial(attention_scores, kind="induction", heads=heads_of(INDUCTION)),
        labels=tuple(INDUCTION.split()), claimed=(0.8,) * 6, at_least=True, digits=2,
        reason="a head that does nothing else has 1, one that does not do it about 0.01",
    ),
    Fact(
        name="random tokens said twice: loss the second time, nats", source=_SOURCE,
        measure=repeated_loss, claimed=(0.7,), at_most=True, digits=2,
        reason="the logarithm of the vocabulary is 8.3; the bar lies well above 0.51, as a few "
        "tokens weigh much in it",
    ),
    Fact(
        name="the same without the induction heads: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(ALL_INDUCTION)), claimed=(4.0,),
        at_least=True, digits=2,
        reason="half of what induction gives; other heads take over a part",
    ),
    Fact(
        name="previous-token head: attention to the token before", source=_SOURCE,
        measure=partial(attention_scores, kind="previous_token", heads=heads_of(PREVIOUS)),
        labels=(PREVIOUS,), claimed=(0.65,), at_least=True, digits=2,
        reason="the next head has 0.26",
    ),
    Fact(
        name="random tokens said twice, without that head: rise", source=_SOURCE,
        measure=partial(repeated_rise, heads=heads_of(PREVIOUS)), claimed=(7.6,), at_least=True,
        digits=2, reason="all of the induction heads need it: then nothing is left of what the "
        "second time gains, 8.3 less 0.7",
    ),
    Fact(
        name="IOI: share of 200 prompts with the right name likelier", source=_SOURCE,
        measure=partial(share_right, cases=_IOI), claimed=(0.79,), tolerance=0.03, digits=3,
        reason="int8 weights turn a few of the prompts in which both names are about as likely",
    ),
    Fact(
        name="IOI: mean logit difference of the two names", source=_SOURCE,
        measure=partial(mean_difference, cases=_IOI), claimed=(2.96,), tolerance=0.15, digits=2,
        reason="int8 weights change it by less",
    ),
    ranked(
        "IOI: heads that speak for the right name, by direct attribution", _SOURCE,
        attribution_ranks, MOVERS, 3, "each adds twice what the next head does",
        cases=_FEW, sign=1,
    ),
    Fact(
        name="IOI: their mean without these heads at the end", source=_SOURCE,
        measure=partial(mean_difference, cases=_IOI, without=heads_of(MOVERS)), claimed=(0.3,),
        at_most=True, digits=2, reason="they make up the mean; 0 would be no preference",
    ),
    Fact(
        name="IOI: attention from the end to the one who acts", source=_SOURCE,
        measure=partial(attention_at_end, cases=_FEW, heads=heads_of(SUPPRESSOR)),
        labels=(SUPPRESSOR,), claimed=(0.75,), at_least=True, digits=2,
        reason="nearly all of it goes to the name's second mention",
    ),
    Fact(
        name="IOI: what the same head adds to that name, against a third one, logits",
        source=_SOURCE, labels=(SUPPRESSOR,), claimed=(-1.0,), at_most=True, digits=2,
        measure=partial(
            attribution, heads=heads_of(SUPPRESSOR),
            cases=partial(outsider_cases, n=12, asked="wrong"),
        ),
        reason="so it rules a name out; one that said the right name would add about 0",
    ),
    Fact(
        name="IOI: what the next head adds to the right name, against a third one, logits",
        source=_SOURCE, labels=(SELECTED,), claimed=(1.5,), at_least=True, digits=2,
        measure=partial(
            attribution, heads=heads_of(SELECTED),
            cases=partial(outsider_cases, n=12, asked="right"),
        ),
        reason="so it says a name of the prompt, which the first head does not",
    ),
    ranked(
        f"IOI: what the query of {SELECTED} reads, by path patching", _SOURCE, path_ranks,
        SELECTOR, 1, "twice the effect of any other head",
        cases=_FEWER, receivers=[f"{SELECTED}.q"],
    ),
    ranked(
        f"IOI: what the value of {SUPPRESSOR} reads, the same", _SOURCE, path_ranks, "0.0 0.3", 3,
        "the first layer writes who is named; the MLPs write more of it than the heads do",
        cases=_FEWER, receivers=[f"{SUPPRESSOR}.v"],
    ),
    Fact(
        name="he and she after 16 names in 2 sentences: mean logit difference", source=_SOURCE,
        measure=partial(mean_difference, cases=_SUBJECT), claimed=(4.2,), tolerance=0.5, digits=2,
        reason="int8 weights change it by less; 0 without a sense of names",
    ),
    Fact(
        name="him and her, the same: share right", source=_SOURCE,
        measure=partial(share_right, cases=_OBJECT), claimed=(0.95,), at_least=True, digits=3,
        reason="one of 32 may be wrong; half are if one pronoun is always preferred",
    ),
    Fact(
        name="logit lens: number of layers after which the next word leads", source=_SOURCE,
        measure=partial(leading_rows, followed=_FORMING),
        labels=tuple(token.strip() for _, token in _FORMING), claimed=(6.0, 4.0, 3.0), tolerance=1,
        reason="where two words are near, rounding moves it by a layer",
    ),
    Fact(
        name="logit lens, IOI: number of layers after which the right name is ahead",
        source=_SOURCE, measure=partial(lens_turn, cases=_FEW), claimed=(8.0,),
        reason="the last layer decides: the mean difference goes from -1.3 to +1.2 in it",
    ),
)  # fmt: skip
