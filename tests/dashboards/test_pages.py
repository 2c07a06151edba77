"""Pages: every state renders, hostile names stay text, nothing is inline, and what updates matches what was painted."""

from __future__ import annotations

import dataclasses
import json
import re

import polars as pl
import pytest

from tailwatch_dashboards import pages, plotlyjs
from tailwatch_dashboards.types import EventMark, RunView
from tests.dashboards import fakes

NOW = fakes.NOW
ORIGIN = "http://127.0.0.1:8321"
HOSTILE = "<img src=x onerror=alert(1)>\"'&</script>"


def run_page(view: RunView) -> str:
    return pages.run_page(view, origin=ORIGIN, now=NOW)


def nan_only() -> RunView:
    """Steps that carry nothing but token counts."""
    view = fakes.run_view("healthy", 4)
    blank = view.series.with_columns(pl.exclude("step", "tokens") * None)
    assert view.latest is not None
    latest = dataclasses.replace(view.latest, metrics={"tokens": 3450.0}, missing={"kl_k3": "no valid tokens"})
    return dataclasses.replace(view, series=blank, recent=blank, baseline=None, latest=latest, chosen=latest)


STATES = {
    "healthy": fakes.run_view("healthy"),
    "collapsing": fakes.run_view("collapsing"),
    "control": fakes.run_view("control"),
    "one step": fakes.run_view("healthy", 1),
    "no steps": fakes.run_view("healthy", 0),
    "nan only": nan_only(),
    "lost": fakes.run_view("healthy", 40, activity="lost"),
    "hostile": fakes.run_view("healthy", 5, name=HOSTILE, project=HOSTILE, config={HOSTILE: {"a": HOSTILE}}),
    "no registry": fakes.run_view("healthy", 5, metrics={}),
}


def documents() -> dict[str, str]:
    rows = [fakes.run_row("collapsing"), fakes.run_row("healthy", 0), fakes.run_row("healthy", 3, name=HOSTILE)]
    made = {f"run {name}": run_page(view) for name, view in STATES.items()}
    made["list"] = pages.runs_page(rows, next_cursor="abc", query=HOSTILE, origin=ORIGIN, now=NOW)
    made["empty list"] = pages.runs_page([], next_cursor=None, query="", origin=ORIGIN, now=NOW)
    made["404"] = pages.not_found_page(run_id=HOSTILE, near=rows)
    made["login"] = pages.login_page(next_path=HOSTILE, problem=HOSTILE)
    made["definitions"] = pages.definitions_page(list(fakes.METRICS.values()))
    return made


@pytest.mark.parametrize("name", list(documents()))
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(name: str) -> None:
    page = documents()[name]
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert scripts
    assert all('src="/static/' in attributes and not body.strip() for attributes, body in scripts)
    assert not re.search(r"<style\b|\sstyle=|\son[a-z]+=\"|javascript:", page)
    outside = re.findall(r"(?:src|href|action)=\"(?!/|#)([^\"]*)\"", page)
    assert outside == []


@pytest.mark.parametrize("name", list(documents()))
def test_every_page_has_its_landmarks(name: str) -> None:
    page = documents()[name]
    assert page.count("<main") == 1
    assert page.count("<h1") == 1
    assert '<html lang="en">' in page
    assert 'href="#main"' in page


def test_hostile_names_stay_text() -> None:
    for page in documents().values():
        assert "<img" not in page
    view = pages.run_view(STATES["hostile"], theme="light", now=NOW)
    assert not any("<img" in section for section in view["sections"].values())
    assert "&lt;img" in view["sections"]["config"]


@pytest.mark.parametrize("name", list(STATES))
def test_the_update_repaints_what_the_page_painted(name: str) -> None:
    page, view = run_page(STATES[name]), pages.run_view(STATES[name], theme="light", now=NOW)
    for key, section in view["sections"].items():
        assert f'id="{key}"' in page
        assert section.strip() in page, key
    json.dumps(view, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("healthy", "healthy", "Trainer and inference engine agree"),
        ("collapsing", "unhealthy", "drifted apart"),
        ("control", "healthy", "agree to rounding"),
        ("no steps", "no data", "No steps yet"),
        ("nan only", "no data", "nothing can be judged"),
        ("one step", "healthy", "only 1 step judged"),
    ],
)
def test_the_verdict_comes_first_in_word_and_shape(name: str, state: str, words: str) -> None:
    page = run_page(STATES[name])
    assert words in page
    strip = page.index(f'<div class="verdict" data-state="{state}">')
    assert page.index('<svg class="glyph"', strip) < page.index(f'<p class="verdict-word">{state}', strip)
    assert strip < page.index('id="headline"') < page.index('id="plot-quantiles"')


def test_a_run_without_steps_shows_how_to_send_one() -> None:
    page = run_page(STATES["no steps"])
    assert "pip install tailwatch-collectors" in page
    assert f"url=&#34;{ORIGIN}&#34;" in page or f'url="{ORIGIN}"' in page
    assert "collector.record(" in page
    assert '<div id="content" hidden>' in page
    assert "pip install tailwatch-collectors" not in run_page(STATES["healthy"])


