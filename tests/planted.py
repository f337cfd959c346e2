"""A GPT-2 whose weights are all set by hand, so that tests know what each head does.

Two layers of four heads, 40 tokens `w0` … `w39`, 64 positions. Separate dimensions of the residual
stream hold: this token (one-hot), its position (one-hot), the token before (written by head 0.1),
and the next token (written by head 1.2, read by the unembedding). The dimension CLASS holds +1 if
the token's number is even and -1 if it is odd; COUNTERWEIGHT holds the opposite, so that the
stream's mean is the same for every token.

    0.0  attends to its own position             writes nothing     CURRENT
    0.1  attends to the position before          copies the token   PREVIOUS
    0.3  attends to earlier copies of its token  writes nothing     DUPLICATE
    1.0  attends to position 0                   writes nothing     FIRST
    1.2  attends to the token after an earlier   copies the token   INDUCTION
         copy of its token: matches its token to what 0.1 wrote (K-composition)
    0.2, 1.1, 1.3 attend to all positions equally and write nothing; both MLPs write nothing

With heads as sharp as these, the stream has the same mean and variance at each position of a layer.
Gain and bias of each layer norm are set to undo the normalisation (ln_f sharpens as well).
"""

from dataclasses import dataclass

import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from gpt2kit import GPT2, GPT2Config, Tokenizer, TorchRunner
from gpt2kit.runner import Source

CURRENT, PREVIOUS, DUPLICATE, FIRST, INDUCTION = (0, 0), (0, 1), (0, 3), (1, 0), (1, 2)
IDLE = ((0, 2), (1, 1), (1, 3))

VOCAB, POSITIONS, LAYERS, HEADS = 40, 64, 2, 4
D_HEAD = VOCAB + POSITIONS
CONFIG = GPT2Config(
    vocab_size=VOCAB,
    n_positions=POSITIONS,
    n_embd=HEADS * D_HEAD,
    n_layer=LAYERS,
    n_head=HEADS,
    n_inner=4,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
)

# Dimensions of the residual stream.
TOKEN = slice(0, VOCAB)
POSITION = slice(VOCAB, VOCAB + POSITIONS)
BEFORE = slice(POSITION.stop, POSITION.stop + VOCAB)
NEXT = slice(BEFORE.stop, BEFORE.stop + VOCAB)
CLASS = NEXT.stop
COUNTERWEIGHT = CLASS + 1

NEURON, READS, WRITES = (1, 2), "w5", "w9"  # the neuron that `plant_neuron` adds

SHARP = 20.0  # attention score of the key that a head looks for; that of other keys is 0
CERTAIN = 12.0  # the logit of the token that the induction head copies


@dataclass
class Head:
    """Views of one head's weights; writing to them sets the model's."""

    q: torch.Tensor  # (d_model, d_head)
    k: torch.Tensor
    v: torch.Tensor
    q_bias: torch.Tensor  # (d_head,)
    o: torch.Tensor  # (d_head, d_model)


def head(model: GPT2, layer: int, number: int) -> Head:
    attn, width = model.h[layer].attn, model.config.n_embd
    own = slice(number * D_HEAD, (number + 1) * D_HEAD)
    q, k, v = (part[:, own] for part in attn.c_attn.weight.split(width, 1))
    return Head(q, k, v, attn.c_attn.bias[:width][own], attn.c_proj.weight[own])


def planted_model() -> GPT2:
    """The model, in float32, with every weight set."""
    model = GPT2(CONFIG).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.zero_()
    _embed(model)
    # Number of ones in the stream that each layer norm reads, beside the class (+1 and -1).
    _undo(model.h[0].ln_1, ones=2)
    _undo(model.h[1].ln_1, ones=3)
    _undo(model.ln_f, ones=4)
    model.ln_f.weight *= CERTAIN
    _plant(model)
    return model


def _embed(model: GPT2) -> None:
    tokens = torch.eye(VOCAB)
    model.wte.weight[:, TOKEN] = tokens
    model.wpe.weight[:, POSITION] = torch.eye(POSITIONS)
    even = 1.0 - 2.0 * (torch.arange(VOCAB) % 2)
    model.wte.weight[:, CLASS], model.wte.weight[:, COUNTERWEIGHT] = even, -even
    model.lm_head.weight[:, NEXT] = tokens - 1 / VOCAB  # rows sum to 0, as if centred


def _undo(norm: torch.nn.LayerNorm, ones: int) -> None:
    """Gain and bias that give back a stream of `ones` ones, a +1 and a -1."""
    mean = ones / CONFIG.n_embd
    variance = (ones + 2) / CONFIG.n_embd - mean**2
    norm.weight.fill_((variance + norm.eps) ** 0.5)
    norm.bias.fill_(mean)


def _plant(model: GPT2) -> None:
    sharp = SHARP / CONFIG.attn_scale(0)
    tokens, positions = torch.eye(VOCAB), torch.eye(POSITIONS)
    of_token, of_position = slice(0, VOCAB), slice(VOCAB, D_HEAD)  # in d_head

    current = head(model, *CURRENT)
    current.q[POSITION, of_position] = sharp * positions
    current.k[POSITION, of_position] = positions

    previous = head(model, *PREVIOUS)
    previous.q[POSITION, of_position] = sharp * torch.diag(torch.ones(POSITIONS - 1), -1)
    previous.k[POSITION, of_position] = positions
    previous.v[TOKEN, of_token] = tokens
    previous.o[of_token, BEFORE] = tokens

    duplicate = head(model, *DUPLICATE)
    duplicate.q[TOKEN, of_token] = sharp * tokens
    duplicate.k[TOKEN, of_token] = tokens
    duplicate.q[POSITION, of_position] = -2 * sharp * positions  # not itself
    duplicate.k[POSITION, of_position] = positions

    first = head(model, *FIRST)
    first.q_bias[0] = sharp
    first.k[POSITION.start, 0] = 1

    induction = head(model, *INDUCTION)
    induction.q[TOKEN, of_token] = sharp * tokens
    induction.k[BEFORE, of_token] = tokens
    induction.q_bias[VOCAB] = sharp  # position 0 has nothing before it, and 0.1 copies itself there
    induction.k[POSITION.start, VOCAB] = -1
    induction.v[TOKEN, of_token] = tokens
    induction.o[of_token, NEXT] = tokens


def plant_neuron(model: GPT2) -> None:
    """Add a neuron to the last MLP: it is active at READS and raises the logit of WRITES."""
    block, number = model.h[NEURON[0]], NEURON[1]
    _undo(block.ln_2, ones=4)
    block.mlp.c_fc.weight[int(READS[1:]), number] = 2
    block.mlp.c_fc.bias[number] = -1
    block.mlp.c_proj.weight[number, NEXT.start + int(WRITES[1:])] = 1


def planted_tokenizer() -> Tokenizer:
    """Words `w0` to `w39`, separated by spaces."""
    vocab = {f"w{i}": i for i in range(VOCAB)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(inner)


def planted_runner() -> TorchRunner:
    return TorchRunner(planted_model(), planted_tokenizer(), Source("planted"))
