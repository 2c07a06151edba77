"""The command line of the SDK: `tail` follows what trainers already write, `import` posts histories of scalars,
`replay` sends what a spool holds.

Also part of the service's `tailwatch` command, by `add_tail` and `add_import`. What is wrong with a setting is said
in one line on stderr, with exit code 2; 1 means that something was read that could not be stored.
"""
# ruff: noqa: T201  # a command line prints

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwatch_collectors.errors import ConfigurationError

if TYPE_CHECKING:
    from tailwatch_collectors.files.scalars import Imported, Point, PointProblem
    from tailwatch_collectors.files.tail import Progress, Totals
    from tailwatch_collectors.settings import Settings

BAD_USAGE = 2
"""Exit code for what the user can put right."""

DEFAULT_URL = "http://127.0.0.1:8321"

_FORMATS = ("prime-rl", "nemo-rl", "slime", "skyrl", "verl")
_HISTORIES = ("wandb", "tensorboard", "jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tailwatch_collectors", description="Take what trainers already write to Tailwatch."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_tail(commands)
    add_import(commands)
    _add_replay(commands)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


def add_tail(commands: Any) -> None:
    """Add the command `tail` to a parser's commands."""
    parser = commands.add_parser(
        "tail",
        help="send the log-probs a trainer writes to files",
        description="Send per-token log-probs from the files a trainer already writes, each sequence exactly once. "
        "Started again, it goes on where it was.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory the trainer writes to")
    parser.add_argument("--format", required=True, choices=_FORMATS, help="what the files are")
    _add_place(parser)
    parser.add_argument("--follow", action="store_true", help="go on waiting for new files until stopped")
    parser.add_argument("--from-start", action="store_true", help="begin with the oldest file, whatever was sent")
    parser.add_argument("--dry-run", action="store_true", help="read and count, send nothing, remember nothing")
    parser.add_argument("--cursor", type=Path, help="file that remembers what was sent (default: one in DIR)")
    parser.add_argument(
        "--settle",
        type=_seconds,
        default=10.0,
        help="seconds without a change after which a file is whole (default 10)",
    )
    parser.add_argument("--group-size", type=_count, help="nemo-rl: generations per prompt, to name the prompts")
    parser.add_argument("--session", help="launch of the trainer the files are of (default: named after DIR)")
    parser.add_argument("--framework", help="noted with the run (default: the format)")
    parser.add_argument("--rank", type=int, default=0, help="sender, where several tails read parts of a step")
    parser.add_argument("--world-size", type=_count, default=1, help="how many of them there are (default 1)")
    parser.add_argument("--finished", action="store_true", help="at the end, say that the run is over")
    parser.set_defaults(run=lambda parsed: _run(_tail, parsed))


def add_import(commands: Any) -> None:
    """Add the command `import` to a parser's commands."""
    parser = commands.add_parser(
        "import",
        help="send a history of scalars from W&B, TensorBoard or JSON lines",
        description="Send the numbers of a finished or running job under the names its tool gave them. Sent again, "
        "they change nothing.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="file, or directory of event files")
    parser.add_argument("--format", required=True, choices=_HISTORIES, help="what the files are")
    _add_place(parser)
    parser.add_argument("--step-key", help="name of the step (default: the one the tool uses)")
    parser.add_argument("--session", help="attempt to file them under (default: the run's latest)")
    parser.add_argument("--dry-run", action="store_true", help="read and count, send nothing")
    parser.set_defaults(run=lambda parsed: _run(_import, parsed))


def _add_replay(commands: Any) -> None:
    from tailwatch_collectors.replay import add_replay

    add_replay(commands)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"root of the service (default TAILWATCH_URL, else {DEFAULT_URL})")
    parser.add_argument("--project", help="project of the run (default TAILWATCH_PROJECT)")
    parser.add_argument("--run", dest="run_name", metavar="RUN", help="name of the run (default TAILWATCH_RUN)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _run(command: Callable[[argparse.Namespace, threading.Event], int], parsed: argparse.Namespace) -> int:
    """One command, until it is through or a signal stops it between two requests."""
    from tailwatch_collectors.files.service import Stopped

    with _stoppable() as stop:
        try:
            return command(parsed, stop)
        except ConfigurationError as error:
            _say(str(error))
            return BAD_USAGE
        except Stopped:
            _say("stopped before the service had answered; run it again to go on")
            return 1


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; only the main thread can have signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(parsed: argparse.Namespace, **more: Any) -> Settings:
    from tailwatch_collectors.settings import Settings

    url = parsed.url or os.environ.get("TAILWATCH_URL") or DEFAULT_URL
    # Nothing is sent, so nothing has to be named.
    names: dict[str, Any] = {"project": "dry-run", "run": "dry-run"} if parsed.dry_run else {}
    given = {"project": parsed.project, "run": parsed.run_name, "session": parsed.session}
    names |= {name: value for name, value in given.items() if value}
    return Settings.read(os.environ, url=url, **names, **more)


# --- tail ----------------------------------------------------------------------------------------------------------


def _tail(parsed: argparse.Namespace, stop: threading.Event) -> int:
    from tailwatch_collectors.files import format as formats
    from tailwatch_collectors.files.cursor import Cursor
    from tailwatch_collectors.files.service import Service
    from tailwatch_collectors.files.tail import Tail

    root: Path = parsed.directory
    if not root.is_dir():
        raise ConfigurationError(f"{root} is not a directory")
    format_ = formats.named(parsed.format, group_size=parsed.group_size)
    framework = parsed.framework or parsed.format
    settings = _settings(parsed, rank=parsed.rank, world_size=parsed.world_size, framework=framework)
    place = f"{parsed.format} {root.resolve()}"
    source = f"{place} -> {settings.url} {settings.project}/{settings.run} rank {settings.rank}"
    session = parsed.session or f"tail-{_digest(place + settings.project + settings.run)}"
    path = None if parsed.dry_run else parsed.cursor or root / f".tailwatch-{parsed.format}-{_digest(source)}.json"
    cursor, unread = Cursor.load(path, session=session, source=source)
    if unread is not None:
        _say(f"{unread}; beginning with the oldest file, what was sent is answered as a duplicate")
    if parsed.from_start:
        cursor.rewind()
    service = None if parsed.dry_run else Service(settings, stop=stop, tell=_say)
    try:
        if service is not None:
            _keep(cursor, source)
            service.open(session=cursor.session)
        tail = Tail(
            root,
            format=format_,
            service=service,
            cursor=cursor,
            source=source,
            stop=stop,
            tell=_say,
            progress=_shower(),
            settle=parsed.settle,
            rank=settings.rank,
            world_size=settings.world_size,
            framework=framework,
        )
        try:
            tail.run(follow=parsed.follow)
            if parsed.finished and service is not None and not stop.is_set():
                service.note("events", {"kind": "finished"}, key=f"finished-{cursor.session}")
        finally:
            print(_summary(tail.totals, dry_run=parsed.dry_run), flush=True)
    finally:
        if service is not None:
            service.close()
    return 1 if tail.totals.lost else 0


def _keep(cursor: Any, source: str) -> None:
    try:
        cursor.save(source=source)
    except OSError as error:
        reason = f"the cursor cannot be kept at {cursor.path}: {error.strerror or error}; pass --cursor"
        raise ConfigurationError(reason) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shower() -> Callable[[Progress], None]:
    """Shows progress: one line that moves on a terminal, one line per step elsewhere."""
    last: list[int] = []

    def show(progress: Progress) -> None:
        totals = progress.totals
        line = f"step {progress.step}, {progress.left} to go: {totals.sequences} sequences, {totals.tokens} tokens"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif last != [progress.step]:
            print(line, flush=True)
        last[:] = [progress.step]

    return show


def _summary(totals: Totals, *, dry_run: bool) -> str:
    batches = sum(totals.batches.values())
    said = [f"{totals.units} steps, {batches} batches, {totals.sequences} sequences, {totals.tokens} tokens"]
    if dry_run:
        said.append("nothing sent")
    else:
        said += [f"{count} {status}" for status, count in sorted(totals.batches.items())]
    said += [f"{count} {kind}" for kind, count in sorted(totals.problems.items()) if kind != "refused"]
    start = "\r\x1b[K" if sys.stdout.isatty() else ""
    return start + "; ".join(said)


# --- import --------------------------------------------------------------------------------------------------------


def _import(parsed: argparse.Namespace, stop: threading.Event) -> int:
    from tailwatch_collectors.files import scalars
    from tailwatch_collectors.files.service import Service

    settings = _settings(parsed)
    service = None if parsed.dry_run else Service(settings, stop=stop, tell=_say)
    failed = 0
    try:
        if service is not None:
            service.open(session=parsed.session)
        for path in parsed.files:
            try:
                steps, problems = scalars.gather(_read(parsed, path), tell=_say)
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
            done = scalars.post(steps, service=service, progress=_shown(path))
            done.problems = problems
            print(_outcome(path, done, dry_run=parsed.dry_run), flush=True)
            for name, reason in sorted(done.ignored.items()):
                _say(f"{path}: {name!r:.140} not stored: {reason}")
            failed += done.lost + done.problems
    finally:
        if service is not None:
            service.close()
    return 1 if failed else 0


def _read(parsed: argparse.Namespace, path: Path) -> Iterator[Point | PointProblem]:
    from tailwatch_collectors.files import jsonl, tensorboard, wandb

    if not path.exists():
        raise ConfigurationError(f"{path} does not exist")
    if parsed.format == "tensorboard":
        return tensorboard.read(path)
    reader = wandb.read if parsed.format == "wandb" else jsonl.read
    return reader(path, step_name=parsed.step_key)


def _shown(path: Path) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K{path}: {done}/{total} steps", end="\n" if done == total else "", flush=True)

    return show


def _outcome(path: Path, done: Imported, *, dry_run: bool) -> str:
    what = "read, nothing sent" if dry_run else "stored"
    said = [f"{path}: {done.points} numbers of {done.steps} steps {what}"]
    said += [f"{done.missing} not finite"] if done.missing else []
    said += [f"{len(done.ignored)} names not stored"] if done.ignored else []
    said += [f"{done.problems} records not readable"] if done.problems else []
    return "; ".join(said)


def _say(line: str) -> None:
    print(f"tailwatch: {line}", file=sys.stderr, flush=True)
