"""Hooks on modules that are not there yet."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tailwatch_collectors.adapters import base
from tailwatch_collectors.adapters.post_import import on_import


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An importable package with one submodule, gone afterwards."""
    folder = tmp_path / "freshly_made"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("value = 1\ndef double():\n    return 2 * value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "freshly_made"
    for name in [name for name in sys.modules if name.startswith("freshly_made")]:
        del sys.modules[name]


def test_the_hook_runs_once_after_the_import(package: str) -> None:
    seen: list[int] = []

    def hook(module: Any) -> None:
        seen.append(module.value)
        module.value = 21

    on_import(f"{package}.inner", hook)
    assert seen == []
    inner = importlib.import_module(f"{package}.inner")
    assert (seen, inner.double()) == ([1], 42)
    importlib.reload(inner)
    assert seen == [1]


def test_a_module_that_is_there_is_hooked_at_once(package: str) -> None:
    inner = importlib.import_module(f"{package}.inner")
    seen: list[ModuleType] = []
    on_import(f"{package}.inner", seen.append)
    assert seen == [inner]


def test_several_hooks_and_one_that_fails(
    package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAILWATCH_SWALLOW", "1")
    monkeypatch.setattr(base.guard, "_seen", set())
    seen: list[str] = []

    def broken(module: ModuleType) -> None:
        raise ZeroDivisionError(module.__name__)

    on_import(f"{package}.inner", broken)
    on_import(f"{package}.inner", lambda module: seen.append(module.__name__))
    assert importlib.import_module(f"{package}.inner").double() == 2
    assert seen == [f"{package}.inner"]
    assert "ZeroDivisionError: freshly_made.inner" in caplog.text


def test_a_module_that_never_comes_is_no_error(package: str) -> None:
    on_import(f"{package}.absent", lambda _: pytest.fail("hooked"))
    with pytest.raises(ModuleNotFoundError, match="absent"):
        importlib.import_module(f"{package}.absent")


def test_what_the_import_raises_passes(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "bad.py").write_text("1 / 0\n")
    on_import(f"{package}.bad", lambda _: pytest.fail("hooked"))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(f"{package}.bad")
