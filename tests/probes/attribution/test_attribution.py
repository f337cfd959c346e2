"""Attribution against its definitions: parts that sum, gradients by finite differences."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from exporters import export_onnx, open_onnx
from exporters.tracing.quantize import BITS, pack, unpack
from gpt2kit import TorchRunner, load
from gpt2kit.errors import GPT2KitError, InputError, TapError
from gpt2kit.runner import Source
from gpt2kit.taps import TapDict, resolve
from gpt2kit.torch_engine.dtypes import on_cpu
from probes.attribution.direct import LEVELS, _check_sum, direct_logit_attribution
from probes.attribution.inputs import METHODS, input_attribution
from probes.causal.gradients import attribution_patching, edge_attribution_patching
from probes.core.metrics import Metric
from probes.core.processed_weights import processed
from probes.draw.words import format_number
from probes.lens.tuned_training import train_tuned_lens
from tests.by_hand import forward
from tests.conftest import CONFIG, QUANTISED_TAPS, byte_tokenizer, close, random_model

PROMPT = "the cat, the [b]hat[/b]\n"
CONFIGS = {
    "tied": CONFIG,
    "untied": replace(CONFIG, tie_word_embeddings=False, n_inner=50),
    "inverse": replace(CONFIG, scale_attn_by_inverse_layer_idx=True),
}
BOTH = [direct_logit_attribution, input_attribution]


@pytest.fixture(scope="module", params=CONFIGS)
def exact(request) -> TorchRunner:
    model = random_model(CONFIGS[request.param], seed=2, dtype=torch.float64)
    return TorchRunner(model, byte_tokenizer())


def id_of(text: str) -> int:
    return byte_tokenizer().single(text)


def by_definition(runner: TorchRunner, ids, position: int, token: int) -> dict[str, np.ndarray]:
    """Each part's own vector through the last layer norm, with the scale held, and W_U."""
    w = {name: x.double().numpy() for name, x in runner.model.state_dict().items()}
    values = forward(runner.model, np.asarray([ids]))
    scale = values["ln_f_scale"][0, position]
    unembedding = w.get("lm_head.weight", w["wte.weight"])

    def logit(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (centred / scale * w["ln_f.weight"]) @ unembedding[token]

    layers = range(runner.config.n_layer)

    def each(tap: str) -> np.ndarray:
        return np.stack([values[f"blocks.{i}.{tap}"][0, position] for i in layers])

    bias = {part: np.stack([w[f"h.{i}.{part}.c_proj.bias"] for i in layers]) for part in
            ("attn", "mlp")}  # fmt: skip
    neurons = [each("mlp_post")[i][:, None] * w[f"h.{i}.mlp.c_proj.weight"] for i in layers]
    return {
        "embed": logit(values["embed"][0, position]),
        "pos_embed": logit(values["pos_embed"][0, position]),
        "attn": logit(each("attn_out")),
        "head": logit(each("head_out")),
        "attn_bias": logit(bias["attn"]),
        "mlp": logit(each("mlp_out")),
        "neuron": logit(np.stack(neurons)),
        "mlp_bias": logit(bias["mlp"]),
        "ln_f_bias": w["ln_f.bias"] @ unembedding[token],
        "total": values["logits"][0, position, token],
    }


# Parts of the model

KINDS = {
    "component": ["embed", "pos_embed", "attn", "mlp", "ln_f_bias"],
    "head": ["embed", "pos_embed", "head", "attn_bias", "mlp", "ln_f_bias"],
    "neuron": ["embed", "pos_embed", "head", "attn_bias", "neuron", "mlp_bias", "ln_f_bias"],
}


@pytest.mark.parametrize("by", LEVELS)
@pytest.mark.parametrize("position", [-1, 0, 5])
def test_every_part_equals_its_definition(exact, by, position):
    got = direct_logit_attribution(exact, PROMPT, target="a", position=position, by=by)
    want = by_definition(exact, got.prompt_ids, got.position, id_of("a"))
    assert list(got.values) == KINDS[by]
    for kind, value in got.values.items():
        close(value, want[kind], 1e-9)
    close(got.total, want["total"], 1e-9)
    close(got.parts.sum(), want["total"], 1e-9)
    assert got.position == position % len(got.prompt_ids)


@pytest.mark.parametrize("by", LEVELS)
def test_a_foil_gives_the_difference(exact, by):
    diff = direct_logit_attribution(exact, PROMPT, target="a", foil="b", by=by)
    a, b = (direct_logit_attribution(exact, PROMPT, target=text, by=by) for text in "ab")
    close(diff.parts, a.parts - b.parts, 1e-9)
    close(diff.total, a.total - b.total, 1e-9)
    assert abs(diff.total) > 0.1
    assert (diff.target, diff.foil, a.foil) == ("a", "b", None)


def test_finer_parts_sum_to_coarser_ones(exact):
    component, head, neuron = (
        direct_logit_attribution(exact, PROMPT, target="a", by=by).values for by in LEVELS
    )
    close(head["head"].sum(1) + head["attn_bias"], component["attn"], 1e-9)
    close(neuron["neuron"].sum(1) + neuron["mlp_bias"], component["mlp"], 1e-9)
    close(neuron["head"], head["head"], 1e-9)


def test_parts_and_names_go_together(torch_runner):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", by="neuron")
    parts = dict(zip(found.names, found.parts, strict=True))
    assert len(parts) == len(found.names)
    assert parts["embed"] == found.values["embed"]
    assert parts["head 2.1"] == found.values["head"][2, 1]
    assert parts["neuron 1.95"] == found.values["neuron"][1, 95]
    assert parts["mlp_bias 0"] == found.values["mlp_bias"][0]


def test_rewritten_weights_have_the_same_parts(exact):
    options = {"target": "a", "foil": "b", "by": "neuron"}
    raw, new = (
        direct_logit_attribution(runner, PROMPT, **options) for runner in (exact, processed(exact))
    )
    close(new.parts, raw.parts, 1e-9)


def test_a_centred_unembedding_takes_the_mean_logit_out(exact):
    found = direct_logit_attribution(processed(exact), PROMPT, target="a")
    logits = exact.run(found.prompt_ids).logits[0, -1]
    close(found.parts.sum(), logits[id_of("a")] - logits.mean(), 1e-9)


@pytest.mark.parametrize("by", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_bundled_model_in_every_precision(dtype, by):
    runner = load("bundled", device="cpu", dtype=dtype)
    found = direct_logit_attribution(
        runner, "Once upon a time there was a", target=" king", foil=" ship", by=by
    )
    run = runner.run(found.prompt_ids).logits[0, -1].astype(np.float64)
    a, b = (run[runner.tokenizer.single(text)] for text in (" king", " ship"))
    slack = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}[dtype]
    close(found.total, a - b, slack)
    assert abs(found.parts.sum() - found.total) <= slack * max(1, abs(a), abs(b))
    assert found.dtype == dtype


class Tampered(TorchRunner):
    """A runner whose taps are not those of its logits, or not of one another."""

    tap: str | None = None

    def run(self, ids, **options):
        run = super().run(ids, **options)
        if self.tap is None:
            return replace(run, logits=run.logits + 0.01 * np.abs(run.logits).max())
        values = dict(run.taps)
        values[self.tap] = values[self.tap] * 1.01
        return replace(run, taps=TapDict(values, self.config.n_layer))


@pytest.mark.parametrize("by", LEVELS)
def test_parts_that_do_not_sum_are_caught(torch_runner, by):
    tampered = Tampered(torch_runner.model, torch_runner.tokenizer)
    with pytest.raises(GPT2KitError, match=r"the final stream's logit is .* this is a bug"):
        direct_logit_attribution(tampered, PROMPT, target="a", by=by)
    tampered.tap = {"component": "blocks.1.attn_out", "head": "blocks.1.z"}.get(
        by, "blocks.1.mlp_post"
    )
    with pytest.raises(GPT2KitError, match=r"the parts sum to .* from the model's logit, more"):
        direct_logit_attribution(tampered, PROMPT, target="a", by=by)


@pytest.fixture(scope="module")
def loud() -> TorchRunner:
    """Of gpt2's shape (with a small vocabulary), its logits around 100."""
    model = random_model(replace(CONFIG, n_embd=768, n_layer=12, n_head=12))
    for block in model.h:
        for weight in block.parameters():
            weight.mul_(0.1 if weight.ndim == 2 else 1)
    model.ln_f.weight.mul_(2.9)
    return TorchRunner(model, byte_tokenizer(), Source("loud"))


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_large_logits_are_explained_as_exactly(loud, engine, tmp_path):
    runner = loud
    if engine == "onnx":
        taps = ["*embed", "ln_f_scale", "*.resid_post", "*.z", "*.*_out", "*.mlp_post"]
        taps = [tap for tap in resolve(taps, 12) if not tap.endswith("head_out")]
        export_onnx(loud, tmp_path / "loud.onnx", taps=taps)
        runner = open_onnx(tmp_path / "loud.onnx", device="cpu")
    ids = runner.tokenizer.encode(PROMPT)
    run = runner.run(ids, taps=["ln_f_scale", "blocks.11.resid_post"])
    x = run.taps["blocks.11.resid_post"][0].astype(np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / run.taps["ln_f_scale"][0]
    w = {name: runner.weight(name).astype(np.float64) for name in ("ln_f.weight", "ln_f.bias")}
    logits = (normed * w["ln_f.weight"] + w["ln_f.bias"]) @ runner.weight("lm_head.weight").T
    assert 80 < np.abs(logits).max() <= 100
    for by in LEVELS:
        for position in range(0, len(ids), 5):
            got = direct_logit_attribution(runner, ids, target="a", position=position, by=by)
            assert abs(got.parts.sum() - logits[position, id_of("a")]) <= 1e-4


@pytest.mark.parametrize("by", LEVELS)
@pytest.mark.parametrize("foil", [None, "b"])
def test_every_engine_gives_the_same_parts(torch_runner, runner, by, foil):
    got, want = (
        direct_logit_attribution(r, PROMPT, target="a", foil=foil, by=by, position=6)
        for r in (runner, torch_runner)
    )
    assert got.names == want.names
    close(got.parts, want.parts)
    close(got.total, want.total)


@pytest.mark.parametrize("kind", ["int8", "int4-all"])
def test_a_quantised_file_is_explained_by_the_weights_it_stands_for(bundled, kind, bundled_file):
    path = bundled_file(quantize=kind, taps=QUANTISED_TAPS)
    small = open_onnx(path, device="cpu")
    plain = TorchRunner(unpack(pack(on_cpu(bundled.model, torch.float32), kind)), bundled.tokenizer)
    for by in LEVELS:
        got, want = (
            direct_logit_attribution(r, "Once upon a time there was a", target=" king", by=by)
            for r in (small, plain)
        )
        assert np.abs(got.parts - want.parts).max() < 0.1  # activations are rounded to 8 bits
        assert np.corrcoef(got.parts, want.parts)[0, 1] > 0.99
        assert (got.dtype, want.dtype) == (kind, "float32")


def test_the_sum_is_checked_on_every_kind_of_quantised_file():
    for kind in BITS:
        runner = SimpleNamespace(dtype="float32", precision=kind)
        _check_sum(runner, 10.9, 10.0, 10.9, np.array([10.9]))
        with pytest.raises(GPT2KitError, match=r"the final stream's logit is 1\.20e"):
            _check_sum(runner, 10.0, 10.0, 11.2, np.array([11.2]))


def test_an_exported_file_says_which_taps_it_lacks(file_of):
    with pytest.raises(TapError, match=r"does not carry the tap 'embed' .*export it with"):
        direct_logit_attribution(open_onnx(file_of()), PROMPT, target="a")


# Tokens of the prompt


def number(runner: TorchRunner, ids, position: int, scale: np.ndarray) -> float:
    """Logit of "a" minus logit of "b" with the token embeddings times `scale` (pos,)."""
    scales = torch.from_numpy(scale)[None, :, None]
    out = forward(runner.model, np.asarray([ids]), {"embed": lambda x: x * scales})
    logits = out["logits"][0, position]
    return float(logits[id_of("a")] - logits[id_of("b")])


def slopes(runner: TorchRunner, ids, position: int, point: float) -> np.ndarray:
    """(pos,) the gradient times the embedding where all embeddings are times `point`."""
    h, eye = 1e-5, np.eye(len(ids))
    ends = [[number(runner, ids, position, point + s * h * e) for e in eye] for s in (1, -1)]
    return (np.array(ends[0]) - ends[1]) / (2 * h)


@pytest.mark.parametrize("position", [-1, 3])
def test_gradient_x_input_equals_finite_differences(exact, position):
    found = input_attribution(
        exact, PROMPT, target="a", foil="b", method="gradient_x_input", position=position
    )
    ids, at = found.prompt_ids, found.position
    close(found.values, slopes(exact, ids, at, 1.0), 1e-6)
    ends = [number(exact, ids, at, np.full(len(ids), x)) for x in (0.0, 1.0)]
    close([found.baseline_total, found.total], ends, 1e-9)
    close(found.completeness, found.values.sum() - (ends[1] - ends[0]), 1e-9)
    assert abs(found.completeness) > 0.01  # the model is not linear
    assert (found.values[at + 1 :] == 0).all()


def test_integrated_gradients_equal_the_integral(double):
    ids = double.tokenizer.encode(PROMPT)[:6]
    found = input_attribution(double, ids, target="a", foil="b", steps=100)
    middles = (np.arange(120) + 0.5) / 120
    close(found.values, np.mean([slopes(double, ids, -1, x) for x in middles], axis=0), 1e-3)
    assert abs(found.completeness) < 1e-6


def test_enough_steps_are_complete(exact):
    gaps = [
        abs(input_attribution(exact, PROMPT, target="a", steps=steps).completeness)
        for steps in (2, 20, 300)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-8


def test_the_bundled_model_is_complete_by_default(bundled):
    text = "When the king had heard this, he said to his daughter"
    found = input_attribution(bundled, text, target=" the", foil=" and")
    assert abs(found.completeness) < 1e-3 < abs(found.total - found.baseline_total)
    logits = bundled.run(found.prompt_ids).logits[0, -1]
    the, other = (bundled.tokenizer.single(text) for text in (" the", " and"))
    close(found.total, logits[the] - logits[other])


@pytest.mark.parametrize("method", METHODS)
def test_a_foil_gives_the_difference_for_tokens_as_well(exact, method):
    diff = input_attribution(exact, PROMPT, target="a", foil="b", method=method)
    a, b = (input_attribution(exact, PROMPT, target=text, method=method) for text in "ab")
    close(diff.values, a.values - b.values, 1e-9)
    close(diff.completeness, a.completeness - b.completeness, 1e-9)


def test_many_steps_go_in_several_passes(exact, monkeypatch):
    whole = input_attribution(exact, PROMPT, target="a", steps=7)
    monkeypatch.setattr("probes.attribution.inputs._BACKWARD_TOKENS", 3 * len(whole.prompt_ids) + 1)
    close(input_attribution(exact, PROMPT, target="a", steps=7).values, whole.values, 1e-9)


def test_nothing_is_left_on_the_model(torch_runner):
    model = random_model()
    runner = TorchRunner(model, byte_tokenizer())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for wanted in (False, True):
        model.requires_grad_(wanted)
        for method in METHODS:
            input_attribution(runner, PROMPT, target="a", method=method)
        direct_logit_attribution(runner, PROMPT, target="a", by="neuron")
        assert all(x.grad is None and x.requires_grad is wanted for x in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(torch_runner, off):
    want = input_attribution(torch_runner, PROMPT, target="a")
    with off():
        close(input_attribution(torch_runner, PROMPT, target="a").values, want.values)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "slack"), [("float16", 0.005), ("bfloat16", 0.03)])
def test_half_precision_is_near(bundled, dtype, slack):
    text, options = "Once upon a time there was a", {"target": " king", "foil": " ship"}
    half = input_attribution(load("bundled", device="cpu", dtype=dtype), text, **options)
    want = input_attribution(bundled, text, **options)
    assert np.abs(half.values - want.values).max() < slack * np.abs(want.values).max()
    assert abs(half.completeness) < slack * max(1, np.abs(want.values).sum())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu(bundled, dtype):
    slack = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}[dtype]
    text, options = "Once upon a time there was a", {"target": " king", "foil": " ship"}
    cuda = load("bundled", device="cuda", dtype=dtype)
    parts, tokens = (probe(cuda, text, **options) for probe in BOTH)
    close(parts.parts, direct_logit_attribution(bundled, text, **options).parts, slack)
    want = input_attribution(bundled, text, **options).values
    assert np.abs(tokens.values - want).max() < slack * np.abs(want).max()


# What both take


@pytest.mark.parametrize("probe", BOTH)
def test_ids_and_bos_are_prompts_as_well(torch_runner, probe):
    ids = torch_runner.tokenizer.encode(PROMPT)
    bos = CONFIG.bos_token_id
    options = {"target": "a", "foil": "b", "position": 4}
    text = probe(torch_runner, PROMPT, prepend_bos=True, **options)
    given = probe(torch_runner, np.array([bos, *ids]), **options)
    assert text.prompt_ids.tolist() == given.prompt_ids.tolist() == [bos, *ids]
    assert (text.has_bos, given.has_bos) == (True, False)
    assert text.total == given.total
    assert text.prompt_tokens[0] == "<|endoftext|>"


@pytest.mark.parametrize("probe", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cat"}, r"'cat' is not one token: it is 'c' \+ 'a' \+ 't'"),
        ({"foil": ""}, "is not one token: it is nothing"),
        ({"foil": "a"}, "target and foil are both 'a', whose difference is always 0"),
        ({"position": 99}, "position 99 does not lie in the prompt, which has"),
        ({"position": -99}, "position -99 does not lie in the prompt"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "has no tokens"),
        ({"prompt": [1, CONFIG.vocab_size]}, "outside the vocabulary"),
        ({"prompt": [[1, 2], [3, 4]]}, "a row of token ids, not int64 of shape \\(2, 2\\)"),
        ({"prompt": "x" * CONFIG.n_positions, "prepend_bos": True}, "do not fit the context of 40"),
    ],
)
def test_bad_arguments_are_refused(torch_runner, probe, options, message):
    with pytest.raises(InputError, match=message):
        probe(torch_runner, **{"prompt": PROMPT, "target": "a"} | options)


