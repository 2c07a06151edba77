"""Single tokens: both ends of the worst, the shades of a sequence, and what is said where tokens are not kept."""

from __future__ import annotations

import math

import pytest

from tailwatch_dashboards import pages
from tailwatch_dashboards.tokens import LISTED, sequence_rows, shade, worst_ends
from tailwatch_dashboards.types import SequenceTokens, WorstRow
from tests.dashboards import fakes


def worst(d: float, **changes: object) -> WorstRow:
    fields = {"rank": 0, "part": 1, "row": 2, "position": 7, "token_id": 99, "seq_id": None} | changes
    return WorstRow(log_ratio=d, infer_logprob=-1.0, train_logprob=d - 1.0, **fields)  # type: ignore[arg-type]


def stretch(**changes: object) -> SequenceTokens:
    fields: dict[str, object] = {
        "step": 4, "rank": 0, "part": 0, "row": 3, "seq_id": "<b>s</b>", "first": 10, "length": 40, "chosen": 11,
        "infer_logprobs": (-1.0, -1.0, -1.0, math.nan), "train_logprobs": (-1.0, -4.0, -0.7, -1.0),
        "mask": (True, True, False, True), "token_ids": (5, 6, 7, 8),
    }  # fmt: skip
    return SequenceTokens(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        (0.0, "none"),
        (0.049, "none"),
        (0.05, "up-1"),
        (-0.2, "down-2"),
        (0.7, "up-3"),
        (-40.0, "down-4"),
        (math.nan, "missing"),
    ],
)
def test_shades_follow_the_size_and_side_of_d(d: float, expected: str) -> None:
    assert shade(d) == expected


def test_a_stretch_is_shown_in_order_with_the_chosen_token_marked() -> None:
    cells = sequence_rows(stretch())
    assert [(cell.text, cell.position, cell.shade) for cell in cells] == [
        ("5", 10, "none"), ("6", 11, "down-4"), ("7", 12, "up-2"), ("8", 13, "missing"),
    ]  # fmt: skip
    assert [cell.chosen for cell in cells] == [False, True, False, False]
    assert "masked out" in cells[2].hint
    assert "token id 6, position 11: d −3.00" in cells[1].hint
    assert [cell.text for cell in sequence_rows(stretch(token_ids=None))] == ["10", "11", "12", "13"]


def test_the_section_escapes_names_and_uses_no_inline_style() -> None:
    section = pages.sequence_view(stretch())["sections"]["sequence"]
    assert "<b>s" not in section
    assert "style=" not in section
    assert 'class="tok down-4" aria-current="true"' in section
    assert "tokens 10 to 13 of 40" in section
    assert "not kept" in pages.sequence_view("tokens are not kept")["sections"]["sequence"]


def test_both_ends_are_listed_up_to_a_limit() -> None:
    rows = [worst(-3.0 - i) for i in range(LISTED + 4)] + [worst(2.0, seq_id="s-1")]
    low, high = worst_ends(rows)
    assert (len(low.rows), low.more) == (LISTED, 4)
    assert (len(high.rows), high.more) == (1, 0)


def test_sequences_open_only_where_tokens_are_kept() -> None:
    shown = pages.step_view(fakes.run_view("healthy", 8, worst=(worst(-3.0),), kept=True), theme="light")
    assert 'data-sequence data-rank="0" data-part="1" data-row="2" data-position="7"' in shown["sections"]["worst"]
    hidden = pages.step_view(fakes.run_view("healthy", 8, worst=(worst(-3.0),)), theme="light")
    assert "data-sequence" not in hidden["sections"]["worst"]
    assert "--keep-tokens all" in hidden["sections"]["worst"]


def test_a_ratio_beyond_float64_has_no_number() -> None:
    assert worst(-2.0).ratio == pytest.approx(math.exp(-2))
    assert worst(5000.0).ratio == math.inf
