"""The plotly.js that the installed plotly package ships: its bytes, version, and what it would inject inline.

Served from here, never from a CDN. It runs under `script-src 'self'; style-src 'self'`: it needs no eval for
the charts we draw (one guarded call in a map library falls back), and it injects its style sheets only where
the page has no element of the same id, so the page carries those ids itself and our own plotly.css holds the
rules.
"""

from __future__ import annotations

import gzip
import re
from functools import cache
from importlib import resources

import plotly

VERSION = str(plotly.__version__)

_INJECTED = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


@cache
def script() -> bytes:
    """The minified library."""
    return resources.files("plotly").joinpath("package_data").joinpath("plotly.min.js").read_bytes()


@cache
def script_gzip() -> bytes:
    """The same, compressed once: 4.8 MB become 1.5 MB."""
    return gzip.compress(script(), compresslevel=6, mtime=0)


@cache
def style_ids() -> tuple[str, ...]:
    """Ids of the style sheets the library injects at load unless the page already has an element of that
    id."""
    return tuple(dict.fromkeys(_INJECTED.findall(script().decode())))
