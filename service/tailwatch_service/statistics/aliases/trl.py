"""TRL 1.16.0: trainer/grpo_trainer.py, and experimental/async_grpo, whose `kl` is another quantity."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, RANK_MEANS, Tool, near, none

_IS = (
    "after clipping or masking by vllm_importance_sampling_mode, and by default of whole sequences: "
    "neither the ratio of a token nor raw"
)
_CLIP = "compares two training policies (before and after updates), not training with inference"

TRL = Tool(
    id="trl",
    name="TRL",
    version="1.16.0",
    prefixes=("train/",),
    aliases=(
        near("sampling/sampling_logp_difference/mean", "log_ratio_abs_mean", pooling=RANK_MEANS),
        none(
            "sampling/sampling_logp_difference/max",
            "the largest |d|: which of log_ratio_min and log_ratio_max is not said",
        ),
        none("sampling/importance_sampling_ratio/*", _IS),
        none("kl", "against the reference policy, weighted by the ratio; not training against inference"),
        near("entropy", "entropy_train", pooling=RANK_MEANS),
        near("reward", "reward_mean", pooling=RANK_MEANS),
        none("clip_ratio/*", _CLIP),
        none("cispo_clip_ratio", _CLIP),
    ),
)  # fmt: skip

TRL_ASYNC = Tool(
    id="trl-async",
    name="TRL async_grpo",
    version="1.16.0",
    prefixes=("train/",),
    aliases=(
        near(
            "kl", "kl_k3", pooling=RANK_MEANS, resolution=K3_RESOLUTION,
            note="of the policy inside the update (phase update)",
        ),
        near("ratio", "ratio_mean", pooling=RANK_MEANS, note="of the policy inside the update (phase update)"),
        near("sample/staleness_mean", "lag_mean", level="per sample"),
        near("sample/staleness_max", "lag_max", level="per sample"),
        none("sample/dropped_stale_total", "a count of the queue"),
        none("clip_ratio/*", "share outside the clip range of the loss, by the sign of the advantage"),
    ),
)  # fmt: skip
