"""OpenRLHF 0.11: models/loss.py. Training against inference is logged with is_correction_enable only."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import MICRO_MEANS, Tool, near, none

_DRIFT = "compares two training policies (before and after updates), not training with inference"

OPENRLHF = Tool(
    id="openrlhf",
    name="OpenRLHF",
    version="0.11.0",
    prefixes=("train/",),
    aliases=(
        near("vllm_kl", "kl_k1", pooling=MICRO_MEANS),
        near("vllm_kl", "log_ratio_mean", "negate", pooling=MICRO_MEANS),
        none("ppo_kl", _DRIFT),
        none("ppo_clip_ratio", _DRIFT),
        none("kl", "against the reference policy"),
        none("logprobs_diff", "against the reference policy"),
    ),
)  # fmt: skip
