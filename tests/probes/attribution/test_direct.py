"""Direct logit attribution against its definition: parts that sum to the logit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporters import export_onnx, open_onnx
from exporters.file.packing import BITS
from exporters.tracing.quantize import pack, unpack
from gpt2kit import TorchRunner, load
from gpt2kit.errors import GPT2KitError, TapError
from gpt2kit.runner import Source
from gpt2kit.taps import TapDict, resolve
from gpt2kit.torch_engine.dtypes import on_cpu
from probes.attribution.direct import LEVELS, _check_sum, direct_logit_attribution
from probes.core.processed_weights import processed
from tests.by_hand import forward
from tests.conftest import CONFIG, QUANTISED_TAPS, byte_tokenizer, close, random_model
from tests.probes.attribution.support import PROMPT, id_of


def by_definition(runner: TorchRunner, ids, position: int, token: int) -> dict[str, np.ndarray]:
    """Each part's vector, through the last layer norm with its scale held, and through W_U."""
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
        runner, "Once upon a time, there was a", target=" girl", foil=" boy", by=by
    )
    run = runner.run(found.prompt_ids).logits[0, -1].astype(np.float64)
    a, b = (run[runner.tokenizer.single(text)] for text in (" girl", " boy"))
    slack = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}[dtype]
    close(found.total, a - b, slack)
    assert abs(found.parts.sum() - found.total) <= slack * max(1, abs(a), abs(b))
    assert found.dtype == dtype


class Tampered(TorchRunner):
    """A runner whose taps do not fit its logits, or do not fit each other."""

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
    """A model of gpt2's shape (with a small vocabulary) with logits around 100."""
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
            direct_logit_attribution(r, "Once upon a time, there was a", target=" girl", by=by)
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


@pytest.mark.parametrize("by", LEVELS)
def test_direct_attribution_has_one_row_a_part_and_is_read_back(torch_runner, by):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", foil="b", by=by)
    rows = found.table()
    assert [row["value"] for row in rows] == found.parts.tolist()
    assert [list(row) for row in rows] == [["part", "layer", "index", "value"]] * len(rows)
    named = zip(rows, found.names, strict=True)
    assert all(name.split()[0] == row["part"] for row, name in named)
    assert type(found).from_json(found.to_json()) == found
