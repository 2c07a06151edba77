"""ROLL 0.3.0: utils/train_infer_corrections.py; averaged within a sequence, then over sequences."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import SEQUENCE_MEANS, Tool, near, none, same

_PADDING = "its token-mean does not apply the mask, so padding counts"
_DRIFT = "compares two training policies (before and after updates), not training with inference"

ROLL = Tool(
    id="roll",
    name="ROLL",
    version="0.3.0",
    aliases=(
        near("actor/train_infer_ratio_token_mean@sum", "ratio_mean", pooling=SEQUENCE_MEANS),
        same("actor/train_infer_ratio_geometric_mean@sum", "geometric_ratio_mean"),
        none("actor/train_infer_ratio_sequence_mean@sum", "one sequence decides the mean product; see ess_sequence"),
        none("actor/train_infer_ratio_segment_mean@sum", "by segments between masked tokens"),
        none("actor/train_infer_diff_*", "signed differences of probabilities, which cancel; ours are absolute"),
        none("actor/is_weight_clipfrac@sum", f"share above the configured bound; {_PADDING}"),
        same("actor/train_infer_final_mask_mean", "rejected_share", "complement"),
        none("actor/train_infer_*_mask_mean@sum", f"pass rate of one filter; {_PADDING}"),
        none("actor/ratio_mean", _DRIFT),
        none("actor/ratio_max", _DRIFT),
        none("actor/ratio_min", _DRIFT),
        none("actor/ppo_ratio_*", _DRIFT),
        none("actor/approxkl@sum", _DRIFT),
        none("actor/policykl@sum", _DRIFT),
    ),
)  # fmt: skip
