"""`make bench`: the product's figures, against baselines of the same run, into build/bench.json.

The data plane is measured by tests/bench/data_plane.py in processes of its own; here are the
figures of the control plane, the targets, the table and the file. A missed target is marked, and
is no error: machines differ, so nothing but a person should judge it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import ceil
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI

import scale
from batchinference.core.keys import installation_id, run_tag
from batchinference.sandbox import Control
from control_plane import ControlPlane
from stack import BUCKET, OPERATOR_NAMESPACE, RELEASE, ROOT, Stack, wait_for

DATA_PLANE = ROOT / "tests" / "bench" / "data_plane.py"
TARGET_FILE = ROOT / "build" / "bench.json"
NAMESPACE = "bench"
MODEL = "gpt-4.1-mini"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        baseline: what `value` is seen against, in the same unit and measured in the same run;
            None where there is nothing to compare with.
        target: None where the figure is only for the reader.
        better: "higher" or "lower".
    """

    name: str
    value: float
    unit: str
    baseline: float | None
    target: float | None
    better: str

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target is None:
            return ""
        met = self.value >= self.target if self.better == "higher" else self.value <= self.target
        return "met" if met else "MISSED"


# ---------------------------------------------------------------- data plane

RATIOS: tuple[tuple[str, str, str, float | None], ...] = (
    ("stage-openai-ascii", "stage OpenAI JSONL", "bare line loop with sha256", 0.5),
    ("stage-openai-utf8", "stage OpenAI JSONL, not ASCII", "bare line loop with sha256", 0.5),
    ("stage-bedrock", "stage, translated to Converse", "msgspec decode + encode", 0.5),
    ("collect-openai", "collect and join, OpenAI", "msgspec decode + encode", 0.4),
    ("collect-bedrock", "collect and join, Bedrock", "msgspec decode + encode", 0.4),
    ("finish-openai", "write results and manifest", "msgspec decode + encode", None),
)
"""Key of the data plane's figure, what it is, what its baseline is, target of the ratio."""

PEAK_MIB = 150.0


def data_plane(megabytes: int, peaks: Sequence[int]) -> list[Figure]:
    """Speed at one size of input, peak memory at several."""
    measured = _measure("speed", megabytes)
    figures = []
    for key, name, baseline_name, target in RATIOS:
        found = measured[key]
        ratio = found["value"] / found["baseline"]
        figures += [
            Figure(f"{name}: ratio to {baseline_name}", ratio, "ratio", 1.0, target, "higher"),
            Figure(f"{name}: speed", found["value"], "MB/s", found["baseline"], None, "higher"),
        ]
    for size in peaks:
        found = _measure("peak", size)
        name = f"peak memory, stage to manifest, {size} MB"
        figures.append(Figure(name, found["finish"], "MiB", found["before"], PEAK_MIB, "lower"))
    return figures


