"""The chart, rendered by real Helm: its rights, its pod, its copy of the definitions."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sync_chart
from batchinference.app.settings import parse
from batchinference.telemetry.metrics import DECLARED, PREFIX
from control_plane import find_helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "batch-inference-operator"
NAMESPACE = "bio"

Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    home = tmp_path_factory.mktemp("helm")
    folders = {f"HELM_{name}_HOME": str(home / name) for name in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        completed = subprocess.run(
            [find_helm(), *arguments],
            env={**os.environ, **folders},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or completed.returncode == 0, completed.stderr
        return completed

    return run


@pytest.fixture(scope="module")
def render(helm: Helm) -> Callable[..., list[Manifest]]:
    def run(*settings: str) -> list[Manifest]:
        flags = [flag for setting in settings for flag in ("--set", setting)]
        text = helm("template", "bio", str(CHART), "--namespace", NAMESPACE, *flags).stdout
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]

    return run


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def rules(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    for role in of_kind(manifests, "Role", "ClusterRole"):
        for rule in role["rules"]:
            yield f"{role['kind']}/{role['metadata']['name']}", role, rule


def operator_grants(manifests: list[Manifest]) -> set[tuple[str, str, str, str]]:
    """(namespace or "*", API group, resource, verb) that the bindings give the operator."""
    roles = {
        (role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]): role
        for role in of_kind(manifests, "Role", "ClusterRole")
    }
    grants = set()
    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
        assert binding["subjects"] == [
            {
                "kind": "ServiceAccount",
                "name": "bio-batch-inference-operator",
                "namespace": NAMESPACE,
            }
        ]
        namespace = binding["metadata"].get("namespace")
        role = roles[(binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"])]
        for rule in role["rules"]:
            grants |= {
                (namespace or "*", group, resource, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return grants


def grants(where: str, group: str, resource: str, verbs: str) -> set[tuple[str, str, str, str]]:
    return {(where, group, resource, verb) for verb in verbs.split()}


OURS = "batchinference.dev"


def namespaced_grants(where: str) -> set[tuple[str, str, str, str]]:
    return (
        grants(where, OURS, "batchinferencejobs", "get list watch patch delete")
        | grants(where, OURS, "batchinferencejobs/status", "patch")
        | grants(where, OURS, "inferenceproviders", "get list watch")
        | grants(where, OURS, "inferenceproviders/status", "patch")
        | grants(where, "", "configmaps", "get create update delete")
        | grants(where, "", "namespaces", "get")
        | grants(where, "events.k8s.io", "events", "create patch")
    )


EVERYWHERE = (
    grants("*", OURS, "clusterinferenceproviders", "get list watch")
    | grants("*", OURS, "clusterinferenceproviders/status", "patch")
    | grants("*", "apiextensions.k8s.io", "customresourcedefinitions", "get")
)
OWN_NAMESPACE = (
    grants(NAMESPACE, "", "configmaps", "get list create update delete")
    | grants(NAMESPACE, "", "namespaces", "get")
    | grants(NAMESPACE, "coordination.k8s.io", "leases", "get create update")
)

MODES = [
    pytest.param((), id="cluster-wide"),
    pytest.param(("rbac.secretNamespaces={ml,bio}",), id="secrets narrowed"),
    pytest.param(("watchNamespaces={ml,search}",), id="namespaced"),
    pytest.param(("rbac.aggregateToEdit=true",), id="edit aggregated"),
]


def test_the_chart_passes_the_strict_linter(helm: Helm) -> None:
    helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("mode", MODES)
def test_no_rule_has_a_wildcard_or_a_way_to_more_rights(render, mode) -> None:
    seen = 0
    for name, _, rule in rules(render(*mode)):
        seen += 1
        for values in (rule["apiGroups"], rule["resources"], rule["verbs"]):
            assert not any("*" in value for value in values), f"{name}: {rule}"
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), name
    assert seen > 5


@pytest.mark.parametrize("mode", MODES)
def test_secrets_are_only_ever_read_by_name(render, mode) -> None:
    about_secrets = [rule for _, _, rule in rules(render(*mode)) if "secrets" in rule["resources"]]
    assert about_secrets
    for rule in about_secrets:
        assert rule["resources"] == ["secrets"]
        assert rule["verbs"] == ["get"]


def test_cluster_wide_the_operator_may_do_exactly_what_it_calls(render) -> None:
    assert operator_grants(render()) == (
        EVERYWHERE | OWN_NAMESPACE | namespaced_grants("*") | grants("*", "", "secrets", "get")
    )


def test_secret_namespaces_replace_the_cluster_role_over_secrets(render) -> None:
    assert operator_grants(render("rbac.secretNamespaces={ml,bio}")) == (
        EVERYWHERE
        | OWN_NAMESPACE
        | namespaced_grants("*")
        | grants("ml", "", "secrets", "get")
        | grants("bio", "", "secrets", "get")
    )


def test_in_namespaced_mode_the_operator_has_roles_in_these_namespaces_alone(render) -> None:
    assert operator_grants(render("watchNamespaces={ml,search}")) == (
        EVERYWHERE
        # The uid of kube-system names the installation.
        | grants("*", "", "namespaces", "get")
        | OWN_NAMESPACE
        | namespaced_grants("ml")
        | namespaced_grants("search")
        | grants("ml", "", "secrets", "get")
        | grants("search", "", "secrets", "get")
        | grants(NAMESPACE, "", "secrets", "get")
    )


def test_in_namespaced_mode_no_cluster_role_covers_secrets_jobs_or_other_namespaces(render) -> None:
    for name, role, rule in rules(render("watchNamespaces={ml}", "rbac.aggregateToEdit=true")):
        if role["kind"] == "Role":
            continue
        resources = {resource.split("/")[0] for resource in rule["resources"]}
        assert not resources & {"secrets", "batchinferencejobs", "inferenceproviders", "configmaps"}
        if "namespaces" in resources:
            assert rule["resourceNames"] == ["kube-system"], name


def test_namespaced_mode_reaches_the_operator_through_its_settings(render) -> None:
    (config,) = of_kind(render("watchNamespaces={ml,search}"), "ConfigMap")
    assert yaml.safe_load(config["data"]["settings.yaml"]) == {"watchNamespaces": ["ml", "search"]}


def test_settings_are_passed_through_as_they_are(render) -> None:
    (config,) = of_kind(render("settings.a.b=1", "settings.c=text"), "ConfigMap")
    assert yaml.safe_load(config["data"]["settings.yaml"]) == {"a": {"b": 1}, "c": "text"}


def test_a_change_of_the_settings_rolls_the_pod_and_nothing_else_does(render) -> None:
    def checksum(*settings: str) -> str:
        (deployment,) = of_kind(render(*settings), "Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum("service.enabled=true")
    assert len({checksum(), checksum("settings.a=1"), checksum("watchNamespaces={ml}")}) == 3


def test_rendering_twice_gives_the_same_text(helm: Helm) -> None:
    command = ("template", "bio", str(CHART), "--namespace", NAMESPACE)
    assert helm(*command).stdout == helm(*command).stdout


def test_the_pod_meets_the_restricted_profile_with_a_read_only_root(render) -> None:
    (deployment,) = of_kind(render(), "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
    assert mounts["/etc/batch-inference-operator"]["readOnly"] is True


def test_the_pod_runs_the_operator_with_its_settings_and_is_probed(render) -> None:
    (deployment,) = of_kind(render("extraArgs={--verbose}"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert [*container["command"], *container["args"]] == [
        "batch-inference-operator",
        "run",
        "--settings",
        "/etc/batch-inference-operator/settings.yaml",
        "--verbose",
    ]
    named, no_proxy = container["env"]
    assert named == {
        "name": "POD_NAMESPACE",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    }
    assert no_proxy["name"] == "NO_PROXY"
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}


def test_two_replicas_elect_a_leader_and_are_updated_one_by_one(render) -> None:
    def told(manifests: list[Manifest]) -> tuple[Any, str, list[Any], int]:
        (deployment,) = of_kind(manifests, "Deployment")
        (settings,) = [m for m in of_kind(manifests, "ConfigMap") if "settings.yaml" in m["data"]]
        election = (yaml.safe_load(settings["data"]["settings.yaml"]) or {}).get("leaderElection")
        spec = deployment["spec"]
        spread = spec["template"]["spec"].get("topologySpreadConstraints", [])
        budgets = len(of_kind(manifests, "PodDisruptionBudget"))
        return election, spec["strategy"]["type"], spread, budgets

    assert told(render()) == (None, "Recreate", [], 0)
    election, strategy, (spread,), budgets = told(render("replicaCount=2"))
    assert election == {"enabled": True, "leaseName": "bio-batch-inference-operator"}
    assert (strategy, budgets) == ("RollingUpdate", 1)
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    settings = parse({"leaderElection": election})
    assert settings.settings.leader_election.enabled
    own = ("replicaCount=2", "settings.leaderElection.leaseSeconds=20")
    longer, *_ = told(render(*own, "podDisruptionBudget.enabled=false"))
    assert longer == {**election, "leaseSeconds": 20}
    assert told(render(*own, "podDisruptionBudget.enabled=false"))[3] == 0
    assert told(render("podDisruptionBudget.enabled=true"))[3] == 1


def test_the_way_out_of_the_cluster_is_in_the_pods_environment(render) -> None:
    (deployment,) = of_kind(
        render(
            "proxy.https=http://proxy:3128",
            "proxy.http=http://proxy:3129",
            "proxy.noProxy={minio.storage.svc,10.0.0.0/8}",
            "caBundle.configMap=corporate-ca",
            "caBundle.key=bundle.pem",
        ),
        "Deployment",
    )
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {v["name"]: v.get("value") for v in container["env"]}
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert environment["HTTP_PROXY"] == "http://proxy:3129"
    # The API server is never behind the proxy, nor are the credentials of the pod's own identity.
    always = "$(KUBERNETES_SERVICE_HOST),kubernetes.default.svc,localhost,127.0.0.1"
    clouds = "169.254.169.254,169.254.170.23"
    assert environment["NO_PROXY"] == f"{always},{clouds},minio.storage.svc,10.0.0.0/8"
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "ca"]
    assert environment["BATCH_INFERENCE_CA_FILE"] == f"{mount['mountPath']}/ca.crt"
    (volume,) = [v for v in pod["volumes"] if v["name"] == "ca"]
    assert volume["configMap"] == {
        "name": "corporate-ca",
        "items": [{"key": "bundle.pem", "path": "ca.crt"}],
    }


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        pytest.param((), "batch-inference-operator:0.1.0", id="the tag is the appVersion"),
        pytest.param(
            ("image.registry=r.example.com/ml", "image.tag=edge"),
            "r.example.com/ml/batch-inference-operator:edge",
            id="registry and tag",
        ),
        pytest.param(
            (f"image.digest=sha256:{'0' * 64}", "image.tag=edge"),
            f"batch-inference-operator@sha256:{'0' * 64}",
            id="a digest wins",
        ),
    ],
)
def test_the_image_is_named_by_its_parts(render, settings, image) -> None:
    (deployment,) = of_kind(render(*settings), "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_the_app_version_is_the_project_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in project


def test_the_chart_s_copy_of_the_definitions_is_current() -> None:
    assert sync_chart.drift() == []


def test_the_rendered_definitions_equal_the_contract(render) -> None:
    rendered = {crd["metadata"]["name"]: crd for crd in of_kind(render(), CRD)}
    contract = {
        crd["metadata"]["name"]: crd
        for crd in (yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml"))
    }
    assert rendered.keys() == contract.keys()
    for name, crd in contract.items():
        assert rendered[name]["apiVersion"] == crd["apiVersion"]
        assert rendered[name]["spec"] == crd["spec"], name
        for key, value in crd["metadata"].get("annotations", {}).items():
            assert rendered[name]["metadata"]["annotations"][key] == value


CRD = "CustomResourceDefinition"


def test_definitions_are_kept_and_never_pruned_unless_told_otherwise(render) -> None:
    for crd in of_kind(render(), CRD):
        annotations = crd["metadata"]["annotations"]
        assert annotations["helm.sh/resource-policy"] == "keep"
        options = annotations["argocd.argoproj.io/sync-options"].split(",")
        assert options == ["ServerSideApply=true", "Prune=false"]
    for crd in of_kind(render("crds.keep=false", "crds.additionalLabels.team=ml"), CRD):
        assert "helm.sh/resource-policy" not in crd["metadata"]["annotations"]
        assert crd["metadata"]["labels"]["team"] == "ml"


def test_definitions_can_be_left_to_others(render) -> None:
    assert of_kind(render("crds.install=false"), CRD) == []


def test_people_who_view_see_jobs_and_people_who_edit_do_not_spend_by_default(render) -> None:
    def aggregated(*settings: str) -> dict[str, set[str]]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {
            role["metadata"]["name"].rsplit("-", 1)[1]: {
                label.removeprefix(prefix)
                for label in role["metadata"]["labels"]
                if label.startswith(prefix)
            }
            for role in of_kind(render(*settings), "ClusterRole")
            if role["metadata"]["name"].endswith(("-view", "-edit"))
        }

    assert aggregated() == {"view": {"view", "edit", "admin"}, "edit": set()}
    assert aggregated("rbac.aggregateToEdit=true")["edit"] == {"edit", "admin"}
    assert aggregated("rbac.aggregateToView=false")["view"] == set()
    assert aggregated("watchNamespaces={ml}") == {}


def test_without_rbac_nothing_grants_anything(render) -> None:
    kinds = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    assert of_kind(render("rbac.create=false"), *kinds) == []


@pytest.mark.parametrize(
    ("switch", "kind"),
    [
        ("service.enabled", "Service"),
        ("podMonitor.enabled", "PodMonitor"),
        ("prometheusRule.enabled", "PrometheusRule"),
        ("networkPolicy.enabled", "NetworkPolicy"),
        (
            "admissionPolicy.allowedModels={small},admissionPolicy.enabled",
            "ValidatingAdmissionPolicy",
        ),
        ("podDisruptionBudget.enabled", "PodDisruptionBudget"),
    ],
)
def test_optional_objects_are_off_until_switched_on(render, switch, kind) -> None:
    assert of_kind(render(), kind) == []
    assert len(of_kind(render(f"{switch}=true"), kind)) == 1


def test_alerts_ask_for_metrics_that_there_are_and_the_page_lists_them(render) -> None:
    (rule,) = of_kind(render("prometheusRule.enabled=true"), "PrometheusRule")
    declared = {PREFIX + metric.name for metric in DECLARED}
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    (group,) = rule["spec"]["groups"]
    assert len(group["rules"]) > 5
    for alert in group["rules"]:
        asked = set(re.findall(r"batchinference_\w+", alert["expr"]))
        assert asked, alert["alert"]
        assert asked <= declared, alert["alert"]
        assert alert["annotations"]["description"]
    rows = re.findall(
        r"^\| `(BatchInference\w+)` \| (.+) \| `(.+)` \| (\w*) \|$", page, re.MULTILINE
    )
    assert rows == [
        (a["alert"], a["annotations"]["summary"], a["expr"], a.get("for", ""))
        for a in group["rules"]
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        pytest.param("bogus=1", "bogus", id="an unknown key"),
        pytest.param("rbac.bogus=1", "bogus", id="an unknown key below a known one"),
        pytest.param("replicaCount=4", "replicaCount", id="more replicas than have a meaning"),
        pytest.param("image.digest=latest", "digest", id="a digest that is none"),
        pytest.param("watchNamespaces=ml", "watchNamespaces", id="text where a list is needed"),
        pytest.param(
            "watchNamespaces={bio}", "operator's own namespace", id="jobs beside the journals"
        ),
        pytest.param(
            "proxy.https=http://me:secret@proxy:3128", "https", id="a password outside of a Secret"
        ),
        pytest.param("admissionPolicy.enabled=true", "checks nothing", id="a policy without rules"),
        pytest.param(
            "settings.watchNamespaces={ml}", "the roles follow it", id="two places for one thing"
        ),
    ],
)
def test_values_that_make_no_sense_are_refused_with_a_reason(helm: Helm, setting, said) -> None:
    refused = helm(
        "template", "bio", str(CHART), "--namespace", NAMESPACE, "--set", setting, check=False
    )
    assert refused.returncode != 0
    assert said in refused.stderr


def test_every_value_is_in_the_schema_and_in_the_readme() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    readme = (CHART / "README.md").read_text()
    for key in values:
        assert f"`{key}" in readme, key


def test_the_copy_of_the_definitions_follows_additions_changes_and_removals(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    (source / "a.yaml").write_text("kind: CustomResourceDefinition\n")
    assert sync_chart.drift(source, copy) == [f"{copy / 'a.yaml'}: missing"]
    sync_chart.sync(source, copy)
    assert sync_chart.drift(source, copy) == []
    (source / "a.yaml").write_text("kind: CustomResourceDefinition\nspec: {}\n")
    (copy / "old.yaml").write_text("kind: CustomResourceDefinition\n")
    assert sync_chart.drift(source, copy) == [
        f"{copy / 'old.yaml'}: not in {source}",
        f"{copy / 'a.yaml'}: differs from {source / 'a.yaml'}",
    ]
    sync_chart.sync(source, copy)
    assert sync_chart.drift(source, copy) == []


def test_a_file_that_is_not_one_definition_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("kind: CustomResourceDefinition\n---\nkind: Role\n")
    with pytest.raises(ValueError, match=r"two\.yaml: one CustomResourceDefinition per file"):
        sync_chart.sync(tmp_path, tmp_path / "copy")
