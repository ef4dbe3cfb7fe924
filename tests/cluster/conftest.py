"""The real control plane for tests: one for the session, own ones for tests that break theirs."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

import binaries
from cluster.pair import Pair
from control_plane import ControlPlane
from stack import Stack
from team import Team

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook is given the whole collection, not this folder's part.
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


class StartControlPlane(Protocol):
    def __call__(
        self, emulated_version: str | None = None, *, audit: bool = False
    ) -> ControlPlane: ...


@pytest.fixture(scope="session")
def programs() -> binaries.Binaries:
    """The control plane's programs, brought here once."""
    return binaries.ensure()


@pytest.fixture(scope="session")
def control_plane(programs: binaries.Binaries) -> Iterator[ControlPlane]:
    """The session's control plane. Tests share it: work in `namespace`, break nothing."""
    with ControlPlane.start(binaries=programs) as running:
        yield running


@pytest.fixture
def own_control_plane(programs: binaries.Binaries) -> Iterator[StartControlPlane]:
    """Start control planes for one test that stops etcd or the API server or removes CRDs."""
    with ExitStack() as stack:

        def start(emulated_version: str | None = None, *, audit: bool = False) -> ControlPlane:
            return stack.enter_context(
                ControlPlane.start(emulated_version, binaries=programs, audit=audit)
            )

        yield start


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace of the session's control plane; its deletion is not waited for."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(control_plane: ControlPlane):
    """``kubectl("get", "pods", ...)`` as the administrator; see `ControlPlane.kubectl`."""
    return control_plane.kubectl


@pytest.fixture
def helm(control_plane: ControlPlane):
    """``helm("install", ...)`` as the administrator; see `ControlPlane.helm`."""
    return control_plane.helm


@pytest.fixture(scope="session")
def stack(programs: binaries.Binaries) -> Iterator[Stack]:
    """Sandbox, chart and one operator, on a control plane of their own.

    The operator acts on every job it sees, and tests of the chart take the definitions away: neither
    may happen to the other.
    """
    with (
        ControlPlane.start(binaries=programs) as plane,
        Stack.start(plane, sandbox_options=_SANDBOX) as running,
    ):
        running.start_operator()
        yield running


@pytest.fixture
def team(stack: Stack) -> Iterator[Team]:
    """A fresh namespace with providers that point at the sandbox, and a running operator."""
    operator = stack.operators[0]
    if not operator.running:
        operator.start()
        stack.wait_until_healthy(operator)
    name = f"team-{secrets.token_hex(4)}"
    stack.control_plane.kubectl("create", "namespace", name)
    team = Team(stack, name)
    stack.apply(*stack.providers(name))
    yield team
    team.control.clear_faults()
    team.control.release()
    team.delete_jobs()
    stack.control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def pair(team: Team) -> Iterator[Pair]:
    """A job on each provider; whatever was done to them, nothing was accepted twice."""
    pair = Pair(team)
    yield pair
    team.control.release()
    accepted: Counter[tuple[str, tuple[int, int]]] = Counter()
    for tag in set(pair.tags.values()):
        accepted.update({(tag, made): n for made, n in team.accepted(tag).items()})
    assert [made for made, n in accepted.items() if n > 1] == []


_SANDBOX = (
    *("--set", "openai.validating_s=0.1", "--set", "openai.in_progress_s=0.3"),
    *("--set", "openai.finalizing_s=0.1", "--set", "bedrock.validating_s=0.1"),
    *("--set", "bedrock.in_progress_s=0.3"),
)
