"""No provider object of a namespace gets at the operator's own identity, whatever the pod has."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchinference.app.bench import ConnectionsCache
from batchinference.app.providers import Providers
from batchinference.errors import Stalled
from batchinference.model.run import Place
from batchinference.ports import ResolvedProvider
from builders import bedrock_provider, run_of

from .forward_proxy import ForwardProxy
from .stub import Answer, Asked, Stub
from .test_network import HOST, certificate, respond

KUBE = {"host": "http://127.0.0.1:9"}
OWN = {"AWS_ACCESS_KEY_ID": "TENANT", "AWS_SECRET_ACCESS_KEY": "tenants"}
SECRETS = {"bedrock": OWN, "storage": OWN}
POD = "ASIAOPERATOR"
TAKEN = "ASIATAKEN"


class Quiet:
    """Metrics that nobody reads."""

    def count(self, *_args: object, **_labels: str) -> None: ...
    def gauge(self, *_args: object, **_labels: str) -> None: ...
    def observe(self, *_args: object, **_labels: str) -> None: ...


def metadata_answer(asked: Asked) -> Answer:
    """All that gives out credentials in a cluster: IMDS, Pod Identity, and STS for a web token."""
    if asked.path == "/latest/api/token":
        return Answer(b"token", headers={"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "100"})
    if asked.path.endswith("/security-credentials/"):
        return Answer(b"node-role")
    form = {
        "Code": "Success",
        "AccessKeyId": POD,
        "SecretAccessKey": "operators",
        "Token": "operators",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    return Answer(form)


@pytest.fixture
def metadata() -> Iterator[Stub]:
    with Stub(metadata_answer) as stub:
        yield stub


@pytest.fixture
def pod(metadata: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    """A pod with an identity by every way that AWS has."""
    files = tmp_path / "aws"
    files.write_text(f"[default]\naws_access_key_id = {POD}\naws_secret_access_key = x\n")
    web = tmp_path / "token"
    web.write_text("web-token")
    for name, value in {
        "AWS_ACCESS_KEY_ID": POD,
        "AWS_SECRET_ACCESS_KEY": "operators",
        "AWS_SESSION_TOKEN": "operators",
        "AWS_BEARER_TOKEN_BEDROCK": "operators-bearer",
        "AWS_ROLE_ARN": "arn:aws:iam::999999999999:role/operator",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(web),
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{metadata.url}/v1/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "operators",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
        "AWS_SHARED_CREDENTIALS_FILE": str(files),
        "AWS_CONFIG_FILE": str(files),
    }.items():
        monkeypatch.setenv(name, value)
    return metadata


def spec(url: str, *, refs: bool, ca_bundle: str = "", **bedrock: Any) -> dict[str, Any]:
    found = bedrock_provider()["spec"]
    for part in (found["bedrock"], found["storage"]["s3"]):
        part["endpointURL"] = url
        if ca_bundle:
            part["caBundle"] = ca_bundle
        if refs:
            part["credentialsSecretRef"] = {"name": "aws"}
        else:
            part.pop("credentialsSecretRef")
    found["bedrock"] |= bedrock
    return dict(found)


def signers(stub: Stub) -> set[str]:
    """Whose credentials the calls carried."""
    found = set()
    for asked in stub.asked:
        header = asked.headers.get("authorization", "nothing")
        match = re.search(r"Credential=([^/]+)/", header)
        found.add(match[1] if match else header)
    return found


async def use(identity: str, settings: dict[str, Any], secrets: dict[str, Any]) -> None:
    """A control call, and a claim's read, as the operator makes them; and a worker's read."""
    factory = Providers(KUBE, 30.0, Quiet())
    client = factory.connect(ResolvedProvider(settings, secrets, identity))
    try:
        await client.check()
        run = run_of(shards=0)
        kind = identity.partition("/")[0]
        pin = replace(run.provider, kind=kind, settings=settings)
        run = replace(run, provider=pin, output=Place("s3://b/out/"))
        assert not factory.holds_claim(run, ResolvedProvider(settings, secrets, identity))
        cache = ConnectionsCache()
        cache.of(run, settings, secrets, KUBE).bucket("s3://b/x").get("s3://b/x")
    finally:
        await client.close()


NAMESPACED = [
    ("InferenceProvider/ml/p", "one of a namespace"),
    ("InferenceProvider/ClusterInferenceProvider/p", "in a namespace of a telling name"),
    ("InferenceProvider/ml/ClusterInferenceProvider", "with a telling name"),
    ("", "of unknown kind"),
]


@pytest.mark.parametrize(("identity", "reason"), NAMESPACED)
async def test_without_a_secret_nothing_is_tried(pod: Stub, identity: str, reason: str) -> None:
    with Stub(respond) as aws:
        for secrets in ({}, SECRETS):  # a Secret that is not named is not used either
            with pytest.raises(Stalled) as refused:
                await use(identity, spec(aws.url, refs=False), secrets)
            assert refused.value.reason == "CredentialsRejected", reason
        assert aws.asked == []
    assert pod.asked == []


def test_a_worker_refuses_it_too(pod: Stub) -> None:
    run = run_of(shards=0)
    settings = spec("http://127.0.0.1:9", refs=False)
    pin = replace(run.provider, kind="InferenceProvider", settings=settings)
    with pytest.raises(Stalled, match="own identity"):
        ConnectionsCache().of(replace(run, provider=pin), settings, SECRETS, KUBE)
    assert pod.asked == []


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ({}, "empty"),
        ({"AWS_ACCESS_KEY_ID": "TENANT"}, "half"),
        ({"AWS_ACCESS_KEY_ID": " ", "AWS_SECRET_ACCESS_KEY": "x"}, "blank"),
        ({"AWS_PROFILE": "default", "AWS_ROLE_ARN": "arn:aws:iam::9:role/x"}, "of other keys"),
    ],
)
async def test_a_secret_without_keys_does_not_fall_back(
    pod: Stub, secret: dict[str, str], reason: str
) -> None:
    secrets = {"bedrock": secret, "storage": secret}
    with Stub(respond) as aws:
        with pytest.raises(Stalled) as refused:
            await use("InferenceProvider/ml/p", spec(aws.url, refs=True), secrets)
        assert refused.value.reason == "CredentialsRejected", reason
        assert aws.asked == []
    assert pod.asked == []


async def test_with_a_secret_every_call_is_signed_by_it(
    pod: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path, HOST)
    text = pem.read_text()
    bundle = text[: text.index("-----BEGIN PRIVATE")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    # Over TLS: only there is a bearer token sent at all.
    with Stub(respond, tls=context) as aws, ForwardProxy(int(aws.url.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        settings = spec(f"https://{HOST}", refs=True, ca_bundle=bundle)
        await use("InferenceProvider/ml/p", settings, SECRETS)
        paths = {asked.path for asked in aws.asked}
        assert {"/", "/model-invocation-jobs"} <= paths
        assert signers(aws) == {"TENANT"}
        assert not any("x-amz-security-token" in asked.headers for asked in aws.asked)
    assert pod.asked == []


async def test_a_role_is_taken_with_the_secrets_keys(pod: Stub) -> None:
    def answer(asked: Asked) -> Answer:
        if b"Action=AssumeRole" not in asked.body:
            return respond(asked)
        expires = "<Expiration>2099-01-01T00:00:00Z</Expiration>"
        keys = f"<AccessKeyId>{TAKEN}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        inner = f"<Credentials>{keys}<SessionToken>t</SessionToken>{expires}</Credentials>"
        text = (
            f"<AssumeRoleResponse><AssumeRoleResult>{inner}</AssumeRoleResult></AssumeRoleResponse>"
        )
        return Answer(text.encode(), headers={"Content-Type": "text/xml"})

    with Stub(answer) as aws:
        role = "arn:aws:iam::444455556666:role/batch"
        settings = spec(aws.url, refs=True, assumeRoleARN=role)
        factory = Providers(KUBE, 30.0, Quiet())
        client = factory.connect(ResolvedProvider(settings, SECRETS, "InferenceProvider/ml/p"))
        await client.check()
        await client.close()
        assert signers(aws) == {"TENANT", TAKEN}
    assert pod.asked == []


async def test_a_cluster_provider_without_a_secret_does_use_it(pod: Stub) -> None:
    """Else the tests above would see nothing whatever happened."""
    with Stub(respond) as aws:
        factory = Providers(KUBE, 30.0, Quiet())
        settings = spec(aws.url, refs=False)
        client = factory.connect(ResolvedProvider(settings, {}, "ClusterInferenceProvider//p"))
        await client.check()
        await client.close()
        assert signers(aws) == {POD}
