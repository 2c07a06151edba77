"""tailwatch translate: every shape in which trainers write log lines, as text and JSON, and errors in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tailwatch_service import cli, translate_cli
from tailwatch_service.errors import SettingsError
from tailwatch_service.statistics.aliases import TOOLS
from tailwatch_service.translate_cli import Line, read_lines

VERL = {"rollout_corr/kl": 0.25, "rollout_corr/chi2_seq": 99.0, "critic/score/mean": 0.5}


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["translate", *arguments]) == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    return " ".join(text.split())


def objects(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (json.dumps(VERL), [None]),
        (json.dumps({"step": 3, "data": VERL}), [3]),
        (json.dumps([{"step": 3, **VERL}, {"step": 4, **VERL}]), [3, 4]),
        ("".join(json.dumps({"step": step, "data": VERL}) + "\n\n" for step in range(3)), [0, 1, 2]),
        ("".join(json.dumps({"_step": step, "_timestamp": 1.5, **VERL}) + "\n" for step in range(2)), [0, 1]),
        (json.dumps({"log_history": [{"step": 1, "epoch": 0.1, **VERL}], "best_metric": None}), [1]),
        (json.dumps({"training/global_step": 7, **VERL}), [7]),
        (
            json.dumps({"step": 1, "rollout_corr": {"kl": 0.25, "chi2_seq": 99.0}, "critic": {"score": {"mean": 0.5}}}),
            [1],
        ),
        ("[]", []),
        ("", []),
    ],
)
def test_shapes_of_log_lines(text: str, steps: list[Any]) -> None:
    lines = list(read_lines(text))
    assert [line.step for line in lines] == steps
    assert all(line.metrics == VERL for line in lines)


def test_a_metric_called_data_is_no_envelope() -> None:
    assert list(read_lines('{"step": 1, "data": 5}')) == [Line(1, {"data": 5})]
    assert list(read_lines('{"step": 1, "data": {"a": 1}, "b": 2}')) == [Line(1, {"data/a": 1, "b": 2})]


def test_nan_is_read_as_trainers_write_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"rollout_corr/kl": NaN, "rollout_corr/k3_kl": 0.5}')
    (found,) = objects(run("--from", "verl", "--json", str(file), capsys=capsys))
    assert found["metrics"] == {"kl_k3": 0.5}
    assert found["unmapped"][0]["key"] == "rollout_corr/kl"


def test_json_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 3, "data": VERL}) + "\n" + json.dumps({"step": 4, "data": VERL}) + "\n")
    first, second = objects(run("--from", "VERL", "--json", str(file), capsys=capsys))
    assert (first["step"], second["step"]) == (3, 4)
    assert first["metrics"] == {"kl_k1": 0.25, "log_ratio_mean": -0.25, "chi2_sequence_log10p1": 2.0}
    assert first["mapped"][2] == {
        "metric": "chi2_sequence_log10p1",
        "value": 2.0,
        "key": "rollout_corr/chi2_seq",
        "theirs": 99.0,
        "exact": True,
        "note": "theirs is 10^ours - 1; clamped: S at ±20",
    }
    assert [row["key"] for row in first["unmapped"]] == ["critic/score/mean"]


@pytest.mark.parametrize("name", [[], ["-"]])
def test_text_of_standard_input(
    name: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"step": 3, "data": VERL})))
    out = run("--from", "verl", *name, capsys=capsys)
    assert out.startswith("verl (read from 0.9.1), step 3\n")
    assert "kl_k1 0.25 = rollout_corr/kl" in words(out)
    assert "without a counterpart:\n    critic/score/mean: not a quantity" in out


def test_an_approximate_row_is_marked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"vllm_kl": 0.5}'))
    assert "kl_k1 0.5 ~ vllm_kl (mean of micro-batch means)" in words(run("--from", "openrlhf", capsys=capsys))


@pytest.mark.parametrize("tool", TOOLS)
def test_the_keys_of_a_tool(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = run("--from", tool, "--keys", capsys=capsys)
    (found,) = objects(run("--from", tool, "--keys", "--json", capsys=capsys))
    assert len(found["keys"]) == len(TOOLS[tool].aliases) == text.count("\n") - 1
    for row in found["keys"]:
        assert row["key"] in text
        assert row["metric"] is None or row["metric"] in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 is no JSON"),
        ('{"a": 1}\nnot json\n', "line 2 is no JSON"),
        ('{"a": 1}\n[1]\n', r"line 2 is \[1\], expected an object"),
        ("[1]", "record 1 is 1, expected an object"),
        ("3", "record 1 is 3, expected an object"),
        ('"x"', "record 1 is 'x'"),
        ("[" * 100_000, "nested too deeply|is no JSON"),
    ],
)
def test_what_is_no_log_line_is_named(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        list(read_lines(text))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "verk", "x.json"], "--from: 'verk' is not one of verl, trl"),
        (["--from", "verl", "missing.json"], "cannot read missing.json"),
    ],
)
def test_errors_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["translate", *arguments]) == cli.BAD_USAGE
    err = capsys.readouterr().err
    assert err.startswith("tailwatch: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"\xff\xfe\x00")
    assert cli.main(["translate", "--from", "verl", str(file)]) == cli.BAD_USAGE
    assert "cannot read" in capsys.readouterr().err


def test_a_file_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(translate_cli, "MAX_BYTES", 10)
    file = tmp_path / "x.json"
    file.write_text('{"a": 1234567}')
    assert cli.main(["translate", "--from", "verl", str(file)]) == cli.BAD_USAGE
    assert "longer than 10 characters" in capsys.readouterr().err


def test_the_page_shows_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "translate.md").read_text(encoding="utf-8")
    assert all(f"`{tool}`" in page for tool in TOOLS)
    shown = page.split("```")[1].split("metrics.json\n")[1]
    line = {
        "rollout_corr/kl": 0.001,
        "rollout_corr/k3_kl": 0.004,
        "rollout_corr/chi2_seq": 394.83,
        "rollout_corr/rollout_is_eff_sample_size": 0.959,
        "rollout_corr/rollout_is_max": 2.0,
        "actor/ppo_kl": 0.1,
    }
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"step": 3, "data": line})))
    assert run("--from", "verl", capsys=capsys) == shown
