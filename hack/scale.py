"""Thousands of live jobs on the real control plane and the sandbox: what the control loop costs.

The jobs are put there as an operator leaves them that was working: objects with their finalizer,
journals with an accepted submission, and the batches at the sandbox, held in the middle. So no
record is staged and no worker is busy, and what is measured is the loop alone. A first operator
shows all of them; a second one is measured from its start.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp

from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.journals import KubeJournals
from batchinference.adapters.kube.names import FINALIZER, RESOURCES
from batchinference.adapters.openai_batch.limits import default_limits
from batchinference.adapters.openai_batch.names import metadata
from batchinference.core.begin import begin
from batchinference.core.keys import installation_id, submission_id
from batchinference.model.batch import BatchState
from batchinference.model.job import parse_job
from batchinference.model.provider import parse_provider
from batchinference.model.run import (
    ProviderPin,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.staging import Staged
from batchinference.sandbox import Control
from stack import BUCKET, OPERATOR_NAMESPACE, RELEASE, Operator, Stack, wait_for

NAMESPACE = "scale"
MODEL = "gpt-4.1-mini"
_AT_ONCE = 24
PAGE = 100
"""Batches on a page of OpenAI's listing."""
_OPERATOR = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}"
_WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Cost:
    """What the measured operator took.

    Attributes:
        jobs: how many were live.
        following_s: from the start of the process until every batch was seen and no key waited.
        following_cpu_s: CPU time of the process until then.
        rss_mib, peak_mib: resident memory of the operator's process at the end, and its highest.
        workers_mib: resident memory of its worker processes, which do nothing.
        idle_cores: CPU seconds per second while nothing happens, polls included.
        pages, gets: provider calls of one poll.
        writes: of the operator, from its start on.
        creates: create calls, from its start on.
        first_shown_s: how long the operator before it took to show all jobs for the first time.
    """

    jobs: int
    following_s: float
    following_cpu_s: float
    rss_mib: float
    peak_mib: float
    workers_mib: float
    idle_cores: float
    pages: float
    gets: float
    writes: int
    creates: int
    first_shown_s: float


def measure(stack: Stack, jobs: int, *, idle_s: float, say: Callable[[str], None]) -> Cost:
    """Put the jobs there and measure an operator's start, and `idle_s` seconds of it.

    `stack` has no operator yet; its control plane keeps an audit log.
    """
    plane, control = stack.control_plane, Control(stack.sandbox["url"])
    plane.kubectl("create", "namespace", NAMESPACE)
    stack.apply(*stack.providers(NAMESPACE))
    first = stack.start_operator("first")
    provider = wait_for("the provider", lambda: _ready(stack))
    first.stop()
    control.hold("openai", "in_progress")
    say(f"{jobs} jobs, their journals and their batches")
    asyncio.run(_seed(stack, provider, jobs))
    before = time.monotonic()
    first.start()
    wait_for(
        "all to be shown", lambda: _is_following(first, jobs) and _are_shown(stack, jobs), 3600
    )
    shown_s = time.monotonic() - before
    first.stop()
    submitted, log_at = len(control.submissions("openai")), _size(plane.audit_log)
    say("a new operator")
    began = time.monotonic()
    second = stack.start_operator("second")
    wait_for("all to be followed", lambda: _is_following(second, jobs), 1800)
    following_s, following_cpu_s = time.monotonic() - began, _cpu_s(second.pid)
    _settle(second)
    polls, pages, gets = _calls(second)
    cpu, since = _cpu_s(second.pid), time.monotonic()
    time.sleep(idle_s)
    idle = (_cpu_s(second.pid) - cpu) / (time.monotonic() - since)
    more_polls, more_pages, more_gets = _calls(second)
    polls = max(more_polls - polls, 1)
    rss, peak = _memory_mib(second.pid)
    workers = sum(_memory_mib(child)[0] for child in second.children())
    second.stop()
    return Cost(
        jobs=jobs,
        following_s=following_s,
        following_cpu_s=following_cpu_s,
        rss_mib=rss,
        peak_mib=peak,
        workers_mib=workers,
        idle_cores=idle,
        pages=(more_pages - pages) / polls,
        gets=(more_gets - gets) / polls,
        writes=_writes_since(plane.audit_log, log_at),
        creates=len(control.submissions("openai")) - submitted,
        first_shown_s=shown_s,
    )


# ---------------------------------------------------------------- putting the jobs there


async def _seed(stack: Stack, provider: dict[str, Any], jobs: int) -> None:
    client = await KubeClient.connect(
        str(stack.control_plane.kubeconfig), max_connections=_AT_ONCE, timeout_s=60
    )
    journals = KubeJournals(client, OPERATOR_NAMESPACE)
    system = stack.get("namespace", "kube-system", "")
    assert system is not None
    installation = installation_id(system["metadata"]["uid"], OPERATOR_NAMESPACE)
    headers = {"Authorization": "Bearer sandbox-key"}
    url = stack.sandbox["openaiBaseURL"]
    async with aiohttp.ClientSession(headers=headers) as session:
        input_ref = await _upload(session, url)

        async def one(number: int) -> None:
            body = await client.call(
                "POST",
                RESOURCES["BatchInferenceJob"].path(NAMESPACE),
                body=_manifest(number),
            )
            run = _running(body, provider, installation)
            named = submission_id(run, run.shards[0], 1)
            request = {
                "input_file_id": input_ref,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "metadata": metadata(named),
            }
            async with session.post(f"{url}/batches", json=request) as answer:
                answer.raise_for_status()
                batch = str((await answer.json())["id"])
            await journals.create(_submitted(run, input_ref, request, batch))

        await _all(jobs, one)
    await client.close()


