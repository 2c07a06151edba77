"""prime-rl 0.8.0: trainer/rl/train.py and loss.py; all ranks and micro-steps are gathered before averaging."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, SEQUENCE_MEANS, Tool, near, none, same

_ENVIRONMENT = "of one environment: compare with the slice by source, not with the whole step"
_PART = "over the tokens that its own mask drops, or keeps: compare with nothing of the whole step"

PRIME_RL = Tool(
    id="prime-rl",
    name="prime-rl",
    version="0.8.0",
    aliases=(
        same("mismatch_kl/all/mean", "kl_k3", resolution=K3_RESOLUTION),
        same("trainer_mismatch_kl", "kl_k3", resolution=K3_RESOLUTION, note="in its Prometheus exposition"),
        none("mismatch_kl/all/*", "a statistic of e^d - 1 - d over tokens; which sign of d it came from is lost"),
        none("mismatch_kl/*/*", _ENVIRONMENT),
        near("is_masked/mean", "rejected_share", pooling=SEQUENCE_MEANS, note="what the DPPO mask drops"),
        none("is_masked_low/*", "by the sign of the advantage"),
        none("is_masked_high/*", "by the sign of the advantage"),
        none("masked_mismatch_kl/*", _PART),
        none("unmasked_mismatch_kl/*", _PART),
        same("entropy/all/mean", "entropy_train"),
        none("entropy/*/*", _ENVIRONMENT),
        none("kl_ent_ratio/mean", "mismatch_kl over entropy: take the two"),
        near("off_policy/mean", "lag_mean", level="per rollout, in trainer steps"),
        near("off_policy/max", "lag_max", level="per rollout, in trainer steps"),
        none("off_policy/**", "of rollouts still in flight or in the queue, or dropped"),
        none("dispatcher/off_policy/*", "of rollouts still in flight"),
        none("ref_kl/**", "against the reference policy"),
    ),
)  # fmt: skip
