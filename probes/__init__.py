"""probes: what researchers import. Each is a plain function of a Runner and prompts."""

from __future__ import annotations

from probes.lens import LogitLens, logit_lens

__all__ = ["LogitLens", "logit_lens"]
