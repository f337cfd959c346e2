"""The tensors of checkpoint files under GPT-2's own names, whatever a file calls them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit.errors import CheckpointError
from gpt2kit.notes import note

_PARTS = ("wte", "wpe", "h", "ln_f", "lm_head")  # of GPT-2
_WRAPPERS = (
    "transformer.",
    "_orig_mod.",
    "module.",
    "model.",
)  # that save_pretrained and others add
_MASKS = (".attn.bias", ".attn.masked_bias")  # causal masks of old checkpoints
_TASK_HEADS = ("score.", "classifier.", "multiple_choice_head.", "qa_outputs.")


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint file, under the name that it has there."""

    file: Path
    name: str
    tensor: Tensor


def own_names(stored: Sequence[Stored], folder: Path, *, tied: bool) -> dict[str, Tensor]:
    """GPT-2's name of each tensor -> the tensor.

    Causal masks, copies, and the tied unembedding are dropped; so are task heads, with a note on
    standard error. Raises CheckpointError if two tensors that must be equal differ.
    """
    prefix = _common_prefix([one.name for one in stored])
    found: dict[str, Stored] = {}
    heads: list[str] = []
    for one in stored:
        name = _own_name(one.name.removeprefix(prefix))
        if name.startswith(_TASK_HEADS):
            heads.append(one.name)
        elif not name.endswith(_MASKS):
            _check_equal(
                found.setdefault(name, one),
                one,
                "but both name one tensor; remove the wrong one",
                folder,
            )
    if tied and "lm_head.weight" in found:
        head = found.pop("lm_head.weight")
        table = found.setdefault("wte.weight", head)  # either name may be the one that was saved
        why = "but config.json ties them; set tie_word_embeddings to false or remove one of them"
        _check_equal(table, head, why, folder)
    if heads:
        note(f"{folder.name}: the task head was left out ({', '.join(heads)})")
    return {name: one.tensor for name, one in found.items()}


def _common_prefix(names: Collection[str]) -> str:
    """What stands before every name, such as "_orig_mod.module."."""
    prefix = ""
    while True:
        first = {name.removeprefix(prefix).partition(".")[0] for name in names}
        longer = prefix + "".join(first) + "."
        if len(first) != 1 or first & set(_PARTS) or not all(n.startswith(longer) for n in names):
            return prefix
        prefix = longer


def _own_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.replace("lm_head.decoder.", "lm_head.")


def _check_equal(one: Stored, other: Stored, why: str, folder: Path) -> None:
    """Raise CheckpointError unless one tensor is a copy of the other, perhaps in another dtype."""
    a, b = one.tensor, other.tensor
    if a is b or (a.shape == b.shape and (_is_copy(a, b) or _is_copy(b, a))):
        return
    names = [one.name, other.name]
    if one.file != other.file:
        names = [f"{each.name} in {each.file.name}" for each in (one, other)]
    raise CheckpointError(f"{folder}: {names[1]} differs from {names[0]}, {why}")


def _is_copy(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.to(b.dtype), b)
