"""Which backend runs: by argument, by environment, by what is installed; and nothing is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import BackendError, backend, summarise, warm_up
from tailwatch_collectors.types import BatchMeta
from tests.oracles.backends import assert_agree

BATCH = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0, -2.0]], train_logprobs=[[-1.5, -1.0]])


def loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.split())


def test_numba_is_loaded_by_the_first_summary_and_not_before() -> None:
    before = loaded("import tailwatch_collectors; import tailwatch_collectors.summary")
    assert "numba" not in before
    prepared = "from tailwatch_collectors.batch import Batch; from tailwatch_collectors.types import BatchMeta\n"
    prepared += "from tailwatch_collectors.summary import summarise\n"
    prepared += "b = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0]], train_logprobs=[[-1.0]])\n"
    assert "numba" not in loaded(prepared + "summarise(b, backend='numpy')")
    assert "numba" in loaded(prepared + "summarise(b)")


def test_every_backend_by_name() -> None:
    for name in ("numba", "numpy", "auto"):
        assert_agree(summarise(BATCH, backend=name), summarise(BATCH, backend="reference"))


def test_the_environment_decides_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = backend.choose()
    monkeypatch.setenv(backend.VARIABLE, "numpy")
    assert backend.choose() is not automatic
    assert backend.choose() is backend.choose("numpy")
    assert backend.choose("numba") is automatic
    monkeypatch.setenv(backend.VARIABLE, "")
    assert backend.choose() is automatic
    monkeypatch.setenv(backend.VARIABLE, "fortran")
    with pytest.raises(BackendError, match="TAILWATCH_SUMMARY_BACKEND is 'fortran', not one of auto, numba"):
        summarise(BATCH)


def test_without_numba_numpy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_installed", lambda: False)
    assert backend.choose() is backend.choose("numpy")
    warm_up()
    with pytest.raises(BackendError, match=r"tailwatch-collectors\[fast\]"):
        summarise(BATCH, backend="numba")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(BackendError, match="'cuda' is not one of auto, numba, numpy, reference"):
        summarise(BATCH, backend="cuda")  # type: ignore[arg-type]
