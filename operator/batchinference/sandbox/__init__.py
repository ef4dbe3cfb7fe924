"""Local stand-ins for OpenAI and Bedrock over real HTTP, for demos and tests.

Imports nothing else of batchinference, so that it cannot share the adapters' misunderstandings.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Control, ControlError
    from .options import Options
    from .server import Sandbox

__all__ = ["Control", "ControlError", "Options", "Sandbox"]

_HOMES = {"Control": "client", "ControlError": "client", "Options": "options", "Sandbox": "server"}


def __getattr__(name: str) -> Any:
    """Import on demand: workers and the control client need no server."""
    from importlib import import_module  # noqa: PLC0415  # with the rest of the delay

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
