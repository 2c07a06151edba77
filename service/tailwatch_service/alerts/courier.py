"""Couriers: one thread per destination that takes deliveries from the outbox and sees them through.

A receiver that hangs holds up its own courier for a few seconds, and nobody else: ingest, closing and the other
destinations never wait. What fails is tried again, later each time, for a day.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from tailwatch_service.alerts import messages
from tailwatch_service.alerts.links import Links
from tailwatch_service.alerts.post import DeliveryError, Reach, post
from tailwatch_service.settings import Settings
from tailwatch_service.storage import alerts, outbox
from tailwatch_service.storage.database import Database

Kind = Literal["webhook", "alertmanager"]

LEASE_S = 30.0
"""Seconds after which a delivery in flight counts as abandoned: its process died between claim and answer."""

GIVE_UP_S = 24 * 3600.0
"""Age at which a delivery is given up."""

KEPT_S = 7 * 24 * 3600.0
"""How long deliveries that are done are kept."""

_LONGEST_WAIT_S = 300.0
_LOOK_S = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Where alerts go."""

    name: Kind
    url: str
    """Address that is posted to."""


def destinations(settings: Settings) -> list[Destination]:
    """The destinations that are configured."""
    found = []
    if settings.alert_webhook_url:
        found.append(Destination(name="webhook", url=settings.alert_webhook_url))
    if settings.alertmanager_url:
        url = f"{settings.alertmanager_url.rstrip('/')}/api/v2/alerts"
        found.append(Destination(name="alertmanager", url=url))
    return found


def backoff_s(attempts: int, *, chance: float) -> float:
    """Seconds until the next try: 1, 2, 4, ... 300, of which up to half is left to chance (0 .. 1)."""
    longest: float = min(_LONGEST_WAIT_S, 2.0 ** min(attempts - 1, 16))
    return longest * (0.5 + 0.5 * chance)


def send(
    destination: Destination, sent: Mapping[str, Any], *, delivery_id: str, settings: Settings, now: float
) -> None:
    """Send one payload to one destination, now.

    Raises:
        DeliveryError: it did not arrive.
    """
    if destination.name == "webhook":
        body: Any = messages.webhook(sent)
    else:
        body = messages.alertmanager([sent], now=now, keep_s=4 * settings.alertmanager_resend_s)
    _post(destination, body, delivery_id=delivery_id, settings=settings)


class Courier:
    """Delivers to one destination, in a thread of its own."""

    def __init__(
        self,
        db: Database,
        destination: Destination,
        *,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        count: Callable[[str, str], None] = lambda _destination, _outcome: None,
    ) -> None:
        """Make a courier.

        Args:
            db: the database.
            destination: whom it serves.
            settings: reach, timeout, reminders.
            clock: Unix seconds.
            chance: 0 .. 1, for the waits between tries.
            count: told the outcome of every try.
        """
        self._db = db
        self._destination = destination
        self._settings = settings
        self._links = Links(settings)
        self._clock = clock
        self._chance = chance
        self._count = count
        self._signal = threading.Condition()
        self._woken = False
        self._stopping = threading.Event()
        self._remind_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"tailwatch-{destination.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look into the outbox soon."""
        with self._signal:
            self._woken = True
            self._signal.notify()

    def close(self) -> None:
        """Finish the delivery in flight, and stop; what waits is delivered after the next start."""
        with self._signal:
            self._stopping.set()
            self._signal.notify()
        if self._thread.is_alive():
            self._thread.join()

    def deliver_next(self) -> bool:
        """Deliver what is due first; False where nothing is."""
        delivery = outbox.claim(self._db, self._destination.name, now=self._clock(), lease_s=LEASE_S)
        if delivery is None:
            return False
        try:
            send(
                self._destination,
                delivery.payload,
                delivery_id=delivery.delivery_id,
                settings=self._settings,
                now=self._clock(),
            )
        except DeliveryError as error:
            self._failed(delivery, error)
        else:
            outbox.sent(self._db, delivery.delivery_id, now=self._clock())
            self._count(self._destination.name, "sent")
        return True

    def remind(self) -> int:
        """Tell Alertmanager again what fires, so that it does not let go of it; how many alerts."""
        payloads = [messages.payload(placed, self._links) for placed in alerts.to_remind(self._db)]
        if payloads:
            keep_s = 4 * self._settings.alertmanager_resend_s
            body = messages.alertmanager(payloads, now=self._clock(), keep_s=keep_s)
            _post(self._destination, body, delivery_id="", settings=self._settings)
        return len(payloads)

    def _failed(self, delivery: outbox.Delivery, error: DeliveryError) -> None:
        now = self._clock()
        if error.permanent or now - delivery.created_at > GIVE_UP_S:
            _log.error("%s: %s is given up: %s", self._destination.name, delivery.notice, error)
            outbox.failed(self._db, delivery.delivery_id, now=now, error=str(error))
            self._count(self._destination.name, "failed")
            return
        again = now + backoff_s(delivery.attempts, chance=self._chance())
        _log.warning("%s: %s will be tried again: %s", self._destination.name, delivery.notice, error)
        outbox.retry(self._db, delivery.delivery_id, at=again, error=str(error))
        self._count(self._destination.name, "retried")

    def _run(self) -> None:
        while True:
            with self._signal:
                if not self._woken and not self._stopping.is_set():
                    self._signal.wait(_LOOK_S)
                if self._stopping.is_set():
                    return
                self._woken = False
            # Whatever fails in a round, the database included, must not end the thread.
            try:
                while self.deliver_next():
                    if self._stopping.is_set():
                        return
                self._keep_up()
            except Exception:  # noqa: BLE001
                _log.exception("delivering to %s failed and will be tried again", self._destination.name)

    def _keep_up(self) -> None:
        now = time.monotonic()
        if now < self._remind_at:
            return
        self._remind_at = now + self._settings.alertmanager_resend_s
        outbox.drop_done(self._db, before=self._clock() - KEPT_S)
        if self._destination.name == "alertmanager":
            try:
                self.remind()
            except DeliveryError as error:
                _log.warning("alertmanager could not be reminded: %s", error)


def _post(destination: Destination, body: Any, *, delivery_id: str, settings: Settings) -> None:
    headers = {"User-Agent": "tailwatch"}
    if delivery_id:
        headers |= {"Idempotency-Key": delivery_id, "X-Tailwatch-Delivery": delivery_id}
    post(
        destination.url,
        orjson.dumps(body),
        headers=headers,
        reach=Reach(allow_private=settings.alerts_allow_private, allowed=settings.alerts_allowed_hosts),
        timeout_s=settings.alerts_timeout_s,
    )