@pytest.mark.parametrize("probe", BOTH)
def test_token_ids_are_taken_like_texts(torch_runner, probe):
    texts = probe(torch_runner, PROMPT, target="a", foil="b")
    ids = probe(torch_runner, PROMPT, target=id_of("a"), foil=np.int64(id_of("b")))
    assert ids == texts
    assert ids != probe(torch_runner, PROMPT, target="a", foil="c")
    with pytest.raises(InputError, match=f"both {id_of('a')}, whose difference is always 0"):
        probe(torch_runner, PROMPT, target=id_of("a"), foil="a")
    nameless = probe(TorchRunner(torch_runner.model), [1, 2], target=5, foil=7)
    assert (nameless.target, nameless.foil, nameless.prompt_tokens) == ("5", "7", ("1", "2"))


WRONG_TYPES = [
    ({"target": None}, "target = None is neither a text nor a token id"),
    ({"target": 1.5}, "target = 1.5 is neither"),
    ({"foil": ["a"]}, r"foil = \['a'\] is neither a text nor a token id"),
    ({"foil": 1.5}, "foil = 1.5 is neither"),
    ({"position": 1.5}, "position 1.5 must be an integer, got float"),
    ({"position": None}, "position None must be an integer"),
    ({"prompt": None}, "a prompt is a text or a row of token ids, not object"),
    ({"prompt": 5}, "a prompt is a text or a row of token ids, not int64 of shape"),
    ({"prompt": [1.9]}, "a prompt is a text or a row of token ids, not float64"),
]


