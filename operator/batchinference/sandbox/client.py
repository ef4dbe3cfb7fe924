"""A small synchronous client of the control endpoint, for tests and demos.

Owns nothing but the calls; standard library only, so a test may copy its use anywhere.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

_TIMEOUT_S = 60.0


class ControlError(Exception):
    """The control endpoint refused; the text says why."""


class Control:
    """Talks to a running sandbox: `Control("http://127.0.0.1:4010")`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/_sandbox"

    def state(self, *, brief: bool = False) -> dict[str, Any]:
        """Return everything that happened; `brief` leaves the submissions and files out."""
        return self._call("GET", "state?brief=1" if brief else "state")

    def submissions(self, provider: str) -> list[dict[str, Any]]:
        """List every submission a provider ever accepted, oldest first."""
        found: list[dict[str, Any]] = self.state()[provider]["submissions"]
        return found

    def calls(self, provider: str) -> dict[str, int]:
        """Return how often each operation of a provider was called."""
        counted: dict[str, int] = self.state(brief=True)["calls"].get(provider, {})
        return counted

    def fault(self, provider: str, kind: str, operation: str | None = None, **members: Any) -> int:
        """Put a fault in force and return its number; members as in `faults.Rule`."""
        rule = {"provider": provider, "kind": kind, "operation": operation, **members}
        number: int = self._call("POST", "faults", rule)["id"]
        return number

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._call("DELETE", "faults")

    def settings(
        self, *, openai: dict[str, Any] | None = None, bedrock: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Change settings and return all of them."""
        return self._call("POST", "settings", {"openai": openai or {}, "bedrock": bedrock or {}})

    def hold(self, provider: str | None = None, state: str | None = None) -> None:
        """Keep batches in a state (default: in progress) until released."""
        self._call("POST", "hold", {"provider": provider, "state": state})

    def release(self, provider: str | None = None, state: str | None = None) -> None:
        """Let held batches go."""
        self._call("POST", "release", {"provider": provider, "state": state})

    def expire(self, provider: str | None = None, batch_id: str | None = None) -> list[str]:
        """End the window of one batch, or of all that live; returns their ids."""
        answer = self._call("POST", "expire", {"provider": provider, "id": batch_id})
        expired: list[str] = answer["expired"]
        return expired

    def advance(self, seconds: float) -> None:
        """Push the sandbox's clock forward."""
        self._call("POST", "advance", {"seconds": seconds})

    def reset(self) -> None:
        """Forget everything and put the defaults back; objects in S3 stay."""
        self._call("POST", "reset", {})

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Wait until a condition on the state holds, and return that state.

        Raises:
            TimeoutError: it did not hold in time; the message ends with the last state.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.state()
            if condition(state):
                return state
            if time.monotonic() >= deadline:
                brief = {key: state[key] for key in ("counts", "calls", "faults", "broken")}
                raise TimeoutError(f"not so within {timeout_s} s: {json.dumps(brief)}")
            time.sleep(0.02)

    def _call(self, method: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  # the sandbox's own http URL
            f"{self._url}/{what}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # as above
                parsed: dict[str, Any] = json.load(answer)
                return parsed
        except urllib.error.HTTPError as error:
            with error:
                raise ControlError(error.read().decode()) from error
