"""How the programs of the control plane are configured: arguments, credentials, kubeconfigs.

Owns every command line and every file that the programs are given. It starts nothing and must not
know whether anything runs. TLS is verified and RBAC is on for every client, the controller manager
included; etcd listens on the loopback address only.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from binaries import Binaries
from processes import Port

_MANAGER_USER = "system:kube-controller-manager"


class Configuration:
    """The arguments and files of one control plane, in a folder of its own, on free ports."""

    def __init__(self, binaries: Binaries, emulated_version: str | None, *, audit: bool) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="control-plane-"))
        self._ports = {name: Port() for name in ("etcd", "etcd-peer", "apiserver", "manager")}
        self._certificates = self.folder / "certificates"
        self._certificates.mkdir()
        self.etcd_url = f"http://127.0.0.1:{self._ports['etcd']}"
        self.url = f"https://127.0.0.1:{self._ports['apiserver']}"
        self.manager_url = f"https://127.0.0.1:{self._ports['manager']}"
        # Both sign their own certificates at the first start, which are thus their own CAs.
        self.ca_file = self._certificates / "apiserver.crt"
        self.manager_ca_file = self._certificates / "kube-controller-manager.crt"
        self.kubeconfig = self.folder / "admin.kubeconfig"
        self.admin_token = secrets.token_urlsafe(24)
        self.audit_log = self.folder / "audit.jsonl" if audit else None
        self._manager_token = secrets.token_urlsafe(24)
        self._manager_kubeconfig = self.folder / "controller-manager.kubeconfig"
        self._tokens = self.folder / "tokens.csv"
        self._service_account_key = self.folder / "service-accounts.pem"
        self._audit_policy = self.folder / "audit-policy.yaml"
        self._emulation = (
            [] if emulated_version is None else [f"--emulated-version=kube={emulated_version}"]
        )
        self._write_files()

    def release_ports(self) -> None:
        """Give the ports back, after the programs have ended."""
        for port in self._ports.values():
            port.release()

    def etcd_command(self) -> list[str]:
        """etcd: program and arguments."""
        client = f"http://127.0.0.1:{self._ports['etcd']}"
        peer = f"http://127.0.0.1:{self._ports['etcd-peer']}"
        return [
            str(self.binaries.etcd),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # A killed etcd keeps its data without it; only a crash of the machine would lose some.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def apiserver_command(self) -> list[str]:
        """The API server: program and arguments."""
        command = [
            str(self.binaries.kube_apiserver),
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['apiserver']}",
            f"--cert-dir={self._certificates}",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self._tokens}",
            "--service-cluster-ip-range=10.0.0.0/24",
        ]
        if self.audit_log is not None:
            command += [
                f"--audit-policy-file={self._audit_policy}",
                f"--audit-log-path={self.audit_log}",
                "--audit-log-mode=blocking",
            ]
        return command + self._emulation

    def manager_command(self) -> list[str]:
        """The controller manager: program and arguments."""
        kubeconfig = self._manager_kubeconfig
        return [
            str(self.binaries.kube_controller_manager),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self.ca_file}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            # The usual limits make the dozens of controllers wait seconds for their credentials.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports['manager']}",
            f"--cert-dir={self._certificates}",
            *self._emulation,
        ]

    def _write_files(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        _write_secret(
            self._service_account_key,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ).decode(),
        )
        _write_secret(
            self._tokens,
            f'{self.admin_token},admin,admin,"system:masters"\n'
            f"{self._manager_token},{_MANAGER_USER},{_MANAGER_USER}\n",
        )
        self.write_kubeconfig(self.kubeconfig, "admin", self.admin_token, "default")
        self.write_kubeconfig(
            self._manager_kubeconfig, _MANAGER_USER, self._manager_token, "default"
        )
        rule = {"level": "Metadata", "omitStages": ["RequestReceived"]}
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule]}
        self._audit_policy.write_text(yaml.safe_dump(policy))

    def write_kubeconfig(self, path: Path, user: str, token: str, namespace: str) -> None:
        """Write a kubeconfig for a bearer token; it verifies the server's certificate."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        context = {"cluster": "control-plane", "user": user, "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "control-plane",
            "clusters": [{"name": "control-plane", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "control-plane", "context": context}],
        }
        _write_secret(path, yaml.safe_dump(content))


def _write_secret(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
