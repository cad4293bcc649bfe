"""What Prometheus is told of a server: how much is done and waits, never whose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.jobs = Gauge("secureattn_jobs", "Jobs that are queued or running", ["state"], registry=own)
        self.ended = Counter("secureattn_jobs_ended", "Jobs that are over", ["state"], registry=own)
        self.seconds = Histogram("secureattn_job_seconds", "From start to end of a job", buckets=_SECONDS, registry=own)
        self.rounds = Counter("secureattn_rounds", "Refreshes that were answered", registry=own)
        self.received = Counter("secureattn_received_bytes", "Bytes of uploads that were accepted", registry=own)
        self.refused = Counter("secureattn_refused", "Requests that were refused", ["status"], registry=own)
        self.deaths = Counter("secureattn_worker_deaths", "Workers that died", registry=own)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
