"""AReaL 1.0.4: trainer/ppo/actor.py through its stats_tracker, which adds /avg, /min and /max.

Its training policy is the one inside the update (phase update). The rejection criterion `kl_k3` is not logged; it turns
the ratio over, so it is our kl_unweighted_reverse_k3.
"""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, Tool, near, none, same

_UPDATE = "of the policy inside the update, averaged over its mini-batches"
_KEPT = "over tokens that rejection keeps"
_DRIFT = "compares two training policies (before and after updates), not training with inference"

AREAL = Tool(
    id="areal",
    name="AReaL",
    version="1.0.4",
    aliases=(
        same("**/compute_logp/kl_div_direct/avg", "kl_k1", note=_UPDATE),
        same("**/compute_logp/kl_div_direct/avg", "log_ratio_mean", "negate", note=_UPDATE),
        same("**/compute_logp/kl_div_taylor/avg", "kl_k2", note=_UPDATE),
        same("**/compute_logp/kl_div_taylor/avg", "second_moment", "double", note=_UPDATE),
        same("**/compute_logp/kl_div_dual/avg", "kl_k3", resolution=K3_RESOLUTION, note=_UPDATE),
        same("**/compute_logp/kl_div_direct/max", "log_ratio_min", "negate", note=_UPDATE),
        same("**/compute_logp/kl_div_direct/min", "log_ratio_max", "negate", note=_UPDATE),
        none("**/compute_logp/**", "an error of its approximation of the proximal policy, or an extreme of a KL term"),
        near("**/behave_approx_kl/avg", "kl_k1", "negate", pooling=_KEPT, note="of the proximal policy: mean of +d"),
        near("**/behave_imp_weight/avg", "ratio_mean", pooling=_KEPT, clamp="as rejection_sampling.action says"),
        near("**/behave_imp_weight/max", "ratio_max", pooling=_KEPT, clamp="as rejection_sampling.action says"),
        near("**/behave_imp_weight/min", "ratio_min", pooling=_KEPT, clamp="as rejection_sampling.action says"),
        none("**/behave_approx_kl/*", "an extreme over the tokens that rejection keeps"),
        near("**/rs_filtered_fraction", "rejected_share", pooling="mean of mini-batch means"),
        near("**/update/new_logp/avg", "train_logprob_mean", note=_UPDATE),
        near(
            "**/update/old_logp/avg", "infer_logprob_mean",
            note="with use_decoupled_loss; else of the recomputed policy",
        ),
        near("**/update/entropy/avg", "entropy_train", note=_UPDATE),
        none("**/approx_kl/*", _DRIFT),
        none("**/importance_weight/*", _DRIFT),
        none("**/clip_ratio/*", _DRIFT),
        none("**/dual_clip_ratio/*", _DRIFT),
        near(
            "**/version_stats/sample_staleness_proximal_avg", "lag_mean",
            note="versions and mask are one token apart there",
        ),
        near(
            "**/version_stats/sample_staleness_proximal_max", "lag_max",
            note="versions and mask are one token apart there",
        ),
        none("**/version_stats/*", "staleness of the policy inside the update, or its minimum"),
    ),
)  # fmt: skip
