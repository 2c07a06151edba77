"""The command line: serve, demo, replay, translate, keys, alerts, and the SDK's tail and import.

What is wrong with a setting is said in one line on stderr, with exit code 2. Heavy modules are imported by the
command that needs them, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tailwatch_collectors.cli import add_import, add_tail
from tailwatch_service.errors import SettingsError, TailwatchServiceError
from tailwatch_service.settings import KeepTokens, Settings
from tailwatch_service.translate_cli import add_translate
from tailwatch_service.types import Scope

if TYPE_CHECKING:
    from tailwatch_service.replay import Progress
    from tailwatch_service.storage.database import Database

BAD_USAGE = 2
"""Exit code for what the user can put right."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except TailwatchServiceError as error:
        print(f"tailwatch: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tailwatch",
        description="Is this RL run still healthy, and if not, why?",
        epilog="Every setting can also be given as TAILWATCH_<NAME>, or in a TOML file named by TAILWATCH_CONFIG.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_demo(commands)
    _add_replay(commands)
    add_tail(commands)
    add_import(commands)
    add_translate(commands)
    _add_keys(commands)
    _add_alerts(commands)
    return parser


def _add_place(parser: argparse.ArgumentParser, *, data_help: str) -> None:
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default 8321)")
    parser.add_argument("--data-dir", type=Path, help=data_help)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="what is logged")


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="run the service", description="Run the service until SIGTERM or Ctrl-C."
    )
    _add_place(parser, data_help="directory of the database and of kept tokens (default ./tailwatch-data)")
    parser.add_argument("--database-url", help="SQLAlchemy URL (default: SQLite in the data directory)")
    parser.add_argument("--keep-tokens", choices=get_args(KeepTokens), help="whether raw tokens are kept (default off)")
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="serve an address others can reach without any key"
    )
    parser.set_defaults(run=_serve)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="serve, and replay recorded runs",
        description="Run the service on a fresh directory and replay every recording into it. "
        "TAILWATCH_DEMO_SECONDS=N ends it after N seconds.",
    )
    _add_place(parser, data_help="keep the data here (default: a temporary directory)")
    parser.add_argument(
        "--recordings", type=Path, default=Path("lab/recordings"), help="directory of recordings (default %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=40.0, help="how long the longest replay takes (default %(default)s)"
    )
    parser.set_defaults(run=_demo)


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="stream recordings into a running service",
        description="Stream recordings through the SDK into a running service, one after the other.",
    )
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING", help="Parquet file of a recorded run")
    parser.add_argument("--url", help="root of the service (default TAILWATCH_URL, else http://127.0.0.1:8321)")
    parser.add_argument("--project", help="project to file it under (default: the recording's)")
    parser.add_argument("--run", dest="run_name", help="name of the run (default: the recording's)")
    parser.add_argument("--speed", type=_positive, help="steps per second (default: as fast as the service takes them)")
    parser.set_defaults(run=_replay)


def _add_keys(commands: Any) -> None:
    parser = commands.add_parser("keys", help="create, list and revoke API keys", description="API keys.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", help="what the key is for")
    create.add_argument(
        "--scope",
        action="append",
        choices=get_args(Scope),
        help="what it may do; repeat for several (default read and write)",
    )
    create.add_argument("--project", help="the one project it reaches (default all)")
    create.set_defaults(run=_keys_create)
    listing = actions.add_parser("list", help="show all keys, never their secrets")
    listing.set_defaults(run=_keys_list)
    revoke = actions.add_parser("revoke", help="end a key and the logins opened with it")
    revoke.add_argument("key_id", help="id of the key, from `tailwatch keys list`")
    revoke.set_defaults(run=_keys_revoke)
    for action in (create, listing, revoke):
        action.add_argument("--data-dir", type=Path, help="directory of the database (default ./tailwatch-data)")
        action.add_argument("--database-url", help="SQLAlchemy URL (default: SQLite in the data directory)")


def _add_alerts(commands: Any) -> None:
    parser = commands.add_parser("alerts", help="send a test alert", description="Alerts.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    test = actions.add_parser(
        "test",
        help="send a test alert to the configured destinations, now",
        description="Send a test alert to the destinations that TAILWATCH_ALERT_WEBHOOK_URL and "
        "TAILWATCH_ALERTMANAGER_URL name, without the service, and say what became of it.",
    )
    test.add_argument("--to", choices=("webhook", "alertmanager"), help="one destination (default all)")
    test.set_defaults(run=_alerts_test)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _settings(parsed: argparse.Namespace) -> Settings:
    """The environment's settings, overlaid with the flags that were given."""
    names = ("host", "port", "data_dir", "log_level", "database_url", "keep_tokens", "insecure")
    given = {name: getattr(parsed, name, None) for name in names}
    return replace(Settings.from_env(os.environ), **{name: v for name, v in given.items() if v is not None})


def _serve(parsed: argparse.Namespace) -> int:
    from tailwatch_service import server
    from tailwatch_service.app import check_keys, create_app

    settings = _settings(parsed)
    server.configure_logging(settings.log_level)
    listener = server.listen(settings.host, settings.port)
    try:
        db = _database(settings)
        try:
            check_keys(db, settings)
        finally:
            db.close()
        print(f"Tailwatch listens on {server.url_of(listener)}, data in {settings.data_dir.resolve()}", flush=True)
        serving = server.make(create_app(settings), settings)
        _stop_quietly_on_sigterm()
        try:
            serving.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn has stopped in order and then repeats the signal
            return 0
        return 0 if serving.started else 1
    finally:
        listener.close()


