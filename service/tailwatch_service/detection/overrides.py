"""Overrides: rules as configuration. A JSON or TOML table of changes over the rules that come with the service.

    {"KlSpike": {"hits": 3, "window": 5, "warning": 5.0}, "TailHeavy": {"enabled": true},
     "RewardLow": {"title": "..", "checks": [{"metric": "kl_k3", "kind": "band", "warning": 0.1}]}}

Everything wrong is found at once and named by its path. Fields of the comparison may stand beside the rule's own where
the rule has one check. An id the service does not know is a rule of the user's, and needs `checks`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields, replace
from typing import Any, get_args

from tailwatch_collectors.errors import FieldError
from tailwatch_service.detection.classes import LADDER
from tailwatch_service.detection.comparisons import HISTORY, KINDS, Absence, Band, Comparison, Direction, RobustZ
from tailwatch_service.detection.rules import MAX_WINDOW, RULES, SILENCE, Applies, Check, Material, Rule
from tailwatch_service.statistics.registry import METRICS

MAX_RULES = 100
"""Most rules in one table."""

MAX_CHECKS = 16
"""Most checks of one rule."""

_ID = re.compile(r"[A-Z][A-Za-z0-9]{1,63}")
_LIMITS = {"hits": (1, MAX_WINDOW), "window": (1, MAX_WINDOW), "warm_up": (0, 10_000), "clear_count": (1, 10_000)}
_LIMITS["cooldown"] = (0, 1_000_000)
_OWN = ("title", *_LIMITS, "applies", "material", "enabled", "checks")
_MAX_TITLE = 120


class RuleError(ValueError):
    """Rules that cannot work; `errors` names each by path, value and reason."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


class _Findings(list[FieldError]):
    def say(self, path: str, reason: str) -> None:
        self.append(FieldError(column=path, reason=reason))


def apply(changes: Mapping[str, Any], *, base: Mapping[str, Rule] = RULES) -> dict[str, Rule]:
    """The rules with changes laid over them.

    Args:
        changes: by rule id; see the top of the file.
        base: what is changed.

    Raises:
        RuleError: names everything that is wrong.
    """
    found = _Findings()
    made = dict(base)
    if not isinstance(changes, Mapping):
        raise RuleError(FieldError(column="rules", reason=f"{changes!r:.80} is not a table of rules by id"))
    for rule_id, change in changes.items():
        path = str(rule_id) or "rules"
        if not isinstance(change, Mapping):
            found.say(path, f"{change!r:.80} is not a table")
        elif rule_id in made:
            made[rule_id] = _changed(made[rule_id], change, path, found)
        elif not _ID.fullmatch(path):
            found.say(path, "is not a rule id: a capital letter, then up to 63 letters and digits")
        elif "checks" not in change:
            found.say(path, f"is not a rule{_close(rule_id, made)}; a rule of your own needs `checks`")
        else:
            made[rule_id] = _changed(Rule(id=rule_id, title=rule_id, checks=()), change, path, found)
    if len(made) > MAX_RULES:
        found.say("rules", f"{len(made)} rules are over {MAX_RULES}, the limit")
    if found:
        raise RuleError(*found)
    return made


def to_json(rule: Rule) -> dict[str, Any]:
    """A rule as configuration: what `apply` takes back."""
    names = {kind: name for name, kind in KINDS.items()}
    own = {name: getattr(rule, name) for name in _OWN if name not in {"checks", "material"}}
    return own | {
        "material": None if rule.material is None else asdict(rule.material),
        "checks": [
            {"slice": check.slice, "metric": check.metric, "kind": names[type(check.comparison)]}
            | asdict(check.comparison)
            for check in rule.checks
        ],
    }


