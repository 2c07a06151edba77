"""The package imports lightly and offers the names it promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tailwatch_collectors
from tailwatch_collectors import transport

HEAVY = ("torch", "polars", "fastapi", "pandas", "numba", "plotly", "sqlalchemy")


def _loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    loaded = _loaded("import tailwatch_collectors")

    assert loaded.isdisjoint({*HEAVY, "numpy", "pyarrow", "httpx", "asyncio"})


def test_connect_loads_no_framework() -> None:
    loaded = _loaded(
        "import tailwatch_collectors\ntailwatch_collectors.connect(project='p', run='r', url='http://127.0.0.1:9').close(0)"
    )

    assert loaded.isdisjoint(HEAVY)
    assert {"numpy", "pyarrow", "httpx"} <= loaded


def test_public_names_are_there() -> None:
    for name in tailwatch_collectors.__all__:
        assert getattr(tailwatch_collectors, name) is not None
    assert set(tailwatch_collectors.__all__) == set(dir(tailwatch_collectors))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        tailwatch_collectors.nothing_of_ours  # noqa: B018  # the access is what is tested


def test_user_agent_names_the_version() -> None:
    assert transport.USER_AGENT.endswith(f"/{tailwatch_collectors.__version__}")
