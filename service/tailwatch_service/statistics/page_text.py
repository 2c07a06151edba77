"""The prose of docs/metrics.md: introduction, questions, families, groups of metrics that differ by a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HEAD = r"""# Metrics

Generated from the registry (`service/tailwatch_service/statistics/registry.py`) by `make generated`; do not edit.

Reinforcement learning of a language model runs two programs. An **inference engine** samples the answers; a
**trainer** updates the weights with them. Both can say how probable a sampled token was, and in theory they say the
same. In practice they do not: other kernels, other precision, weights some updates older. The trainer corrects by the
ratio of the two probabilities, and where that ratio has heavy tails, a handful of tokens decides the gradient and the
run collapses, often hours later. Every number here is computed from the two log-probs of each sampled token.

| symbol | is |
|---|---|
| $\mu$ | log-prob of a sampled token under the engine that sampled it |
| $\pi$ | log-prob of the same token under the trainer, before the update |
| $d = \pi - \mu$ | the log ratio: 0 where both agree, negative where the trainer finds the token less likely |
| $w = e^{d}$ | the ratio, or importance weight |
| $T$, $S = \sum d$, $g = S/T$ | of a sequence: tokens, log of the product ratio, log of the geometric ratio |
| $N$, $\mathbb{E}$ | tokens in the mask and valid, and the plain mean over them |
| lag | training version minus the version that sampled a token: how many updates old it is |

Tokens were sampled by the engine, so a plain mean estimates an expectation under the engine's policy. Sums are
float64 on raw ratios: nothing is clamped, rejected or truncated before it is counted. A quantile is the order
statistic number ceil(qN), read from a histogram to 0.39 %. Masked tokens (prompt, tool output, padding) count
nowhere.

## Where to look
"""

QUESTIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "Is it healthy?",
        ("kl_k3", "ess_token", "log_ratio_q001", "log_ratio_q999", "envelope_width_low"),
        "The headline. Small is good, flat against the run's own past at equal lag is better: levels depend on "
        "precision and architecture, growth does not.",
    ),
    (
        "Is the data right?",
        ("align_lag", "zero_filler_share", "identical_share", "invalid_share", "lag_negative_share"),
        "First in every incident: a shift by one, a filler, or one side copied looks like a catastrophe, or like "
        "perfect health.",
    ),
    (
        "Which tail?",
        ("log_ratio_min", "log_ratio_max", "tail_khat_lower", "tail_khat_upper", "above_2", "below_1_over_2"),
        "Upper: tokens the trainer finds far more likely, whose weights explode. Lower: tokens it finds far less "
        "likely, typical of quantised engines; they blow up inverse ratios and stall learning where the advantage is "
        "negative.",
    ),
    (
        "Can averages still be trusted?",
        ("tail_khat_upper", "ess_token", "ratio_mean", "chi2_token"),
        "Above a k-hat of 0.7 a mean of ratios is decided by its largest terms; far from 1 the mean ratio says that "
        "temperatures differ or the tail was not seen.",
    ),
    (
        "Improbable tokens, or confident ones?",
        ("envelope_width_low", "envelope_width_high", "tail_weight", "prob_diff_abs_mean"),
        "A fan at low probability is normal. One that reaches tokens the engine was sure of is not.",
    ),
    (
        "The engine, or staleness?",
        ("lag_mean", "lag_p95", "#staleness"),
        "Mismatch that is there at lag 0 is numerics; what grows with lag is the age of the samples.",
    ),
    (
        "All tokens, or some sequences?",
        ("length_scaling", "ess_sequence", "ess_length_residual", "sequences_outside_2x_share"),
        "Slope 1: independent noise of tokens. Slope 2: every sequence carries an offset of its own.",
    ),
    (
        "What would a correction cut?",
        ("above_2", "below_1_over_2", "rejected_share", "sequences_geometric_outside_share"),
        "Shares beyond the bounds in use; the what-if of a step replays each correction "
        "([api.md](api.md), `/what-if`).",
    ),
    (
        "How noisy is the weighted gradient?",
        ("second_moment", "chi2_token", "ess_token", "ess_sequence"),
        "Its variance follows chi², and the batch is worth the effective sample size.",
    ),
    (
        "Are these the policies I think?",
        ("infer_ppl", "train_ppl", "log_ppl_gap", "entropy_gap"),
        "Perplexities and entropies of the two, by themselves.",
    ),
)
"""Question, metrics (or `#family`), answer."""

READING = r"""## How to read an entry

*Bad* is the direction that harms. *Healthy* names its source: other projects' documents and gates, the literature, or
our lab. *Seen* is the range between the 5 % and the 95 % point over the 64 steps of our healthy recording
(`lab/recordings/healthy.parquet`: a small model, an fp8 engine synchronised at every step, 3,456 tokens a step),
which is no target for other models: it shows the size of ordinary noise, and that a quantised engine alone makes a
heavy lower tail. A metric that does not exist for a step is `null`, and the step's `missing` says why. *What differs*
compares another tool's number of the same tokens with ours; "nothing" means the same number to float32, in which a
mean of $e^d - 1 - d$ is off by over 1 % below 5e-7.
"""

FAMILIES: Mapping[str, tuple[str, str]] = {
    "kl": (
        "Divergences",
        "How far the trainer's policy is from the one that sampled the tokens. The direction is written out: "
        "KL(infer || train) is the mean over the engine's samples. k1, k2 and k3 are estimators of the same "
        "divergence.",
    ),
    "ratios": (
        "Log ratios and ratios",
        "The distribution of d and w over tokens, raw: mean, spread, quantiles, shares beyond the bounds that "
        "corrections use.",
    ),
    "tails": (
        "Tails",
        "How heavy the ends of the distribution are: whether the next batch can hold a token ten times worse than the "
        "worst of this one.",
    ),
    "ess": (
        "Effective sample sizes",
        "How many samples the weighted batch is worth, as a share of those it has. Always of unclamped weights: "
        "clamping first hides the tail.",
    ),
    "envelope": (
        "Envelope",
        "The fan of d by the probability the engine gave the token: the width between its P2 and P98.",
    ),
    "sequences": ("Sequences", "Over complete sequences: those whose tokens in the mask are all valid."),
    "policies": ("Policies", "The two policies by themselves."),
    "sharpness": (
        "Sharpness",
        "How strongly the training policy answers to noise: the spread of d is the norm of a gradient times the "
        "mismatch.",
    ),
    "staleness": ("Staleness", "How many weight versions the sampling policy is behind, and what that costs."),
    "validity": (
        "Data quality",
        "What was received, and what could not be counted: the first diagnosis of every incident.",
    ),
}
"""Title and lead of each family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Metrics that differ by one number only, shown as a table."""

    prefix: str
    title: str
    lead: str
    formula: str

    @property
    def anchor(self) -> str:
        """Of its heading."""
        return self.title.lower().replace(" ", "-")


GROUPS = (
    Group(
        prefix="log_ratio_q",
        title="Quantiles of d",
        lead="Order statistic ceil(qN) of the log ratio. `q001` is the 0.1 % point, `q999` the 99.9 % point; the "
        "outer ones feel a heavy tail long before a mean does.",
        formula=r"Q_q(d)",
    ),
    Group(
        prefix="above_",
        title="Shares of ratios above a bound",
        lead="What a correction with upper bound C would touch, counted exactly.",
        formula=r"\Pr(w > C)",
    ),
    Group(
        prefix="below_1_over_",
        title="Shares of ratios below a bound",
        lead="What a correction with lower bound 1/C would touch, counted exactly.",
        formula=r"\Pr(w < 1/C)",
    ),
)
