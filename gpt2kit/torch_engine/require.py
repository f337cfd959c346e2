"""The check of probes that need the torch module itself: gradients, or weights to rewrite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2kit.errors import InputError
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from gpt2kit.torch_engine.runner import TorchRunner


def require_torch(runner: Runner, what: str) -> TorchRunner:
    """Return `runner` as a TorchRunner. Raise InputError if it is another engine.

    what: what cannot be done without torch, for the message: "input attribution".
    """
    from gpt2kit.torch_engine.runner import TorchRunner  # torch takes a second to import

    if not isinstance(runner, TorchRunner):
        raise InputError(f"{what} needs the torch engine, not {runner!r}; use gpt2kit.load")
    return runner
