"""Numbers as people read them: three significant digits, units, powers of ten in Unicode (Plotly's own
superscripts would need inline styles, which the content security policy forbids)."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "\N{MINUS SIGN}"


def number(value: float | None, *, digits: int = 3) -> str:
    """A value with `digits` significant digits; a dash where there is none.

    >>> number(0.0012345), number(12345.6), number(1.3e-13), number(None)
    ('0.00123', '12,300', '1.30×10⁻¹³', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))  # 99.99 is 100, not 100.0
    if exponent < -4 or exponent > 6:
        return power(value, digits=digits)
    decimals = max(0, digits - 1 - exponent)
    text = f"{round(value, digits - 1 - exponent):,.{decimals}f}"
    return text.replace("-", _MINUS)


def limit(value: float | None) -> str:
    """A chosen line rather than a measurement: 0.01, without the zeros of three significant digits."""
    if value is None:
        return MISSING
    return f"{value:g}" if abs(value) >= 1e-4 else power(value, digits=1)


def power(value: float, *, digits: int = 3) -> str:
    """A value as mantissa and power of ten: 1.30×10⁻¹³."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}×10{superscript(int(exponent))}".replace("-", _MINUS)


def superscript(exponent: int) -> str:
    """An integer in superscript digits."""
    return str(exponent).translate(_SUPERSCRIPT)


def decade(exponent: int) -> str:
    """A power of ten as an axis label: plain between 0.001 and 1000, else 10⁻⁶."""
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return f"10{superscript(exponent)}"


def percent(share: float | None, *, digits: int = 3) -> str:
    """A share in percent: 1.23 %; a dash where there is none."""
    return MISSING if share is None else f"{number(100 * share, digits=digits)} %"


def bound(value: float) -> str:
    """A bound of a correction, as short as it can be written: 2, 0.5, 1.0004."""
    return f"{value:.6g}"


def times(ratio: float | None) -> str:
    """A ratio: ×1.8."""
    if ratio is None or not math.isfinite(ratio):
        return MISSING
    return f"×{number(ratio, digits=2 if abs(ratio) < 10 else 3)}"


def count(value: float | None) -> str:
    """A whole number with separators; millions and more in words: 3,454 or 1.25 M."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{int(value):,}"


def age(seconds: float) -> str:
    """A span of time in its largest unit: 3 s, 14 min, 2 h, 5 d."""
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def moment(at: float) -> str:
    """Unix seconds as an ISO time in UTC, for the `datetime` attribute and exports."""
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_unit(value: float | None, *, unit: str) -> str:
    """A number and its unit; the bare dash where there is none, and no unit for shares and ratios."""
    text = number(value)
    return text if text == MISSING or unit in {"", "1", "ratio", "share"} else f"{text} {unit}"


_MACROS = {
    r"\mathbb{E}": "E", r"\mathbb{R}": "ℝ", r"\tfrac12": "½", r"\pi": "π", r"\mu": "μ", r"\Phi": "Φ", r"\sum": "Σ",
    r"\Pr": "P", r"\mid": "|", r"\le": "≤", r"\ge": "≥", r"\notin": "∉", r"\wedge": "and", r"\neg": "not",
    r"\lceil": "⌈", r"\rceil": "⌉", r"\arg": "arg", r"\hat k": "k̂", r"\,": " ", r"\;": " ", r"\ ": " ",
    r"\{": "{", r"\}": "}", r"\#": "#",
}  # fmt: skip
_WRAPPERS = re.compile(r"\\(?:mathrm|text|operatorname)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[td]?frac(?:\{([^{}]*)\}|(\w))(?:\{([^{}]*)\}|(\w))")
_ACCENT = re.compile(r"\\(bar|hat)\s*\\?(\w)")
_SCRIPT = re.compile(r"([_^])\{([^{}]*)\}")


def formula(latex: str) -> str:
    """The registry's LaTeX as one readable line of Unicode: a page without a typesetter still shows what is
    computed.

    >>> formula(r"\\tfrac12\\mathbb{E}[d^2]") '½E[d²]'
    """
    text = latex
    for macro in sorted(_MACROS, key=len, reverse=True):
        pattern = re.escape(macro) + ("(?![a-zA-Z])" if macro[-1].isalpha() else "")
        text = re.sub(pattern, _MACROS[macro], text)
    text = re.sub(r"\\(cosh|tanh|log|ln)(?![a-zA-Z])", r" \1", text)
    text = _WRAPPERS.sub(r"\1", text)
    text = _FRACTION.sub(lambda found: f"({found[1] or found[2]}/{found[3] or found[4]})", text)
    text = _ACCENT.sub(lambda found: found[2] + ("\u0304" if found[1] == "bar" else "\u0302"), text)
    text = re.sub(r"\\overline\{(.*)\}", r"mean(\1)", text)
    text = re.sub(r"\\sqrt\s*", "√", text)
    text = _SCRIPT.sub(lambda found: found[1] + (found[2] if len(found[2]) == 1 else f"({found[2]})"), text)
    text = re.sub(r"\^(-?\d)\b", lambda found: superscript(int(found[1])), text)
    return " ".join(re.sub(r"\\([a-zA-Z]+)", r"\1", text).split())
