"""open-instruct at commit e6c3044a (2026-08-20): grpo_utils.py, per packed micro-batch."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import MICRO_MEANS, Tool, near, none

OPEN_INSTRUCT = Tool(
    id="open-instruct",
    name="open-instruct",
    version="commit e6c3044a",
    aliases=(
        near("debug/vllm_vs_local_logprob_diff_mean", "log_ratio_abs_mean", pooling=MICRO_MEANS),
        none(
            "debug/vllm_vs_local_logprob_diff_max",
            "the largest |d|: which of log_ratio_min and log_ratio_max is not said",
        ),
        none("debug/vllm_vs_local_logprob_diff_std", "spread of |d|; ours is of d"),
        none(
            "debug/vllm_local_reverse_kl",
            "-d weighted by the token's own probability, although the tokens were sampled already: no divergence",
        ),
        near("val/rho_drop_frac", "rejected_share", pooling=MICRO_MEANS, clamp="d at ±10"),
        none("val/rho_drop_low_frac", "share beyond one configured bound"),
        none("val/rho_drop_high_frac", "share beyond one configured bound"),
        none("val/rho_weight", "weights after clamping and dropping"),
        none("val/rho_clipfrac", "share beyond the configured clamp"),
        none("val/rho_hist", "a histogram of clamped ratios"),
    ),
)  # fmt: skip
