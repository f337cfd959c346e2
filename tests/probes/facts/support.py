"""What the tests of facts share: a tokenizer of words, small models, logits by hand."""

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from gpt2kit import GPT2Config, Tokenizer, TorchRunner
from gpt2kit.runner import Source
from gpt2kit.taps import resolve
from probes.facts import published
from probes.tasks.greater_than import CENTURIES
from probes.tasks.ioi import TEMPLATES
from probes.tasks.word_lists import EVENTS, NAMES, OBJECTS, PLACES
from tests.conftest import random_model

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
LAYERS, HEADS = 2, 3

TWIN = [1, 0, 3, 2, 5, 4, 7, 6]  # the prompt with the names exchanged
EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def word_tokenizer() -> Tokenizer:
    """Words with their leading space, and pairs of digits, are single tokens, as for gpt2."""
    split = r" ?[A-Za-z]+| ?[0-9]{2}|[^A-Za-z0-9]"
    texts = [p for p, *_ in IOI] + [published.HELLO, published.MILK, published.DUTY, *TEMPLATES]
    words = tokenizers.Regex(split), "isolated"
    cut = pre_tokenizers.Split(*words)
    found = [w for text in texts for w, _ in cut.pre_tokenize_str(text)]
    found += [f" {word}" for word in (*NAMES, *OBJECTS, *PLACES, *EVENTS, *CENTURIES)]
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


def ids_of(runner, text) -> list[int]:
    return [runner.config.bos_token_id, *runner.tokenizer.encode(text)]


def logits_of(runner, ids, edits=None) -> torch.Tensor:
    """(pos, vocab) logits of the module itself; edits are functions."""
    with torch.no_grad():
        return runner.model(torch.tensor([ids]), edits=edits or {})[0][0].double()


def difference(runner, prompt, right, wrong, edits=None) -> float:
    last = logits_of(runner, ids_of(runner, prompt), edits)[-1]
    return float(last[runner.tokenizer.single(right)] - last[runner.tokenizer.single(wrong)])


def order(scores) -> list[int]:
    """The rank of each head, found by sorting."""
    flat = np.asarray(scores).ravel()
    out = np.empty(len(flat), int)
    out[np.argsort(-flat)] = np.arange(1, len(flat) + 1)
    return out.tolist()


class Watched:
    """A runner that records the taps and edits it is called with."""

    def __init__(self, runner) -> None:
        self.config, self.tokenizer, self.source = runner.config, runner.tokenizer, runner.source
        self.dtype, self.inner, self.taps, self.edits = runner.dtype, runner, set(), set()
        self.weight, self.readout, self.precision = runner.weight, runner.readout, runner.precision

    def run(self, ids, *, taps=(), edits=(), **options):
        self.taps |= set(resolve(taps, self.config.n_layer))
        self.edits |= {tap for edit in edits for tap in resolve(edit.tap, self.config.n_layer)}
        return self.inner.run(ids, taps=taps, edits=edits, **options)
