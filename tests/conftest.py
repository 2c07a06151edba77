"""Hypothesis, made deterministic; `pytest --hypothesis-profile=explore` draws anew at every run."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# Tests share their oracles as `tests.oracles`, whichever way pytest was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

settings.register_profile(
    "tailwatch",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("explore", settings.get_profile("tailwatch"), derandomize=False)
settings.load_profile("tailwatch")
