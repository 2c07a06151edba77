from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_service.detection.classes import Declared, declared, lag_bucket
from tailwatch_service.detection.comparisons import Absence, Band, Context, Growth, Reading, RobustZ, Share

Z = RobustZ(warning=4.0, critical=8.0, clear=2.0, material=1e-5, guard=(1e-2, 5e-2, 1e-1, 5e-1, 1.0))


def context(*history: float, run_class: str = "dense", stale: bool = False, lag: str = "0") -> Context:
    return Context(run_class=run_class, stale=stale, lag=lag, history=history)  # type: ignore[arg-type]


def read(value: float, *history: float, **where: object) -> Reading:
    found = Z.read(value, context(*history, **where))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_z_is_in_decades_over_the_scaled_mad() -> None:
    history = [10.0**x for x in (-3.2, -3.1, -3.0, -2.9, -2.8)] * 4  # median -3, MAD 0.1
    value = 10.0 ** (-3.0 + 5 * 0.14826)

    found = read(value, *history)

    assert found.score == pytest.approx(5.0)
    assert (found.level, found.clear) == (1, False)
    assert found.baseline == pytest.approx(1e-3)
    assert found.threshold == pytest.approx(10.0 ** (-3.0 + 4 * 0.14826))
    assert read(10.0 ** (-3.0 + 9 * 0.14826), *history).level == 2
    assert read(10.0 ** (-3.0 + 1.9 * 0.14826), *history).clear


def test_a_spread_below_the_floor_is_taken_as_the_floor() -> None:
    assert read(2e-3 * 1.01, *[1e-3] * 20).score == pytest.approx(math.log10(2.02) / 0.05)


def test_a_rise_that_is_not_twice_the_median_or_not_material_is_none() -> None:
    assert read(1.99e-3, *[1e-3] * 20).level == 0
    assert read(2.01e-3, *[1e-3] * 20).level == 1
    assert read(9e-6, *[1e-13] * 20).level == 0
    assert read(1.1e-5, *[1e-13] * 20).level == 2


@pytest.mark.parametrize(
    ("run_class", "stale", "line"),
    [("dense", False, 1e-2), ("dense", True, 5e-2), ("coarse", False, 5e-2), ("coarse", True, 0.1), ("moe", True, 0.5)],
)
def test_the_first_window_is_held_to_a_line_by_class_and_staleness(run_class: str, stale: bool, line: float) -> None:
    where = {"run_class": run_class, "stale": stale}
    assert read(line * 1.01, *[1e-3] * 19, **where).level == 1
    assert read(line * 0.99, *[1e-3] * 19, **where).level == 0
    assert not read(line * 0.51, **where).clear
    assert read(line * 0.49, **where).clear
    assert "0 of 20 earlier steps at lag 0" in read(line, **where).basis


def test_without_a_guard_the_first_window_is_not_judged() -> None:
    assert RobustZ(warning=4.0, critical=8.0, clear=2.0).read(1e9, context()) is None


def test_a_history_that_may_mix_lags_says_so() -> None:
    assert "may be mixed" in read(1e-3, *[1e-3] * 20, lag="unknown").basis


@given(st.lists(st.floats(1e-9, 10.0), min_size=20, max_size=50), st.floats(1e-9, 1e3), st.floats(1.0, 100.0))
def test_a_larger_value_never_reads_quieter(history: list[float], value: float, factor: float) -> None:
    assert read(value * factor, *history).level >= read(value, *history).level


@given(st.floats(0.0, 1e-20), st.lists(st.floats(0.0, 1e-20), min_size=20, max_size=20))
def test_rounding_noise_of_any_shape_is_quiet(value: float, history: list[float]) -> None:
    assert read(value, *history).level == 0


def test_bands_by_class_and_direction() -> None:
    band = Band(warning={"dense": 1e-3, "coarse": 1e-2, "moe": None}, critical={"dense": 1e-2, "coarse": 5e-2})
    dense = band.read(2e-3, context())
    assert dense is not None
    assert (dense.level, dense.clear) == (1, False)
    stale = band.read(2e-3, context(stale=True))
    assert stale is not None
    assert (stale.level, stale.threshold) == (0, 1e-2)
    assert band.read(1.0, context(run_class="moe")) is None
    assert band.read(1.0, context(run_class="coarse", stale=True)) is None
    below = Band(warning=0.95, critical=0.5, direction="below")
    assert [r.level for v in (0.96, 0.9, 0.4) if (r := below.read(v, context()))] == [0, 1, 2]
    around = Band(warning=0.02, critical=0.1, direction="away_from_1")
    assert [r.level for v in (1.01, 0.97, 0.8, 1.2) if (r := around.read(v, context()))] == [0, 1, 2, 2]


def test_a_share_with_a_factor_waits_for_the_runs_own_past() -> None:
    share = Share(warning=1e-4, critical=1e-3, factor=10.0, guard_warning=1e-2, guard_critical=1e-1)
    assert share.read(5e-3, context()).level == 0
    assert share.read(2e-2, context()).level == 1
    assert share.read(0.2, context()).level == 2
    assert share.read(5e-3, context(*[1e-3] * 20)).level == 0
    assert share.read(2e-2, context(*[1e-3] * 20)).level == 2
    assert share.read(2e-4, context(*[0.0] * 20)).level == 1
    assert Share(warning=0.0, critical=1e-3).read(0.0, context()).level == 0
    assert Share(warning=0.0, critical=1e-3).read(1e-9, context()).level == 1


def test_growth_is_over_the_median_at_equal_lag() -> None:
    growth = Growth(warning=2.0, critical=4.0)
    assert growth.read(9.0, context(*[1.0] * 19)) is None
    assert growth.read(9.0, context(*[0.0] * 20)) is None
    assert [r.level for v in (1.9, 2.1, 4.1) if (r := growth.read(v, context(*[1.0] * 20)))] == [0, 1, 2]


def test_silence_is_in_step_times_with_a_floor() -> None:
    absence = Absence(warning_steps=2, critical_steps=5, warning_floor_s=60, critical_floor_s=300)
    assert [absence.read_silence(s, step_s=1.0).level for s in (59, 61, 301)] == [0, 1, 2]
    assert [absence.read_silence(s, step_s=600.0).level for s in (1199, 1201, 3001)] == [0, 1, 2]


def test_classes_and_lags() -> None:
    assert declared(precision="FP8", model_class="dense", staleness_bound=0) == Declared(
        run_class="coarse", asynchronous=False
    )
    assert declared(precision="bf16", model_class="MoE-30B", staleness_bound=4).run_class == "moe"
    assert declared(precision=None, model_class=None, staleness_bound=4) == Declared(
        run_class="dense", asynchronous=True
    )
    found = [lag_bucket(lag) for lag in (None, 0.0, 0.1, 1.0, 2.0, 3.5, 5.0, 16.0, 17.0, 900.0, -2.0)]
    assert found == ["unknown", "0", "1", "1", "2", "3-4", "5-8", "9-16", "17+", "17+", "0"]
