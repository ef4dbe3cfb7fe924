"""What a sandbox is started with.

Owns names and defaults of the start options. Must not know how anything is served.
"""

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_API_KEY = "sandbox-key"
DEFAULT_PROJECT = "proj_sandbox"
DEFAULT_ACCESS_KEY = "sandbox"
DEFAULT_ACCOUNT = "123456789012"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Start options; port 0 lets the kernel choose."""

    port: int = 0
    s3_port: int = 0
    s3: bool = True
    s3_buckets: tuple[str, ...] = ()
    data_dir: Path | None = None  # None = a temporary folder, removed at the end
    api_keys: dict[str, str] = field(default_factory=lambda: {DEFAULT_API_KEY: DEFAULT_PROJECT})
    accounts: dict[str, str] = field(default_factory=lambda: {DEFAULT_ACCESS_KEY: DEFAULT_ACCOUNT})
    worker_processes: int = 1
    openai: dict[str, object] = field(default_factory=dict)  # settings changed from the start
    bedrock: dict[str, object] = field(default_factory=dict)