async def _all(number: int, one: Callable[[int], Awaitable[None]]) -> None:
    waiting = iter(range(number))

    async def some() -> None:
        for n in waiting:
            await one(n)

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def _upload(session: aiohttp.ClientSession, url: str) -> str:
    line = {"custom_id": "r0000000000", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]}
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", json.dumps({**line, "body": body}).encode(), filename="one.jsonl")
    async with session.post(f"{url}/files", data=form) as answer:
        answer.raise_for_status()
        return str((await answer.json())["id"])


def _manifest(number: int) -> dict[str, Any]:
    name = f"live-{number:05d}"
    return {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "BatchInferenceJob",
        "metadata": {"name": name, "namespace": NAMESPACE, "finalizers": [FINALIZER]},
        "spec": {
            "providerRef": {"name": "openai"},
            "model": MODEL,
            "operation": "ChatCompletions",
            "input": {"s3": {"uri": f"s3://{BUCKET}/inputs/{NAMESPACE}/{name}.jsonl"}},
            "output": {"s3": {"uri": f"s3://{BUCKET}/results/{NAMESPACE}/{name}/"}},
        },
    }


def _running(body: dict[str, Any], provider: dict[str, Any], installation: str) -> Run:
    """The journal of a job that is staged into one shard."""
    made, settings = parse_provider(provider), provider["spec"]
    meta = made.metadata
    account = provider["status"]["account"]
    pin = ProviderPin(made.kind, meta.name, NAMESPACE, settings, NAMESPACE, account)
    now = datetime.now(UTC).replace(microsecond=0)
    run = begin(
        parse_job(body),
        made.spec,
        pin,
        default_limits(settings, MODEL, "ChatCompletions"),
        installation=installation,
        operator_namespace=OPERATOR_NAMESPACE,
        now=now,
    )
    shard = Shard(0, ShardState.SUBMITTED, 1, 0, 0, 200, 10, "0" * 64)
    return replace(
        run,
        phase=RunPhase.RUNNING,
        output=replace(run.output, claimed=True),
        staged=Staged(1, 0, 1, 1),
        earlier=None,
        shards=(shard,),
        start_time=now,
    )


def _submitted(run: Run, input_ref: str, request: dict[str, Any], batch: str) -> Run:
    made = Submission(
        ordinal=1,
        state=SubmissionState.ACCEPTED,
        request=request,
        input_ref=input_ref,
        claimed_at=run.created_at,
        submit_by=run.created_at,
        batch_id=batch,
        accepted_at=run.created_at,
        batch_state=BatchState.VALIDATING,
    )
    return run.with_shard(replace(run.shards[0], submissions=(made,)))


# ---------------------------------------------------------------- looking


def _ready(stack: Stack) -> dict[str, Any] | None:
    found = stack.get("inferenceprovider", "openai", NAMESPACE) or {}
    return found if found.get("status", {}).get("account") else None


def _metrics(operator: Operator) -> dict[str, float]:
    try:
        with urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    found = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in found}


def _sum(metrics: dict[str, float], name: str, label: str = "") -> float:
    full = f"batchinference_{name}"
    return sum(v for k, v in metrics.items() if k.split("{")[0] == full and label in k)


def _are_shown(stack: Stack, jobs: int) -> bool:
    """Whether all statuses say what the provider says; asked seldom, since the list is long."""
    path = f"apis/batchinference.dev/v1alpha1/namespaces/{NAMESPACE}/batchinferencejobs"
    shown, more = 0, ""
    while True:
        page = stack.control_plane.read(f"{path}?limit=500&continue={more}") or {}
        for job in page["items"]:
            told = job["status"].get("submissions", ())
            shown += [made["state"] for made in told] == ["InProgress"]
        more = page["metadata"].get("continue", "")
        if not more:
            break
    provider = stack.get("inferenceprovider", "openai", NAMESPACE) or {}
    if shown < jobs or provider["status"].get("activeBatches") != jobs:
        time.sleep(2)
        return False
    return True


def _is_following(operator: Operator, jobs: int) -> bool:
    """Whether every batch was asked for with success, and nothing waits to be looked at."""
    metrics = _metrics(operator)
    polled = _sum(metrics, "account_polled_timestamp_seconds") > 0
    idle = metrics.get("batchinference_queue_depth") == 0
    return polled and idle and _sum(metrics, "live_batches") >= jobs


def _settle(operator: Operator) -> None:
    """Until a poll has gone by in which nothing was new."""
    polls, _, _ = _calls(operator)
    wait_for("another poll", lambda: _calls(operator)[0] > polls, 300)


def _calls(operator: Operator) -> tuple[float, float, float]:
    """Polls that succeeded, pages and single gets so far."""
    metrics = _metrics(operator)
    pages = _sum(metrics, "provider_requests_total", 'operation="page"')
    gets = _sum(metrics, "provider_requests_total", 'operation="get"')
    return _sum(metrics, "account_polls_total", 'outcome="ok"'), pages, gets


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> tuple[float, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(kib["VmRSS"]) / 1024, int(kib["VmHWM"]) / 1024


def _size(log: Path | None) -> int:
    assert log is not None
    return log.stat().st_size


def _writes_since(log: Path | None, offset: int) -> int:
    """The operator's own writes in the audit log from there on."""
    assert log is not None
    with log.open() as lines:
        lines.seek(offset)
        return sum(_is_write(json.loads(line)) for line in lines)


def _is_write(event: dict[str, Any]) -> bool:
    is_lease = event.get("objectRef", {}).get("resource") == "leases"
    return event["user"]["username"] == _OPERATOR and event["verb"] in _WRITES and not is_lease