def test_the_page_keeps_plotly_from_injecting_styles() -> None:
    page = run_page(STATES["healthy"])
    assert 'id="plotly.js-style-global" class="no-inline-styles"' in page
    assert plotlyjs.style_ids()
    for name in plotlyjs.style_ids():
        assert f'<meta id="{name}"' in page


def test_headline_numbers_say_their_interval_where_they_have_one() -> None:
    view = fakes.run_view("healthy")
    assert view.latest is not None
    latest = dataclasses.replace(view.latest, intervals={"kl_k3": (1.25e-3, 2.5e-3), "log_ratio_q999": (0.5, 0.75)})
    section = pages.run_view(dataclasses.replace(view, latest=latest), theme="light", now=NOW)["sections"]["headline"]
    assert re.findall('title="(95 % [^"]+)"', section) == [
        "95 % interval: 0.00125 to 0.00250",
        "95 % interval: 0.500 to 0.750",
    ]
    assert "95 %" not in pages.run_view(view, theme="light", now=NOW)["sections"]["headline"]


def test_headline_numbers_stand_beside_their_baseline() -> None:
    section = pages.run_view(STATES["healthy"], theme="light", now=NOW)["sections"]["headline"]
    assert section.count('class="card number"') == 4
    assert "0.00111" in section
    assert "×0.75 baseline 0.00148 (steps 20–70)" in section
    assert section.count('<rect class="band"') == 3
    assert (
        'data-state="unhealthy"' in pages.run_view(STATES["collapsing"], theme="light", now=NOW)["sections"]["headline"]
    )


def test_links_lead_to_the_table_and_the_call_behind_each_figure() -> None:
    view = fakes.run_view("healthy", 40, chosen=12, run_id="a b/c")
    page = run_page(view)
    assert 'href="/runs/a%20b%2Fc/figures/envelope.csv?step=12"' in page
    assert 'href="/runs/a%20b%2Fc/figures/kl.csv"' in page
    assert 'href="/api/v1/runs/a%20b%2Fc/series?metrics=kl_k1,kl_k3"' in page
    assert 'href="/api/v1/runs/a%20b%2Fc/steps/12/envelope"' in page


def test_csv_is_the_table_behind_the_figure() -> None:
    view = fakes.run_view("healthy", 3)
    lines = pages.figure_csv(view, "kl").splitlines()
    assert lines[0] == "step,kl_k1,kl_k3"
    assert len(lines) == 4
    assert pages.figure_csv(view, "envelope").startswith("lower,upper,tokens,p2,p50,p98")
    with pytest.raises(KeyError):
        pages.figure_csv(view, "passwords")


def test_the_step_part_holds_only_what_depends_on_the_step() -> None:
    part = pages.step_view(fakes.run_view("healthy", 40, chosen=12), theme="dark")
    assert part["step"] == 12
    assert set(part["figures"]) == {"envelope", "survival"}
    assert set(part["sections"]) == {"step-facts", "quality", "worst", "corrections"}


def test_definitions_are_at_hand_for_every_link() -> None:
    page = run_page(STATES["collapsing"])
    for metric in ("kl_k3", "ess_token", "log_ratio_q001", "envelope_width_low", "tail_khat_upper"):
        assert f'data-metric="{metric}"' in page
        assert f'id="def-{metric}" popover' in page
    assert "rollout_corr/k3_kl" in page
    assert "KL(infer || train)" in page
    assert 'id="kl_k3"' in documents()["definitions"]


def test_findings_are_called_findings() -> None:
    view = fakes.run_view("healthy", 20)
    assert view.chosen is not None
    quiet = pages.run_view(view, theme="light", now=NOW)["sections"]["quality"]
    assert "nothing found" in quiet
    chosen = dataclasses.replace(view.chosen, metrics={**view.chosen.metrics, "tokens_invalid_positive": 7.0})
    found = pages.run_view(dataclasses.replace(view, chosen=chosen), theme="light", now=NOW)["sections"]["quality"]
    assert "1 of 2 checks found something" in found
    assert "7 (0.203 %)" in found


def test_frequent_events_are_one_line() -> None:
    marks = [EventMark(kind="weight_sync", at=NOW - 60, step=step, text=f"version {step}") for step in range(40)]
    resume = EventMark(kind="resume", at=NOW - 10, step=40, text="from 39")
    closed = EventMark(kind="step_closed", at=NOW - 5, step=40)
    view = fakes.run_view("healthy", 41, events=(*marks, resume, closed))
    section = pages.run_view(view, theme="light", now=NOW)["sections"]["events"]
    assert section.count("<tr>") == 2
    assert "40 times, last: version 39" in section
    assert "step closed" not in section


def test_the_list_tallies_states_and_draws_sparklines() -> None:
    page = documents()["list"]
    assert '<span class="tally" data-state="unhealthy">1 unhealthy</span>' in page
    assert page.count('<svg class="spark"') == 2
    assert 'data-cursor="abc"' in page
    assert "No runs yet" in documents()["empty list"]
    view = pages.runs_view([fakes.run_row("healthy")], next_cursor=None, now=NOW)
    assert view["count"] == 1
    assert 'data-key="r-healthy"' in view["sections"]["rows"]


def test_a_long_run_stays_a_small_answer() -> None:
    view = fakes.run_view("collapsing", 600)
    size = len(json.dumps(pages.run_view(view, theme="light", now=NOW)))
    assert size < 600_000
