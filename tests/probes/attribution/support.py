"""What the tests of attribution share."""

from dataclasses import replace

from probes.attribution.direct import direct_logit_attribution
from probes.attribution.inputs import input_attribution
from tests.conftest import CONFIG, byte_tokenizer

PROMPT = "the cat, the [b]hat[/b]\n"
CONFIGS = {
    "tied": CONFIG,
    "untied": replace(CONFIG, tie_word_embeddings=False, n_inner=50),
    "inverse": replace(CONFIG, scale_attn_by_inverse_layer_idx=True),
}
BOTH = [direct_logit_attribution, input_attribution]


def id_of(text: str) -> int:
    return byte_tokenizer().single(text)
