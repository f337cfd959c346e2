"""Which tokens a neuron's write raises and lowers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2kit.defaults import Default
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, Row, model_header
from gpt2kit.runner import Runner
from probes.neurons.neuron_weights import find_neuron, top_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class NeuronLens(ModelResult):
    """The tokens whose logits one neuron's write raises and lowers directly."""

    layer: int
    neuron: int
    raised_ids: Ints  # (top_k,) most raised first
    raised_tokens: tuple[str, ...]
    raised: Floats  # (top_k,) logits for an activation of 1 and a final layer norm scale of 1
    lowered_ids: Ints  # (top_k,) most lowered first
    lowered_tokens: tuple[str, ...]
    lowered: Floats  # (top_k,)

    def table(self) -> list[Row]:
        """One row for each token, first the raised tokens."""
        raised = zip(self.raised_ids, self.raised_tokens, self.raised, strict=True)
        lowered = zip(self.lowered_ids, self.lowered_tokens, self.lowered, strict=True)
        return [
            {"effect": effect, "rank": rank, "id": int(id_), "token": token, "logit": float(logit)}
            for effect, tokens in (("raised", raised), ("lowered", lowered))
            for rank, (id_, token, logit) in enumerate(tokens)
        ]

    def render(self) -> RenderableType:
        """Both lists side by side."""
        from probes.draw.token_lists import TokenList, side_by_side
        from probes.draw.words import title

        what = f"effect of neuron {self.layer}.{self.neuron} on the logits"
        return side_by_side(
            title(what, self.source, self.dtype),
            TokenList("raises", self.raised_tokens, self.raised),
            TokenList("lowers", self.lowered_tokens, self.lowered),
            unit="by",
            number="+.3f",
        )

    def __repr__(self) -> str:
        return f"NeuronLens({self.source}, neuron {self.layer}.{self.neuron})"


def neuron_lens(runner: Runner, layer: int, neuron: int, *, top_k: int = Default(10)) -> NeuronLens:
    """The direct effect of a neuron on the logits: W_U ((w - mean(w)) * g).

    w is its row of W_out, g the gain of ln_f, * entry by entry. If the final stream's scale
    (`ln_f_scale`) is s and is held fixed, an activation a changes the logits by a / s times this.
    A negative layer counts from the end. Raises InputError for an unknown layer or neuron.
    """
    found = find_neuron(runner, layer, neuron)
    effect = runner.weight("lm_head.weight") @ found.written
    raised_ids, raised_tokens, raised = top_tokens(runner, effect, top_k)
    lowered_ids, lowered_tokens, lowered = top_tokens(runner, -effect, top_k)
    return NeuronLens(
        **model_header(runner),
        layer=found.layer,
        neuron=found.neuron,
        raised_ids=raised_ids,
        raised_tokens=raised_tokens,
        raised=raised,
        lowered_ids=lowered_ids,
        lowered_tokens=lowered_tokens,
        lowered=-lowered,
    )
