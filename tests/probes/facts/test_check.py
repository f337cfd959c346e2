"""Which facts a model is asked for, and what an exported file must carry to answer them."""

import pytest

from gpt2kit import TorchRunner
from gpt2kit.errors import GPT2KitError
from probes.facts import bundled_facts, published
from probes.facts.check import check_facts, facts_about
from probes.facts.identity import Identity
from probes.facts.real_gpt2 import NotTheRealModel
from tests.conftest import random_model


def test_each_known_model_has_its_own_facts(bundled, monkeypatch):
    assert facts_about(bundled) is bundled_facts.FACTS
    monkeypatch.setattr(Identity, "difference", lambda self, runner: "")
    assert facts_about(bundled) is published.FACTS  # the first whose identity it has


def test_no_facts_are_asked_of_another_model(by_torch, bundled):
    random = TorchRunner(random_model(bundled.config), bundled.tokenizer)
    for runner, why in (
        (by_torch, "the bundled model: its n_layer is 2, not 8"),
        (random, "the bundled model: its loss on 'Once upon a time, "),
    ):
        with pytest.raises(NotTheRealModel) as caught:
            check_facts(runner, on_progress=lambda *_: pytest.fail("a fact was measured"))
        text = str(caught.value)
        assert text.startswith(f"no facts are stated about {runner.source}: it is not gpt2 (124M)")
        assert why in text
        assert "\n" not in text
        assert caught.value.exit_code == 3
        assert isinstance(caught.value, GPT2KitError)
