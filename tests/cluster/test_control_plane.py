"""The control plane itself: real, safe to reach, and breakable on purpose."""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane import CommandFailed, ControlPlane
from processes import StartFailed

ROOT = Path(__file__).resolve().parents[2]
CHART = str(ROOT / "charts" / "batch-inference-operator")
CRDS = sorted((ROOT / "crds").glob("*.yaml"))


def get(control_plane: ControlPlane, path: str, token: str | None, ca_file: Path | None) -> int:
    """The HTTP status of a request; certificates are always verified."""
    request = urllib.request.Request(control_plane.url + path)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=ca_file)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"


def config_map(control_plane: ControlPlane, namespace: str, key: str) -> str:
    path = f"jsonpath={{.data.{key}}}"
    return control_plane.kubectl("get", "configmap", "kept", "-n", namespace, "-o", path).stdout


def test_it_is_ready_when_start_returns(control_plane: ControlPlane) -> None:
    checks = control_plane.kubectl("get", "--raw", "/readyz?verbose").stdout
    assert "[+]etcd ok" in checks
    assert "readyz check passed" in checks
    control_plane.kubectl("get", "serviceaccount", "default", "-n", "default")


def test_the_version_is_the_pinned_one_for_server_and_kubectl(control_plane: ControlPlane) -> None:
    versions = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    assert versions["serverVersion"]["minor"] == versions["clientVersion"]["minor"] == "37"


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        (None, 403, "nobody may read Secrets"),
        ("invented", 401, "a token that the server does not know"),
    ],
)
def test_strangers_are_refused(control_plane: ControlPlane, token, status, reason) -> None:
    answer = get(control_plane, "/api/v1/secrets", token, control_plane.ca_file)
    assert answer == status, reason


def test_a_service_account_has_no_rights_until_they_are_granted(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.kubectl("create", "serviceaccount", "someone", "-n", namespace)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "someone")
    assert kubeconfig.stat().st_mode & 0o077 == 0

    with pytest.raises(CommandFailed, match="forbidden"):
        control_plane.kubectl("get", "pods", kubeconfig=kubeconfig)

    who = f"--serviceaccount={namespace}:someone"
    control_plane.kubectl("create", "rolebinding", "v", "--clusterrole=view", who, "-n", namespace)
    eventually(
        lambda: (
            control_plane.kubectl("get", "pods", kubeconfig=kubeconfig, check=False).returncode == 0
        ),
        "the binding takes effect, in the kubeconfig's own namespace",
    )
    with pytest.raises(CommandFailed, match="forbidden"):
        control_plane.kubectl("get", "pods", "-n", "default", kubeconfig=kubeconfig)


def test_the_certificate_is_verified_and_only_its_own_file_vouches_for_it(
    control_plane: ControlPlane,
) -> None:
    token = control_plane.admin_token
    assert get(control_plane, "/api", token, control_plane.ca_file) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(control_plane, "/api", token, None)


def test_kubeconfigs_hold_no_way_around_verification(control_plane: ControlPlane) -> None:
    kubeconfigs = list(control_plane.folder.glob("*.kubeconfig"))
    assert len(kubeconfigs) >= 2
    for kubeconfig in kubeconfigs:
        assert "insecure" not in kubeconfig.read_text()


def test_failed_commands_raise_with_what_they_said(control_plane: ControlPlane) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)get pods no-such-pod.*NotFound"):
        control_plane.kubectl("get", "pods", "no-such-pod")
    assert control_plane.kubectl("get", "pods", "no-such-pod", check=False).returncode == 1


def test_the_controllers_work(control_plane: ControlPlane, namespace: str) -> None:
    manifest = """
        {apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {
          restartPolicy: Never, containers: [{name: c, image: i}]}}}}"""
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
    arguments = ("-n", namespace, "-l", "job-name=j", "--timeout=60s")
    control_plane.kubectl("wait", "pod", "--for=create", *arguments)

    control_plane.kubectl("delete", "job", "j", "-n", namespace)
    control_plane.kubectl("wait", "pod", "--for=delete", *arguments)