def _measure(what: str, megabytes: int) -> Any:
    say(f"the data plane: {what} at {megabytes} MB")
    with TemporaryDirectory(prefix="bench-") as folder:
        command = [sys.executable, str(DATA_PLANE), what, folder, str(megabytes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


# ---------------------------------------------------------------- control plane

_SANDBOX = (
    *("--set", "openai.validating_s=0.2", "--set", "openai.in_progress_s=1"),
    *("--set", "openai.finalizing_s=0.2"),
)
_SETTINGS = {"pollSeconds": 1, "progressSeconds": 600}
"""Progress aside: no status write that only changes numbers. A poll per second shows the operator
every state of a batch, as in a batch of hours."""


def control_plane(jobs: int) -> list[Figure]:
    """Small jobs one after the other on an idle operator: time to submit, and writes."""
    say(f"the control plane: {jobs} small jobs, one after the other")
    with (
        ControlPlane.start(audit=True) as plane,
        Stack.start(plane, settings=_SETTINGS, sandbox_options=_SANDBOX) as stack,
    ):
        stack.start_operator()
        plane.kubectl("create", "namespace", NAMESPACE)
        stack.apply(*stack.providers(NAMESPACE))
        _wait_ready(stack)
        bare: list[float] = []
        done: list[_Job] = []
        for number in range(jobs + 1):
            bare.append(_bare_submission(stack, number))
            done.append(_completed(stack, _manifest(number)))
        assert plane.audit_log is not None
        events = [json.loads(line) for line in plane.audit_log.read_text().splitlines()]
        accepted = _accepted(Control(stack.sandbox["url"]))
        system = stack.get("namespace", "kube-system", "")
        assert system is not None
    installation = installation_id(system["metadata"]["uid"], OPERATOR_NAMESPACE)
    first, *latencies = (
        accepted[run_tag(installation, job.key)] - _created_at(events, job.name) for job in done
    )
    cold, *bare = bare
    writes = [_writes(events, job) for job in done[1:]]
    what = "apply to submission accepted"
    return [
        Figure(f"{what}, p50", percentile(latencies, 50), "s", percentile(bare, 50), 1, "lower"),
        Figure(f"{what}, p99", percentile(latencies, 99), "s", percentile(bare, 99), 3, "lower"),
        Figure(f"{what}, first job of an operator", first, "s", cold, None, "lower"),
        *_write_figures(writes),
    ]


def _write_figures(writes: Sequence[_Writes]) -> list[Figure]:
    per_job = "Kubernetes writes per job"

    def mean(counts: Iterable[int], name: str, target: float | None = None) -> Figure:
        value = statistics.mean(counts)
        return Figure(f"{per_job}, {name}", value, "writes", None, target, "lower")

    kinds = sorted(set().union(*(found.kinds for found in writes)))
    return [
        mean((found.kinds.total() for found in writes), "creation to Complete", 10),
        *(mean((found.kinds[kind] for found in writes), f"of them {kind}") for kind in kinds),
        mean((found.after for found in writes), "after Complete"),
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between."""
    return sorted(values)[max(ceil(len(values) * percent / 100), 1) - 1]


def _manifest(number: int) -> dict[str, Any]:
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"Say {n} of {number}"}]},
        }
        for n in range(3)
    ]
    name = f"small-{number:03d}"
    return {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "BatchInferenceJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "providerRef": {"name": "openai"},
            "model": MODEL,
            "operation": "ChatCompletions",
            "input": {"inline": "".join(json.dumps(line) + "\n" for line in lines)},
            "output": {"s3": {"uri": f"s3://{BUCKET}/results/{NAMESPACE}/{name}/"}},
        },
    }


def _wait_ready(stack: Stack) -> None:
    def ready() -> bool:
        found = stack.get("inferenceprovider", "openai", NAMESPACE) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    wait_for("the provider", ready)


@dataclass(frozen=True, slots=True)
class _Job:
    """A job that is Complete."""

    name: str
    key: str
    completed: datetime


def _completed(stack: Stack, manifest: Mapping[str, Any]) -> _Job:
    """Apply a job and wait until it is Complete."""
    stack.apply(manifest)
    name = manifest["metadata"]["name"]
    stack.control_plane.kubectl(
        *("wait", "--for=condition=Complete", "--timeout=60s", "--namespace", NAMESPACE),
        f"batchinferencejob/{name}",
    )
    found = stack.get("batchinferencejob", name, NAMESPACE)
    assert found is not None
    status = found["status"]
    return _Job(name, status["runKey"], datetime.fromisoformat(status["completionTime"]))


def _bare_submission(stack: Stack, number: int) -> float:
    """Seconds of what nobody can leave out: the upload and the create call, with the plain SDK."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Bare {number}"}]}
    data = json.dumps({**line, "body": body}).encode()
    with OpenAI(base_url=stack.sandbox["openaiBaseURL"], api_key="sandbox-key") as client:
        start = time.perf_counter()
        file = client.files.create(file=("bare.jsonl", data), purpose="batch")
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return time.perf_counter() - start


def _accepted(control: Control) -> dict[str, float]:
    """When the sandbox accepted each run's only batch, as a time stamp, by run tag."""
    return {
        made["metadata"]["batchinference_run"]: float(made["createdAt"])
        for made in control.submissions("openai")
        if made["metadata"]
    }


def _created_at(events: Sequence[Mapping[str, Any]], name: str) -> float:
    """When the API server got the job, as a time stamp."""
    for event in events:
        about = event.get("objectRef", {})
        is_job = about.get("resource") == "batchinferencejobs" and about.get("name") == name
        if (
            is_job
            and event["verb"] in {"create", "patch"}
            and event["responseStatus"]["code"] < 300
        ):
            return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
    raise AssertionError(f"no creation of {name} in the audit log")


@dataclass(frozen=True, slots=True)
class _Writes:
    """The operator's writes for one job, refused ones included.

    Attributes:
        kinds: how many of each kind up to the write that made it Complete.
        after: how many came later: compacting the journal, letting go of the object.
    """

    kinds: Counter[str]
    after: int


