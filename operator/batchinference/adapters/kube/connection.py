"""Where the API server is and how to prove who we are; a plain value that may cross a pipe.

Worker processes get one of these. It never stands in argv or in the environment, since it may hold
a token. In a pod it names the token's file instead, which is read again as the kubelet renews it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


@dataclass(frozen=True, slots=True)
class KubeConnection:
    """An API server and an identity.

    Attributes:
        host: `https://host:port`, without a trailing slash.
        ca_file, cert_file, key_file: PEM files; "" where there is none.
        token: a bearer token; "" when `token_file` is set or a client certificate is used.
        token_file: where the kubelet keeps the current token.
        insecure: the server's certificate is not verified (a kubeconfig asked for that).
        tls_server_name: name to expect in the server's certificate instead of the host's.
        proxy: a proxy that the kubeconfig names.
    """

    host: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    insecure: bool = False
    tls_server_name: str = ""
    proxy: str = ""

    def ssl_context(self) -> ssl.SSLContext:
        """A context that verifies the server by `ca_file` and shows the client certificate.

        Raises:
            OSError: a file can't be read.
        """
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def current_token(self) -> str:
        """The token as it is now; "" without one.

        Raises:
            OSError: the token's file can't be read.
        """
        return Path(self.token_file).read_text().strip() if self.token_file else self.token

    def proxy_url(self) -> str:
        """The proxy to go through: the kubeconfig's, else the environment's; never for loopback."""
        if self.proxy:
            return self.proxy
        url = urlsplit(self.host)
        host = url.hostname or ""
        if host in {"localhost", "::1"} or host.startswith("127.") or proxy_bypass(host):
            return ""
        return getproxies().get(url.scheme, "")