def test_a_namespace_goes_with_all_that_is_in_it(control_plane: ControlPlane) -> None:
    control_plane.kubectl("create", "namespace", "short-lived")
    control_plane.kubectl("create", "configmap", "kept", "-n", "short-lived")
    control_plane.kubectl("delete", "namespace", "short-lived", "--timeout=60s")


def test_an_older_version_can_be_emulated(own_control_plane) -> None:
    older = own_control_plane("1.34")
    version = json.loads(older.kubectl("get", "--raw", "/version").stdout)
    assert version["emulationMinor"] == "34"
    for path in CRDS:
        older.kubectl("apply", "--server-side", "-f", str(path))
    older.helm(
        "install", "bio", CHART, "-n", "bio", "--create-namespace", "--set=crds.install=false"
    )


def test_the_api_server_keeps_its_data_and_its_port_when_it_is_killed(own_control_plane) -> None:
    own = own_control_plane()
    own.kubectl("create", "configmap", "kept", "-n", "default", "--from-literal=a=1")
    url, pid = own.url, own.apiserver.pid
    own.kill_apiserver()

    assert not own.apiserver.running
    refused = own.kubectl("get", "configmap", "kept", check=False)
    assert "refused" in refused.stderr

    own.start_apiserver()
    assert own.apiserver.pid != pid
    assert own.url == url
    assert config_map(own, "default", "a") == "1"

    own.restart_apiserver()
    assert config_map(own, "default", "a") == "1"


def test_etcd_keeps_its_data_when_it_is_killed_and_the_api_server_survives_it(
    own_control_plane,
) -> None:
    own = own_control_plane()
    own.kubectl("create", "configmap", "kept", "-n", "default", "--from-literal=a=1")
    pid = own.apiserver.pid
    own.kill_etcd()
    assert get(own, "/readyz", own.admin_token, own.ca_file) == 500

    own.start_etcd()
    eventually(
        lambda: get(own, "/readyz", own.admin_token, own.ca_file) == 200, "the API server is back"
    )
    assert own.apiserver.pid == pid
    assert config_map(own, "default", "a") == "1"

    own.restart_etcd()
    assert config_map(own, "default", "a") == "1"


def test_the_controller_manager_can_be_restarted(own_control_plane) -> None:
    own = own_control_plane()
    own.restart_controller_manager()
    own.kubectl("create", "namespace", "later")
    own.kubectl("wait", "serviceaccount/default", "-n", "later", "--for=create", "--timeout=60s")


def test_the_audit_log_holds_who_did_what(own_control_plane) -> None:
    own = own_control_plane(audit=True)
    own.kubectl("create", "configmap", "kept", "-n", "default")
    events = [json.loads(line) for line in own.audit_log.read_text().splitlines()]
    mine = [
        event
        for event in events
        if event["verb"] == "create" and event.get("objectRef", {}).get("name") == "kept"
    ]
    assert [event["user"]["username"] for event in mine] == ["admin"]


