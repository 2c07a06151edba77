"""docs/metrics.md from the registry: every metric with formula, meaning, healthy range and what others call it."""

from __future__ import annotations

from tailwatch_service.statistics.registry import METRICS, Metric

_FAMILIES = {
    "kl": ("Divergences", "How far the training policy is from the policy that sampled the tokens."),
    "ratios": ("Log ratios and ratios", "The distribution of d and w over tokens, raw."),
    "tails": ("Tails", "How heavy the ends of the distribution are."),
    "ess": ("Effective sample sizes", "How much of the batch the importance weights leave."),
    "envelope": ("Envelope", "The fan of d by inference probability."),
    "sequences": ("Sequences", "Over complete sequences: all their tokens in the mask are valid."),
    "policies": ("Policies", "The two policies by themselves."),
    "staleness": ("Staleness", "How many weight versions the sampling policy is behind."),
    "validity": ("Data quality", "What was received and could not be counted: the first diagnosis of every incident."),
}

_HEAD = r"""# Metrics

Generated from the registry (`service/tailwatch_service/statistics/registry.py`) by `make generated`; do not edit.

For each sampled response token: `mu` is its log-prob under the **inference** engine that sampled it, `pi` the log-prob
of the same token under the **training** engine, $d = \pi - \mu$ the log importance ratio and $w = e^{d}$ the ratio. N
tokens are in the mask and valid; $\mathbb{E}$ is their mean. Tokens were sampled by the inference policy, so a plain
mean estimates an expectation under it. A sequence has T tokens, $S = \sum d$ and $g = S/T$. Sums are float64 on raw
ratios; nothing is clamped. A quantile is the order statistic number ceil(qN), read from a grid to 0.39 %.

A metric that does not exist for a step is absent (`null`), and the answer says why.
"""


def metrics_page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD]
    for family, (title, lead) in _FAMILIES.items():
        metrics = [metric for metric in METRICS.values() if metric.family == family]
        parts.append(f"## {title}\n\n{lead}\n")
        parts += [_section(metric) for metric in metrics]
    return "\n".join(parts)


def _section(metric: Metric) -> str:
    lines = [f"### `{metric.name}`\n", f"**{metric.title}** ({metric.unit})\n", f"$${metric.formula}$$\n"]
    lines.append(f"{metric.description}\n")
    facts = {
        "Direction": metric.kl_direction,
        "Harm": metric.harm,
        "Healthy": metric.healthy,
        "Missing when": metric.missing_when,
        "Reference": metric.reference,
    }
    lines += [f"- {label}: {fact}" for label, fact in facts.items() if fact]
    lines += [f"- {tool} calls it {_code(name)}" for tool, name in metric.aliases.items()]
    return "\n".join(lines) + "\n"


def _code(alias: str) -> str:
    """The other tool's name as code, what differs as text."""
    name, space, difference = alias.partition(" ")
    return f"`{name}`{space}{difference}"
