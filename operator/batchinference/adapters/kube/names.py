"""The names that the operator writes into Kubernetes: labels, annotations, finalizer, paths.

They are part of the public contract (people select by them), so they stand in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from batchinference.ports import ObjectRef

GROUP = "batchinference.dev"
VERSION = "v1alpha1"

FINALIZER = f"{GROUP}/cancel-on-delete"
CONTROLLER = f"{GROUP}/operator"
FIELD_MANAGER = "batch-inference-operator"

MANAGED_BY = "app.kubernetes.io/managed-by"

JOURNAL_LABEL = f"{GROUP}/journal"
"""On a journal: live, parked or ended."""

JOB_ANNOTATION = f"{GROUP}/job"
"""On everything that belongs to a run: `namespace/name` of its job, for people."""

UID_ANNOTATION = f"{GROUP}/object-uid"
"""On a journal: the uid of the object that steers its run, for people."""

PHASE_ANNOTATION = f"{GROUP}/phase"

STAGING_LABEL = f"{GROUP}/staging"
"""On a staging ConfigMap: the name prefix of its store."""

PATH_ANNOTATION = f"{GROUP}/path"
"""On a staging ConfigMap: the path of the object that it holds a piece of."""

OBJECT_ANNOTATION = f"{GROUP}/object"
"""On the head of a stored object: size, checksum and pieces, as JSON."""

RESULTS_LABEL = f"{GROUP}/results"
"""On a results ConfigMap: `claim` for the first one, `part` for those that continue it."""

CLAIM_ANNOTATION = f"{GROUP}/claim"
"""On a results ConfigMap: whose it is, as JSON."""

MANIFEST_ANNOTATION = f"{GROUP}/manifest"
"""On a results ConfigMap: sha256 of its `manifest.json`. Without it nothing in it may be read."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API server serves it."""

    api: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1` or `group/version`, as manifests spell it."""
        return self.api.removeprefix("/apis/").removeprefix("/api/")

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, an object, or a subresource."""
        parts = [self.api]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


_OURS = f"/apis/{GROUP}/{VERSION}"

METADATA = "application/json;as={};g=meta.k8s.io;v=v1"
"""What to accept where contents are to stay where they are; takes a kind of partial object."""

CONFIG_MAPS = Resource("/api/v1", "configmaps", "ConfigMap")
SECRETS = Resource("/api/v1", "secrets", "Secret")
NAMESPACES = Resource("/api/v1", "namespaces", "Namespace", namespaced=False)
EVENTS = Resource("/apis/events.k8s.io/v1", "events", "Event")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases", "Lease")

RESOURCES = {
    resource.kind: resource
    for resource in (
        Resource(_OURS, "batchinferencejobs", "BatchInferenceJob"),
        Resource(_OURS, "inferenceproviders", "InferenceProvider"),
        Resource(_OURS, "clusterinferenceproviders", "ClusterInferenceProvider", namespaced=False),
        Resource(
            "/apis/apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            namespaced=False,
        ),
        CONFIG_MAPS,
        NAMESPACES,
    )
}
"""The kinds that an `ObjectRef` may name."""


def resource(ref: ObjectRef) -> Resource:
    """The resource behind a reference.

    Raises:
        KeyError: a kind that the operator has no business with.
    """
    return RESOURCES[ref.kind]
