"""The package imports lightly and offers the names it promises."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import tailwatch_collectors
from tailwatch_collectors import transport

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

HEAVY = ("torch", "polars", "fastapi", "pandas", "numba", "plotly", "sqlalchemy")


def _loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    loaded = _loaded("import tailwatch_collectors")

    assert loaded.isdisjoint({*HEAVY, "numpy", "pyarrow", "httpx", "asyncio"})


RECORD = """
import sys

import numpy as np
import tailwatch_collectors as tailwatch

collector = tailwatch.connect(project="p", run="r", url=URL, session="s", world_size=1)
x = np.full((2, 3), -1.0, np.float32)
collector.record(step=0, infer_logprobs=x, train_logprobs=x, mask=x < 0, reward=[1, 2], source=["a", "b"])
assert collector.flush(60)
assert collector.stats.sent == 1
collector.close()
"""


def test_recording_loads_no_framework(service: FakeService) -> None:
    loaded = _loaded(f"URL = {service.url!r}\n{RECORD}")

    assert loaded.isdisjoint(HEAVY)
    assert {"numpy", "pyarrow", "httpx"} <= loaded


def test_public_names_are_there() -> None:
    for name in tailwatch_collectors.__all__:
        assert getattr(tailwatch_collectors, name) is not None
    assert set(tailwatch_collectors.__all__) == set(dir(tailwatch_collectors))


def test_adapters_are_there_and_not_loaded_before() -> None:
    code = "import tailwatch_collectors as t; a = t.adapters.trl.attach; import sys"

    assert "tailwatch_collectors.adapters" not in _loaded("import tailwatch_collectors")
    assert "tailwatch_collectors.adapters.trl" in _loaded(code)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        tailwatch_collectors.nothing_of_ours  # noqa: B018  # the access is what is tested


def test_user_agent_names_the_version() -> None:
    assert transport.USER_AGENT.endswith(f"/{tailwatch_collectors.__version__}")