@pytest.mark.parametrize("probe", BOTH)
@pytest.mark.parametrize(("options", "message"), WRONG_TYPES)
def test_wrong_types_are_refused_by_the_arguments_name(torch_runner, probe, options, message):
    with pytest.raises(InputError, match=message) as caught:
        probe(torch_runner, **{"prompt": PROMPT, "target": "a"} | options)
    assert "\n" not in str(caught.value)


def test_levels_methods_and_steps_of_a_wrong_type_are_refused(torch_runner):
    with pytest.raises(InputError, match="by = 3 is not one of component"):
        direct_logit_attribution(torch_runner, PROMPT, target="a", by=3)
    with pytest.raises(InputError, match="method = None is not one of"):
        input_attribution(torch_runner, PROMPT, target="a", method=None)
    with pytest.raises(InputError, match=r"steps = 1.5 must be an integer, got float"):
        input_attribution(torch_runner, PROMPT, target="a", steps=1.5)


def test_unknown_levels_methods_and_steps_are_refused(torch_runner):
    with pytest.raises(InputError, match="by = 'layer' is not one of component, head, neuron"):
        direct_logit_attribution(torch_runner, PROMPT, target="a", by="layer")
    with pytest.raises(InputError, match="method = 'shap' is not one of gradient_x_input"):
        input_attribution(torch_runner, PROMPT, target="a", method="shap")
    with pytest.raises(InputError, match="steps = 0 must be at least 1"):
        input_attribution(torch_runner, PROMPT, target="a", steps=0)


