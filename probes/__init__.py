"""probes: what researchers import. Plain functions of a Runner and prompts; see each docstring.

A few need gradients, or make a model, and take a TorchRunner; their signatures say so.
"""

from __future__ import annotations

from gpt2kit.packages import explained_imports

with explained_imports():
    from probes.attribution.direct import DirectLogitAttribution, direct_logit_attribution
    from probes.attribution.inputs import InputAttribution, input_attribution
    from probes.causal.ablation import Ablation, ablate
    from probes.causal.edit_effect import EditEffect, edit_effect
    from probes.causal.gradients import attribution_patching, edge_attribution_patching
    from probes.causal.patching import Patching, activation_patching
    from probes.causal.paths import Paths, path_patching
    from probes.core.metrics import Metric
    from probes.core.processed_weights import processed
    from probes.directions.directions import Direction, mean_difference, pca_directions
    from probes.directions.linear_probes import LinearProbe, linear_probe
    from probes.directions.steering import Steered, steer
    from probes.heads.attention_statistics import AttentionStatistics, attention_statistics
    from probes.heads.circuits import CircuitTokens, ov_top_tokens, qk_top_tokens
    from probes.heads.copying import CopyingScores, copying_score
    from probes.heads.patterns import AttentionPatterns, attention_patterns
    from probes.heads.scores import HeadScores, head_scores
    from probes.lens.generation_lens import GenerationLens, generation_lens
    from probes.lens.head_lens import HeadLens, head_lens
    from probes.lens.lens_result import LogitLens
    from probes.lens.logit_lens import logit_lens
    from probes.lens.trajectories import Trajectory, trajectory
    from probes.lens.tuned_lens import TunedLens, tuned_lens
    from probes.lens.tuned_training import train_tuned_lens
    from probes.neurons.nearest_tokens import NearestTokens, nearest_tokens
    from probes.neurons.neuron_lens import NeuronLens, neuron_lens
    from probes.neurons.top_activating import TopActivating, top_activating
    from probes.tasks.docstring_like import docstring_like
    from probes.tasks.greater_than import GreaterThan, greater_than
    from probes.tasks.ioi import ioi
    from probes.tasks.pairs import Pairs
    from probes.tasks.repeated_tokens import repeated_tokens

__all__ = [
    "Ablation",
    "AttentionPatterns",
    "AttentionStatistics",
    "CircuitTokens",
    "CopyingScores",
    "DirectLogitAttribution",
    "Direction",
    "EditEffect",
    "GenerationLens",
    "GreaterThan",
    "HeadLens",
    "HeadScores",
    "InputAttribution",
    "LinearProbe",
    "LogitLens",
    "Metric",
    "NearestTokens",
    "NeuronLens",
    "Pairs",
    "Patching",
    "Paths",
    "Steered",
    "TopActivating",
    "Trajectory",
    "TunedLens",
    "ablate",
    "activation_patching",
    "attention_patterns",
    "attention_statistics",
    "attribution_patching",
    "copying_score",
    "direct_logit_attribution",
    "docstring_like",
    "edge_attribution_patching",
    "edit_effect",
    "generation_lens",
    "greater_than",
    "head_lens",
    "head_scores",
    "input_attribution",
    "ioi",
    "linear_probe",
    "logit_lens",
    "mean_difference",
    "nearest_tokens",
    "neuron_lens",
    "ov_top_tokens",
    "path_patching",
    "pca_directions",
    "processed",
    "qk_top_tokens",
    "repeated_tokens",
    "steer",
    "top_activating",
    "train_tuned_lens",
    "trajectory",
    "tuned_lens",
]
