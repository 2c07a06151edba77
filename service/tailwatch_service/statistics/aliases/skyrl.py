"""SkyRL 0.4.0: train/trainer.py on the driver, and off_policy_correction_utils.py per micro-batch.

Its `is_ratio_min` and `is_ratio_std` are taken after the ratio is multiplied by the mask, over the padded matrix.
"""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import MICRO_MEANS, Tool, near, none, same

_EXTREME = "of |d|: which of log_ratio_min and log_ratio_max it is, is not said"
_CORRECTION = "share beyond the configured bounds"

SKYRL = Tool(
    id="skyrl",
    name="SkyRL",
    version="0.4.0",
    aliases=(
        same("policy/rollout_train_logprobs_abs_diff_mean", "log_ratio_abs_mean"),
        none("policy/rollout_train_logprobs_abs_diff_max", f"the largest {_EXTREME}"),
        none("policy/rollout_train_logprobs_abs_diff_min", f"the smallest {_EXTREME}"),
        none("policy/rollout_train_logprobs_abs_diff_std", "spread of |d|; ours is of d"),
        near(
            "policy/minibatch_rollout_logprobs_abs_diff_mean", "log_ratio_abs_mean", pooling=MICRO_MEANS,
            note="of the policy inside the update (phase update)",
        ),
        none("policy/minibatch_rollout_logprobs_abs_diff_*", f"an extreme or the spread {_EXTREME}"),
        near("policy/loss_metrics/is_ratio_mean", "ratio_mean", pooling=MICRO_MEANS, clamp="d at ±20"),
        near(
            "policy/loss_metrics/is_ratio_max", "ratio_max", clamp="d at ±20",
            pooling="mean of micro-batch maxima",
        ),
        none("policy/loss_metrics/is_ratio_min", "0 where a position is masked: the ratio is multiplied by the mask"),
        none("policy/loss_metrics/is_ratio_std", "over the padded matrix, masked positions as 0"),
        none("policy/loss_metrics/clip_ratio", "compares two training policies (before and after updates)"),
        none("policy/loss_metrics/*", _CORRECTION),
        near("async/staleness_mean", "lag_mean", level="per sample"),
        near("async/staleness_max", "lag_max", level="per sample"),
        none("async/staleness_*", "a share, a count or the smallest of samples"),
    ),
)  # fmt: skip
