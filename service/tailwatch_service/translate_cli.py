"""`tailwatch translate`: a file of another tool's log lines, in our names.

Reads what trainers write: one JSON object, a list of them, JSON lines (verl's `{"step", "data"}`, W&B's `_step`) or the
`log_history` of a Hugging Face trainer state. Nested objects are joined with slashes. NaN is read: trainers write it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tailwatch_service.errors import SettingsError
from tailwatch_service.statistics.aliases import TOOLS, Tool
from tailwatch_service.statistics.translate import Translation, UnknownToolError, tool_of, translate

MAX_BYTES = 256 * 2**20
"""Largest file that is read at once."""

_STEPS = ("step", "_step", "global_step", "train/global_step", "trainer/global_step", "training/global_step")
_BOOKKEEPING = frozenset({*_STEPS, "_timestamp", "_runtime", "_wandb", "epoch", "train/epoch"})


@dataclass(frozen=True, slots=True)
class Line:
    """One log line."""

    step: Any
    """As written; None where it has none."""
    metrics: dict[str, Any]


def add_translate(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "translate",
        help="say another tool's metrics in our names",
        description="Translate the log lines of another tool into our metrics, and say what has none and why.",
        epilog=f"Tools: {', '.join(TOOLS)}.",
    )
    parser.add_argument("file", nargs="?", default="-", help="JSON or JSON lines; - or nothing: standard input")
    parser.add_argument("--from", dest="tool", required=True, metavar="TOOL", help="the tool that wrote it")
    parser.add_argument("--json", action="store_true", help="one JSON object per log line")
    parser.add_argument("--keys", action="store_true", help="list what is known of the tool's keys instead")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    try:
        tool = tool_of(parsed.tool)
    except UnknownToolError as error:
        raise SettingsError(f"--from: {error}") from error
    if parsed.keys:
        sys.stdout.write(_json(keys(tool)) if parsed.json else _keys_text(tool))
        return 0
    for line in read_lines(_content(parsed.file)):
        found = translate(tool.id, line.metrics)
        sys.stdout.write(_json(content(found) | {"step": line.step}) if parsed.json else _text(found, line.step))
    return 0


def content(found: Translation) -> dict[str, Any]:
    """A translation as JSON; of the API too."""
    return {
        "tool": found.tool,
        "version": found.version,
        "metrics": found.values,
        "mapped": [asdict(row) for row in found.mapped],
        "unmapped": [asdict(row) for row in found.unmapped],
    }


def keys(tool: Tool) -> dict[str, Any]:
    """What is known of a tool's keys, as JSON."""
    rows = [
        {"key": row.key, "metric": row.metric, "transform": row.transform, "exact": row.exact, "differs": row.differs}
        for row in tool.aliases
    ]
    return {"tool": tool.name, "version": tool.version, "prefixes": tool.prefixes, "keys": rows}


def read_lines(text: str) -> Iterator[Line]:
    """The log lines of a file.

    Raises:
        SettingsError: it is not JSON, or holds something else than objects; names the line.
    """
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        yield from _from_lines(text.splitlines())
        return
    except RecursionError:
        raise SettingsError("the file is nested too deeply") from None
    if isinstance(whole, Mapping) and isinstance(whole.get("log_history"), list):
        whole = whole["log_history"]
    for number, record in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield _line(record, f"record {number}")


def _from_lines(lines: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SettingsError(f"line {number} is no JSON: {error!s:.200}") from error
        yield _line(record, f"line {number}")


def _line(record: Any, where: str) -> Line:
    if not isinstance(record, Mapping):
        raise SettingsError(f"{where} is {record!r:.80}, expected an object of keys and numbers")
    step = next((record[name] for name in _STEPS if name in record), None)
    if set(record) == {"step", "data"} and isinstance(record["data"], Mapping):
        record = record["data"]
    flat = dict(_flat(record, ""))
    return Line(step, {key: value for key, value in flat.items() if key not in _BOOKKEEPING})


def _flat(record: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", value


def _content(name: str) -> str:
    if name == "-":
        found = sys.stdin.read(MAX_BYTES + 1)
    else:
        try:
            with Path(name).open(encoding="utf-8") as file:
                found = file.read(MAX_BYTES + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {name}: {error}") from error
    if len(found) > MAX_BYTES:
        raise SettingsError(f"{name} is longer than {MAX_BYTES} characters; split it by lines")
    return found


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _text(found: Translation, step: Any) -> str:
    head = f"{found.tool} (read from {found.version})" + ("" if step is None else f", step {step}")
    rows = [
        (row.metric, f"{row.value:.6g}", "=" if row.exact else "~", row.key + (f" ({row.note})" if row.note else ""))
        for row in found.mapped
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    lines = [head, *(f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c} {d}" for a, b, c, d in rows)]
    if found.unmapped:
        lines += ["  without a counterpart:", *(f"    {row.key}: {row.reason}" for row in found.unmapped)]
    return "\n".join(lines) + "\n"


def _keys_text(tool: Tool) -> str:
    lines = [f"{tool.name} (read from {tool.version})"]
    for row in tool.aliases:
        ours = "-" if row.metric is None else f"{'=' if row.exact else '~'} {row.metric}"
        lines.append(f"  {row.key}  {ours}" + (f"  ({row.differs})" if row.differs else ""))
    return "\n".join(lines) + "\n"
