"""TransformerLens' hook names for our taps, so that scripts written for it carry over."""

from __future__ import annotations

# Hook of a block, after `blocks.{i}.` -> tap of a block
BLOCK_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "ln1.hook_scale": "ln_1_scale",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_attn_scores": "attn_scores",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z",
    "attn.hook_result": "head_out",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_scale": "ln_2_scale",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}

# Hook outside the blocks -> tap
MODEL_HOOKS = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "ln_final.hook_scale": "ln_f_scale",
    "ln_final.hook_normalized": "ln_f",
}
