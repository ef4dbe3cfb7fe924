"""The operator's metrics: every name, its kind, its labels and its help, in one place.

Implements `ports.Metrics` on a registry of its own. Labels are bounded: never a job, a namespace, a
run key or a batch id.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

PREFIX = "batchinference_"

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric. `name` is without the prefix, as code gives it; counters end in `_total`."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()


DECLARED = (
    # jobs and runs
    Declared("gauge", "jobs", "Jobs by state.", ("provider", "state")),
    Declared(
        "gauge",
        "oldest_unfinished_job_timestamp_seconds",
        "When the oldest job that is not finished was created.",
    ),
    Declared("counter", "jobs_finished_total", "Runs that ended.", ("provider", "ending")),
    Declared("counter", "expired_jobs_total", "Objects deleted by `ttlSecondsAfterFinished`."),
    # submissions: money
    Declared("counter", "submissions_total", "Create calls.", ("provider", "outcome")),
    Declared(
        "counter",
        "duplicate_submissions_prevented_total",
        "Create calls that were not made because a batch was found.",
        ("layer",),
    ),
    Declared("gauge", "unknown_outcomes", "Submissions that may or may not have been accepted."),
    Declared(
        "gauge",
        "runs_without_credentials",
        "Runs without an object whose credentials are gone: their batches can't be asked for.",
    ),
    Declared(
        "gauge", "runs_with_stuck_batches", "Runs of which a batch is over its window by a day."
    ),
    Declared(
        "counter", "unanswered_submissions_total", "Create calls without an answer.", ("provider",)
    ),
    Declared(
        "counter", "decisions_total", "Decisions by annotation, taken and ignored.", ("outcome",)
    ),
    Declared("gauge", "live_batches", "Batches that the provider holds.", ("account",)),
    Declared("gauge", "queued_shards", "Shards that wait for their turn.", ("account",)),
    Declared("counter", "tokens_total", "Tokens as answers tell them.", ("provider", "direction")),
    Declared("counter", "cost_total", "What ended runs cost.", ("provider", "currency")),
    # calls to providers
    Declared(
        "counter",
        "provider_requests_total",
        "Calls to providers.",
        ("provider", "operation", "code"),
    ),
    Declared(
        "histogram",
        "provider_request_duration_seconds",
        "How long calls to providers took.",
        ("provider", "operation"),
    ),
    Declared(
        "counter", "account_polls_total", "How often accounts were asked for news.", ("outcome",)
    ),
    Declared(
        "gauge",
        "account_polled_timestamp_seconds",
        "When an account with live batches was last asked with success.",
        ("account",),
    ),
    Declared("gauge", "provider_trials_waiting", "Provider objects that wait to be tried."),
    Declared(
        "gauge", "circuit_open", "1 while calls to an account wait, since it fails.", ("account",)
    ),
    Declared(
        "counter",
        "circuit_opened_total",
        "Times that an account's calls began to wait.",
        ("account",),
    ),
    # the loop
    Declared("gauge", "leading", "1 while this process leads, 0 while it stands by."),
    Declared("counter", "reconcile_errors_total", "Reconciliations that failed."),
    Declared(
        "counter",
        "outcomes_dropped_total",
        "Outcomes of effects that could not be made sense of; each is a defect.",
        ("kind",),
    ),
    Declared("histogram", "reconcile_duration_seconds", "How long a reconciliation took."),
    Declared("gauge", "queue_depth", "Keys that wait to be reconciled."),
    Declared(
        "gauge", "jobs_shown_elsewhere", "Jobs that another installation of the operator shows."
    ),
    Declared("counter", "status_writes_total", "Writes of status.", ("outcome",)),
    Declared("gauge", "sweeper_stopped", "1 while the brake of the sweeper is on."),
    Declared("gauge", "loop_lag_seconds", "How late the event loop last was."),
    Declared("counter", "watch_events_total", "Events of watches and listings.", ("kind",)),
    Declared("counter", "events_dropped_total", "Kubernetes Events that found the queue full."),
    # workers
    Declared("counter", "tasks_total", "Tasks that ended.", ("kind", "outcome")),
    Declared("gauge", "tasks_running", "Tasks under way."),
    Declared("gauge", "tasks_queued", "Tasks that wait for a worker."),
    Declared("counter", "worker_deaths_total", "Worker processes that ended unasked."),
)


class PrometheusMetrics:
    """Implements `ports.Metrics`.

    A declared label that a call leaves out is "", which Prometheus takes for absent.
    """

    def __init__(self, version: str = "") -> None:
        # A second series for each one, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info(f"{PREFIX}build", "The running version.", registry=self.registry).info(
            {"version": version}
        )
        self._declared = {metric.name: metric for metric in DECLARED}
        self._told: set[str] = set()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in DECLARED:
            name, labels = PREFIX + metric.name, metric.labels
            if metric.kind == "counter":
                made = Counter(name, metric.help, labels, registry=self.registry)
                self._counters[metric.name] = made
            elif metric.kind == "gauge":
                # Registered when first set: 0 would claim to know.
                self._gauges[metric.name] = Gauge(name, metric.help, labels, registry=None)
            else:
                self._histograms[metric.name] = Histogram(
                    name, metric.help, labels, registry=self.registry, buckets=_SECONDS
                )

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """See `ports.Metrics.count`.

        Raises:
            KeyError: no counter of that name is declared.
            ValueError: a label is not declared.
        """
        counter = self._counters[name]
        (counter.labels(**self._all(name, labels)) if self._has_labels(name) else counter).inc(
            value
        )

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """See `ports.Metrics.gauge`. Raises as `count`."""
        gauge = self._gauges[name]
        if name not in self._told:
            self._told.add(name)
            self.registry.register(gauge)
        (gauge.labels(**self._all(name, labels)) if self._has_labels(name) else gauge).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """See `ports.Metrics.observe`. Raises as `count`."""
        histogram = self._histograms[name]
        (
            histogram.labels(**self._all(name, labels)) if self._has_labels(name) else histogram
        ).observe(value)

    def exposition(self) -> bytes:
        """Everything in the exposition format."""
        return generate_latest(self.registry)

    def _has_labels(self, name: str) -> bool:
        return bool(self._declared[name].labels)

    def _all(self, name: str, labels: dict[str, str]) -> dict[str, str]:
        return {**dict.fromkeys(self._declared[name].labels, ""), **labels}