@pytest.mark.parametrize("probe", BOTH)
def test_a_runner_without_tokenizer_or_bos_is_refused(torch_runner, probe):
    with pytest.raises(InputError, match="no tokenizer"):
        probe(TorchRunner(torch_runner.model), [1, 2], target="a")
    nameless = TorchRunner(torch_runner.model, torch_runner.tokenizer)
    nameless.config = replace(CONFIG, bos_token_id=None)
    with pytest.raises(InputError, match="no BOS token in its config"):
        probe(nameless, PROMPT, target="a", prepend_bos=True)


# How they look


def drawn(result, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("by", LEVELS)
def test_parts_fit_the_terminal_and_all_heads_are_there(torch_runner, width, by):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", foil="b", by=by)
    text = drawn(found, width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    grid = text[text.index("\nlayer") :]
    for kind in ("head", "mlp") if by == "head" else ():
        assert all(format_number(value) in grid for value in found.values[kind].ravel())
    assert grid.count("mlp") == 1


def test_the_table_holds_the_strongest_parts_with_their_sign(torch_runner):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", by="head")
    text = str(found)
    order = np.argsort(found.parts)
    top, bottom = int(order[-1]), int(order[0])
    row = text.split("\n")[4].split()
    assert " ".join(row) == (
        f"{found.names[top]} {found.parts[top]:+.3f} "
        f"{found.names[bottom]} {found.parts[bottom]:+.3f}"
    )
    assert "logit of 'a' = " in text
    assert f"the strongest of {len(found.parts)} parts" in text


def test_tokens_are_shown_as_they_are(torch_runner):
    found = input_attribution(torch_runner, PROMPT, target="a")
    text = drawn(found, 60)
    assert all(cell_len(line) <= 60 for line in text.split("\n"))
    lines = [line.split() for line in text.split("\n") if "'" in line and "█" in line]
    assert max(found.values, key=abs) == pytest.approx(
        float(next(line for line in lines if "█" * 24 in line)[-2]), abs=6e-4
    )
    odd = ("[b]", "\n", "日本語", "\u202e", "\x1b[31m", "x" * 200)
    odd += found.prompt_tokens[len(odd) :]
    text = drawn(replace(found, prompt_tokens=odd), 60)
    assert all(cell_len(line) <= 60 for line in text.split("\n"))
    assert all(sign in text for sign in ("'[b]'", "'⏎'", "'日本語'"))
    assert not set(text) & set("\u202e\x1b")
    assert "zero token embeddings" in " ".join(text.split())


def test_a_long_prompt_shows_its_strongest_tokens(bundled):
    found = input_attribution(bundled, " the king" * 25, target=" and", method="gradient_x_input")
    weakest = int(np.abs(found.values).argmin())
    text = drawn(found, 120)
    assert "the 10 weakest tokens are not shown" in text
    shown = [int(line.split()[0]) for line in text.split("\n")[5:] if line.strip()]
    assert len(shown) == 40
    assert shown == sorted(shown)
    assert weakest not in shown


@pytest.mark.parametrize("probe", BOTH)
def test_json_html_and_repr(torch_runner, probe):
    found = probe(torch_runner, PROMPT, target="a", foil="b")
    read = json.loads(found.to_json())
    assert read["total"] == found.total
    assert read["prompt_ids"] == found.prompt_ids.tolist()
    want = found.values["mlp"] if isinstance(found.values, dict) else found.values
    got = read["values"]["mlp"] if isinstance(found.values, dict) else read["values"]
    assert got == want.tolist()
    assert repr(found).startswith(f"{type(found).__name__}(random, logit of 'a' minus logit of")
    assert "\n" not in repr(found)
    assert found._repr_html_().startswith("<pre")


@pytest.mark.parametrize("by", LEVELS)
def test_direct_attribution_has_one_row_a_part_and_is_read_back(torch_runner, by):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", foil="b", by=by)
    rows = found.table()
    assert [row["value"] for row in rows] == found.parts.tolist()
    assert [list(row) for row in rows] == [["part", "layer", "index", "value"]] * len(rows)
    named = zip(rows, found.names, strict=True)
    assert all(name.split()[0] == row["part"] for row, name in named)
    assert type(found).from_json(found.to_json()) == found


def test_input_attribution_has_one_row_a_token_and_is_read_back(torch_runner):
    found = input_attribution(torch_runner, PROMPT, target="a", position=4)
    rows = found.table()
    assert [row["token_id"] for row in rows] == found.prompt_ids.tolist()
    assert [row["value"] for row in rows] == found.values.tolist()
    assert found.to_csv().splitlines()[0] == "position,token_id,token,value"
    assert type(found).from_json(found.to_json()) == found


NEEDING_TORCH = {
    "input attribution": lambda r: input_attribution(r, PROMPT, target="a"),
    "attribution patching": lambda r: attribution_patching(r, "a", "b", metric=Metric.prob("c")),
    "edge attribution patching": lambda r: edge_attribution_patching(
        r, "a", "b", metric=Metric.prob("c")
    ),
    "training a tuned lens": lambda r: train_tuned_lens(r, PROMPT * 9, length=8),
    "rewriting weights": processed,
}


@pytest.mark.parametrize("what", NEEDING_TORCH)
def test_what_needs_torch_says_so(onnx_runner, what):
    with pytest.raises(InputError, match=rf"^{what} needs the torch engine, not OnnxRunner\("):
        NEEDING_TORCH[what](onnx_runner)
