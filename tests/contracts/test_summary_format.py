"""The bytes against docs/summary-format.md: a reader written from that page, and writers of tomorrow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailwatch_collectors.summary import Summary, SummaryError, from_bytes, merge, to_bytes
from tailwatch_collectors.summary.check import leaves
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.slices import slices
from tests.contracts import summary_reader
from tests.contracts.summary_reader import Section
from tests.oracles.compare import assert_identical

GOLDEN = (Path(__file__).parent / "golden" / "summary_v1.bin").read_bytes()
PAGE = (Path(__file__).parents[2] / "docs" / "summary-format.md").read_text(encoding="utf-8")
Sections = dict[str, Section]


def test_the_reader_of_the_page_finds_what_ours_does() -> None:
    theirs = summary_reader.read(GOLDEN)
    ours = {path.removeprefix("summary."): value for path, value in leaves(from_bytes(GOLDEN))}
    assert list(theirs) == list(ours)
    for name, section in theirs.items():
        value = ours[name]
        if isinstance(value, tuple):
            assert tuple(section.names) == value
        else:
            assert section.shape == value.shape, name
            assert np.array_equal(np.array(section.values, value.dtype).reshape(value.shape), value), name


def test_the_writer_of_the_page_is_understood() -> None:
    assert_identical(from_bytes(summary_reader.write(summary_reader.read(GOLDEN))), from_bytes(GOLDEN))


def test_every_section_is_on_the_page() -> None:
    for name in summary_reader.read(GOLDEN):
        head, _, rest = name.partition(".")
        if head in {"slices", "bins"}:
            assert rest.rpartition(".")[2] in PAGE
            continue
        assert f"`{head}" in PAGE, name
        assert not rest or rest in PAGE, name


def test_planes_are_as_the_page_says() -> None:
    section = {"x": Section("i", (3,), [1, 2, 258])}
    data = summary_reader.write(section)
    assert summary_reader.read(data) == section
    assert "01 02 02 00 00 01 00 00 00 00 00 00" in PAGE


# --- writers of tomorrow ---


def newer(change: Callable[[Sections], None]) -> bytes:
    sections = summary_reader.read(GOLDEN)
    change(sections)
    return summary_reader.write(sections)


def copied_slice(sections: Sections, name: str) -> None:
    for section, values in list(sections.items()):
        if section.startswith("slices.source."):
            sections[section.replace("slices.source.", f"slices.{name}.")] = values


def test_a_slice_nobody_knows_is_kept_merged_and_written() -> None:
    data = newer(lambda sections: copied_slice(sections, "expert"))
    summary = from_bytes(data)
    assert metrics(summary).values == metrics(from_bytes(GOLDEN)).values
    twice = from_bytes(to_bytes(merge([summary, summary, from_bytes(GOLDEN)])))
    rows = {row.label: row.metrics["tokens"] for row in slices(summary)["source"]}
    assert {row.label: row.metrics["tokens"] for row in slices(twice)["expert"]} == {
        label: 2 * tokens for label, tokens in rows.items()
    }
    assert summary_reader.read(to_bytes(summary)) == dict(sorted_slices(summary_reader.read(data)))


def sorted_slices(sections: Sections) -> list[tuple[str, Section]]:
    """As ours are written: slices by name, in the place of the first."""
    names = list(sections)
    first = next(index for index, name in enumerate(names) if name.startswith("slices."))
    others = [name for name in names if not name.startswith("slices.")]
    inside = [name for name in names if name.startswith("slices.")]
    by_slice = sorted(inside, key=lambda name: name.split(".")[1])
    return [(name, sections[name]) for name in (*others[:first], *by_slice, *others[first:])]


def test_a_section_nobody_knows_is_left_out() -> None:
    def change(sections: Sections) -> None:
        sections["weather"] = Section("d", (2, 2), [1.0, 2.0, 3.0, 4.0])
        sections["slices.source.stats.kurtosis"] = Section("d", (3,), [1.0, 2.0, 3.0])

    assert_identical(from_bytes(newer(change)), from_bytes(GOLDEN))


def test_the_order_of_sections_does_not_matter() -> None:
    sections = summary_reader.read(GOLDEN)
    assert_identical(from_bytes(summary_reader.write(dict(reversed(sections.items())))), from_bytes(GOLDEN))


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("counters", 0), ("token_sums", 0), ("token_scaled.mantissa", 0), ("token_scaled.exponent", 0), ("above", 0),
        ("minima", 0), ("cluster_sums", 0), ("cluster_sums", 1), ("length_sums", 1), ("exceed_upper", 1),
        ("align", 1), ("bins.counts_RC", 1), ("slices.lag.stats.sums_RQ", 1), ("sign_grid.counts", 1),
    ],
)  # fmt: skip
def test_a_longer_vector_is_cut(name: str, axis: int) -> None:
    def change(sections: Sections) -> None:
        old = sections[name]
        array = np.array(old.values).reshape(old.shape)
        more = np.concatenate((array, np.take(array, [0], axis=axis)), axis=axis)
        sections[name] = Section(old.kind, more.shape, more.ravel().tolist())

    assert_identical(from_bytes(newer(change)), from_bytes(GOLDEN))


@pytest.mark.parametrize("name", ["counters", "bins.counts_RC", "length_counts", "slices.lag.stats.min_R", "align"])
def test_a_shorter_vector_is_refused(name: str) -> None:
    def change(sections: Sections) -> None:
        old = sections[name]
        array = np.array(old.values).reshape(old.shape)[:-1]
        sections[name] = Section(old.kind, array.shape, array.ravel().tolist())

    with pytest.raises(SummaryError, match=rf"{name}: has shape"):
        from_bytes(newer(change))


def without(name: str) -> bytes:
    return summary_reader.write({one: values for one, values in summary_reader.read(GOLDEN).items() if one != name})


def test_a_missing_section_is_named() -> None:
    with pytest.raises(SummaryError, match="cluster_extras: is missing"):
        from_bytes(without("cluster_extras"))
    with pytest.raises(SummaryError, match=r"slices\.lag\.labels: is missing"):
        from_bytes(without("slices.lag.labels"))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["b", "a", "c"], "not distinct, sorted"),
        (["a", "a", "b"], "not distinct, sorted"),
        (["a", "b", "x" * 300], "at most 256"),
        (["a", "b", "\ud800"], "damaged"),
        (["a", "b"], "keys must rise"),  # the third bucket's histogram has no bucket
        (["a", "b", 3], "list of names"),
    ],
)
def test_labels_are_checked(labels: list[object], reason: str) -> None:
    def change(sections: Sections) -> None:
        text = list(json.dumps(labels).encode())
        sections["slices.source.labels"] = Section("s", (len(text),), text)

    with pytest.raises(SummaryError, match=reason):
        from_bytes(newer(change))


def test_more_slices_than_a_reader_accepts_are_refused() -> None:
    def change(sections: Sections) -> None:
        for index in range(20):
            copied_slice(sections, f"s{index}")

    with pytest.raises(SummaryError, match="limit 16"):
        from_bytes(newer(change))


@pytest.mark.parametrize("name", ["Source", "so urce", "1st", "x" * 33, "\u00e9"])
def test_a_slice_needs_a_plain_name(name: str) -> None:
    with pytest.raises(SummaryError, match="is not a name"):
        from_bytes(newer(lambda sections: copied_slice(sections, name)))


def test_another_version_is_refused_by_its_number() -> None:
    for version in (0, 2, 255):
        with pytest.raises(SummaryError, match=rf"version {version} is not supported; this reader knows 1"):
            from_bytes(GOLDEN[:3] + bytes((version,)) + GOLDEN[4:])


def test_an_unknown_slice_survives_a_summary_that_lacks_it() -> None:
    summary = from_bytes(newer(lambda sections: copied_slice(sections, "expert")))
    for merged in (merge([summary, Summary.empty()]), merge([Summary.empty(), summary])):
        assert_identical(merged, summary)
    lacking = replace(summary, slices={name: part for name, part in summary.slices.items() if name != "expert"})
    assert merge([lacking, summary]).slices["expert"] is summary.slices["expert"]
