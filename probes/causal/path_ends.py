"""The ends of a path: senders write to the residual stream, receivers read it.

Names: heads are "9.6" (layer.head), MLPs "mlp.9", the embeddings "embed". Receivers are a head's
"9.6.q", "9.6.k", "9.6.v", an MLP "mlp.9", or "logits". Globs select: "9.*", "*.q", "mlp.*".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from gpt2kit.errors import InputError
from gpt2kit.readout import Floats
from gpt2kit.taps import TapDict

Patterns = str | Sequence[str]
ReceiverPatterns = str | Sequence[str | tuple[str, ...]]


@dataclass(frozen=True)
class Sender:
    """A component that writes to the residual stream.

    order: rank among everything that reads or writes the stream, bottom to top.
    """

    name: str
    tap: str
    order: int
    head: int | None = None

    def write(self, taps: TapDict[Floats]) -> Floats:
        """(pos, d_model) what it wrote in a run of one prompt."""
        value: Floats = taps[self.tap][0]
        return value if self.head is None else value[:, self.head]


@dataclass(frozen=True)
class Receiver:
    """A component that reads the residual stream.

    entry: the stream's tap that it reads. scale: the scale of its layer norm. tap, head: what it
    computes from it; no tap for the logits. order: as in `Sender`. layer: the first layer that
    changes when it does.
    """

    name: str
    entry: str
    scale: str
    tap: str
    order: int
    layer: int
    head: int | None = None


def all_senders(n_layer: int, n_head: int) -> dict[str, Sender]:
    """Name -> everything that writes to the residual stream, bottom to top."""
    senders = [Sender("embed", "blocks.0.resid_pre", -1)]
    for i in range(n_layer):
        heads = (Sender(f"{i}.{h}", f"blocks.{i}.head_out", 2 * i, h) for h in range(n_head))
        senders += [*heads, Sender(f"mlp.{i}", f"blocks.{i}.mlp_out", 2 * i + 1)]
    return {sender.name: sender for sender in senders}


def all_receivers(n_layer: int, n_head: int) -> dict[str, Receiver]:
    """Name -> everything that reads the residual stream, bottom to top."""
    receivers = []
    for i in range(n_layer):
        at = f"blocks.{i}"
        entry, scale = f"{at}.resid_pre", f"{at}.ln_1_scale"
        for h, x in product(range(n_head), "qkv"):
            receivers.append(Receiver(f"{i}.{h}.{x}", entry, scale, f"{at}.{x}", 2 * i, i, h))
        entry, scale = f"{at}.resid_mid", f"{at}.ln_2_scale"
        receivers.append(Receiver(f"mlp.{i}", entry, scale, f"{at}.mlp_out", 2 * i + 1, i))
    last = f"blocks.{n_layer - 1}.resid_post"
    receivers.append(Receiver("logits", last, "ln_f_scale", "", 2 * n_layer, n_layer))
    return {receiver.name: receiver for receiver in receivers}


def select_names(patterns: Patterns, known: Iterable[str], what: str) -> list[str]:
    """The known names that match a pattern, each once, in the order of `known`.

    what: "sender" or "receiver". Raises InputError for a pattern that matches no name.
    """
    names, chosen = list(known), set[str]()
    for pattern in _as_list(patterns, what):
        if not isinstance(pattern, str):
            raise InputError(f"{what}s = {patterns!r} must be a name or a list of names")
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            kinds = dict.fromkeys(re.sub(r"\d+", "0", name) for name in names)
            raise InputError(f"no {what} is called {pattern!r}; they are {', '.join(kinds)}, …")
        chosen |= found
    return [name for name in names if name in chosen]


def select_groups(
    patterns: ReceiverPatterns, known: Mapping[str, Receiver]
) -> list[tuple[Receiver, ...]]:
    """Groups of receivers that are patched together: single receivers, then the tuples."""
    given = _as_list(patterns, "receiver")
    single = [pattern for pattern in given if not isinstance(pattern, tuple | list)]
    groups = [[name] for name in select_names(single, known, "receiver")] if single else []
    tuples = [pattern for pattern in given if isinstance(pattern, tuple | list)]
    groups += [select_names(pattern, known, "receiver") for pattern in tuples]
    return [tuple(known[name] for name in group) for group in groups]


def reaches(sender: Sender, group: Sequence[Receiver]) -> bool:
    """Whether the sender comes before a receiver of the group."""
    return any(sender.order < receiver.order for receiver in group)


def _as_list(patterns: Any, what: str) -> list[Any]:
    """The patterns as a list. Raises InputError, naming the argument, unless there are any."""
    if isinstance(patterns, str):
        return [patterns]
    if not isinstance(patterns, Sequence):
        raise InputError(f"{what}s = {patterns!r} must be a name or a list of names")
    if not patterns:
        raise InputError(f"no {what} was named")
    return list(patterns)
