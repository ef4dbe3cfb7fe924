"""The operator of some namespaces, under the roles that the chart gives it for them."""

from __future__ import annotations

from typing import Any

import pytest

from stack import OPERATOR_NAMESPACE, Stack, wait_for
from team import CHAT_MODEL

RECORD = '{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hello"}]}}'


def job(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "BatchInferenceJob",
        "metadata": {"name": "hello", "namespace": namespace},
        "spec": {
            "providerRef": {"kind": "ClusterInferenceProvider", "name": "shared"},
            "model": CHAT_MODEL,
            "operation": "ChatCompletions",
            "input": {"inline": RECORD},
            "output": {"configMap": {"name": "answers"}},
        },
    }


@pytest.mark.slow
def test_a_cluster_provider_serves_the_namespaces_that_are_watched(own_control_plane: Any) -> None:
    plane = own_control_plane()
    for namespace in ("ml", "search"):
        plane.kubectl("create", "namespace", namespace)
    quick = ("--set", "openai.in_progress_s=0.3")
    with Stack.start(plane, values={"watchNamespaces": ["ml"]}, sandbox_options=quick) as stack:
        stack.start_operator()
        made = stack.providers(OPERATOR_NAMESPACE)
        shared = next(o for o in made if o["metadata"]["name"] == "openai" and "spec" in o)
        shared["kind"], shared["metadata"] = "ClusterInferenceProvider", {"name": "shared"}
        shared["spec"]["allowedNamespaces"] = {"names": ["ml", "search"]}
        stack.apply(*(o for o in made if o["kind"] == "Secret"), shared)
        stack.apply(job("ml"), job("search"))

        def state(namespace: str) -> dict[str, Any]:
            found = stack.get("batchinferencejob", "hello", namespace) or {}
            return dict(found.get("status") or {})

        wait_for("the job of the watched namespace", lambda: state("ml").get("completionTime"))
        assert state("ml")["state"] == "Succeeded"
        assert state("search")["observedGeneration"] == -1, "nobody looks at that namespace"
