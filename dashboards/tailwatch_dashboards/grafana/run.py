"""The dashboard of one run: every metric of the registry, in the order in which one asks.

A metric that no panel below names still gets one, in the row of its family: a new row of the registry is a new line
on the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tailwatch_dashboards.grafana import frame, panels
from tailwatch_dashboards.grafana.metric import Bounds, MetricInfo, explain
from tailwatch_dashboards.grafana.sdk import Dashboard, Panel, builders

UID = "tailwatch-run"

ALP_STATES = {"0": "off"}
"""States of the ALP control by the value of `tailwatch_alp_state`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics that share a chart: one unit, one scale."""

    title: str
    names: tuple[str, ...]
    """Canonical names, or patterns of them."""
    log: bool = False


ROWS: Mapping[str, tuple[str, tuple[Group, ...]]] = {
    "kl": (
        "How far apart are the policies",
        (
            Group(
                "KL, never negative", ("kl_k3", "kl_k2", "kl_reverse_k3", "js", "kl_unweighted_reverse_k3"), log=True
            ),
            Group("KL, signed", ("kl_k1", "kl_reverse_k1")),
            Group("chi² of the weights", ("chi2_token", "chi2_token_uncentred")),
            Group("Second moment of d", ("second_moment",), log=True),
        ),
    ),
    "ratios": (
        "Ratios",
        (
            Group("Quantiles of the log ratio", ("log_ratio_q*",)),
            Group("Spread of the log ratio", ("log_ratio_mean", "log_ratio_std", "log_ratio_abs_mean")),
            Group("Extremes of the log ratio", ("log_ratio_min", "log_ratio_max")),
            Group("Mean ratio", ("ratio_mean",)),
            Group("Extreme ratios", ("ratio_min", "ratio_max", "mult_prob_error"), log=True),
            Group("Tokens off by a factor", ("outside_2x", "outside_5x")),
            Group("Tokens above a bound", ("above_*",)),
            Group("Tokens below a bound", ("below_1_over_*",)),
            Group("Differences of probability", ("tv", "prob_diff_abs_*")),
            Group("Correlation of probabilities", ("prob_pearson",)),
        ),
    ),
    "tails": (
        "Tails",
        (
            Group("Pareto k-hat", ("tail_khat_upper", "tail_khat_lower")),
            Group("Hill estimator", ("tail_hill_upper", "tail_hill_lower")),
            Group("Tail weight", ("tail_weight", "tail_weight_scalar")),
        ),
    ),
    "ess": (
        "Effective sample size",
        (
            Group("ESS of tokens", ("ess_token",)),
            Group("ESS of sequences, and what length explains", ("ess_sequence", "ess_sequence_expected")),
            Group("ESS of sequences over expected", ("ess_length_residual*",)),
        ),
    ),
    "envelope": ("Envelope", (Group("Envelope widths", ("envelope_width_low", "envelope_width_high")),)),
    "sequences": (
        "Sequences",
        (
            Group("chi² of sequences", ("chi2_sequence_log10p1",)),
            Group("Geometric ratio", ("geometric_ratio_mean",)),
            Group("Sequences outside", ("sequences_*_share",)),
            Group("Length scaling", ("length_scaling", "length_scaling_se")),
        ),
    ),
    "policies": (
        "Policies",
        (
            Group("Mean log-probs", ("infer_logprob_mean", "train_logprob_mean")),
            Group("Perplexity", ("infer_ppl", "train_ppl")),
            Group("Log-perplexity gap", ("log_ppl_gap*",)),
            Group("Entropy", ("entropy_*",)),
            Group("Reward", ("reward_mean",)),
        ),
    ),
    "sharpness": (
        "Sharpness",
        (
            Group("Growth of |d| as tokens become improbable", ("sharpness_slope",)),
            Group("Envelope width, improbable over confident", ("sharpness_low_high",)),
            Group("Spread of d over score norm", ("sharpness_residual",)),
            Group("Score norm and logit Fisher", ("score_norm_sq_mean", "fisher_trace")),
        ),
    ),
    "staleness": (
        "Staleness",
        (
            Group("Policy lag", ("lag_mean", "lag_oldest_mean", "lag_p95", "lag_max")),
            Group("KL at lag 0", ("kl_k3_lag0",)),
            Group("KL each version adds", ("kl_k3_per_version",)),
            Group("Tokens off by over 2x at lag 0", ("outside_2x_lag0",)),
            Group("Tokens off by over 2x, each version adds", ("outside_2x_per_version",)),
            Group("Part there at lag 0, part due to staleness", ("*_lag0_share", "*_stale_share")),
        ),
    ),
    "validity": (
        "Can the numbers be trusted",
        (
            Group("Tokens", ("tokens", "tokens_total")),
            Group("Sequences", ("sequences", "sequences_*", "seq_ids_duplicate")),
            Group("Tokens that are no log-probs", ("tokens_*",)),
            Group("Shares of tokens", ("invalid_share", "zero_filler_share", "lag_negative_share", "rejected_share")),
            Group("Shares that are ordinary", ("masked_share", "identical_share")),
            Group("Alignment", ("align_lag",)),
            Group("Correlation at that alignment", ("align_corr",)),
        ),
    ),
}
"""Family of the registry to the title and the charts of its row."""

_ONE = '{project="$project", run="$run"}'
_ALERTS = f"tailwatch_alert_firing{_ONE}"
_QUIET = f'label_replace(0 * max by (project, run) (tailwatch_run_up{_ONE}), "rule", "none", "", "")'


def run(metrics: Mapping[str, MetricInfo]) -> Dashboard:
    """The Run dashboard: every metric given, and nothing else.

    Raises:
        ValueError: a chart names a metric that is not there, or a unit has no counterpart.
        KeyError: the registry lacks a metric of the first row.
    """
    made = frame.frame(
        uid=UID,
        title="Tailwatch: Run",
        description="One run: is it healthy, and if not, which tail grew and why?",
        alerts=_ONE[1:-1],
    )
    made = made.with_variable(
        frame.variable("project", "Project", "label_values(tailwatch_run_up, project)", several=False)
    )
    names = 'label_values(tailwatch_run_up{project="$project"}, run)'
    made = made.with_variable(frame.variable("run", "Run", names, several=False)).with_variable(frame.address())
    page = "${tailwatch}/?q=${project:percentencode}%20${run:percentencode}"
    made = made.link(panels.link("This run in Tailwatch", page)).link(panels.link("Fleet", "/d/tailwatch-fleet"))
    made = made.with_row(builders.Row("Now"))
    for number in _numbers(metrics):
        made = made.with_panel(number)
    made = made.with_panel(_alerts())
    for title, groups in rows(metrics):
        made = made.with_row(builders.Row(title))
        for group, members in groups:
            made = made.with_panel(_chart(group, members))
    made = made.with_row(builders.Row("Service"))
    for panel in frame.service_panels():
        made = made.with_panel(panel)
    return made


def rows(metrics: Mapping[str, MetricInfo]) -> Iterator[tuple[str, list[tuple[Group, list[MetricInfo]]]]]:
    """Title, charts and their metrics of every row; each metric once.

    Raises:
        ValueError: a chart names a metric that is not there.
    """
    families = dict.fromkeys((*ROWS, *(metric.family for metric in metrics.values())))
    for family in families:
        title, groups = ROWS.get(family, (family.capitalize(), ()))
        left = {name: metric for name, metric in metrics.items() if metric.family == family}
        charts: list[tuple[Group, list[MetricInfo]]] = []
        for group in groups:
            members = [left.pop(name) for name in _named(group, left)]
            charts.append((group, members))
        for unit in dict.fromkeys(metric.unit for metric in left.values()):
            members = [metric for metric in left.values() if metric.unit == unit]
            charts.append((Group(f"Further metrics ({unit})", tuple(metric.name for metric in members)), members))
        yield title, charts


def _named(group: Group, left: Mapping[str, MetricInfo]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in group.names:
        matching = [name for name in left if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"the chart {group.title!r} names {pattern!r}, which the registry does not have")
        found.update(dict.fromkeys(matching))
    return list(found)


def _chart(group: Group, members: Sequence[MetricInfo]) -> Panel:
    units = {metric.grafana_unit for metric in members}
    bounds = {metric.bounds() for metric in members}
    same = next(iter(bounds)) if len(bounds) == 1 else None
    about = "\n\n".join(explain(metric) for metric in members)
    unit = units.pop() if len(units) == 1 else "none"
    if all(metric.quantile is not None for metric in members):
        expr = f"max by (project, run, quantile) ({members[0].series}{_ONE})"
        queries = [panels.query(expr, legend="Q{{quantile}}")]
        return panels.chart(
            group.title, about=about, unit=unit, queries=queries, log=group.log, colours=_fan(members), span=16
        )
    queries = [
        panels.query(_last(metric), legend=metric.title, ref=panels.ref_of(index))
        for index, metric in enumerate(members)
    ]
    return panels.chart(group.title, about=about, unit=unit, queries=queries, log=group.log, bounds=same)


def _fan(members: Sequence[MetricInfo]) -> list[tuple[str, list[Any]]]:
    """A pair of quantiles shares a colour; the lower one is dashed."""
    looks = []
    colours = dict.fromkeys(_depth(metric) for metric in members)
    for metric in members:
        place = sorted(colours).index(_depth(metric))
        lower = float(metric.quantile or 0) < 0.5
        look = panels.fixed(panels.PALETTE[place % len(panels.PALETTE)], dashed=lower)
        looks.append((f"Q{metric.quantile}", [*look, panels.Property("displayName", metric.title)]))
    return looks


def _depth(metric: MetricInfo) -> float:
    """Distance of a quantile from the nearer end."""
    quantile = float(metric.quantile or 0)
    return round(min(quantile, 1 - quantile), 9)


def _last(metric: MetricInfo) -> str:
    return f"max by (project, run) ({metric.series}{_ONE})"


def _numbers(metrics: Mapping[str, MetricInfo]) -> Iterator[Panel]:
    for name in ("kl_k3", "tail_khat_upper", "tail_khat_lower", "ess_token", "outside_2x", "envelope_width_low"):
        metric = metrics[name]
        yield panels.number(
            metric.title, about=explain(metric), unit=metric.grafana_unit, expr=_last(metric), bounds=metric.bounds()
        )
    yield panels.number(
        "Last closed step",
        about="A number that stands still is a run that stands still.",
        unit="none",
        expr=f"max by (project, run) (tailwatch_train_step{_ONE})",
    )
    yield panels.number(
        "Silent for",
        about="Time since the run was last heard of; TAILWATCH_LOST_AFTER_S (300 s) makes it lost.",
        unit="s",
        expr=f"time() - max by (project, run) (tailwatch_last_update_timestamp_seconds{_ONE})",
        bounds=Bounds(upper=300.0),
    )
    yield panels.number(
        "Heard of",
        about="Lost: silent for TAILWATCH_LOST_AFTER_S without having said that it finished.",
        unit="none",
        expr=f"max by (project, run) (tailwatch_run_up{_ONE})",
        bounds=Bounds(lower=1.0),
        words={"0": "lost", "1": "yes"},
    )
    yield panels.number(
        "Coverage",
        about="Ranks delivered over ranks expected, of the last closed step; below 0.9 a step is not judged.",
        unit="percentunit",
        expr=f"min by (project, run) (tailwatch_coverage{_ONE})",
        bounds=Bounds(lower=0.9),
    )
    yield panels.number(
        "ALP",
        about="State of the Adaptive Layerwise Perturbation control.",
        unit="none",
        expr=f"max by (project, run) (tailwatch_alp_state{_ONE})",
        words=ALP_STATES,
    )
    yield panels.number(
        "Alerts firing",
        about="Of Tailwatch's own rules for this run, silenced ones left out.",
        unit="short",
        expr=f"sum({_ALERTS}) or vector(0)",
        bounds=Bounds(upper=0.5),
    )


def _alerts() -> Panel:
    return panels.chart(
        "Alerts by rule",
        about="1 while a rule of Tailwatch fires and is not silenced.",
        unit="short",
        span=panels.WIDTH,
        shades=True,
        queries=[
            panels.query(
                f"max by (project, run, rule, severity) ({_ALERTS}) or {_QUIET}", legend="{{rule}} {{severity}}"
            )
        ],
    )
