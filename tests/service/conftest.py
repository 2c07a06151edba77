"""Fixtures of the service's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.support import Start, starter


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts applications on a fresh directory."""
    return starter(tmp_path / "data")
