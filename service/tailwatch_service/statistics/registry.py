"""The one table of metrics: name, unit, formula, direction of the KL, direction of harm, healthy range, reference.

API fields, Prometheus names, tooltips, panels and docs/metrics.md come from here; what other tools call a metric comes
from `aliases`. d = log pi_train - log pi_infer per token, w = e^d, expectations are means over the tokens of the
inference policy unless a sequence is named; T tokens of a sequence, S its sum of d, g = S / T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tailwatch_collectors.summary.schema import RATIO_THRESHOLDS
from tailwatch_service.statistics.aliases import names_elsewhere
from tailwatch_service.statistics.quantiles import QUANTILES
from tailwatch_service.statistics.ratios import threshold_label

Family = Literal[
    "kl", "ratios", "tails", "ess", "envelope", "sequences", "policies", "sharpness", "validity", "staleness"
]
Harm = Literal["higher", "lower", "away from 0", "away from 1"]

SCHULMAN = "Schulman, Approximating KL Divergence (2020)"
VEHTARI = "Vehtari et al., Pareto Smoothed Importance Sampling (JMLR 2024)"
ALP_PAPER = "Ye et al., Adaptive Layerwise Perturbation (arXiv 2603.19470)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: everything a reader, a chart or an exporter needs to know about it."""

    name: str
    """Canonical name."""
    title: str
    """For a chart or a table head."""
    unit: str
    """`nats`, `nats²`, `nats/version`, `share`, `share/version`, `ratio`, `tokens`, `sequences`, `versions`, `1`."""
    family: Family
    formula: str
    """LaTeX."""
    description: str
    """What it means, in plain words."""
    kl_direction: str | None = None
    """For divergences: which policy the expectation belongs to."""
    harm: Harm | None = None
    """Which way is bad; None where neither is by itself."""
    healthy: str | None = None
    """Range seen in healthy runs, with its source."""
    reference: str = ""
    missing_when: str = "no valid tokens"
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tool to its keys for this quantity, with what differs; filled in from `aliases`."""


_INFER_TRAIN = "KL(infer || train)"
_TRAIN_INFER = "KL(train || infer)"
_NO_SEQUENCES = "no complete sequences"

_KL = (
    Metric(
        name="kl_k3", title="KL(infer || train), k3", unit="nats", family="kl",
        formula=r"\mathbb{E}[e^{d} - 1 - d]",
        description="Unbiased and never negative: the headline measure of how far training and inference policies are apart.",
        kl_direction=_INFER_TRAIN, harm="higher",
        healthy="below 1e-3 for dense bf16 at lag 0 (NeMo-RL's GRPO guide); below 1e-2 for fp8 (its fp8 gates: 3e-3 to "
        "4e-3); 1e-3 to 1e-1 is ordinary for MoE",
        reference=SCHULMAN,
    ),
    Metric(
        name="kl_k1", title="KL(infer || train), k1", unit="nats", family="kl", formula=r"\mathbb{E}[-d]",
        description="Unbiased, noisy, may be negative: minus the mean log ratio.",
        kl_direction=_INFER_TRAIN, harm="away from 0", healthy="between -0.01 and 0.01 (tinker-cookbook)", reference=SCHULMAN,
    ),
    Metric(
        name="kl_k2", title="KL(infer || train), k2", unit="nats", family="kl", formula=r"\tfrac12\mathbb{E}[d^2]",
        description="Low variance, biased; equals k3 to second order.",
        kl_direction=_INFER_TRAIN, harm="higher", reference=SCHULMAN,
    ),
    Metric(
        name="kl_reverse_k1", title="KL(train || infer), k1", unit="nats", family="kl", formula=r"\mathbb{E}[w d]",
        description="The other direction, by importance weights.", kl_direction=_TRAIN_INFER, harm="away from 0",
        reference=SCHULMAN,
    ),
    Metric(
        name="kl_reverse_k3", title="KL(train || infer), k3", unit="nats", family="kl",
        formula=r"\mathbb{E}[w d - w + 1]",
        description="The other direction, by importance weights; never negative. Dominated by the upper tail.",
        kl_direction=_TRAIN_INFER, harm="higher", reference=SCHULMAN,
    ),
    Metric(
        name="kl_unweighted_reverse_k3", title="Inverted k3", unit="nats", family="kl",
        formula=r"\mathbb{E}[e^{-d} - 1 + d]",
        description="k3 with the ratio turned over but still averaged over inference samples: an estimate of "
        "chi²(infer || train) - KL(infer || train), not of a KL.",
        harm="higher",
    ),
    Metric(
        name="js", title="Jensen-Shannon divergence", unit="nats", family="kl",
        formula=r"\mathbb{E}[e^{x}\cosh x\,(x\tanh x - \ln\cosh x)],\; x = d/2",
        description="Symmetric and bounded; about d²/8 where the policies are close.", harm="higher",
        reference="Lin, Divergence Measures Based on the Shannon Entropy (1991)",
    ),
    Metric(
        name="second_moment", title="Second moment of d", unit="nats²", family="kl", formula=r"\mathbb{E}[d^2]",
        description="What M2PO keeps below 0.04.", harm="higher", healthy="below 0.04 (M2PO's constraint)",
        reference="M2PO (arXiv 2510.01161)",
    ),
    Metric(
        name="chi2_token", title="chi²(train || infer)", unit="1", family="kl", formula=r"\mathbb{E}[(w-1)^2]",
        description="Variance of the importance weights about 1: what the noise of an importance-weighted gradient follows.",
        harm="higher", healthy="at most 1 (verl's health check)",
    ),
    Metric(
        name="chi2_token_uncentred", title="E[w²] - 1", unit="1", family="kl", formula=r"\mathbb{E}[w^2] - 1",
        description="The form other tools log; its sampling noise swamps it where the policies are close. For comparison only.",
        harm="higher",
    ),
)  # fmt: skip

_RATIOS = (
    Metric(name="log_ratio_mean", title="Mean log ratio", unit="nats", family="ratios", formula=r"\mathbb{E}[d]",
           description="A bias common to all tokens.", harm="away from 0"),
    Metric(name="log_ratio_std", title="Standard deviation of d", unit="nats", family="ratios",
           formula=r"\sqrt{\mathbb{E}[(d-\bar d)^2]}", description="Spread of the log ratio.", harm="higher"),
    Metric(name="log_ratio_abs_mean", title="Mean |d|", unit="nats", family="ratios", formula=r"\mathbb{E}|d|",
           description="Typical size of the mismatch of one token.", harm="higher",
           healthy="0.010 to 0.018 for dense bf16 at lag 0 (reports from TRL, slime and marin); 0.2 meant unsynced weights"),
    Metric(name="log_ratio_min", title="Smallest d", unit="nats", family="ratios", formula=r"\min d",
           description="The token the training policy finds least likely compared with the engine that sampled it.",
           harm="lower"),
    Metric(name="log_ratio_max", title="Largest d", unit="nats", family="ratios", formula=r"\max d",
           description="The token with the largest importance weight.", harm="higher"),
    Metric(name="ratio_mean", title="Mean ratio", unit="ratio", family="ratios", formula=r"\mathbb{E}[w]",
           description="1 under full support and equal temperature; away from it, the log-probs are not comparable or "
           "the tail is under-sampled.", harm="away from 1", healthy="within 0.02 of 1 (our lab); 0.5 to 2 in verl's health check"),
    Metric(name="ratio_min", title="Smallest ratio", unit="ratio", family="ratios", formula=r"\min w",
           description="e to the smallest d.", harm="lower"),
    Metric(name="ratio_max", title="Largest ratio", unit="ratio", family="ratios", formula=r"\max w",
           description="e to the largest d, unclamped.", harm="higher"),
    Metric(name="tv", title="Total variation", unit="1", family="ratios", formula=r"\tfrac12\mathbb{E}|w-1|",
           description="Total variation distance between the policies, by importance weights.", harm="higher"),
    Metric(name="mult_prob_error", title="Multiplicative error", unit="ratio", family="ratios",
           formula=r"\mathbb{E}[e^{|d|}]", description="Mean factor by which the two probabilities of a token differ.",
           harm="higher", healthy="below 1.05 (where NeMo-RL warns); 1.01 to 1.04 in its examples"),
    Metric(name="prob_diff_abs_mean", title="Mean |Δp|", unit="1", family="ratios",
           formula=r"\mathbb{E}|e^{\pi}-e^{\mu}|", description="Difference of the probabilities themselves: rare tokens hardly count.",
           harm="higher", healthy="below 0.005 for bf16, above 0.01 look at the engine's precision (verl's FAQ)"),
    Metric(name="prob_diff_abs_max", title="Largest |Δp|", unit="1", family="ratios", formula=r"\max|e^{\pi}-e^{\mu}|",
           description="Largest difference of probabilities.", harm="higher"),
    Metric(name="prob_diff_abs_std", title="Std of |Δp|", unit="1", family="ratios",
           formula=r"\mathrm{sd}\,|e^{\pi}-e^{\mu}|", description="Spread of the difference of probabilities.", harm="higher"),
    Metric(name="prob_pearson", title="Correlation of probabilities", unit="1", family="ratios",
           formula=r"\mathrm{corr}(e^{\pi}, e^{\mu})", description="Close to 1 in a healthy run; insensitive to rare tokens.",
           harm="lower", healthy="above 0.99 (MiniMax-M1)",
           missing_when="no valid tokens, or the probabilities do not vary"),
    Metric(name="outside_2x", title="Tokens off by over 2x", unit="share", family="ratios",
           formula=r"\Pr(|d| > \ln 2)", description="Share of tokens whose ratio is above 2 or below 1/2.", harm="higher",
           healthy="below 1e-3; 3e-3 to 8e-3 in our healthy fp8 recording"),
    Metric(name="outside_5x", title="Tokens off by over 5x", unit="share", family="ratios",
           formula=r"\Pr(|d| > \ln 5)", description="Share of tokens whose ratio is above 5 or below 1/5.", harm="higher"),
    *(Metric(name=f"log_ratio_q{suffix}", title=f"P{float(q) * 100:g} of d", unit="nats", family="ratios",
             formula=rf"Q_{{{float(q):g}}}(d)",
             description=f"Order statistic ceil({float(q):g} N) of the log ratio, to 0.39 %.",
             harm=None if q == QUANTILES["50"] else "lower" if q < QUANTILES["50"] else "higher")
      for suffix, q in QUANTILES.items()),
    *(Metric(name=f"above_{threshold_label(C)}", title=f"Tokens with ratio > {C:g}", unit="share", family="ratios",
             formula=rf"\Pr(w > {C:g})", description=f"What a correction with upper bound {C:g} would touch.", harm="higher")
      for C in RATIO_THRESHOLDS),
    *(Metric(name=f"below_1_over_{threshold_label(C)}", title=f"Tokens with ratio < 1/{C:g}", unit="share",
             family="ratios", formula=rf"\Pr(w < 1/{C:g})",
             description=f"What a correction with lower bound 1/{C:g} would touch.", harm="higher")
      for C in RATIO_THRESHOLDS),
)  # fmt: skip

_KHAT_MISSING = "under 100 tokens, under 10 distinct exceedances, or a threshold at 0"

_TAILS = (
    *(Metric(name=f"tail_khat_{side}", title=f"Pareto k-hat of {of}", unit="1", family="tails",
             formula=rf"\hat k\ \text{{of the}}\ \lceil\min(0.2N, 3\sqrt N)\rceil\ \text{{largest}}\ {tex}",
             description=f"Tail index of {of}: below 0.5 averages behave, above 0.7 they are unreliable, above 1 their mean "
             "does not exist.", harm="higher", reference=VEHTARI,
             healthy="below 0.5; usable to 0.7 (Vehtari et al.); the lower tail of a quantised engine can be beyond it and healthy",
             missing_when=_KHAT_MISSING)
      for side, of, tex in (("upper", "the ratio", "w"), ("lower", "the inverse ratio", "1/w"))),
    *(Metric(name=f"tail_hill_{side}", title=f"Hill estimator, {side} tail", unit="1", family="tails",
             formula=rf"\tfrac1M\sum_{{j\le M}} ({sign}d)_{{(j)}} - ({sign}d)_{{(M+1)}}",
             description="Mean excess of the M largest log ratios over the next; larger is heavier.", harm="higher",
             reference="Hill (1975)", missing_when=_KHAT_MISSING)
      for side, sign in (("upper", ""), ("lower", "-"))),
    Metric(name="tail_weight", title="Tail weight", unit="1", family="tails",
           formula=r"\overline{\tfrac{2}{\pi}\,\mathrm{Var}_b[d]/(\mathbb{E}_b|d-\mathrm{med}_b|)^2}",
           description="Within bins of inference probability: 1 for Gaussian noise of any size or offset, more for heavier tails.",
           harm="higher", healthy="about 1 for rounding noise; 4 to 15 in our healthy fp8 recording", missing_when="no probability bin with 200 tokens whose spread the grid resolves (1.6 % of d's own size)"),
    Metric(name="tail_weight_scalar", title="Tail weight from scalars", unit="1", family="tails",
           formula=r"2\,\mathrm{k3}/(\mathbb{E}|d|/0.798)^2",
           description="The same idea from two scalars that other tools log; mixes spread over probabilities with tails. "
           "For imported history only.", harm="higher", missing_when="no valid tokens, or every log ratio is 0"),
)  # fmt: skip

_ESS = (
    Metric(name="ess_token", title="Effective sample size, tokens", unit="share", family="ess",
           formula=r"(\sum w)^2 / (N \sum w^2)", description="Share of tokens the weighted batch is worth, before any clamping.",
           harm="lower", healthy="above 0.95; above 0.99 for bf16 at lag 0 (marin's gates: 0.9987 to 0.9990)"),
    Metric(name="ess_sequence", title="Effective sample size, sequences", unit="share", family="ess",
           formula=r"(\sum e^{S})^2 / (n \sum e^{2S})",
           description="The same over whole sequences: falls with length even where tokens are fine.", harm="lower",
           missing_when=_NO_SEQUENCES),
    Metric(name="ess_sequence_expected", title="Sequence ESS that length explains", unit="share", family="ess",
           formula=r"\mathrm{ESS}\{-T_b s^2/2 + \sqrt{T_b}\,s\,\Phi^{-1}((j-\tfrac12)/n_b)\}",
           description="What independent token noise of the same spread would leave at these lengths.",
           missing_when=_NO_SEQUENCES),
    Metric(name="ess_length_residual", title="Sequence ESS over expected", unit="ratio", family="ess",
           formula=r"\mathrm{ESS}/\mathrm{ESS}_{\mathrm{expected}}",
           description="Below 1: sequences are worse than their length explains.", harm="lower",
           missing_when=_NO_SEQUENCES),
    *(Metric(name=f"ess_length_residual_p{point}", title=f"Where chance leaves it, {percent} point", unit="ratio", family="ess",
             formula=rf"Q_{{{q}}}(\mathrm{{ESS}}/\mathrm{{ESS}}_{{\mathrm{{expected}}}})\ \text{{of independent tokens at}}\ \{{T_i\}},\ s^2",
             description=f"ess_length_residual is below this in {percent} of batches of sequences as long whose tokens err "
             "independently: what to judge it by.", missing_when="under 8 complete sequences")
      for point, percent, q in (("01", "1 %", "0.01"), ("001", "0.1 %", "0.001"))),
)  # fmt: skip

_ENVELOPE = (
    Metric(name="envelope_width_low", title="Envelope width, p < 0.1", unit="nats", family="envelope",
           formula=r"Q_{.98}(d\mid p<0.1) - Q_{.02}(d\mid p<0.1)",
           description="Fan of the log ratio among improbable tokens. Normal in itself; its growth against the run's own "
           "baseline is the sign.", harm="higher", reference=ALP_PAPER,
           missing_when="under 20 tokens with p < 0.1"),
    Metric(name="envelope_width_high", title="Envelope width, p > 0.9", unit="nats", family="envelope",
           formula=r"Q_{.98}(d\mid p>0.9) - Q_{.02}(d\mid p>0.9)",
           description="The fan reaching confident tokens marked collapse in the lab.", harm="higher", reference=ALP_PAPER,
           missing_when="under 20 tokens with p > 0.9"),
)  # fmt: skip

_SEQUENCES = (
    Metric(name="chi2_sequence_log10p1", title="log10(1 + chi²) of sequences", unit="1", family="sequences",
           formula=r"\log_{10}\mathbb{E}[e^{2S}]", description="Product ratios overflow any scale but a logarithmic one.",
           harm="higher", missing_when=_NO_SEQUENCES),
    Metric(name="geometric_ratio_mean", title="Mean geometric ratio", unit="ratio", family="sequences",
           formula=r"\mathbb{E}[e^{g}]", description="Length-normalised sequence ratio, as GSPO uses it.",
           harm="away from 1", missing_when=_NO_SEQUENCES),
    Metric(name="sequences_outside_2x_share", title="Sequences off by over 2x", unit="share", family="sequences",
           formula=r"\Pr(|S| > \ln 2)", description="Share of sequences whose product ratio is above 2 or below 1/2.",
           harm="higher", missing_when=_NO_SEQUENCES),
    Metric(name="sequences_outside_5x_share", title="Sequences off by over 5x", unit="share", family="sequences",
           formula=r"\Pr(|S| > \ln 5)", description="Share of sequences whose product ratio is above 5 or below 1/5.",
           harm="higher", missing_when=_NO_SEQUENCES),
    Metric(name="sequences_geometric_outside_share", title="Sequences outside 0.999-1.001", unit="share",
           family="sequences", formula=r"\Pr(|g| > \ln 1.001)",
           description="What geometric masking with its published bounds would drop.", harm="higher",
           missing_when=_NO_SEQUENCES),
    Metric(name="length_scaling", title="Length scaling", unit="1", family="sequences",
           formula=r"\mathrm{slope}\ \log\mathbb{E}[(S - T\bar d)^2]\ \text{on}\ \log T",
           description="1: noise independent between tokens; 2: each sequence carries an offset of its own.",
           healthy="about 1 (independent noise)", missing_when="under 3 length buckets with 8 sequences that differ by more than rounding"),
    Metric(name="length_scaling_se", title="Standard error of length scaling", unit="1", family="sequences",
           formula=r"\sqrt{2/\sum_b n_b (x_b - \bar x)^2}", description="From the chi-squared noise of each bucket's mean square.",
           missing_when="as length_scaling"),
)  # fmt: skip

_POLICIES = (
    Metric(name="infer_logprob_mean", title="Mean inference log-prob", unit="nats", family="policies",
           formula=r"\mathbb{E}[\mu]", description="Of the sampled tokens, as the engine reported them."),
    Metric(name="train_logprob_mean", title="Mean training log-prob", unit="nats", family="policies",
           formula=r"\mathbb{E}[\pi]", description="Of the same tokens under the training engine."),
    Metric(name="infer_ppl", title="Inference perplexity", unit="1", family="policies",
           formula=r"\mathbb{E}_i[e^{-\bar\mu_i}]", description="Per sequence, then averaged.", missing_when=_NO_SEQUENCES),
    Metric(name="train_ppl", title="Training perplexity", unit="1", family="policies",
           formula=r"\mathbb{E}_i[e^{-\bar\pi_i}]", description="Per sequence, then averaged.", missing_when=_NO_SEQUENCES),
    Metric(name="log_ppl_gap", title="Log-perplexity gap", unit="nats", family="policies",
           formula=r"\mathbb{E}_i[-g_i]", description="Training minus inference log-perplexity, averaged over sequences.",
           harm="away from 0", missing_when=_NO_SEQUENCES),
    Metric(name="log_ppl_gap_abs", title="|Log-perplexity gap|", unit="nats", family="policies",
           formula=r"\mathbb{E}_i|g_i|", description="Mean size of the gap.", harm="higher", missing_when=_NO_SEQUENCES),
    Metric(name="log_ppl_gap_min", title="Smallest log-perplexity gap", unit="nats", family="policies",
           formula=r"\min_i -g_i", description="Over sequences.", missing_when=_NO_SEQUENCES),
    Metric(name="log_ppl_gap_max", title="Largest log-perplexity gap", unit="nats", family="policies",
           formula=r"\max_i -g_i", description="Over sequences.", harm="higher", missing_when=_NO_SEQUENCES),
    Metric(name="entropy_train", title="Entropy, training policy", unit="nats", family="policies",
           formula=r"\mathbb{E}[H_\pi]", description="As the trainer sent it.", missing_when="the trainer sent no entropies"),
    Metric(name="entropy_infer", title="Entropy, inference policy", unit="nats", family="policies",
           formula=r"\mathbb{E}[H_\mu]", description="As the trainer sent it.", missing_when="the trainer sent no entropies"),
    Metric(name="entropy_gap", title="Entropy gap", unit="nats", family="policies", formula=r"\mathbb{E}[H_\pi - H_\mu]",
           description="Where both entropies were sent.", harm="away from 0",
           missing_when="the trainer sent no entropies"),
    Metric(name="reward_mean", title="Mean reward", unit="1", family="policies", formula=r"\mathbb{E}_i[r_i]",
           description="Of the sequences in the batch, as sent: the served policy's, blind until the next weight sync.",
           harm="lower", missing_when="the trainer sent no rewards"),
)  # fmt: skip

_VALIDITY = (
    Metric(name="tokens", title="Tokens", unit="tokens", family="validity", formula=r"N",
           description="Tokens counted: in the mask, finite, not above 1e-3.", missing_when="never"),
    Metric(name="tokens_total", title="Tokens received", unit="tokens", family="validity", formula=r"N_{\mathrm{all}}",
           description="Masked and invalid ones included.", missing_when="never"),
    Metric(name="sequences", title="Sequences", unit="sequences", family="validity", formula=r"n",
           description="With at least one token in the mask.", missing_when="never"),
    Metric(name="sequences_incomplete", title="Incomplete sequences", unit="sequences", family="validity",
           formula=r"\#\{i:\ \text{a masked-in token is invalid}\}", description="Left out of sequence statistics.",
           harm="higher", healthy="0", missing_when="never"),
    Metric(name="sequences_empty", title="Empty sequences", unit="sequences", family="validity", formula=r"\#\{i: T_i = 0\}",
           description="With no token in the mask.", harm="higher", missing_when="never"),
    Metric(name="tokens_nonfinite_infer", title="Non-finite inference log-probs", unit="tokens", family="validity",
           formula=r"\#\{\mu \notin \mathbb{R}\}", description="NaN, infinite or missing; counted, never summed.", harm="higher",
           healthy="0", missing_when="never"),
    Metric(name="tokens_nonfinite_train", title="Non-finite training log-probs", unit="tokens", family="validity",
           formula=r"\#\{\pi \notin \mathbb{R}\}", description="NaN, infinite or missing; counted, never summed.", harm="higher",
           healthy="0", missing_when="never"),
    Metric(name="tokens_positive", title="Log-probs just above 0", unit="tokens", family="validity",
           formula=r"\#\{0 < \max(\mu,\pi) \le 10^{-3}\}", description="Rounding: kept and counted.", missing_when="never"),
    Metric(name="tokens_invalid_positive", title="Positive log-probs", unit="tokens", family="validity",
           formula=r"\#\{\max(\mu,\pi) > 10^{-3}\}", description="Not log-probs: counted, never summed.", harm="higher",
           healthy="0", missing_when="never"),
    Metric(name="tokens_outside_grid", title="|d| of 2^20 and above", unit="tokens", family="validity",
           formula=r"\#\{|d| \ge 2^{20}\}", description="In the sums, beyond the histogram.", harm="higher", healthy="0",
           missing_when="never"),
    Metric(name="tokens_post_outside", title="mask_post outside mask", unit="tokens", family="validity",
           formula=r"\#\{m_{\mathrm{post}} \wedge \neg m\}", description="A rejection mask must be a subset of the mask.",
           harm="higher", healthy="0", missing_when="never"),
    Metric(name="seq_ids_duplicate", title="Duplicate sequence ids", unit="sequences", family="validity",
           formula=r"n - \#\{\mathrm{ids}\}", description="Within a batch.", harm="higher", healthy="0", missing_when="never"),
    Metric(name="invalid_share", title="Invalid log-probs", unit="share", family="validity",
           formula=r"1 - N/N_{\mathrm{masked\ in}}", description="Share of tokens in the mask that could not be counted.",
           harm="higher", healthy="0", missing_when="no tokens in the mask"),
    Metric(name="masked_share", title="Masked-out tokens", unit="share", family="validity",
           formula=r"1 - N_{\mathrm{masked\ in}}/N_{\mathrm{all}}", description="Tool output, padding, prompt.",
           missing_when="no tokens received"),
    Metric(name="rejected_share", title="Tokens rejected by the correction", unit="share", family="validity",
           formula=r"1 - N_{\mathrm{post}}/N", description="What rejection sampling dropped.", harm="higher",
           missing_when="mask_post was not sent"),
    Metric(name="identical_share", title="Bit-identical log-probs", unit="share", family="validity", formula=r"\Pr(d = 0)",
           description="Ordinary among near-certain tokens; all of them means one side was copied."),
    Metric(name="zero_filler_share", title="Zero-filled log-probs", unit="share", family="validity",
           formula=r"\Pr(\text{one side} = 0,\ \text{other} < -10^{-3})",
           description="A 0.0 written where no log-prob was.", harm="higher", healthy="0"),
    Metric(name="token_id_mismatch_share", title="Tokens with another id", unit="share", family="validity",
           formula=r"\Pr(y^{\mathrm{infer}} \ne y^{\mathrm{train}})",
           description="The trainer's id of a token is not the one that was sampled: text was tokenised again.", harm="higher",
           healthy="0", missing_when="token ids were not sent by both sides"),
    Metric(name="align_lag", title="Alignment", unit="tokens", family="validity",
           formula=r"\arg\max_s \mathrm{corr}(\mu_t, \pi_{t+s})",
           description="0: aligned. Otherwise the training log-probs are shifted by that many tokens.", harm="away from 0",
           healthy="0", missing_when="under 50 pairs of tokens that vary"),
    Metric(name="align_corr", title="Correlation at that alignment", unit="1", family="validity",
           formula=r"\mathrm{corr}(\mu_t, \pi_{t+s})", description="Of the log-probs of the first 64 tokens.", harm="lower",
           healthy="above 0.95; 0.97 to 0.99 in our healthy fp8 recording", missing_when="under 50 pairs of tokens that vary"),
)  # fmt: skip

_SHARPNESS = (
    Metric(name="sharpness_slope", title="Sharpness slope", unit="nats", family="sharpness",
           formula=r"\mathrm{slope}\ \mathrm{med}_b|d|\ \text{on}\ \overline{1-p}_b",
           description="How fast the typical size of d grows as tokens become less probable: gradient norm times "
           "mismatch. Weighted least squares over probability bins. Its growth at equal lag is the sign.", harm="higher",
           healthy="flat against the run's own baseline at equal lag", missing_when="under 3 probability bins with 50 tokens"),
    Metric(name="sharpness_low_high", title="Envelope width, p < 0.1 over p > 0.9", unit="ratio", family="sharpness",
           formula=r"\frac{Q_{.98}-Q_{.02}\mid p<0.1}{Q_{.98}-Q_{.02}\mid p>0.9}",
           description="How much wider the fan is among improbable tokens than among confident ones.", reference=ALP_PAPER,
           missing_when="as envelope_width_low or envelope_width_high, or the latter below 1e-6"),
    Metric(name="score_norm_sq_mean", title="Mean squared score norm", unit="1", family="sharpness",
           formula=r"\mathbb{E}[(1-p)^2 + \textstyle\sum_{k\ne y} p_k^2]",
           description="Squared norm of the gradient of the sampled token's log-prob with respect to the logits, under the "
           "training policy.", missing_when="the trainer sent no sum_p2_other"),
    Metric(name="sharpness_residual", title="Spread of d over score norm", unit="nats", family="sharpness",
           formula=r"\mathrm{sd}\left[d / \sqrt{(1-p)^2 + \textstyle\sum_{k\ne y} p_k^2}\right]",
           description="The scale of the noise in the logits that would explain d: mismatch with the policy's sharpness taken "
           "out.", harm="higher", missing_when="the trainer sent no sum_p2_other, or no score is above rounding"),
    Metric(name="fisher_trace", title="Trace of the logit Fisher", unit="1", family="sharpness",
           formula=r"\mathbb{E}[1 - \textstyle\sum_k p_k^2]",
           description="How undecided the training policy is: 0 where it is certain, close to 1 over many equal choices.",
           missing_when="the trainer sent no sum_p2_other"),
)  # fmt: skip

_NO_VERSIONS = "weight versions were not sent"
_LAG0_MISSING = "weight versions were not sent, no token is at lag 0, or under 200 are and others are not"
_STALE_MISSING = f"{_LAG0_MISSING}; every token is at lag 0; or none contributes"


def _by_lag(name: str, title: str, *, unit: str, symbol: str) -> tuple[Metric, ...]:
    """What policy lag has to do with a mean over tokens."""
    lag0, mean = rf"{symbol}_{{\mathrm{{lag}}=0}}", symbol
    return (
        Metric(name=f"{name}_lag0", title=f"{title}, at lag 0", unit=unit, family="staleness",
               formula=rf"{lag0}", harm="higher",
               description=f"`{name}` over the tokens sampled by the very weights that are trained: what the engines alone "
               "differ by.", missing_when=_LAG0_MISSING),
        Metric(name=f"{name}_per_version", title=f"{title}, growth per version", unit=f"{unit}/version", family="staleness",
               formula=rf"\mathrm{{slope}}\ {mean}_b\ \text{{on}}\ \overline{{\mathrm{{lag}}}}_b", harm="higher",
               description=f"What each version of lag adds to `{name}`: least squares over the buckets of lag at the mean lag "
               "of their tokens, weighted by tokens.",
               missing_when="weight versions were not sent, or all tokens share one bucket of lag"),
        Metric(name=f"{name}_lag0_share", title=f"{title}, part there at lag 0", unit="share", family="staleness",
               formula=rf"{lag0} / {mean}_{{\mathrm{{lag\ known}}}}",
               description=f"Part of `{name}` that would be there if every token were at lag 0. Not clamped.",
               missing_when=_STALE_MISSING),
        Metric(name=f"{name}_stale_share", title=f"{title}, part due to staleness", unit="share", family="staleness",
               formula=rf"1 - {lag0} / {mean}_{{\mathrm{{lag\ known}}}}", harm="higher",
               description=f"Part of `{name}` that staleness adds; about 0, on either side, where it adds nothing.",
               missing_when=_STALE_MISSING),
    )  # fmt: skip


_STALENESS = (
    Metric(name="lag_mean", title="Mean policy lag", unit="versions", family="staleness",
           formula=r"\mathbb{E}[v_{\mathrm{train}} - v_{\mathrm{infer}}]",
           description="How many weight versions the sampling policy is behind.", harm="higher",
           healthy="at most the bound the run declares; defaults elsewhere: 1 (NeMo-RL), 4 (TRL), 8 (prime-rl)",
           missing_when=_NO_VERSIONS),
    Metric(name="lag_max", title="Largest policy lag", unit="versions", family="staleness",
           formula=r"\max (v_{\mathrm{train}} - v_{\mathrm{infer}})", description="The oldest token.", harm="higher",
           missing_when=_NO_VERSIONS),
    Metric(name="lag_oldest_mean", title="Mean oldest lag of a sequence", unit="versions", family="staleness",
           formula=r"\mathbb{E}_i[\max_{t \in i} (v_{\mathrm{train}} - v_{\mathrm{infer}})]",
           description="Over sequences, by the oldest weights that sampled any of its tokens; above `lag_mean` where "
                       "sequences are longer than the time between two weight syncs.",
           harm="higher", missing_when=_NO_VERSIONS),
    Metric(name="lag_p95", title="P95 policy lag", unit="versions", family="staleness",
           formula=r"Q_{.95}(v_{\mathrm{train}} - v_{\mathrm{infer}})", description="Judged against the declared staleness bound.",
           harm="higher", missing_when=_NO_VERSIONS),
    Metric(name="lag_negative_share", title="Tokens from the future", unit="share", family="validity",
           formula=r"\Pr(v_{\mathrm{infer}} > v_{\mathrm{train}})",
           description="An inference version above the training version: one of them is mislabelled.", harm="higher",
           healthy="0"),
    *_by_lag("kl_k3", "KL, k3", unit="nats", symbol=r"\mathrm{k3}"),
    *_by_lag("outside_2x", "Tokens off by over 2x", unit="share", symbol=r"\Pr(|d|>\ln 2)"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {
    metric.name: replace(metric, aliases=names_elsewhere(metric.name))
    for metric in (
        *_KL, *_RATIOS, *_TAILS, *_ESS, *_ENVELOPE, *_SEQUENCES, *_POLICIES, *_SHARPNESS, *_VALIDITY, *_STALENESS,
    )
}  # fmt: skip
"""Every metric by canonical name, in the order in which they are documented."""

HEADLINE = ("kl_k3", "log_ratio_q001", "log_ratio_q999", "ess_token", "envelope_width_low")
"""What a page shows first and a batch is answered with."""