def _writes(events: Sequence[Mapping[str, Any]], job: _Job) -> _Writes:
    kinds: Counter[str] = Counter()
    after = 0
    is_complete = False
    for event in events:
        about = event.get("objectRef", {})
        name = str(about.get("name", ""))
        is_ours = name in {job.name, f"run-{job.key}"} or name.startswith(f"{job.name}.")
        by_operator = event["user"]["username"] == OPERATOR and event["verb"] in WRITES
        if not is_ours or not by_operator:
            continue
        if is_complete:
            after += 1
            continue
        kind = _KINDS.get((about["resource"], about.get("subresource", "")), "other")
        kinds[kind if event["responseStatus"]["code"] < 300 else "refused"] += 1
        received = datetime.fromisoformat(event["requestReceivedTimestamp"])
        is_complete = kind == "status" and received >= job.completed
    return _Writes(kinds, after)


_KINDS = {
    ("configmaps", ""): "journal",
    ("batchinferencejobs", "status"): "status",
    ("batchinferencejobs", ""): "finalizer",
    ("events", ""): "Events",
}


# ---------------------------------------------------------------- scale

_IDLE_S = 90.0
"""Three polls of the default settings."""


def live_jobs(jobs: int) -> list[Figure]:
    """Many live jobs, one operator with its default waits: its start, and its rest."""
    say(f"the control loop: {jobs} live jobs")
    defaults = {"pollSeconds": 30, "progressSeconds": 30, "providerCheckSeconds": 300}
    with (
        ControlPlane.start(audit=True) as plane,
        Stack.start(plane, settings=defaults) as stack,
    ):
        cost = scale.measure(stack, jobs, idle_s=_IDLE_S, say=say)
    what = f"{jobs} live jobs"

    def figure(name: str, value: float, unit: str, target: float | None) -> Figure:
        return Figure(f"{what}: {name}", value, unit, None, target, "lower")

    pages = ceil(jobs / scale.PAGE)
    return [
        figure("start to fully following", cost.following_s, "s", 30),
        figure("CPU time until then", cost.following_cpu_s, "s", None),
        figure("memory", cost.rss_mib, "MiB", 250),
        figure("memory, highest", cost.peak_mib, "MiB", None),
        figure("memory of the idle workers besides", cost.workers_mib, "MiB", None),
        figure("CPU while idle", cost.idle_cores, "cores", 0.2),
        Figure(f"{what}: pages per poll", cost.pages, "calls", pages, pages + 1, "lower"),
        figure("single gets per poll", cost.gets, "calls", 0),
        figure("writes of a restart", cost.writes, "writes", 0),
        figure("create calls of a restart", cost.creates, "calls", 0),
        figure("shown for the first time", cost.first_shown_s, "s", None),
    ]


# ---------------------------------------------------------------- report


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def table(figures: Sequence[Figure]) -> str:
    """The figures for a person, as a Markdown table."""
    rows = ["| figure | value | unit | baseline | target | |", "|---|---:|---|---:|---:|---|"]
    for f in figures:
        bound = "" if f.target is None else f"{'≥' if f.better == 'higher' else '≤'} {f.target:g}"
        baseline = "" if f.baseline is None else _short(f.baseline)
        rows.append(
            f"| {f.name} | {_short(f.value)} | {f.unit} | {baseline} | {bound} | {f.verdict} |"
        )
    return "\n".join(rows)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32, help="input of the speed figures")
    parser.add_argument("--large", type=int, default=0, help="megabytes of one more memory figure")
    parser.add_argument("--jobs", type=int, default=20, help="jobs of the control plane's figures")
    parser.add_argument("--live", type=int, default=500, help="live jobs of the loop's figures")
    parser.add_argument("--only", choices=("data", "control", "live"), help="one part alone")
    chosen = parser.parse_args()
    peaks = [10, 200, *([chosen.large] if chosen.large else [])]
    parts: dict[str, Callable[[], list[Figure]]] = {
        "data": lambda: data_plane(chosen.megabytes, peaks),
        "control": lambda: control_plane(chosen.jobs),
        "live": lambda: live_jobs(chosen.live),
    }
    figures = [f for name, part in parts.items() if chosen.only in {None, name} for f in part()]
    TARGET_FILE.parent.mkdir(exist_ok=True)
    TARGET_FILE.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    print(
        f"\n{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}"
    )
    print(table(figures))
    print(f"\n{TARGET_FILE.relative_to(ROOT)}")
    missed = [f.name for f in figures if f.verdict == "MISSED"]
    if missed:
        print(f"{len(missed)} missed: {'; '.join(missed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
