"""The recipe for a loop of one's own runs as the page has it, and what it records is aligned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

PAGE = Path(__file__).parents[3] / "docs" / "adapters" / "loop.md"


def test_the_recipe_of_the_page(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILWATCH_URL", service.url)
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(recipe, str(PAGE), "exec"), {})  # noqa: S102 - the page is ours
    batches = [service.batches[key] for key in sorted(service.batches)]
    assert [batch.meta.step for batch in batches] == [0, 1, 2]
    for batch in batches:
        d = batch.train_logprobs_N - batch.infer_logprobs_N
        assert 1e-5 < np.abs(d).max() < 1e-2  # float16 against float32: a mismatch, and nothing else
        assert batch.sequences == 8
