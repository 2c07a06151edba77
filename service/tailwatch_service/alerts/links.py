"""Links: where an alert's reader goes next."""

from __future__ import annotations

from urllib.parse import quote

from tailwatch_service.settings import Settings


class Links:
    """Addresses of this service, as a browser would open them."""

    def __init__(self, settings: Settings) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.root = (settings.public_url or f"http://{host}:{settings.port}").rstrip("/")

    def run(self, run_id: str, *, step: int | None) -> str:
        """The run's page, at a step."""
        return f"{self.root}/runs/{quote(run_id)}" + ("" if step is None else f"?step={step}")

    def runbook(self, rule: str) -> str:
        """The rule's runbook."""
        return f"{self.root}/runbooks/{quote(rule)}"
