"""Runs that are not finite: where they are refused, and what both engines make of large edits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from exporters import open_onnx
from gpt2kit import Edit, TorchRunner, generate
from gpt2kit.checks import LARGEST
from gpt2kit.errors import EditError, NonFiniteError
from gpt2kit.finite import finite_run, require_finite_run
from gpt2kit.runner import Run
from gpt2kit.taps import TapDict, tap_axes
from gpt2kit.testing import FakeRunner
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model
from tests.overflow import altered_file, half_runner

TAP, LAYERS = "blocks.1.resid_post", CONFIG.n_layer


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_largest_numbers_are_torchs(dtype):
    assert LARGEST[dtype] == torch.finfo(getattr(torch, dtype)).max


# Where a run is refused


@pytest.mark.parametrize("at", [0, 2, 5])
def test_the_first_place_is_named(runner, at):
    edits = [Edit(tap, add=3e38, at={"pos": at, "batch": 1}) for tap in ("embed", "pos_embed")]
    where = rf"become inf, first seen in blocks\.0\.resid_pre \(layer 0, position {at}, row 1\)"
    for options in ({"last_only": True}, {"top_k": 1}, {"top_k": 0, "taps": "blocks.2.mlp_out"}):
        with pytest.raises(NonFiniteError, match=rf"{where}: .* in float32 .* edits smaller$"):
            finite_run(runner, random_ids(2, 6), edits=edits, **options)
    with pytest.raises(NonFiniteError, match=where):
        finite_run(runner, random_ids(2, 6), edits=edits, cached=True, last_only=True)


def test_what_lies_after_a_row_does_not_matter(runner):
    """Row 1 has 3 tokens; position 4 of it is padding, which no later attention reads."""
    rows, last = [random_ids(6).tolist(), random_ids(3).tolist()], "blocks.2.resid_post"
    padding = {"pos": 4, "batch": 1}
    edits = [Edit(f"blocks.2.{tap}", add=3e38, at=padding) for tap in ("resid_mid", "mlp_out")]
    run = finite_run(runner, rows, edits=edits, taps=last, last_only=True)
    assert not np.isfinite(run.taps[last][1, 4]).all()
    edits[0].at["pos"] = edits[1].at["pos"] = 2
    with pytest.raises(NonFiniteError, match=r"layer 2, position 2, row 1\)"):
        finite_run(runner, rows, edits=edits, taps=last, last_only=True)


def test_scores_of_later_keys_do_not_matter(torch_runner):
    ids = random_ids(1, 4)
    run = torch_runner.run(ids, taps="blocks.0.attn_scores")
    scores = run.taps["blocks.0.attn_scores"].copy()
    scores[0, 1, 2, 3] = np.nan

    def with_scores() -> Run:
        return replace(run, taps=TapDict({"blocks.0.attn_scores": scores}, LAYERS))

    require_finite_run(torch_runner, with_scores(), ids)
    scores[0, 1, 3, 2] = -np.inf
    where = r"become -inf, first seen in blocks\.0\.attn_scores \(layer 0, position 3\)"
    with pytest.raises(NonFiniteError, match=where):
        require_finite_run(torch_runner, with_scores(), ids)


@pytest.mark.parametrize("tap", tap_axes(LAYERS))
def test_every_tap_is_found_when_it_is_the_first(torch_runner, tap):
    """A function makes one value of the tap NaN; taps before it stay finite."""

    def spoil(x):
        x = x.clone()
        x[(..., *[0] * (x.ndim - 1))] = torch.nan
        return x

    with pytest.raises(NonFiniteError, match=rf"become nan, first seen in {tap} \((layer .*)?pos"):
        finite_run(torch_runner, random_ids(5), edits=[(tap, spoil)], taps=tap, last_only=True)


@pytest.mark.parametrize("taps", ["*.resid_*", "blocks.2.z", ()])
def test_a_file_names_the_first_of_its_taps(file_of, tmp_path, taps):
    altered = open_onnx(altered_file(file_of(taps="*", edits="*"), tmp_path), device="cpu")
    altered.taps = tuple(t for t in altered.taps if t in FEW[taps])  # as in a file with fewer taps
    where = FEW[taps][0] if taps else "logits"
    with pytest.raises(NonFiniteError, match=f"first seen in {where}"):
        finite_run(altered, random_ids(4), last_only=True)


FEW = {
    "*.resid_*": [f"blocks.{i}.{tap}" for i in (1, 2) for tap in ("resid_post", "resid_mid")],
    "blocks.2.z": ["blocks.2.z"],
    (): [],
}


@pytest.mark.filterwarnings("error")
def test_generation_names_the_step_and_the_place(runner):
    """The prompt has 4 tokens; what makes the model infinite stands at position 6."""
    edits = [Edit(tap, add=3e38, at={"pos": 6}) for tap in ("embed", "pos_embed")]
    shown: list[str] = []
    options = {"max_new_tokens": 9, "top_k": 5, "seed": 0, "edits": edits}
    where = r"first seen in blocks\.0\.resid_pre \(layer 0, position 6\)"
    with pytest.raises(NonFiniteError, match=where):
        generate(runner, "a cat"[:4], on_text=lambda _, piece: shown.append(piece), **options)
    assert 1 <= len("".join(shown)) <= 4
    with pytest.raises(NonFiniteError, match=r"position 6, row 1\)"):
        generate(runner, ["a", "a cat"[:4]], **options)


def test_an_engine_without_its_own_taps_is_refused_too():
    class Infinite(FakeRunner):
        def unembed(self, resid):
            return super().unembed(resid) * np.float32(np.inf)

    with pytest.raises(NonFiniteError, match=r"first seen in logits \(position 2\): fake"):
        finite_run(Infinite(), [1, 2, 3], last_only=True)


def test_a_run_itself_shows_what_the_model_computed():
    run = half_runner().run([1, 2, 3], taps="blocks.1.mlp_out")
    assert not np.isfinite(run.taps["blocks.1.mlp_out"]).all()
    assert not np.isfinite(run.logits).all()


@pytest.mark.parametrize(
    ("dtype", "edits", "advice"),
    [
        ("float16", False, r"try --dtype float32 \(for an ONNX file, in its export\)$"),
        ("bfloat16", True, r"try --dtype float32 \(.*\) or smaller edits$"),
        ("float32", False, "its weights are too large; try --dtype float64, on torch$"),
        ("float64", False, "its weights are too large$"),
    ],
)
def test_the_advice_fits_the_dtype(dtype, edits, advice):
    model = random_model(dtype=getattr(torch, dtype))
    model.h[1].mlp.c_proj.bias[0] = np.inf
    changed = [Edit(TAP, 2.0)] if edits else []
    with pytest.raises(NonFiniteError, match=f"in {dtype} holds numbers up to .*; {advice}"):
        finite_run(TorchRunner(model, byte_tokenizer()), [1, 2], edits=changed)


# Large edits


def test_edits_that_cancel_do_the_same_on_every_engine(runner):
    """Scaled by 1e38 twice, then zeroed: composed in float64, this is a zero ablation."""
    ids, twice = random_ids(2, 5), [Edit(TAP, 1e38), Edit(TAP, np.float32(1e38))]
    got = runner.run(ids, taps=TAP, edits=[*twice, Edit.zero(TAP)])
    want = runner.run(ids, taps=TAP, edits=[Edit.zero(TAP)])
    assert (got.taps[TAP] == 0).all()
    close(got.logits, want.logits)
    got = runner.run(ids, edits=[*twice * 9, Edit.replace(TAP, 0.5)])  # even float64 overflows
    close(got.logits, runner.run(ids, edits=[Edit.replace(TAP, 0.5)]).logits)
    with pytest.raises(EditError, match=r"come to 1e\+76, but float32 holds .*make them smaller$"):
        runner.run(ids, edits=twice)
    with pytest.raises(EditError, match=r"the edits of blocks\.1\.resid_post come to inf"):
        runner.run(ids, edits=twice * 9)


def test_zeroing_what_is_infinite_gives_nan_on_every_engine(runner):
    """0 * inf is NaN; a zero ablation after an overflow would hide it."""
    edits = [Edit(tap, add=3e38) for tap in ("embed", "pos_embed")]
    run = runner.run([1, 2], taps=TAP, edits=[*edits, Edit.zero("blocks.0.resid_pre")])
    assert np.isnan(run.logits).all()


@pytest.mark.parametrize("value", [1e38, 3e38, -3e38])
def test_an_edit_that_makes_logits_infinite_is_refused(runner, value):
    edits = [Edit.replace("ln_f", value)]
    with pytest.raises(NonFiniteError, match=r"first seen in logits .* make the edits smaller$"):
        finite_run(runner, [1, 2], edits=edits, last_only=True)
    with pytest.raises(NonFiniteError, match="first seen in logits"):
        generate(runner, "a", max_new_tokens=2, edits=edits, top_k=None)


@pytest.mark.parametrize("edit", [Edit(TAP, 7e4), Edit.steer(TAP, np.full(24, 1e30))])
def test_an_edit_must_fit_the_dtype(edit):
    half = TorchRunner(random_model(dtype=torch.float16), byte_tokenizer())
    for run in (
        lambda: half.run([1, 2], edits=[edit]),
        lambda: half.run_from(1, np.zeros((1, 2, 24), np.float32), edits=[edit]),
        lambda: generate(half, "a", max_new_tokens=2, edits=[edit]),
    ):
        with pytest.raises(EditError, match=r"but float16 holds .* or try --dtype float32$"):
            run()
    assert np.isfinite(half.run([1, 2], edits=[Edit(TAP, 2.0)]).logits).all()


def test_scores_are_float32_in_half_precision_and_may_be_masked_with_large_numbers():
    half = TorchRunner(random_model(dtype=torch.float16), byte_tokenizer())
    mask = Edit.replace("blocks.0.attn_scores", -1e30, key=0, query=2)
    run = half.run([1, 2, 3], edits=[mask], taps="blocks.0.pattern")
    assert (run.taps["blocks.0.pattern"][:, :, 2, 0] == 0).all()
    assert np.isfinite(run.logits).all()
