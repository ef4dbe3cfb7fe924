"""An API server with our CRDs, and how tests speak to it."""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
from typing import Any
from urllib.parse import urlencode, urlsplit

from contract.crds import crd
from control_plane import ControlPlane

API_VERSION = "batchinference.dev/v1alpha1"
NAMESPACE = "ml"
COUNTER = itertools.count()


class Server:
    """An API server with our CRDs, spoken to directly: hundreds of requests, few of them kubectl."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        context = ssl.create_default_context(cafile=plane.ca_file)
        self._connection = http.client.HTTPSConnection(urlsplit(plane.url).netloc, context=context)

    def close(self) -> None:
        self._connection.close()

    def send(
        self,
        method: str,
        kind: str,
        name: str = "",
        body: Any = None,
        *,
        dry_run: bool = True,
        user: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Status code and answer. `name` may end in a subresource: `job/status`."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        scope = "" if kind.startswith("Cluster") else f"namespaces/{NAMESPACE}/"
        plural = crd(kind)["spec"]["names"]["plural"]
        patch = method == "PATCH"
        headers = {
            "Authorization": f"Bearer {self.plane.admin_token}",
            "Content-Type": "application/merge-patch+json" if patch else "application/json",
        } | ({"Impersonate-User": user} if user else {})
        self._connection.request(
            method,
            f"/apis/{API_VERSION}/{scope}{plural}/{name}?{urlencode(query)}".replace("/?", "?"),
            json.dumps(body) if body is not None else None,
            headers,
        )
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def create(self, spec: dict[str, Any]) -> str:
        """A job for good; its name."""
        name = f"job-{next(COUNTER)}"
        code, answer = self.send("POST", "BatchInferenceJob", body=job(name, spec), dry_run=False)
        assert code == 201, answer
        return name

    def get(self, name: str) -> dict[str, Any]:
        return self.send("GET", "BatchInferenceJob", name)[1]


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "BatchInferenceJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }
