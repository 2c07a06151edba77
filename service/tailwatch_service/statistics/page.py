"""docs/metrics.md from the registry: for a reader who has never seen the project, then for one who looks a name up.

An introduction, questions that lead to metrics, and every metric with formula, meaning, healthy range and its source,
what was seen in a healthy recorded run, when it is missing, and what other tools call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tailwatch_service.statistics.aliases import TOOLS
from tailwatch_service.statistics.page_text import FAMILIES, GROUPS, HEAD, QUESTIONS, READING, Group
from tailwatch_service.statistics.registry import METRICS, Metric

Seen = Mapping[str, tuple[float, float]]
"""5 % and 95 % point of a metric over the steps of a healthy recorded run."""


def metrics_page(seen: Seen) -> str:
    """The whole page, as Markdown.

    Args:
        seen: what the metrics were in a healthy run; a metric that is left out says nothing about it.
    """
    parts = [HEAD, _questions(), READING]
    for family in dict.fromkeys(metric.family for metric in METRICS.values()):
        metrics = [metric for metric in METRICS.values() if metric.family == family]
        title, lead = FAMILIES[family]
        parts.append(f"## {title}\n\n{lead}\n\n{_contents(metrics)}\n")
        shown: set[str] = set()
        for metric in metrics:
            group = next((one for one in GROUPS if metric.name.startswith(one.prefix)), None)
            if group is None:
                parts.append(_section(metric, seen))
            elif group.prefix not in shown:
                shown.add(group.prefix)
                parts.append(_group(group, [one for one in metrics if one.name.startswith(group.prefix)], seen))
    parts.append(_tools())
    return "\n".join(parts)


def _questions() -> str:
    rows = [(question, ", ".join(map(_link, names)), answer) for question, names, answer in QUESTIONS]
    return _table(("question", "look at", "what it says"), rows)


def _contents(metrics: Iterable[Metric]) -> str:
    names: dict[str, None] = {}
    for metric in metrics:
        group = next((one for one in GROUPS if metric.name.startswith(one.prefix)), None)
        names[_link(metric.name) if group is None else f"[{group.title.lower()}](#{group.anchor})"] = None
    return " · ".join(names)


def _link(name: str) -> str:
    if name.startswith("#"):
        family = name.removeprefix("#")
        return f"[{FAMILIES[family][0].lower()}](#{FAMILIES[family][0].lower().replace(' ', '-')})"
    METRICS[name]  # a question that leads to no metric is a mistake
    return f"[`{name}`](#{name})"


def _section(metric: Metric, seen: Seen) -> str:
    parts = [f"### `{metric.name}`\n", f"**{metric.title}.** {metric.description}\n", f"$${metric.formula}$$\n"]
    parts.append(_facts(metric, seen))
    elsewhere = [(tool, key, differs) for _, tool, key, differs in _elsewhere([metric])]
    if elsewhere:
        parts.append(_table(("tool", "its key", "what differs"), elsewhere))
    return "\n".join(parts)


def _facts(metric: Metric, seen: Seen) -> str:
    facts = {
        "Unit": {"1": "none", "share": "share, 0 to 1"}.get(metric.unit, metric.unit),
        "Direction": metric.kl_direction,
        "Bad": metric.harm,
        "Healthy": metric.healthy,
        "Seen": _range(metric, seen),
        "Missing when": None if metric.missing_when == "never" else metric.missing_when,
        "Reference": metric.reference,
    }
    return "\n".join(f"- {label}: {fact}" for label, fact in facts.items() if fact) + "\n"


def _group(group: Group, metrics: Sequence[Metric], seen: Seen) -> str:
    parts = [f"### {group.title}\n", f"{group.lead}\n", f"$${group.formula}$$\n"]
    first = metrics[0]
    parts.append(f"- Unit: {first.unit}\n- Missing when: {first.missing_when}\n")
    rows = [
        (f'<a id="{metric.name}"></a>`{metric.name}`', metric.title, metric.harm or "", _range(metric, seen) or "")
        for metric in metrics
    ]
    parts.append(_table(("metric", "is", "bad", "seen"), rows))
    elsewhere = list(_elsewhere(metrics))
    if elsewhere:
        parts.append(_table(("metric", "tool", "its key", "what differs"), elsewhere))
    return "\n".join(parts)


def _range(metric: Metric, seen: Seen) -> str | None:
    found = seen.get(metric.name)
    if found is None or metric.harm is None:
        return None
    low, high = (f"{value:.2g}" for value in found)
    return low if low == high else f"{low} to {high}"


def _elsewhere(metrics: Sequence[Metric]) -> Iterable[tuple[str, str, str, str]]:
    for metric in metrics:
        for tool in TOOLS.values():
            for alias in tool.aliases:
                if alias.metric == metric.name:
                    key = alias.key.removeprefix("**/")
                    differs = alias.differs or "nothing"
                    yield (
                        f"`{metric.name}`",
                        tool.name,
                        f"`{key}`",
                        differs if alias.exact else f"approximate: {differs}",
                    )


def _tools() -> str:
    rows = []
    for tool in TOOLS.values():
        exact = sum(alias.metric is not None and alias.exact for alias in tool.aliases)
        near = sum(alias.metric is not None and not alias.exact for alias in tool.aliases)
        none = sum(alias.metric is None for alias in tool.aliases)
        rows.append((f"`{tool.id}`", tool.name, tool.version, str(exact), str(near), str(none)))
    lead = (
        "## Other tools\n\nWhat was read of each, and how many of its keys are one of our metrics, come close to "
        "one, or have none. [translate.md](translate.md) says how to translate a log; `tailwatch translate --from "
        "TOOL --keys` lists the keys.\n"
    )
    return f"{lead}\n{_table(('id', 'tool', 'read from', 'the same', 'close', 'none'), rows)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
