"""What importing the package brings along, and that every error is of the tree it is drawn in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import tailwatch_alp
from tailwatch_alp import errors
from tailwatch_alp.errors import AlpError


def test_no_framework_comes_along() -> None:
    modules = [module.name for module in pkgutil.walk_packages(tailwatch_alp.__path__, "tailwatch_alp.")]
    assert "tailwatch_alp.adapters.trl" in modules
    strangers = {"transformers", "trl", "peft", "datasets", "tailwatch_collectors", "tailwatch_service", "pandas"}
    code = f"import sys, {', '.join(modules)}; print(sorted(set(sys.modules) & {strangers!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_exist_and_are_sorted() -> None:
    assert sorted(tailwatch_alp.__all__) == tailwatch_alp.__all__
    assert all(hasattr(tailwatch_alp, name) for name in tailwatch_alp.__all__)


def test_every_error_is_a_built_in_one_too_and_is_drawn() -> None:
    module = importlib.import_module("tailwatch_alp.errors")
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    for error in classes:
        assert issubclass(error, AlpError)
        assert error.__name__ in (errors.__doc__ or "")
        if error is not AlpError:
            assert issubclass(error, (ValueError, TypeError, IndexError, RuntimeError))
