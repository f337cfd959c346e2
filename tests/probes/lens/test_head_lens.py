"""The lens on the write of one head, against its definition."""

import json

import pytest
import torch

from gpt2kit.errors import InputError, TapError
from probes.lens.head_lens import head_lens
from tests.conftest import CONFIG, close
from tests.probes.lens.support import read_by_hand

PROMPT = "the cat, the hat"


def test_a_head_is_read_as_if_it_were_the_stream(torch_runner, runner):
    read = head_lens(runner, PROMPT, -1, 1, top_k=3, targets=["a", "b"], positions=[2, -1])
    assert (read.layer, read.head) == (2, 1)
    ids = torch_runner.tokenizer.encode(PROMPT)
    w = torch_runner.model.state_dict()["h.2.attn.c_proj.weight"].double()
    d = CONFIG.d_head
    z = torch.from_numpy(torch_runner.run(ids, taps="blocks.2.z").taps["blocks.2.z"]).double()
    write = z[0, read.positions, 1] @ w[d : 2 * d]
    log_p = read_by_hand(torch_runner, write)
    close(read.norms, write.norm(dim=-1))
    close(read.top_logprobs, log_p.topk(3).values)
    close(log_p.gather(-1, torch.from_numpy(read.top_ids)), read.top_logprobs)
    own = [torch_runner.tokenizer.single(text) for text in "ab"]
    close(read.target_logprobs, log_p[:, own])
    close(read.target_ranks, (log_p[:, None] > log_p[:, own, None] + 1e-6).sum(-1))
    assert "likeliest" in str(read)
    assert json.loads(read.to_json())["head"] == 1
    assert head_lens(runner, PROMPT, 2, 1).target_ranks.shape == (len(ids), 0)


def test_unknown_heads_are_refused(torch_runner):
    with pytest.raises(InputError, match="head 3 does not exist; a layer has heads 0 to 2"):
        head_lens(torch_runner, PROMPT, 0, 3)
    with pytest.raises(TapError, match="the model has layers 0 to 2"):
        head_lens(torch_runner, PROMPT, 3, 0)
