"""`make demo`: from nothing to finished jobs on a real control plane.

Real kubectl, real Helm, real SDKs; only the providers are the sandbox on this machine. Exits 0 only
when every example reached the state that it should, and leaves nothing running.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from binaries import BinaryUnavailable
from control_plane import CommandFailed, ControlPlane
from downloads import ChecksumMismatch
from processes import StartFailed
from stack import BUCKET, ROOT, NotInTime, Operator, Stack

NAMESPACE = "ml"
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 180.0
_WIDE = 110


def main() -> int:
    """Run the demo; the exit code."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    say("a real control plane: etcd, kube-apiserver, kube-controller-manager")
    with (
        ControlPlane.start() as control_plane,
        Stack.start(control_plane, say=say, sandbox_options=_TIMES) as stack,
    ):
        say("the operator, under the ServiceAccount and the roles of the chart")
        operator = stack.start_operator()
        jobs = _prepare(stack, say)
        if not _follow(stack, operator, jobs):
            print(
                f"\nNot every job is Complete. The operator's log ends so:\n{operator.log_tail()}"
            )
            return 1
        _show_results(stack, jobs)
        say("all examples are Complete (the sandbox's answers are made up); stopping everything")
        say("by hand, step by step: docs/tutorial/first-job.md")
    return 0


_TIMES = (
    *("--set", "openai.validating_s=0.5", "--set", "openai.in_progress_s=2"),
    *("--set", "bedrock.validating_s=0.5", "--set", "bedrock.in_progress_s=2"),
)


def _prepare(stack: Stack, say: Callable[[str], None]) -> list[str]:
    plane = stack.control_plane
    plane.kubectl("create", "namespace", NAMESPACE)
    say(f"inputs into s3://{BUCKET}/inputs/, providers into namespace {NAMESPACE}")
    client = stack.s3()
    for data in sorted((EXAMPLES / "data").iterdir()):
        client.upload_file(str(data), BUCKET, f"inputs/{data.name}")
    stack.apply(*stack.providers(NAMESPACE))
    jobs = []
    for manifest in sorted((EXAMPLES / "jobs").glob("*.yaml")):
        say(f"kubectl apply -n {NAMESPACE} -f examples/jobs/{manifest.name}")
        plane.kubectl("apply", "--namespace", NAMESPACE, "--filename", str(manifest))
        jobs += [d["metadata"]["name"] for d in yaml.safe_load_all(manifest.read_text()) if d]
    return jobs


def _follow(stack: Stack, operator: Operator, jobs: Sequence[str]) -> bool:
    """A live table until all jobs ended; whether all are Complete."""
    until = time.monotonic() + TIMEOUT_S
    shown = 0
    last: list[str] = []
    while True:
        table = stack.control_plane.kubectl(
            "get", "batchinferencejobs", "--namespace", NAMESPACE
        ).stdout.rstrip()
        if sys.stdout.isatty():
            print(f"\x1b[{shown}F\x1b[J" if shown else "", end="")
            print(table, flush=True)
            shown = table.count("\n") + 1
        elif (without_age := [line[:-6] for line in table.splitlines()]) != last:
            last = without_age
            print(table, end="\n\n", flush=True)
        states = [_conditions(stack.get("batchinferencejob", name, NAMESPACE)) for name in jobs]
        if all("Complete" in s for s in states):
            return True
        if any("Failed" in s for s in states) or not operator.running:
            return False
        if time.monotonic() > until:
            return False
        time.sleep(0.3)


def _conditions(job: Mapping[str, Any] | None) -> set[str]:
    found = (job or {}).get("status", {}).get("conditions", [])
    return {c["type"] for c in found if c["status"] == "True"}


def _show_results(stack: Stack, jobs: Sequence[str]) -> None:
    client = stack.s3()
    for name in jobs:
        job = stack.get("batchinferencejob", name, NAMESPACE)
        assert job is not None
        outputs = job["status"]["outputs"]
        counts = job["status"]["requestCounts"]
        print(f"\n{name}: {counts.get('completed', 0)} of {counts['total']} answered", end="")
        usage = job["status"].get("usage", {})
        print(f", {usage.get('inputTokens')} tokens in, {usage.get('outputTokens', 0)} out")
        if "configMapRef" in outputs:
            ref = outputs["configMapRef"]["name"]
            print(f"  kubectl get configmap {ref} --namespace {NAMESPACE}")
            found = stack.get("configmap", ref, NAMESPACE)
            assert found is not None
            lines = found["data"]["results.jsonl"].splitlines()
        else:
            uri = outputs["resultsURI"]
            print(f"  {uri}  (manifest: {outputs['manifestURI']})")
            key = uri.removeprefix(f"s3://{BUCKET}/") + "part-00000.jsonl"
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"]
            lines = [line.decode() for _, line in zip(range(3), body.iter_lines(), strict=False)]
        for line in lines[:3]:
            print(f"    {_short(json.loads(line))}")


def _short(result: Mapping[str, Any]) -> str:
    body = (result.get("response") or {}).get("body") or {}
    if "choices" in body:
        said = body["choices"][0]["message"]["content"]
    elif "data" in body:
        vector = body["data"][0]["embedding"]
        said = f"[{vector[0]:.4f}, {vector[1]:.4f}, … {len(vector)} numbers]"
    else:
        said = str(result.get("error"))
    return f"row {result['row']}  {result['custom_id']}: {said}"[:_WIDE]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (BinaryUnavailable, ChecksumMismatch, CommandFailed, NotInTime, StartFailed) as fault:
        sys.exit(f"[demo] {fault}")
