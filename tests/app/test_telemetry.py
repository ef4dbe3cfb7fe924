"""Metrics and logs."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from batchinference.telemetry import logs
from batchinference.telemetry.metrics import DECLARED, PrometheusMetrics
from batchinference.telemetry.scrubbing import scrub, scrub_text


class TestMetrics:
    def test_a_name_that_is_not_declared_is_an_error(self) -> None:
        metrics = PrometheusMetrics()
        with pytest.raises(KeyError):
            metrics.count("submisions_total")
        with pytest.raises(KeyError):
            metrics.gauge("submissions_total", 1)  # declared, and no gauge
        with pytest.raises(ValueError, match="label"):
            metrics.count("submissions_total", job="ticket-triage")

    def test_a_label_that_is_left_out_is_absent(self) -> None:
        metrics = PrometheusMetrics()
        metrics.count("submissions_total", outcome="Accepted")
        metrics.count("submissions_total", 2, outcome="Accepted", provider="")
        assert b'outcome="Accepted",provider=""} 3.0' in metrics.exposition()

    def test_every_kind_of_metric_can_be_told(self) -> None:
        metrics = PrometheusMetrics()
        metrics.gauge("queue_depth", 7)
        metrics.gauge("live_batches", 3, account="a")
        metrics.observe("reconcile_duration_seconds", 0.2)
        metrics.observe("provider_request_duration_seconds", 1, provider="p", operation="get")
        text = metrics.exposition().decode()
        assert "batchinference_queue_depth 7.0" in text
        assert 'batchinference_live_batches{account="a"} 3.0' in text
        assert "batchinference_reconcile_duration_seconds_count 1.0" in text

    @pytest.mark.parametrize("metric", DECLARED, ids=lambda metric: metric.name)
    def test_names_follow_the_conventions(self, metric: Any) -> None:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not set(metric.labels) & {"job", "namespace", "run", "batch"}  # unbounded
        assert metric.help.endswith(".")

    def test_a_gauge_that_nobody_told_is_absent(self) -> None:
        metrics = PrometheusMetrics()
        assert b"batchinference_unknown_outcomes" not in metrics.exposition()
        metrics.gauge("unknown_outcomes", 0)
        assert b"batchinference_unknown_outcomes 0.0" in metrics.exposition()
        assert b"batchinference_reconcile_errors_total 0.0" in metrics.exposition()
        assert b"_created" not in metrics.exposition()

    def test_two_registries_do_not_meet(self) -> None:
        PrometheusMetrics().count("submissions_total", outcome="x")
        assert b'outcome="x"' not in PrometheusMetrics().exposition()


@pytest.mark.parametrize(
    ("text", "want", "reason"),
    [
        ("key sk-proj-abc123DEF456 used", "key sk-*** used", "an OpenAI key"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id AKIA***.", "an AWS key id"),
        ("ASIAIOSFODNN7EXAMPLE", "ASIA***", "a temporary AWS key id"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***", "a header"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7", "aws_secret_access_key=***", "an assignment"),
        ('{"api_key": "abcdef", "n": 1}', '{"api_key": "***", "n": 1}', "JSON in a text"),
        (
            "GET https://b.s3.example/k?X-Amz-Signature=ab&X-Amz-Expires=9 failed",
            "GET https://b.s3.example/k?*** failed",
            "a signed URL",
        ),
        ("https://user:pass@host/x", "https://***@host/x", "credentials in a URL"),
        ("https://host/x?page=2", "https://host/x?page=2", "an innocent query stays"),
        ("used 12 tokens, max_tokens=5", "used 12 tokens, max_tokens=5", "tokens are no token"),
        (
            "SecretNotFound: InferenceProvider 'a'",
            "SecretNotFound: InferenceProvider 'a'",
            "a reason",
        ),
        ("risk-averse task-force", "risk-averse task-force", "words with sk- inside"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, want: str, reason: str) -> None:
    assert scrub_text(text) == want, reason


def test_values_are_scrubbed_by_their_names_and_by_what_they_are() -> None:
    given = {
        "apiKey": "abc",
        "AWS_SECRET_ACCESS_KEY": "abc",
        "session-token": {"deep": "abc"},
        "headers": [{"Authorization": "x"}, "Bearer abcdefgh"],
        "input_tokens": 5,
        "url": "https://h/p?Signature=abc",
        "error": ValueError("sk-abcdefgh"),
        "n": None,
    }
    assert scrub(given) == {
        "apiKey": "***",
        "AWS_SECRET_ACCESS_KEY": "***",
        "session-token": "***",
        "headers": [{"Authorization": "***"}, "Bearer ***"],
        "input_tokens": 5,
        "url": "https://h/p?***",
        "error": "sk-***",
        "n": None,
    }


class TestLogs:
    @pytest.fixture
    def stream(self) -> Iterator[io.StringIO]:
        root, ours = logging.getLogger(), logging.getLogger("batchinference")
        before = (root.handlers[:], root.level, ours.level)
        yield io.StringIO()
        root.handlers[:], root.level = before[0], before[1]
        ours.setLevel(before[2])
        logging.captureWarnings(capture=False)

    def test_a_line_is_a_json_object_with_what_extra_gave(self, stream: io.StringIO) -> None:
        logs.configure("debug", "json", stream)
        logging.getLogger("batchinference.x").debug("hello %s", "you", extra={"run": "k", "n": {}})
        (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
        assert line["message"] == "hello you"
        assert (line["level"], line["logger"], line["run"]) == ("debug", "batchinference.x", "k")
        assert line["time"].endswith("Z")

    def test_exceptions_are_scrubbed_too(self, stream: io.StringIO) -> None:
        logs.configure("info", "json", stream)
        try:
            int("bad key sk-abcdefgh123")
        except ValueError:
            logging.getLogger("batchinference.x").exception("failed with %s", "sk-abcdefgh123")
        assert "abcdefgh123" not in stream.getvalue()
        assert "ValueError" in json.loads(stream.getvalue())["exception"]

    def test_text_is_for_people_and_scrubbed_as_well(self, stream: io.StringIO) -> None:
        logs.configure("info", "text", stream)
        logging.getLogger("batchinference.x").info(
            "using sk-abcdefgh123", extra={"api_key": "abc", "n": {"a": 1}}
        )
        assert "using sk-***  api_key=*** n={'a': 1}" in stream.getvalue()

    def test_kopf_does_not_speak_of_every_object(self, stream: io.StringIO) -> None:
        logs.configure("debug", "json", stream)
        logging.getLogger("kopf.objects").info("Handler 'feed' succeeded.")
        logging.getLogger("botocore").info("chatter")
        assert stream.getvalue() == ""

    def test_workers_get_the_settings_by_their_environment(
        self, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environment: dict[str, str] = {}
        logs.hand_on(environment, "debug", "text")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        logs.configure_from_environment()
        assert logging.getLogger("batchinference").level == logging.DEBUG
        assert isinstance(logging.getLogger().handlers[0].formatter, logs.TextFormatter)
