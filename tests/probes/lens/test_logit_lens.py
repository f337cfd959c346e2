"""The logit lens against its definition, on both engines."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError, InternalError, NonFiniteError
from probes import LogitLens, logit_lens
from probes.lens.logit_lens import SITES
from tests.conftest import CONFIG, close

PROMPT = "the cat, the <b>hat</b>\n"

LOG_V = np.log(CONFIG.vocab_size)


@pytest.fixture(params=["torch", "onnx"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_runner")


@pytest.fixture(scope="module")
def lens(torch_runner) -> LogitLens:
    return logit_lens(torch_runner, PROMPT, top_k=3)


def by_hand(runner: TorchRunner, ids, rows: tuple[str, ...]) -> torch.Tensor:
    """(R, P, vocab) logits in float64, from the stream at `rows`."""
    w = {name: x.double() for name, x in runner.model.state_dict().items()}
    taps = runner.run(ids, taps=rows).taps
    x = torch.stack([torch.from_numpy(taps[row][0]).double() for row in rows])
    x = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, unbiased=False, keepdim=True) + runner.config.layer_norm_epsilon
    ).sqrt()
    return (x * w["ln_f.weight"] + w["ln_f.bias"]) @ w["wte.weight"].T


@pytest.mark.parametrize("site", SITES)
def test_every_number_equals_its_definition(torch_runner, engine, site):
    lens = logit_lens(engine, PROMPT, sites=site, top_k=4, targets=[",", "the "[:1]])
    layers = [f"blocks.{i}.{SITES[site]}" for i in range(CONFIG.n_layer)]
    ends = {"resid": ["blocks.0.resid_pre", *layers]}
    assert list(lens.rows) == ends.get(site, [*layers, "blocks.2.resid_post"])
    ids = torch_runner.tokenizer.encode(PROMPT)
    logits = by_hand(torch_runner, ids, lens.rows)
    log_p = logits.log_softmax(-1)
    p, final = log_p.exp(), log_p[-1]
    close(lens.log_z, logits.logsumexp(-1))
    close(lens.entropy, -(p * log_p).sum(-1))
    close(lens.kl, (final.exp() * (final - log_p)).sum(-1))
    close(lens.top_logprobs, log_p.topk(4).values)
    close(log_p.gather(-1, torch.from_numpy(lens.top_ids)), lens.top_logprobs)
    following = torch.tensor(ids[1:])
    close(lens.next_logprobs[:, :-1], log_p[:, :-1].gather(-1, following[None, :, None].expand(
        len(lens.rows), -1, 1))[..., 0])  # fmt: skip
    for t, text in enumerate([",", "t"]):
        own = log_p[..., engine.tokenizer.single(text)]
        close(lens.target_logprobs[..., t], own)
        ranks = (log_p > own[..., None] + 1e-5).sum(-1).numpy()
        at_most = (log_p > own[..., None] - 1e-5).sum(-1).numpy()
        assert ((ranks <= lens.target_ranks[..., t]) & (lens.target_ranks[..., t] <= at_most)).all()


def test_the_last_row_is_what_the_model_says(engine):
    lens = logit_lens(engine, PROMPT, top_k=CONFIG.vocab_size)
    logits = engine.run(lens.prompt_ids).logits[0]
    order = np.argsort(lens.top_ids[-1], axis=-1)
    close(np.take_along_axis(lens.top_logprobs[-1], order, -1) + lens.log_z[-1][:, None], logits)
    close(lens.kl[-1], np.zeros(len(logits)))


def test_both_engines_give_the_same_lens(torch_runner, onnx_runner):
    torch_lens, onnx_lens = (
        logit_lens(runner, PROMPT, targets=["a", "b"], prepend_bos=True)
        for runner in (torch_runner, onnx_runner)
    )
    for name, value in vars(torch_lens).items():
        other = getattr(onnx_lens, name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            np.testing.assert_allclose(other, value, rtol=1e-4, atol=1e-4, err_msg=name)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value, err_msg=name)
        else:
            assert other == value, name


def test_everything_is_in_its_bounds(lens):
    assert (lens.entropy >= -1e-6).all()
    assert (lens.entropy <= LOG_V + 1e-5).all()
    assert (lens.kl >= -1e-5).all()
    assert (np.diff(lens.top_logprobs, axis=-1) <= 0).all()
    assert (np.exp(lens.top_logprobs).sum(-1) <= 1 + 1e-5).all()
    assert ((lens.next_ranks[:, :-1] >= 0) & (lens.next_ranks[:, :-1] < CONFIG.vocab_size)).all()


def test_after_the_last_token_there_is_no_next_one(lens):
    assert lens.next_ids[-1] == -1
    assert (lens.next_ranks[:, -1] == -1).all()
    assert np.isnan(lens.next_logprobs[:, -1]).all()
    np.testing.assert_array_equal(lens.next_ids[:-1], lens.prompt_ids[1:])


@pytest.mark.parametrize("positions", [[0], [-1], [3, 1, -2], slice(2, 6), slice(None, None, 3), 4])
def test_chosen_positions_are_those_columns_of_the_whole(torch_runner, lens, positions):
    part = logit_lens(torch_runner, PROMPT, top_k=3, positions=positions)
    np.testing.assert_array_equal(part.prompt_ids, lens.prompt_ids)
    np.testing.assert_array_equal(
        part.positions, np.atleast_1d(np.arange(len(lens.prompt_ids))[positions])
    )
    for name in ("entropy", "kl", "log_z", "top_ids", "next_ranks", "next_logprobs"):
        close(np.nan_to_num(getattr(part, name)),
              np.nan_to_num(getattr(lens, name)[:, part.positions]))  # fmt: skip


def test_a_bos_is_put_first_only_with_prepend_bos(torch_runner, lens):
    assert not lens.has_bos
    with_bos = logit_lens(torch_runner, PROMPT, prepend_bos=True)
    assert with_bos.has_bos
    assert with_bos.prompt_tokens[0] == "<|endoftext|>"
    np.testing.assert_array_equal(with_bos.prompt_ids, [CONFIG.bos_token_id, *lens.prompt_ids])


def test_the_difference_of_two_targets_is_that_of_their_logits(torch_runner):
    lens = logit_lens(torch_runner, PROMPT, targets=["a", "b"])
    logits = by_hand(torch_runner, lens.prompt_ids, lens.rows)
    a, b = (torch_runner.tokenizer.single(text) for text in "ab")
    close(lens.logit_diff, logits[..., a] - logits[..., b])
    with pytest.raises(InputError, match="needs two targets, this lens has 1"):
        logit_lens(torch_runner, PROMPT, targets=["a"]).logit_diff  # noqa: B018


def test_one_target_may_be_given_without_a_list(torch_runner):
    assert logit_lens(torch_runner, PROMPT, targets="a").targets == ("a",)


def test_values_are_of_the_target_where_there_is_one(torch_runner, lens):
    aimed = logit_lens(torch_runner, PROMPT, targets=["a"])
    close(aimed.values("prob"), np.exp(aimed.target_logprobs[..., 0]))
    close(aimed.values("logit"), aimed.target_logprobs[..., 0] + aimed.log_z)
    close(aimed.values("rank"), aimed.target_ranks[..., 0])
    close(lens.values("prob"), np.exp(lens.top_logprobs[..., 0]))
    close(lens.values("rank"), lens.next_ranks)
    close(lens.values("kl"), lens.kl)
    with pytest.raises(InputError, match="'size' is not one of prob, logit"):
        lens.values("size")


class Tampered:
    """A runner whose readout is changed."""

    def __init__(self, runner, change) -> None:
        self.runner, self.change = runner, change

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def readout(self, resid, **options):
        return self.change(self.runner.readout(resid, **options))


@pytest.mark.parametrize(
    "change",
    [
        lambda read: replace(read, log_z=read.log_z + 0.01),
        lambda read: replace(read, top_logprobs=read.top_logprobs - 0.01),
        lambda read: replace(read, top_ids=(read.top_ids + 1) % CONFIG.vocab_size),
    ],
)
def test_a_readout_that_is_not_the_models_own_is_caught(torch_runner, change):
    logit_lens(Tampered(torch_runner, lambda read: read), PROMPT)
    with pytest.raises(InternalError, match=r"the lens' last row is .* from the model's logits"):
        logit_lens(Tampered(torch_runner, change), PROMPT)


@pytest.mark.parametrize("name", ["log_z", "entropy"])
def test_a_readout_that_is_not_finite_is_no_bug_but_an_overflow(torch_runner, name):
    def change(read):
        return replace(read, **{name: getattr(read, name) * np.nan})

    with pytest.raises(NonFiniteError, match="the logits of a residual vector are not finite"):
        logit_lens(Tampered(torch_runner, change), PROMPT)


def test_the_check_is_as_coarse_as_the_weights(torch_runner):
    def change(read):
        return replace(read, log_z=read.log_z + 0.05)

    quantised = Tampered(torch_runner, change)
    quantised.precision = "int8"
    assert logit_lens(quantised, PROMPT).dtype == "int8"
    with pytest.raises(InternalError, match="this is a bug in gpt2kit"):
        logit_lens(Tampered(torch_runner, change), PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k = 0 must be from 1"),
        (
            {"top_k": CONFIG.vocab_size + 1},
            f"from 1 to {CONFIG.vocab_size}, the size of the vocabulary",
        ),
        ({"targets": ["cat"]}, "'cat' is not one token: it is 'c' \\+ 'a' \\+ 't'"),
        ({"targets": [""]}, "is not one token: it is nothing"),
        ({"sites": "heads"}, "sites = 'heads' is not one of resid, mid, attn, mlp"),
        ({"positions": [99]}, r"positions \[99\] are not among the 20"),
        ({"positions": [-99]}, "are not among the 20"),
        ({"positions": []}, "positions"),
        ({"positions": [0.5]}, "positions"),
        ({"positions": slice(5, 5)}, "select none of the 20"),
        ({"positions": slice(None, None, 0)}, "are not among the 20"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [1.5, 2.0]}, "a row of token ids, not float64"),
        ({"prompt": [[1, 2], [3]]}, "a row of token ids, not several rows"),
        ({"prompt": "x" * (CONFIG.n_positions + 1)}, "the context holds 40"),
        ({"prompt": "x" * CONFIG.n_positions, "prepend_bos": True}, "do not fit the context of 40"),
    ],
)
def test_bad_arguments_are_refused(torch_runner, options, message):
    with pytest.raises(InputError, match=message):
        logit_lens(torch_runner, **{"prompt": PROMPT} | options)


def test_a_runner_without_a_tokenizer_or_bos_is_refused(torch_runner):
    with pytest.raises(InputError, match=r"no tokenizer: tokenizer\.json is missing"):
        logit_lens(TorchRunner(torch_runner.model), PROMPT)
    nameless = Tampered(torch_runner, None)
    nameless.config = SimpleNamespace(n_positions=40, n_layer=3, bos_token_id=None)
    with pytest.raises(InputError, match="no BOS token in its config"):
        logit_lens(nameless, PROMPT, prepend_bos=True)


def test_json_holds_every_cell(torch_runner):
    lens = logit_lens(torch_runner, PROMPT, top_k=2, targets=["a", "b"])
    read = json.loads(lens.to_json())
    assert read["ids"] == lens.prompt_ids.tolist()
    assert read["tokens"] == list(lens.prompt_tokens)
    assert (read["model"], read["dtype"], read["bos_added"]) == ("random", "float32", False)
    cells = np.array(read["cells"]).reshape(len(lens.rows), len(lens.positions))
    for (r, p), cell in np.ndenumerate(cells):
        assert (cell["row"], cell["position"]) == (lens.rows[r], p)
        assert [top["id"] for top in cell["top"]] == lens.top_ids[r, p].tolist()
        assert [top["token"] for top in cell["top"]] == list(lens.top_tokens[r][p])
        close([top["logit"] for top in cell["top"]], lens.top_logprobs[r, p] + lens.log_z[r, p])
        close(cell["kl"], lens.kl[r, p])
        assert cell["targets"][1]["rank"] == lens.target_ranks[r, p, 1]
    assert cells[0, -1]["next_rank"] is None
    assert cells[0, -1]["next_logprob"] is None


def test_csv_holds_every_cell_and_odd_tokens_come_back(torch_runner, lens):
    odd = [["a,b", 'say "x"', "\n"], [" ", "\r\n", "日"]] * len(lens.positions)
    tokens = tuple(tuple(map(tuple, odd[: len(lens.positions)])) for _ in lens.rows)
    lens = replace(lens, top_tokens=tokens)
    rows = list(csv.DictReader(io.StringIO(lens.to_csv(), newline="")))
    assert len(rows) == len(lens.rows) * len(lens.positions)
    for row, cell in zip(rows, lens.cells(), strict=True):
        assert None not in row
        assert None not in row.values()
        assert (row["row"], int(row["position"])) == (cell["row"], cell["position"])
        assert row["token"] == cell["token"]
        assert float(row["entropy"]) == cell["entropy"]
        assert row["next_rank"] == ("" if cell["next_rank"] is None else str(cell["next_rank"]))
        for n, top in enumerate(cell["top"], start=1):
            assert row[f"top{n}_token"] == top["token"]
            assert int(row[f"top{n}_id"]) == top["id"]
            assert float(row[f"top{n}_logprob"]) == top["logprob"]


def test_printing_it_gives_the_grid_and_its_repr_one_line(lens):
    assert "logit lens  random  float32" in str(lens)
    assert "\n" not in repr(lens)
    assert "top 3; print it for the grid" in repr(lens)


MEMORY = """
import resource, sys
sys.path.insert(0, {tests!r})
from tests.conftest import byte_tokenizer
from gpt2kit import GPT2, GPT2Config, TorchRunner
from probes import logit_lens
config = GPT2Config()
model = GPT2(config).eval().requires_grad_(False)
runner = TorchRunner(model, byte_tokenizer())
logit_lens(runner, "x" * 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lens = logit_lens(runner, "x" * config.n_positions, top_k=5, targets=["a"])
assert lens.entropy.shape == (13, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_1024_positions_of_gpt2_stay_within_one_and_a_half_gigabytes():
    script = MEMORY.format(tests=str(Path(__file__).parents[3]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 1_500_000