def test_nothing_is_left_after_stop(programs) -> None:
    control_plane = ControlPlane.start(binaries=programs)
    pids = [
        program.pid
        for program in (
            control_plane.etcd,
            control_plane.apiserver,
            control_plane.controller_manager,
        )
    ]
    control_plane.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not control_plane.folder.exists()
    control_plane.stop()  # a second time does no harm


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(
    programs, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StartFailed, match=r"(?s)kube-apiserver did not start.*9\.99"):
        ControlPlane.start("9.99", binaries=programs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of the death")
def test_the_programs_die_with_a_parent_that_is_killed(programs, tmp_path) -> None:
    script = (
        "import threading\n"
        "from control_plane import ControlPlane\n"
        "started = []\n"
        # A thread that ends must not take the programs with it.
        "thread = threading.Thread(target=lambda: started.append(ControlPlane.start()))\n"
        "thread.start(); thread.join()\n"
        "own = started[0]\n"
        "own.kubectl('get', 'namespaces')\n"
        "print(own.etcd.pid, own.apiserver.pid, own.controller_manager.pid, flush=True)\n"
        "input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hack"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        handles = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(handles) == 3
        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        assert poll.poll(0) == [], "all three run before"

        parent.send_signal(signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], 30)[0], "a program outlived its parent"
            os.close(handle)


def test_run_prints_a_kubeconfig_and_stops_everything_when_told(programs, tmp_path) -> None:
    command = [sys.executable, str(ROOT / "hack" / "control_plane.py"), "run"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        exports = dict(
            process.stdout.readline().removeprefix("export ").strip().split("=", 1)
            for _ in range(2)
        )
        listed = subprocess.run(
            [programs.kubectl, "get", "namespaces", "-o", "name"],
            env={**os.environ, "KUBECONFIG": exports["KUBECONFIG"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "namespace/default" in listed.stdout
        assert exports["PATH"].startswith(str(programs.kubectl.parent))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "ready in" in said
    assert list(tmp_path.glob("control-plane-*")) == []


# ---- the chart on a real server


@pytest.fixture(scope="module")
def chart(control_plane: ControlPlane) -> ControlPlane:
    """The chart, cluster-wide, in a namespace that enforces the restricted profile."""
    # Tests of this session may have applied them, and Helm takes over nothing that it did not make.
    control_plane.kubectl("delete", "-f", str(ROOT / "crds"), "--ignore-not-found")
    control_plane.kubectl("create", "namespace", "bio")
    control_plane.kubectl(
        "label", "namespace", "bio", "pod-security.kubernetes.io/enforce=restricted"
    )
    control_plane.helm("install", "bio", CHART, "-n", "bio")
    yield control_plane
    control_plane.helm("uninstall", "bio", "-n", "bio", "--wait")
    control_plane.kubectl("delete", "-f", str(ROOT / "crds"), "--ignore-not-found")
    control_plane.kubectl("delete", "namespace", "bio")


def may(control_plane: ControlPlane, account: str, verb: str, resource: str, where: str) -> bool:
    """Whether a ServiceAccount (namespace:name) may do something, as the server sees it."""
    scope = ["--all-namespaces"] if where == "*" else ["-n", where]
    user = f"--as=system:serviceaccount:{account}"
    answer = control_plane.kubectl("auth", "can-i", verb, resource, *scope, user, check=False)
    return answer.stdout.strip() == "yes"


def test_the_chart_s_definitions_become_established(chart: ControlPlane) -> None:
    names = chart.kubectl("get", "crd", "-o", "name").stdout.split()
    assert len([name for name in names if name.endswith(".batchinference.dev")]) == len(CRDS) == 3
    for name in names:
        chart.kubectl("wait", name, "--for=condition=Established", "--timeout=60s")
        conditions = json.loads(chart.kubectl("get", name, "-o", "json").stdout)["status"]
        problems = [c for c in conditions["conditions"] if c["type"] == "NonStructuralSchema"]
        assert problems == []
    chart.kubectl("get", "batchinferencejobs", "--all-namespaces")


def test_the_pod_is_admitted_under_the_restricted_profile(chart: ControlPlane) -> None:
    selector = ("-n", "bio", "-l", "app.kubernetes.io/instance=bio")
    chart.kubectl("wait", "pod", *selector, "--for=create", "--timeout=60s")


@pytest.mark.parametrize(
    ("verb", "resource", "where", "allowed"),
    [
        ("watch", "batchinferencejobs.batchinference.dev", "*", True),
        ("patch", "batchinferencejobs.batchinference.dev/status", "*", True),
        ("create", "batchinferencejobs.batchinference.dev", "*", False),
        ("delete", "batchinferencejobs.batchinference.dev", "*", True),  # ttlSecondsAfterFinished
        ("patch", "inferenceproviders.batchinference.dev", "*", False),
        ("watch", "clusterinferenceproviders.batchinference.dev", "*", True),
        ("get", "secrets", "*", True),
        ("list", "secrets", "*", False),
        ("watch", "secrets", "bio", False),
        ("list", "configmaps", "*", False),
        ("list", "configmaps", "bio", True),
        ("update", "leases.coordination.k8s.io", "bio", True),
        ("update", "leases.coordination.k8s.io", "default", False),
        ("create", "events.events.k8s.io", "default", True),
        ("create", "pods", "*", False),
    ],
)
def test_the_operator_s_rights_as_the_server_sees_them(
    chart: ControlPlane, verb, resource, where, allowed
) -> None:
    assert may(chart, "bio:bio-batch-inference-operator", verb, resource, where) is allowed


def test_in_namespaced_mode_the_rights_end_at_the_namespaces(own_control_plane) -> None:
    own = own_control_plane()
    own.kubectl("create", "namespace", "ml")
    own.kubectl("create", "namespace", "other")
    own.helm(
        "install", "bio", CHART, "-n", "bio", "--create-namespace", "--set=watchNamespaces={ml}"
    )
    kubeconfig = own.service_account_kubeconfig("bio", "bio-batch-inference-operator")

    for arguments in (
        ("get", "batchinferencejobs", "-n", "ml"),
        ("get", "clusterinferenceproviders"),
        ("get", "namespace", "ml"),
        ("get", "namespace", "kube-system"),
        ("get", "crd", "batchinferencejobs.batchinference.dev"),
    ):
        own.kubectl(*arguments, kubeconfig=kubeconfig)
    for arguments in (
        ("get", "batchinferencejobs", "-n", "other"),
        ("get", "batchinferencejobs", "--all-namespaces"),
        ("get", "namespace", "other"),
        ("get", "secrets", "-n", "ml"),
        ("get", "crd"),
    ):
        with pytest.raises(CommandFailed, match="forbidden"):
            own.kubectl(*arguments, kubeconfig=kubeconfig)


def test_uninstalling_keeps_the_definitions_and_installing_again_takes_them_back(
    own_control_plane,
) -> None:
    own = own_control_plane()
    install = ("upgrade", "--install", "bio", CHART, "-n", "bio", "--create-namespace")
    own.helm(*install)
    own.kubectl("label", "crd", "batchinferencejobs.batchinference.dev", "seen=before")
    own.helm("uninstall", "bio", "-n", "bio")
    own.helm(*install)
    labelled = own.kubectl("get", "crd", "-l", "seen=before", "-o", "name").stdout.split()
    assert len(labelled) == 1


JOB = """
apiVersion: batchinference.dev/v1alpha1
kind: BatchInferenceJob
metadata: {name: %s}
spec:
  providerRef: {kind: InferenceProvider, name: openai}
  model: %s
  operation: ChatCompletions
  input: {inline: "{}"}
  output: {configMap: {name: out}}
"""


def test_the_admission_policy_bounds_new_jobs_and_lets_old_ones_go(own_control_plane) -> None:
    own = own_control_plane()
    install = ("upgrade", "--install", "bio", CHART, "-n", "bio", "--create-namespace")
    own.helm(*install)
    own.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
    old = JOB % ("old", "large")
    own.kubectl("apply", "-f", "-", stdin=old)
    own.helm(
        *install,
        "--set=admissionPolicy.enabled=true,admissionPolicy.allowedModels={small,medium}",
    )

    def refusal(manifest: str) -> str:
        arguments = ("create", "--dry-run=server", "-f", "-")
        return own.kubectl(*arguments, stdin=manifest, check=False).stderr

    eventually(
        lambda: (
            "spec.model: large is not among the models that this cluster allows: small, medium"
            in refusal(JOB % ("new", "large"))
        ),
        "the policy takes effect",
    )
    assert refusal(JOB % ("new", "small")) == ""

    # What was there before can still be stopped and deleted.
    patch = ("patch", "batchinferencejob", "old", "--type=merge", "-p")
    own.kubectl(*patch, '{"spec":{"suspend":true}}')
    own.kubectl("delete", "batchinferencejob", "old", "--timeout=30s")
