"""Counters: what the service counts about itself, on a registry of its own (never prometheus_client's global one).

Labels are few and fixed: never a run, a key, a step or a path that a client can make up.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Counters:
    """The service's own metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter(
            "tailwatch_ingest_batches",
            "Batches acknowledged, by what became of them.",
            ["status", "kind"],
            registry=registry,
        )
        self.tokens = Counter(
            "tailwatch_ingest_tokens", "Tokens in batches stored for the first time.", registry=registry
        )
        self.bytes = Counter("tailwatch_ingest_bytes", "Bytes of batch bodies as they arrived.", registry=registry)
        self.rejects = Counter(
            "tailwatch_ingest_rejects", "Batches refused, by HTTP status.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "tailwatch_ingest_seconds",
            "Time from the end of a batch's body to its durable answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "tailwatch_http_requests",
            "HTTP requests answered, by route template.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "tailwatch_http_request_seconds",
            "Time to answer an HTTP request; live streams are left out.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.deliveries = Counter(
            "tailwatch_alert_deliveries",
            "Tries to deliver an alert, by destination and what became of them.",
            ["destination", "outcome"],
            registry=registry,
        )
        self.live_streams = Gauge("tailwatch_live_streams", "Live streams open now.", registry=registry)
