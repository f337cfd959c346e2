"""FakeRunner is a Runner: it does what any engine does, on numbers of its own."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

import gpt2kit
from gpt2kit import Edit, generate
from gpt2kit.errors import InputError, TapError
from gpt2kit.generation import steps
from gpt2kit.logits import log_softmax
from gpt2kit.sampling import Sampler
from gpt2kit.taps import residual_stream
from gpt2kit.testing import SMALL, FakeRunner
from probes import logit_lens
from tests.conftest import byte_tokenizer, close

IDS = [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_it_has_what_the_protocol_names():
    for name in ("run", "readout", "unembed", "weight", "new_cache"):
        theirs = inspect.signature(getattr(gpt2kit.Runner, name)).parameters
        ours = inspect.signature(getattr(FakeRunner, name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


def test_it_gives_the_same_every_time():
    one, two = (FakeRunner().run(IDS, taps="*resid_post") for _ in range(2))
    close(one.logits, two.logits, 0)
    assert list(one.taps) == list(residual_stream(2)[1:])


def test_chunks_under_a_cache_equal_one_run():
    runner, edits = FakeRunner(), [Edit.steer("blocks.0.resid_post", np.ones(8), pos=2)]
    whole = runner.run(IDS, edits=edits, taps="*resid_post")
    cache = runner.new_cache(2)
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        run = runner.run(np.array(IDS)[:, part], edits=edits, taps="*resid_post", cache=cache)
        cache = run.cache
        close(run.logits, whole.logits[:, part])
        close(run.taps["blocks.1.resid_post"], whole.taps["blocks.1.resid_post"][:, part])
    assert cache.lengths.tolist() == [4, 4]


def test_its_readout_is_that_of_its_logits():
    runner = FakeRunner()
    run = runner.run(IDS, taps="*resid_post")
    stream = np.stack(list(run.taps.values()))
    read = runner.readout(stream, top_k=3, targets=[5, 6], reference=stream[-1])
    logprobs = log_softmax(runner.unembed(stream))
    close(read.target_logprobs, logprobs[..., [5, 6]])
    close(read.entropy, -(np.exp(logprobs) * logprobs).sum(-1))
    want = (np.exp(logprobs[-1]) * (logprobs[-1] - logprobs)).sum(-1)
    close(read.kl, want)
    close(runner.unembed(stream[-1]), run.logits)


def test_probes_run_on_it():
    lens = logit_lens(FakeRunner(), [1, 2, 3], targets=[5])
    assert lens.top_ids.shape == (3, 3, 5)


def test_it_generates():
    tokenizer = byte_tokenizer()
    runner = FakeRunner(replace(SMALL, vocab_size=tokenizer.vocab_size), tokenizer)
    text = generate(runner, "ab", max_new_tokens=5, greedy=True)
    assert text == generate(runner, "ab", max_new_tokens=5, greedy=True)
    assert text
    found = list(
        steps(FakeRunner(), [[1], [2, 3]], max_new_tokens=3, sampler=Sampler(seed=0, top_k=9))
    )
    assert np.stack(found).shape == (3, 2)


def test_it_refuses_what_engines_refuse():
    with pytest.raises(TapError, match="FakeRunner has the taps"):
        FakeRunner().run([1], taps="blocks.0.z")
    with pytest.raises(InputError, match="outside the vocabulary"):
        FakeRunner().run([32])
    with pytest.raises(InputError, match="a cache of its own"):
        FakeRunner().run([1], cache=object())
