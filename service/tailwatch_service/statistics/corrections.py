"""The corrections a trainer can choose, as data: what each looks at, what it does, its usual bounds and who ships it.

`whatif` replays them on a summary. All bounds are on ratios (w = e^d per token, e^S and e^(S/T) per sequence), except
M2PO's budget, which is in nats².
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Quantity = Literal["token", "product", "geometric", "smallest"]
"""w of a token; e^S or e^(S/T) of a sequence; the smallest w in a sequence."""

Effect = Literal["truncates", "masks", "clips", "budget"]
"""truncates: weights are moved to the bounds. masks: what is outside weighs 0. clips: what is outside on the side its
advantage points to loses its gradient. budget: the largest |d| weigh 0 until the rest keeps the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One number of a correction."""

    default: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """One correction."""

    name: str
    title: str
    quantity: Quantity
    effect: Effect
    weighted: bool
    """What stays weighs its ratio; False: it weighs 1."""
    lower: Bound | None = None
    upper: Bound | None = None
    budget: Bound | None = None
    description: str
    reference: str


def _upper(default: float, *, least: float = 1.01, most: float = 20.0) -> Bound:
    return Bound(default=default, least=least, most=most)


def _lower(default: float, *, least: float = 0.05, most: float = 0.99) -> Bound:
    return Bound(default=default, least=least, most=most)


CORRECTIONS: Mapping[str, Correction] = {
    one.name: one
    for one in (
        Correction(
            name="tis_token", title="Token TIS", quantity="token", effect="truncates", weighted=True, upper=_upper(2.0),
            description="Each token weighs min(w, C). Nothing is dropped; the largest weights are cut.",
            reference="verl rollout_is=token, slime --use-tis, OpenRLHF tis, SkyRL token",
        ),
        Correction(
            name="icepop", title="IcePop", quantity="token", effect="masks", weighted=True,
            lower=_lower(0.5), upper=_upper(5.0),
            description="Tokens whose ratio is outside the bounds are dropped; the others weigh w.",
            reference="verl 'lo_hi' threshold, NeMo-RL icepop 0.5-5, OpenRLHF icepop",
        ),
        Correction(
            name="mis_token", title="Token MIS", quantity="token", effect="masks", weighted=True, upper=_upper(2.0),
            description="Tokens whose ratio is above C are dropped; the others weigh w.",
            reference="TRL token_mask, slime mis.py",
        ),
        Correction(
            name="ppo_clip", title="PPO clip on train/infer", quantity="token", effect="clips", weighted=True,
            lower=_lower(0.8), upper=_upper(1.2, most=10.0),
            description="The ratio to the inference policy stands in PPO's own clip (bypass mode): above with "
            "a positive advantage, or below with a negative one, a token loses its gradient.",
            reference="verl bypass_mode, slime --use-rollout-logprobs",
        ),
        Correction(
            name="alp_clip", title="ALP wide clip", quantity="token", effect="clips", weighted=True,
            lower=_lower(0.5), upper=_upper(4.0, most=10.0),
            description="The same with the bounds of adaptive layerwise perturbation, [0.5, 4].",
            reference="Ye et al., Adaptive Layerwise Perturbation (arXiv 2603.19470)",
        ),
        Correction(
            name="cispo", title="CISPO", quantity="token", effect="truncates", weighted=True, upper=_upper(5.0),
            description="The weight is cut at the bound and every token keeps its gradient: what Token TIS does, in "
            "the loss and with a wider bound.",
            reference="MiniMax-M1 (arXiv 2506.13585), TRL loss_type=cispo",
        ),
        Correction(
            name="m2po", title="M2PO", quantity="token", effect="budget", weighted=True,
            budget=Bound(default=0.04, least=0.0005, most=0.5),
            description="Tokens with the largest |d| are dropped until the mean of d² over the rest is within the "
            "budget, as AReaL does. The paper looks only at tokens whose advantage points outwards and drops fewer.",
            reference="M2PO (arXiv 2510.01161), AReaL m2_threshold",
        ),
        Correction(
            name="tis_sequence", title="Sequence TIS", quantity="product", effect="truncates", weighted=True,
            upper=_upper(2.0),
            description="Each sequence weighs min(e^S, C), the product of its ratios.",
            reference="verl rollout_is=sequence, TRL sequence_truncate",
        ),
        Correction(
            name="mis_sequence", title="Sequence MIS", quantity="product", effect="masks", weighted=True,
            lower=_lower(0.5), upper=_upper(2.0),
            description="Sequences whose product of ratios is outside the bounds are dropped; the others weigh e^S.",
            reference="TRL sequence_mask, verl seq_sum_k1 0.5-2",
        ),
        Correction(
            name="mis_geometric", title="Geometric MIS", quantity="geometric", effect="masks", weighted=False,
            lower=_lower(0.999, least=0.9, most=0.9999), upper=_upper(1.001, least=1.0001, most=1.1),
            description="Sequences whose geometric mean ratio is outside the bounds are dropped; the others weigh 1.",
            reference="verl seq_mean_k1 0.999-1.001, NeMo-RL seq-mask-tis, SkyRL geo_mask",
        ),
        Correction(
            name="gspo", title="GSPO", quantity="geometric", effect="clips", weighted=True,
            lower=_lower(0.9997, least=0.9, most=0.9999), upper=_upper(1.0004, least=1.0001, most=1.1),
            description="The clip of GSPO on the geometric mean ratio: a sequence outside on the side of its advantage "
            "loses its gradient.",
            reference="GSPO (arXiv 2507.18071), verl loss_mode=gspo, TRL importance_sampling_level=sequence",
        ),
        Correction(
            name="veto", title="Veto", quantity="smallest", effect="masks", weighted=False,
            lower=_lower(1e-4, least=1e-8, most=0.5),
            description="A sequence with one token below the bound is dropped whole; the others weigh 1.",
            reference="slime rs_veto_threshold 1e-4, SkyRL outlier_token_is_threshold_low",
        ),
    )
}  # fmt: skip
"""By name, token corrections first."""
