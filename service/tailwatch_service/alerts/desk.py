"""The desk: the rules, the judge, the watch and the couriers of one application, wired together."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tailwatch_service.alerts import messages
from tailwatch_service.alerts.courier import Courier, Destination, destinations
from tailwatch_service.alerts.judging import Judge
from tailwatch_service.alerts.links import Links
from tailwatch_service.alerts.records import Scribe
from tailwatch_service.alerts.watch import Watch
from tailwatch_service.detection import overrides
from tailwatch_service.detection.rules import RULES, Rule
from tailwatch_service.errors import SettingsError
from tailwatch_service.settings import Settings
from tailwatch_service.storage import outbox
from tailwatch_service.storage.database import Database

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]  # absent on newer Pythons


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """Everything about alerts that one application has."""

    base: Mapping[str, Rule]
    """The rules before a project's or a run's changes."""
    judge: Judge
    watch: Watch
    links: Links
    destinations: tuple[Destination, ...]
    couriers: tuple[Courier, ...]

    @classmethod
    def open(
        cls,
        db: Database,
        *,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        count: Callable[[str, str], None] = lambda _destination, _outcome: None,
    ) -> Desk:
        """Wire a desk; nothing runs before `start`.

        Raises:
            SettingsError: the file of rules cannot be read, or holds rules that cannot work.
        """
        base = base_rules(settings.rules_file)
        links = Links(settings)
        found = tuple(destinations(settings))
        scribe = Scribe(links=links, destinations=tuple(one.name for one in found))
        return cls(
            base=base,
            judge=Judge(base=base, scribe=scribe),
            watch=Watch(db, base=base, scribe=scribe),
            links=links,
            destinations=found,
            couriers=tuple(Courier(db, one, settings=settings, clock=clock, count=count) for one in found),
        )

    def start(self) -> None:
        """Start the couriers."""
        for courier in self.couriers:
            courier.start()

    def wake(self) -> None:
        """Say that the outbox may hold something new. Never blocks."""
        for courier in self.couriers:
            courier.wake()

    def close(self) -> None:
        """Finish what is in flight, and stop."""
        for courier in self.couriers:
            courier.close()

    def queue_test(self, db: Database, *, to: tuple[str, ...], project: str, by: str, now: float) -> list[str]:
        """Queue a test alert for these destinations; the delivery ids."""
        sent = messages.sample(self.links, project=project, by=by, now=now)
        with db.write() as connection:
            made = outbox.insert(connection, destinations=to, notice="test", payload=sent, now=now, alert_id=None)
        self.wake()
        return made


def base_rules(path: Path | None) -> Mapping[str, Rule]:
    """The rules that come with the service, with a file's changes over them.

    Raises:
        SettingsError: the file cannot be read, or holds rules that cannot work; names each.
    """
    if path is None:
        return RULES
    try:
        changes = tomllib.loads(path.read_text(encoding="utf-8"))
        return overrides.apply(changes)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read the rules file {path}: {error}") from error
    except overrides.RuleError as error:
        raise SettingsError(f"{path}: {error}", *error.errors) from error
