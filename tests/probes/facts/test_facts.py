"""Published facts: each measurement against its definition written out, the verdicts, and who is
asked. The real gpt2 is not here: its own numbers are not tested, facts of the bundled model are."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from exporters import export_onnx, open_onnx
from gpt2kit import Edit, GPT2Config, Tokenizer, TorchRunner, load
from gpt2kit.errors import GPT2KitError
from gpt2kit.runner import Source
from gpt2kit.taps import resolve
from probes.facts import measures as fact_measures
from probes.facts import published, real_gpt2
from probes.facts.check import EDITS, TAPS, check_facts
from probes.facts.fact import Fact
from probes.facts.published import FACTS
from probes.facts.real_gpt2 import NotTheRealModel
from probes.facts.report import Checked
from probes.heads.copying import copying_score
from probes.tasks.datasets import CENTURIES, EVENTS
from tests.conftest import GPT2_TOKENIZER, close, random_model

# As in the demo, written out: prompt, right name, wrong name.
IOI = [
    ("When John and Mary went to the shops, John gave the bag to", " Mary", " John"),
    ("When John and Mary went to the shops, Mary gave the bag to", " John", " Mary"),
    ("When Tom and James went to the park, James gave the ball to", " Tom", " James"),
    ("When Tom and James went to the park, Tom gave the ball to", " James", " Tom"),
    ("When Dan and Sid went to the shops, Sid gave an apple to", " Dan", " Sid"),
    ("When Dan and Sid went to the shops, Dan gave an apple to", " Sid", " Dan"),
    ("After Martin and Amy went to the park, Amy gave a drink to", " Martin", " Amy"),
    ("After Martin and Amy went to the park, Martin gave a drink to", " Amy", " Martin"),
]
TWIN = [1, 0, 3, 2, 5, 4, 7, 6]
LAYERS, HEADS = 2, 3
EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def word_tokenizer() -> Tokenizer:
    """Words with their space, and numbers by two digits, are tokens, as they are for gpt2."""
    split = r" ?[A-Za-z]+| ?[0-9]{2}|[^A-Za-z0-9]"
    texts = [p for p, *_ in IOI] + [published.HELLO, published.MILK, published.DUTY]
    words = tokenizers.Regex(split), "isolated"
    cut = pre_tokenizers.Split(*words)
    found = [w for text in texts for w, _ in cut.pre_tokenize_str(text)]
    found += [f" {e}" for e in EVENTS] + [f" {c}" for c in CENTURIES]
    found += [w for w, _ in cut.pre_tokenize_str("The lasted from the year to the year")]
    found += ["[UNK]", *(f"{y:02d}" for y in range(100))]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(found))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer, inner.decoder = cut, decoders.Fuse()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


def small(**sizes) -> TorchRunner:
    tokenizer = word_tokenizer()
    bos = tokenizer.vocab_size - 1
    config = GPT2Config(
        vocab_size=bos + 1, n_positions=256, bos_token_id=bos, eos_token_id=bos, **sizes
    )
    return TorchRunner(random_model(config, seed=3), tokenizer, Source("small"))


@pytest.fixture(scope="module")
def by_torch() -> TorchRunner:
    return small(n_embd=24, n_layer=LAYERS, n_head=HEADS)


@pytest.fixture(scope="module")
def by_onnx(by_torch, tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "small.onnx"
    export_onnx(by_torch, path, taps=TAPS, edits=EDITS)
    return open_onnx(path, device="cpu")


@pytest.fixture(params=["torch", "onnx"])
def runner(request):
    return request.getfixturevalue(f"by_{request.param}")


def ids_of(runner, text) -> list[int]:
    return [runner.config.bos_token_id, *runner.tokenizer.encode(text)]


def logits_of(runner, ids, edits=None) -> torch.Tensor:
    """(pos, vocab), by the module itself with functions as edits."""
    with torch.no_grad():
        return runner.model(torch.tensor([ids]), edits=edits or {})[0][0].double()


def order(scores) -> list[int]:
    """The rank of every head, by sorting."""
    flat = np.asarray(scores).ravel()
    out = np.empty(len(flat), int)
    out[np.argsort(-flat)] = np.arange(1, len(flat) + 1)
    return out.tolist()


def difference(runner, prompt, right, wrong, edits=None) -> float:
    last = logits_of(runner, ids_of(runner, prompt), edits)[-1]
    return float(last[runner.tokenizer.single(right)] - last[runner.tokenizer.single(wrong)])


# What is measured


def test_the_prompts_are_those_of_the_demo():
    assert list(fact_measures.IOI) == IOI


def test_the_loss_is_the_mean_over_all_tokens_but_the_bos(runner, by_torch):
    ids = ids_of(by_torch, published.HELLO)
    assert len(ids) == 4
    want = torch.nn.functional.cross_entropy(logits_of(by_torch, ids)[:-1], torch.tensor(ids[1:]))
    close(fact_measures.loss(runner, text=published.HELLO), [float(want)], 1e-5)


def test_probabilities_are_those_after_the_last_token(runner, by_torch):
    p = logits_of(by_torch, ids_of(by_torch, published.MILK))[-1].softmax(-1)
    tokens = (" Mary", " the", " John")
    got = fact_measures.probabilities(runner, prompt=published.MILK, tokens=tokens)
    close(got, p[[by_torch.tokenizer.single(t) for t in tokens]], 1e-5)
    assert len(set(got)) == 3


def test_ids_are_compared_in_place(by_torch):
    ids = by_torch.tokenizer.encode(published.HELLO)
    count = partial(fact_measures.matching_ids, by_torch, text=published.HELLO)
    assert count(ids=ids) == [3, 3]
    assert count(ids=[ids[0], -1, ids[2]]) == [3, 2]
    assert count(ids=[*ids, 0]) == [3, 3]
    assert count(ids=ids[1:]) == [3, 0]
    singles = fact_measures.token_ids(by_torch, tokens=["Hello", " world"])
    assert singles == ids[:2]


def test_differences_are_of_the_two_names_with_and_without_a_head(runner, by_torch):
    want = [difference(by_torch, *case) for case in IOI]
    close(fact_measures.ioi_differences(runner), want)

    def zeroed(z):
        z = z.clone()
        z[:, -1, 2] = 0
        return z

    cut = [difference(by_torch, *case, edits={"blocks.0.z": zeroed}) for case in IOI]
    assert np.abs(np.array(want) - cut).min() > 1e-3
    close(fact_measures.ioi_differences(runner, without=(0, 2)), cut)
    close(fact_measures.ioi_mean(runner, without=(0, 2)), [np.mean(cut)])
    close(fact_measures.ioi_share(runner, head=(0, 2)), [np.mean(want) - np.mean(cut)])


def test_attribution_ranks_what_each_head_writes(runner, by_torch):
    scores = np.zeros((LAYERS, HEADS))
    gain = by_torch.model.ln_f.weight.double().numpy()
    for prompt, *names in IOI:
        taps = by_torch.run(ids_of(by_torch, prompt), taps=["*.head_out", "ln_f_scale"]).taps
        a, b = (by_torch.tokenizer.single(name) for name in names)
        towards = (by_torch.model.wte.weight[a] - by_torch.model.wte.weight[b]).double().numpy()
        for layer, head in EVERY:
            out = taps[f"blocks.{layer}.head_out"][0, -1, head]
            written = (out - out.mean()) / taps["ln_f_scale"][0, -1, 0] * gain
            scores[layer, head] += written @ towards / len(IOI)
    assert fact_measures.ioi_attribution(runner, heads=EVERY, sign=1) == order(scores)
    assert fact_measures.ioi_attribution(runner, heads=EVERY, sign=-1) == order(-scores)


def test_patching_ranks_what_brings_the_other_prompts_answer(runner, by_torch):
    effects = np.zeros((LAYERS, HEADS))
    for i, (clean, right, wrong) in enumerate(IOI):
        corrupt = IOI[TWIN[i]][0]
        values = by_torch.run(ids_of(by_torch, clean), taps="*.z").taps
        low, high = (difference(by_torch, p, right, wrong) for p in (corrupt, clean))
        for layer, head in EVERY:
            tap = f"blocks.{layer}.z"
            new = torch.from_numpy(values[tap])

            def put_in(z, head=head, value=new):
                z = z.clone()
                z[:, :, head] = value[:, :, head]
                return z

            found = difference(by_torch, corrupt, right, wrong, {tap: put_in})
            effects[layer, head] += (found - low) / (high - low)
    assert fact_measures.ioi_patching(runner, heads=EVERY) == order(effects)


@pytest.mark.parametrize("kind", ["induction", "duplicate_token", "previous_token"])
def test_attention_ranks_are_of_repeated_tokens_after_a_bos(runner, by_torch, kind):
    from probes.tasks.datasets import repeated_tokens

    bos, n = by_torch.config.bos_token_id, 100
    (row,) = repeated_tokens(by_torch.config.vocab_size, 1, n, bos=bos)
    assert len(row) == 1 + 2 * n
    assert row[0] == bos
    assert (row[1 : 1 + n] == row[1 + n :]).all()
    taps = by_torch.run(row, taps="*.pattern").taps
    pattern = np.stack([taps[f"blocks.{i}.pattern"][0] for i in range(LAYERS)])
    back = {"induction": n - 1, "duplicate_token": n, "previous_token": 1}[kind]
    start = 1 if kind == "previous_token" else 1 + n
    scores = np.mean([pattern[..., q, q - back] for q in range(start, len(row))], axis=0)
    assert fact_measures.attention_ranks(runner, kind=kind, heads=EVERY) == order(scores)


def years_by_hand(runner, ids, prompt, edits=None) -> float:
    p, first = logits_of(runner, ids, edits)[-1].softmax(-1), int(prompt.split("year ")[1][2:4])
    years = p[[runner.tokenizer.single(f"{y:02d}") for y in range(100)]]
    return float(years[first + 1 :].sum() - years[: first + 1].sum())


@pytest.fixture(scope="module")
def dated(by_torch) -> list[str]:
    from probes.tasks.datasets import greater_than

    return list(greater_than(by_torch.tokenizer, 8).prompts)


def test_years_are_later_ones_minus_earlier_ones(runner, by_torch, dated):
    want = [years_by_hand(by_torch, ids_of(by_torch, p), p) for p in dated]
    assert np.ptp(want) > 0.01
    close(fact_measures.years(runner), [np.mean(want)], 1e-5)


@pytest.mark.parametrize("over", ["z", "mlp_out"])
def test_years_fall_with_what_is_patched_in_at_the_end(runner, by_torch, dated, over):
    places = EVERY if over == "z" else [(layer, 0) for layer in range(LAYERS)]
    falls = np.zeros(len(places))
    for prompt in dated:
        ids = ids_of(by_torch, prompt)
        century = prompt.split("year ")[1][:2]
        other = prompt.replace(prompt.split("year ")[1][:4], f"{century}01")
        values = by_torch.run(ids_of(by_torch, other), taps=f"*.{over}").taps
        for n, (layer, head) in enumerate(places):
            tap = f"blocks.{layer}.{over}"
            new = torch.from_numpy(values[tap])

            def put_in(x, head=head, value=new):
                x = x.clone()
                at = (0, -1, head) if over == "z" else (0, -1)
                x[at] = value[at]
                return x

            found = years_by_hand(by_torch, ids, prompt, {tap: put_in})
            falls[n] += years_by_hand(by_torch, ids, prompt) - found
    assert fact_measures.years_patching(runner, over=over, places=places) == order(falls)


def test_copying_is_the_heads_own_score(runner, by_torch):
    scores = copying_score(by_torch).scores
    for head in EVERY:
        close(fact_measures.copying(runner, head=head), [scores[head]], 1e-5)


def test_ranks_count_from_one_and_nan_never_leads():
    scores = np.array([[3.0, 1.0], [2.0, np.nan]])
    assert fact_measures.ranks(scores, [(0, 0), (0, 1), (1, 0), (1, 1)]) == [2, 4, 3, 5]
    assert fact_measures.ranks(np.array([[5.0, 7.0]]), [(0, 1), (0, 0)]) == [1, 2]


# The list of what is published


def test_every_published_fact_can_be_measured_and_a_random_model_has_few_of_them():
    runner = small(n_embd=48, n_layer=12, n_head=12)
    seen = []
    report = check_facts(runner, FACTS, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i + 1, len(FACTS)) for i in range(len(FACTS))]
    assert [row.fact for row in report.rows] == list(FACTS)
    left_out = [row for row in report.rows if row.skipped]
    assert [row.fact.claimed for row in left_out] == [(0.769,)]
    assert "not measured: 1 - KL(" in " ".join(str(report).split())
    for row in report.rows:
        if row.skipped:
            continue
        assert len(row.measured) == len(row.fact.claimed) == len(row.fact.labels)
        assert np.isfinite(row.measured).all()
        if "rank" in row.fact.labels[0]:
            assert min(row.measured) >= 1
            assert max(row.measured) <= (12 if "MLPs" in row.fact.name else 144)
    assert not report.passed
    assert [row.verdict for row in report.rows].count("differs") > len(FACTS) / 2


class Watched:
    """A runner without shortcuts, that notes what it is asked for."""

    def __init__(self, runner) -> None:
        self.config, self.tokenizer, self.source = runner.config, runner.tokenizer, runner.source
        self.dtype, self.inner, self.taps, self.edits = runner.dtype, runner, set(), set()
        self.weight, self.precision = runner.weight, runner.precision

    def run(self, ids, *, taps=(), edits=(), **options):
        self.taps |= set(resolve(taps, self.config.n_layer))
        self.edits |= {tap for edit in edits for tap in resolve(edit.tap, self.config.n_layer)}
        return self.inner.run(ids, taps=taps, edits=edits, **options)


def test_a_file_with_the_stated_taps_and_edits_answers_all_that_is_measured():
    watched = Watched(small(n_embd=48, n_layer=12, n_head=12))
    report = check_facts(watched, FACTS)
    skipped = [row.fact.name for row in report.rows if row.skipped]
    assert skipped == [fact.name for fact in FACTS if fact.measure is None]
    assert watched.taps == set(resolve(TAPS, 12))
    assert watched.edits == set(resolve(EDITS, 12))


def test_the_ids_are_those_of_gpt2s_vocabulary():
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's tokenizer is not here")
    tokenizer = Tokenizer.from_folder(GPT2_TOKENIZER)
    runner = TorchRunner(random_model(GPT2Config(n_embd=12, n_layer=1, n_positions=32)), tokenizer)
    assert [row.verdict for row in check_facts(runner, FACTS[:2]).rows] == ["holds", "holds"]
    for prompt, *names in IOI:
        assert len(tokenizer.encode(prompt)) == 14
        assert all(tokenizer.single(name) for name in names)


def test_claims_are_ordered_as_their_labels():
    claims = {fact.name: dict(zip(fact.labels, fact.claimed, strict=True)) for fact in FACTS}
    assert len(claims) == len(FACTS)
    differences = claims["IOI: logit differences of the 8 prompts"]
    assert differences["Mary"] == 3.337
    assert differences["Amy"] == 5.767
    assert np.mean(list(differences.values())) == pytest.approx(3.552, abs=5e-4)
    heads = next(fact for fact in FACTS if "greater-than: heads" in fact.name)
    assert heads.measure.keywords["places"][:3] == [(9, 1), (8, 11), (7, 10)]
    assert heads.labels[:3] == ("rank of 9.1", "rank of 8.11", "rank of 7.10")
    induction = {label for f in FACTS if "induction" in f.name for label in f.labels}
    assert induction >= {f"rank of {head}" for head in ("5.5", "5.8", "5.9", "6.9")}
    mlps = next(fact for fact in FACTS if "greater-than: MLPs" in fact.name)
    assert mlps.measure.keywords["places"] == [(8, 0), (9, 0), (10, 0), (11, 0)]


# Facts recorded from the bundled model, on both engines

TEXT = "The Queen of Hearts, she made some tarts, all on a summer's day."
RECORDED = (
    Fact(
        name="loss", source="recorded", measure=partial(fact_measures.loss, text=TEXT),
        claimed=(4.590174,), tolerance=1e-4, digits=5, reason="float32",
    ),
    Fact(
        name="next", source="recorded", labels=("time", "little"), digits=4, reason="float32",
        measure=partial(
            fact_measures.probabilities, prompt="Once upon a", tokens=[" time", " little"]
        ),
        claimed=(0.0077703, 0.0142428), tolerance=1e-6,
    ),
    Fact(
        name="ids", source="recorded", labels=("Mary", "John"), claimed=(1042, 1136),
        measure=partial(fact_measures.token_ids, tokens=[" Mary", " John"]), reason="exact",
    ),
    published._looking("induction", "its card", "induction", "1.3 1.1 1.5 1.2 1.0 1.4", 6),
    published._looking("previous", "its card", "previous_token", "0.1 0.3", 2),
    Fact(
        name="weights", source="recorded", claimed=(1.0,), at_most=True, reason="a score",
        measure=partial(fact_measures.copying, head=(1, 3)),
    ),
)  # fmt: skip


def test_recorded_facts_hold_on_torch(bundled):
    report = check_facts(bundled, RECORDED)
    assert [row.verdict for row in report.rows] == ["holds"] * 6, str(report)
    assert report.passed
    assert repr(report) == "FactsReport(bundled, float32: 6 holds, 0 differs, 0 skipped)"
    wrong = replace(RECORDED[0], claimed=(4.5905,))
    assert not check_facts(bundled, [wrong, *RECORDED]).passed


@pytest.mark.slow
def test_recorded_facts_hold_on_an_exported_file_and_the_rest_says_why_not(bundled_file):
    runner = open_onnx(bundled_file(taps="blocks.*.pattern"), device="cpu")
    cut = Edit.zero("blocks.1.z", head=3)
    edited = replace(
        RECORDED[0], name="edited", measure=lambda r: [float(r.run([1], edits=[cut]).logits.max())]
    )
    mlp = replace(RECORDED[0], measure=lambda r: r.run([1], taps="blocks.0.mlp_out").taps)
    report = check_facts(runner, [*RECORDED, edited, mlp])
    assert [row.verdict for row in report.rows] == ["holds"] * 6 + ["skipped"] * 2, str(report)
    edit, tap = (row.skipped for row in report.rows[6:])
    assert "blocks.1.z" in edit
    assert "blocks.0.mlp_out" in tap
    assert report.passed


# Verdicts and how they look


def fact(measured=1.0, **change) -> Fact:
    given = {
        "name": "a fact", "source": "somewhere", "measure": lambda _: [measured], "claimed": (1.0,),
        "reason": "because",
    }  # fmt: skip
    return Fact(**given | change)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (fact(), "holds"),
        (fact(1.1), "differs"),
        (fact(1.1, tolerance=0.2), "holds"),
        (fact(0.9, tolerance=0.05), "differs"),
        (fact(0.9, at_most=True), "holds"),
        (fact(1.1, at_most=True), "differs"),
        (fact(float("nan"), tolerance=9), "differs"),
        (fact(float("nan"), at_most=True), "differs"),
        (fact(measure=None), "skipped"),
        (fact(claimed=(1.0, 2.0), labels=("a", "b"), measure=lambda _: [1.0, 3.0]), "differs"),
    ],
)
def test_verdicts(given, verdict):
    class Weightless:
        source, precision = Source("x"), "float32"

    report = check_facts(Weightless(), [given])
    assert report.rows[0].verdict == verdict
    assert report.passed == (verdict == "holds")
    assert check_facts(Weightless(), [fact(), given]).passed == (verdict != "differs")
    assert not check_facts(Weightless(), []).passed


def test_the_table_fits_80_columns_and_shows_claim_margin_measurement_and_reason():
    runner = small(n_embd=48, n_layer=12, n_head=12)
    rows = [replace(f, measure=lambda _, f=f: [-1234.0] * len(f.claimed)) for f in FACTS]
    report = check_facts(runner, [*rows, fact(2.0), fact(1.0, tolerance=0.5)])
    text = str(report)
    assert max(len(line) for line in text.split("\n")) <= 80
    assert all(f.name.split(":")[0].split()[0] in text for f in FACTS)
    assert "Sid 5.281 ± 0.002" in text
    assert "rank of 11.10 ≤ 2" in text
    assert text.count("because") == 1  # the reason of what differs alone
    assert "1 ± 0.5" in text
    assert "<pre" in report._repr_html_()


def test_json_holds_numbers_and_verdicts():
    skipped = Checked(fact(), (), "no reason")
    report = check_facts(small(n_embd=24, n_layer=1, n_head=2), [fact(1.5, labels=("x",))])
    read = json.loads(replace(report, rows=(*report.rows, skipped)).to_json())
    assert (read["source"], read["dtype"], read["passed"]) == ("small", "float32", False)
    assert read["rows"][0] == {
        "name": "a fact", "source": "somewhere", "labels": ["x"], "claimed": [1.0],
        "tolerance": 0.0, "at_most": False, "reason": "because", "measured": [1.5],
        "verdict": "differs", "skipped": "", "digits": 0,
    }  # fmt: skip
    assert (read["rows"][1]["verdict"], read["rows"][1]["measured"]) == ("skipped", [])


# Who is asked


class Disguised:
    """Has gpt2's sizes and says of HELLO's tokens what it is told to."""

    def __init__(self, loss: float, **change) -> None:
        self.config = replace(GPT2Config(), **change)
        self.tokenizer, self.source, self.loss = self, Source("disguised"), loss

    def encode(self, text):
        return [real_gpt2.MARY] if text == " Mary" else [1, 2, 3]

    def run(self, ids, **_):
        p = np.exp(-self.loss)
        logits = np.full((1, len(ids), 5000), np.log((1 - p) / 4999))
        logits[0, [0, 1, 2], ids[1:]] = np.log(p)
        return type("Run", (), {"logits": logits})


def test_only_a_model_with_gpt2s_sizes_vocabulary_and_loss_is_gpt2(monkeypatch):
    assert real_gpt2.is_real_gpt2(Disguised(5.3318558))
    assert real_gpt2.is_real_gpt2(Disguised(5.4))
    assert not real_gpt2.is_real_gpt2(Disguised(np.log(50257)))
    assert not real_gpt2.is_real_gpt2(Disguised(5.0))
    assert not real_gpt2.is_real_gpt2(Disguised(float("nan")))
    assert not real_gpt2.is_real_gpt2(Disguised(5.3318558, n_layer=24))
    assert not real_gpt2.is_real_gpt2(Disguised(5.3318558, n_embd=1024, n_head=16))
    monkeypatch.setattr(real_gpt2, "MARY", 1)
    real = Disguised(5.3318558)
    monkeypatch.setattr(real_gpt2, "MARY", 2)
    real.encode = lambda text: [1, 2, 3]
    assert not real_gpt2.is_real_gpt2(real)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: load("bundled", device="cpu"), "its n_layer is 6, not 12"),
        (lambda: Disguised(10.8), r"its loss on 'Hello world!' is 10\.80, not 5\.33"),
    ],
)
def test_the_published_facts_are_not_asked_of_another_model(make, why):
    with pytest.raises(NotTheRealModel, match=why) as caught:
        check_facts(make(), on_progress=lambda *_: pytest.fail("a fact was measured"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, GPT2KitError)


def test_a_random_model_of_gpt2s_sizes_is_not_gpt2(by_torch):
    if not GPT2_TOKENIZER.is_dir():
        pytest.skip("GPT-2's tokenizer is not here")
    config = GPT2Config(n_embd=24, n_layer=1, n_head=2)
    runner = TorchRunner(random_model(config), Tokenizer.from_folder(GPT2_TOKENIZER))
    runner.config = GPT2Config()  # only seemingly: the whole would be 500 MB
    assert "loss" in real_gpt2._difference(runner)
    runner.tokenizer = None
    assert "vocabulary" in real_gpt2._difference(runner)


def test_a_measurement_that_is_no_number_is_null_in_json(torch_runner):
    def nothing(runner):
        return [float("nan")]

    fact = Fact(name="x", source="s", measure=nothing, claimed=(0.0,), reason="")
    read = json.loads(check_facts(torch_runner, [fact]).to_json())
    assert read["rows"][0]["measured"] == [None]
    assert not read["passed"]