def _demo(parsed: argparse.Namespace) -> int:
    from tailwatch_service import demo, server

    settings = _settings(parsed)
    quiet = parsed.log_level is None and "TAILWATCH_LOG_LEVEL" not in os.environ
    settings = replace(settings, log_level="warning") if quiet else settings
    server.configure_logging(settings.log_level)
    _stop_quietly_on_sigterm()
    show = demo.Demo(recordings=parsed.recordings, seconds=parsed.seconds, stop_after_s=demo.stop_after(os.environ))
    return demo.run(show, settings=settings, keep_data=parsed.data_dir is not None)


def _replay(parsed: argparse.Namespace) -> int:
    from tailwatch_collectors.errors import ConfigurationError
    from tailwatch_service import replay

    if parsed.run_name and len(parsed.recordings) > 1:
        raise SettingsError("--run names one run; give one recording with it")
    found = [replay.open_recording(path) for path in parsed.recordings]
    url = parsed.url or os.environ.get("TAILWATCH_URL") or "http://127.0.0.1:8321"
    lost = 0
    for recording in found:
        try:
            outcome = replay.replay(
                recording,
                url=url,
                project=parsed.project,
                run=parsed.run_name,
                steps_per_second=parsed.speed or 0.0,
                progress=_show_progress,
            )
        except ConfigurationError as error:
            raise SettingsError(str(error)) from error
        print(
            f"{outcome.run}: {outcome.batches} batches replayed, {outcome.stored} records stored, {outcome.lost} lost"
        )
        lost += outcome.lost
    if lost:
        print(f"tailwatch: {lost} records were not stored; is the service up at {url}?", file=sys.stderr)
    return 1 if lost else 0


def _show_progress(progress: Progress) -> None:
    if sys.stdout.isatty():
        end = "\n" if progress.done == progress.total else "\r"
        print(f"{progress.run}: step {progress.step}, {progress.done}/{progress.total}", end=end, flush=True)
    elif progress.done % max(1, progress.total // 10) == 0:
        print(f"{progress.run}: step {progress.step}, {progress.done}/{progress.total}", flush=True)


def _database(settings: Settings) -> Database:
    """Open the database.

    Raises:
        SettingsError: it cannot be opened; in one line.
    """
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    from tailwatch_service.storage.database import Database

    try:
        return Database.open(settings.database_url, data_dir=settings.data_dir)
    except (SQLAlchemyError, ArgumentError, OSError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        place = settings.data_dir if settings.database_url is None else "TAILWATCH_DATABASE_URL"
        raise SettingsError(f"cannot open the database ({place}): {reason:.200}") from error


def _keys_create(parsed: argparse.Namespace) -> int:
    from tailwatch_service.storage import keys

    if not parsed.name.strip() or len(parsed.name) > 256:
        raise SettingsError(f"{parsed.name!r:.80} is not a name of 1 to 256 characters")
    db = _database(_settings(parsed))
    try:
        scopes = parsed.scope or ["read", "write"]
        key, secret = keys.create(db, name=parsed.name, scopes=scopes, now=time.time(), project=parsed.project)
    finally:
        db.close()
    print(secret)
    print(f"key {key.key_id} ({', '.join(sorted(key.scopes))}): shown this once, store it now", file=sys.stderr)
    return 0


def _keys_list(parsed: argparse.Namespace) -> int:
    from tailwatch_service.storage import keys

    db = _database(_settings(parsed))
    try:
        found = keys.listed(db)
    finally:
        db.close()
    if not found:
        print("no keys", file=sys.stderr)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created_at))
        state = "active" if key.revoked_at is None else "revoked"
        print("\t".join((key.key_id, state, made, key.project or "*", ",".join(sorted(key.scopes)), key.name)))
    return 0


def _keys_revoke(parsed: argparse.Namespace) -> int:
    from tailwatch_service.storage import keys

    db = _database(_settings(parsed))
    try:
        keys.revoke(db, parsed.key_id, now=time.time())
    finally:
        db.close()
    print(f"key {parsed.key_id} is revoked")
    return 0


def _alerts_test(parsed: argparse.Namespace) -> int:
    import secrets

    from tailwatch_service.alerts import messages
    from tailwatch_service.alerts.courier import destinations, send
    from tailwatch_service.alerts.links import Links
    from tailwatch_service.alerts.post import DeliveryError

    settings = _settings(parsed)
    found = [one for one in destinations(settings) if parsed.to in {None, one.name}]
    if not found:
        variables = {"webhook": "TAILWATCH_ALERT_WEBHOOK_URL", "alertmanager": "TAILWATCH_ALERTMANAGER_URL"}
        wanted = " or ".join(variables[name] for name in variables if parsed.to in {None, name})
        raise SettingsError(f"there is no destination to send to; set {wanted}")
    failed = 0
    for one in found:
        now = time.time()
        sample = messages.sample(Links(settings), project="tailwatch", by="the command line", now=now)
        try:
            send(one, sample, delivery_id=secrets.token_hex(16), settings=settings, now=now)
        except DeliveryError as error:
            print(f"tailwatch: {one.name}: {error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{one.name}: sent to {one.url}")
    return 1 if failed else 0


def _stop_quietly_on_sigterm() -> None:
    """uvicorn repeats the signal once it has stopped in order; that must not end the process with a signal's code."""
    signal.signal(signal.SIGTERM, lambda *_: None)
