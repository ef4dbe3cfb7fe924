"""What an OpenAI client sends of credentials and headers, and what it takes from where."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData
from batchinference.errors import Stalled
from builders import run_of

from .stub import Answer, Stub

KEY = {"apiKey": {"value": "own-key\n"}}
REF = {"apiKeySecretRef": {"name": "openai", "key": "api-key"}}
EMPTY = {"object": "list", "data": [], "has_more": False}


async def sent_headers(openai: dict[str, Any], secrets: dict[str, Any]) -> list[dict[str, str]]:
    """The headers of a control-plane and of a data-plane call."""
    with Stub(lambda _asked: Answer(EMPTY)) as stub:
        settings = {"openAI": {"baseURL": f"{stub.url}/v1", **openai}}
        provider = OpenAIBatchProvider(settings, secrets)
        await provider.check()
        await provider.close()
        data = OpenAIData(settings, secrets)
        data.delete_files(run_of(shards=0))
        data.close()
        assert [asked.path for asked in stub.asked] == ["/v1/batches", "/v1/files"]
        return [dict(asked.headers) for asked in stub.asked]


async def test_nothing_of_the_environment_is_sent(poisoned: Callable[[], None]) -> None:
    poisoned()
    for headers in await sent_headers(REF, KEY):
        assert headers["authorization"] == "Bearer own-key"
        assert "evil" not in str(headers).lower()
        assert "openai-organization" not in headers
        assert "openai-project" not in headers


async def test_without_a_key_no_credential_is_sent(poisoned: Callable[[], None]) -> None:
    poisoned()
    for headers in await sent_headers({}, {}):
        assert "authorization" not in headers
        assert "evil" not in str(headers).lower()


async def test_organization_project_and_headers_are_sent(poisoned: Callable[[], None]) -> None:
    poisoned()
    own = {
        **REF,
        "organization": "org-own",
        "project": "proj-own",
        "headers": [{"name": "X-MaaS-Username", "value": "team"}],
    }
    for headers in await sent_headers(own, KEY):
        assert headers["openai-organization"] == "org-own"
        assert headers["openai-project"] == "proj-own"
        assert headers["x-maas-username"] == "team"
        assert "x-evil" not in headers


async def test_a_redirect_is_not_followed() -> None:
    with Stub(lambda _asked: Answer(EMPTY)) as other:
        moved = {"Location": f"{other.url}/v1/batches"}
        with Stub(lambda _asked: Answer(b"", 307, moved)) as stub:
            provider = OpenAIBatchProvider({"openAI": {"baseURL": f"{stub.url}/v1", **REF}}, KEY)
            with pytest.raises(Stalled, match="redirects to") as stalled:
                await provider.check()
            await provider.close()
    assert stalled.value.reason == "EndpointUnreachable"
    assert other.asked == []


@pytest.mark.parametrize(
    ("openai", "secrets", "reason", "told"),
    [
        (None, {}, "InvalidSpec", "spec.openAI"),
        ({"baseURL": 7}, {}, "InvalidSpec", "spec.openAI.baseURL"),
        (REF, {}, "SecretNotFound", "'openai'"),
        (REF, {"apiKey": {}}, "CredentialsRejected", "'api-key'"),
        (REF, {"apiKey": {"value": " \n"}}, "CredentialsRejected", "'api-key'"),
        (REF, {"apiKey": {"value": "hidden\nvalue"}}, "CredentialsRejected", "characters"),
        ({"caBundle": "no certificate"}, {}, "InvalidSpec", "caBundle"),
        ({}, {"caBundle": {"value": "no certificate"}}, "InvalidSpec", "caBundle"),
    ],
)
def test_settings_that_cannot_be_used_say_which_field(
    openai: dict[str, Any] | None, secrets: dict[str, Any], reason: str, told: str
) -> None:
    settings = {"openAI": openai} if openai is not None else {}
    for make in (OpenAIBatchProvider, OpenAIData):
        with pytest.raises(Stalled, match=told) as stalled:
            make(settings, secrets)
        assert stalled.value.reason == reason
        assert "hidden" not in str(stalled.value)


# ---------------------------------------------------------------- private authorities


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "server.pem"
    path.write_bytes(made.public_bytes(pem) + private)
    return path


async def test_a_ca_bundle_is_what_the_endpoint_is_checked_against(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    text = certificate.read_text()
    bundle = text[: text.index("-----BEGIN PRIVATE")]
    with Stub(lambda _asked: Answer(EMPTY), tls=context) as stub:
        settings = {"openAI": {"baseURL": f"{stub.url}/v1"}}
        trusting = OpenAIBatchProvider(settings, {"caBundle": {"value": bundle}})
        assert (await trusting.check()).id
        await trusting.close()
        wary = OpenAIBatchProvider(settings, {})
        with pytest.raises(Stalled, match="certificate is not trusted"):
            await wary.check()
        await wary.close()
        assert len(stub.asked) == 1


# ---------------------------------------------------------------- the account


@pytest.mark.parametrize(
    ("spec", "identity", "account"),
    [
        ({"openAI": {}}, "InferenceProvider/ml/openai", "openai/{at}/InferenceProvider/ml/openai"),
        ({"openAI": {}}, "", "openai/{at}"),
        ({"openAI": {"organization": "org-1"}}, "any", "openai/{at}/org-1/-"),
        ({"openAI": {"organization": "o", "project": "p"}}, "any", "openai/{at}/o/p"),
        ({"openAI": {"project": "p"}, "quotaGroup": "shared"}, "any", "openai/{at}/-/p"),
    ],
)
async def test_the_account_is_what_quotas_count_against(
    spec: dict[str, Any], identity: str, account: str
) -> None:
    with Stub(lambda _asked: Answer(EMPTY)) as stub:
        base = f"{stub.url}/v1"
        settings = {**spec, "openAI": {**spec["openAI"], "baseURL": base}}
        provider = OpenAIBatchProvider(settings, {}, identity=identity)
        found = await provider.check()
        await provider.close()
    assert found.id == account.format(at=base.removeprefix("http://"))
