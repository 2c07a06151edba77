"""tinker-cookbook 0.6.1: rl/metrics.py, over all action tokens of the batch."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import Tool, same

TINKER = Tool(
    id="tinker",
    name="tinker",
    version="cookbook 0.6.1",
    aliases=(
        same("optim/kl_sample_train_v1", "kl_k1"),
        same("optim/kl_sample_train_v1", "log_ratio_mean", "negate"),
        same("optim/kl_sample_train_v2", "kl_k2"),
        same("optim/kl_sample_train_v2", "second_moment", "double"),
        same("optim/entropy", "infer_logprob_mean", "negate", note="of the sampled tokens, not of the distribution"),
    ),
)  # fmt: skip
