"""slime at commit 624b824a (2026-08-21) and its fork miles (31f1ca96).

From backends/megatron_utils/loss.py, and examples/train_infer_mismatch_helper/mis.py for what begins with `mis_`.
Per-token values are averaged within a rollout, then over rollouts, unless --calculate-per-token-loss pools all tokens.
What mis.py computes per sequence is spread over its tokens first, so it comes out as a mean over sequences; its
"max" and "min" too.
"""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, SEQUENCE_MEANS, Alias, Tool, near, none, same

_POOLING = f"{SEQUENCE_MEANS}, unless --calculate-per-token-loss"
_ONLY = "not with --calculate-per-token-loss, which weighs sequences by their length"
_DRIFT = "compares two training policies (before and after updates), not training with inference"
_CORRECTED = "of weights after the correction that is configured"

_COMMON: tuple[Alias, ...] = (
    near("train_rollout_logprob_abs_diff", "log_ratio_abs_mean", pooling=_POOLING),
    near("tis", "ratio_mean", pooling=_POOLING, note="raw, before the clip"),
    near("tis_abs", "tv", "half", pooling=_POOLING),
    none("tis_clipfrac", "share outside the configured bounds"),
    none("ois", _DRIFT),
    none("ppo_kl", _DRIFT),
    none("pg_clipfrac", _DRIFT),
    none("opsm_clipfrac", "share of sequences masked by a rule on advantage and drift"),
    near("log_probs", "train_logprob_mean", pooling=_POOLING),
    near("rollout_log_probs", "infer_logprob_mean", pooling=_POOLING),
    none("ref_log_probs", "of the reference policy"),
    near("mis_kl", "kl_k1", pooling=_POOLING),
    near("mis_k3_kl", "kl_k3", pooling=_POOLING, resolution=K3_RESOLUTION),
    same("mis_training_ppl", "train_ppl", note=_ONLY),
    same("mis_rollout_ppl", "infer_ppl", note=_ONLY),
    near("mis_training_log_ppl", "train_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
    near("mis_rollout_log_ppl", "infer_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
    same("mis_log_ppl_diff", "log_ppl_gap", note=_ONLY),
    same("mis_log_ppl_abs_diff", "log_ppl_gap_abs", note=_ONLY),
    near(
        "mis_ppl_ratio", "geometric_ratio_mean", "reciprocal",
        note="mean of e^-g; one over it is below the mean of e^g by about the variance of g",
    ),
    near(
        "mis_chi2_token", "chi2_token_uncentred", pooling=SEQUENCE_MEANS, clamp="d at ±20", resolution=K3_RESOLUTION
    ),
    same("mis_chi2_seq", "chi2_sequence_log10p1", "log10p1", clamp="S at ±20", note=_ONLY),
    none("mis_tis_*", _CORRECTED),
    none("mis_rs_*", "of the configured rejection"),
    none("mis_is_ratio_*", _CORRECTED),
    none("mis_batch_norm_factor", "the factor that normalises weights to mean 1"),
)  # fmt: skip

_PREFIXES = ("train/", "rollout/")

SLIME = Tool(id="slime", name="slime", version="commit 624b824a", prefixes=_PREFIXES, aliases=_COMMON)

MILES = Tool(
    id="miles",
    name="miles",
    version="commit 31f1ca96",
    prefixes=_PREFIXES,
    aliases=(
        near(
            "train_rollout_kl", "kl_k3", pooling=_POOLING, clamp="k3 of a token at 10", resolution=K3_RESOLUTION,
            note="NaN counts as 0",
        ),
        none("ess_ratio", f"of training ratios: {_DRIFT}"),
        *_COMMON,
    ),
)  # fmt: skip
