"""The package of adapters: light, complete, documented."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import adapters

DOCS = Path(__file__).parents[3] / "docs" / "adapters"
FRAMEWORKS = ("torch", "trl", "verl", "slime", "miles", "skyrl", "roll", "swift", "ray", "transformers")


def _loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_no_adapter_is_loaded_before_it_is_named() -> None:
    loaded = _loaded("import tailwatch_collectors as tailwatch; tailwatch.adapters")
    assert not [name for name in loaded if name.startswith("tailwatch_collectors.adapters.")]
    assert loaded.isdisjoint({*FRAMEWORKS, "numpy", "pyarrow", "httpx"})


def test_no_adapter_loads_a_framework() -> None:
    names = ", ".join(f"tailwatch.adapters.{name}" for name in adapters.__all__)
    loaded = _loaded(
        f"import tailwatch_collectors as tailwatch; {names}; import tailwatch_collectors.adapters.verl_plugin"
    )
    assert loaded.isdisjoint(FRAMEWORKS)
    assert {f"tailwatch_collectors.adapters.{name}" for name in adapters.__all__} <= loaded


def test_an_unknown_framework() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        tailwatch.adapters.nothing_of_ours  # noqa: B018  # the access is what is tested
    assert dir(adapters) == adapters.__all__


def test_verl_finds_the_plug_in() -> None:
    (found,) = [one for one in entry_points(group="verl.plugins") if one.name == "tailwatch"]
    assert found.value == "tailwatch_collectors.adapters.verl_plugin"


def test_every_adapter_has_a_page_and_the_index_names_each() -> None:
    pages = {path.stem.replace("-", "_") for path in DOCS.glob("*.md")} - {"README", "loop"}
    assert pages == set(adapters.__all__)
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([a-z-]+\.md)\)", index)) == {path.name for path in DOCS.glob("*.md")} - {"README.md"}