def _changed(rule: Rule, change: Mapping[str, Any], path: str, found: _Findings) -> Rule:
    values: dict[str, Any] = {}
    beside = {name: value for name, value in change.items() if name not in _OWN}
    if "title" in change:
        if isinstance(change["title"], str) and 0 < len(change["title"]) <= _MAX_TITLE:
            values["title"] = change["title"]
        else:
            found.say(f"{path}.title", f"{change['title']!r:.80} is not a text of 1 to {_MAX_TITLE} characters")
    for name, (low, high) in _LIMITS.items():
        if name in change:
            value = change[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                found.say(f"{path}.{name}", f"{value!r:.40} is not a whole number of {low} .. {high}")
            else:
                values[name] = value
    if "enabled" in change:
        if isinstance(change["enabled"], bool):
            values["enabled"] = change["enabled"]
        else:
            found.say(f"{path}.enabled", f"{change['enabled']!r:.40} is not true or false")
    if "applies" in change:
        if change["applies"] in get_args(Applies):
            values["applies"] = change["applies"]
        else:
            found.say(f"{path}.applies", f"{change['applies']!r:.40} is not one of {', '.join(get_args(Applies))}")
    if "material" in change:
        values["material"] = _material(change["material"], f"{path}.material", found)
    if "checks" in change:
        values["checks"] = _checks(change["checks"], f"{path}.checks", found)
    if beside:
        values["checks"] = _beside(rule, beside, path, found)
    made = replace(rule, **values)
    if made.hits > made.window:
        found.say(f"{path}.hits", f"{made.hits} of {made.window} steps can never be reached: hits is above window")
    return made


def _beside(rule: Rule, beside: Mapping[str, Any], path: str, found: _Findings) -> tuple[Check, ...]:
    """Fields of the one check's comparison, given beside the rule's own."""
    if len(rule.checks) != 1:
        known = ", ".join(_OWN)
        for name in beside:
            found.say(f"{path}.{name}", f"is not a field of a rule with {len(rule.checks)} checks; fields are {known}")
        return rule.checks
    check = rule.checks[0]
    comparison = _comparison(type(check.comparison), beside, path, found, base=check.comparison, own=_OWN)
    return (replace(check, comparison=comparison or check.comparison),)


def _checks(value: Any, path: str, found: _Findings) -> tuple[Check, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHECKS:
        found.say(path, f"is not a list of 1 to {MAX_CHECKS} checks")
        return ()
    made = []
    for index, one in enumerate(value):
        here = f"{path}.{index}"
        if not isinstance(one, Mapping):
            found.say(here, f"{one!r:.80} is not a table")
            continue
        kind = KINDS.get(one.get("kind", ""))
        if kind is None:
            found.say(f"{here}.kind", f"{one.get('kind')!r:.40} is not one of {', '.join(KINDS)}")
        metric = _metric(one.get("metric"), f"{here}.metric", found, absence=kind is Absence)
        slice_ = one.get("slice", "")
        if not isinstance(slice_, str) or len(slice_) > 64:
            found.say(f"{here}.slice", f"{slice_!r:.80} is not a text of up to 64 characters")
        elif kind is not None:
            rest = {name: given for name, given in one.items() if name not in {"kind", "metric", "slice"}}
            comparison = _comparison(kind, rest, here, found)
            if comparison is not None and metric is not None:
                made.append(Check(metric=metric, comparison=comparison, slice=slice_))
    return tuple(made)


def _metric(value: Any, path: str, found: _Findings, *, absence: bool = False) -> str | None:
    known: Collection[str] = (SILENCE,) if absence else METRICS
    if isinstance(value, str) and value in known:
        return value
    found.say(path, f"{value!r:.80} is not a metric{_close(value, known)}")
    return None


def _material(value: Any, path: str, found: _Findings) -> Material | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) != {"metric", "above"}:
        found.say(path, "is not null or a table with `metric` and `above`")
        return None
    metric = _metric(value["metric"], f"{path}.metric", found)
    above = _number(value["above"], f"{path}.above", found)
    return None if metric is None or above is None else Material(metric=metric, above=above)


def _comparison(
    kind: type[Comparison],
    given: Mapping[str, Any],
    path: str,
    found: _Findings,
    *,
    base: Comparison | None = None,
    own: tuple[str, ...] = ("slice", "metric", "kind"),
) -> Comparison | None:
    """One comparison from its fields; None where something is wrong."""
    before = len(found)
    known = {field.name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        here = f"{path}.{name}"
        if name not in known:
            found.say(here, f"is not a field{_close(name, (*known, *own))}")
        elif name == "direction":
            values[name] = value
            if value not in get_args(Direction):
                found.say(here, f"{value!r:.40} is not one of {', '.join(get_args(Direction))}")
        elif name == "guard":
            values[name] = _guard(value, here, found)
        elif kind is Band and name in {"warning", "critical"}:
            values[name] = _lines(value, here, found, optional=name == "critical")
        elif name == "factor" and value is None:
            values[name] = None
        elif name == "min_history":
            values[name] = value
            if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= HISTORY:
                found.say(here, f"{value!r:.40} is not a whole number of 2 .. {HISTORY}, the history that is kept")
        else:
            values[name] = _number(value, here, found)
    for name, field in known.items():
        if base is None and name not in given and field.default is MISSING:
            found.say(f"{path}.{name}", "is missing")
    if len(found) > before:
        return None
    made: Comparison = kind(**values) if base is None else replace(base, **values)
    _consistent(made, path, found)
    return made


def _consistent(made: Comparison, path: str, found: _Findings) -> None:
    """What each field by itself cannot tell."""
    if isinstance(made, Absence):
        pairs = [(made.warning_steps, made.critical_steps), (made.warning_floor_s, made.critical_floor_s)]
    elif isinstance(made, Band):
        sign = -1.0 if made.direction == "below" else 1.0
        warning, critical = _by_class(made.warning), _by_class(made.critical)
        pairs = [
            (sign * low, sign * high)
            for low, high in zip(warning, critical, strict=True)
            if low is not None and high is not None
        ]
        if not 0.0 < made.clear <= 1.0:
            found.say(f"{path}.clear", f"{made.clear:g} is outside 0 .. 1, the share of the line it clears inside")
    else:
        pairs = [(made.warning, made.critical)]
    for low, high in pairs:
        if low > high:
            found.say(f"{path}.critical", f"{abs(high):g} is reached before the warning's {abs(low):g}")
    if isinstance(made, RobustZ) and made.clear > made.warning:
        found.say(
            f"{path}.clear", f"{made.clear:g} is above the warning's {made.warning:g}: it would clear as it fires"
        )
    if isinstance(made, RobustZ) and made.min_scale <= 0:
        found.say(f"{path}.min_scale", f"{made.min_scale:g} is not above 0")


def _by_class(lines: Any) -> list[float | None]:
    return [lines.get(name) for name in LADDER] if isinstance(lines, Mapping) else [lines] * len(LADDER)


def _lines(value: Any, path: str, found: _Findings, *, optional: bool) -> Any:
    if value is None and optional:
        return None
    if not isinstance(value, Mapping):
        return _number(value, path, found)
    for name, line in value.items():
        if name not in LADDER:
            found.say(f"{path}.{name}", f"is not a class; classes are {', '.join(LADDER)}")
        elif line is not None:
            _number(line, f"{path}.{name}", found)
    return dict(value)


def _guard(value: Any, path: str, found: _Findings) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or (value and len(value) < 2) or len(value) > 8:
        found.say(path, f"{value!r:.80} is not an empty list or one of 2 to 8 rising lines")
        return ()
    numbers = [_number(one, f"{path}.{index}", found) for index, one in enumerate(value)]
    lines = [number for number in numbers if number is not None]
    if lines != sorted(lines):
        found.say(path, f"{value!r:.80} does not rise")
    return tuple(lines)


def _number(value: Any, path: str, found: _Findings) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found.say(path, f"{value!r:.40} is not a finite number")
        return None
    return float(value)


def _close(value: Any, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(value)[:128], list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
