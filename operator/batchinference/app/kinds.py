"""Which of our kinds the API server serves. Definitions come after the operator when everything is
installed at once, and are removed and installed again by people who know what they do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.names import GROUP, RESOURCES, VERSION
from batchinference.errors import Retry, Stalled

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 120.0
_OTHERS_WAIT_S = 10.0
_EVERY_S = 2.0


async def wait_for_kinds(
    client: KubeClient,
    kinds: tuple[str, ...],
    *,
    within_s: float = _FIRST_WAIT_S,
    others_within_s: float = _OTHERS_WAIT_S,
    every_s: float = _EVERY_S,
) -> tuple[str, ...]:
    """Wait until the API server serves our kinds: the watches would stay deaf without.

    Args:
        client: asks.
        kinds: the first one must be served.
        within_s: how long to wait for the first one.
        others_within_s: how long to wait for the others. Where the definitions are being deleted,
            those of providers go at once, and that of jobs once the jobs were let go, by us.
        every_s: between two questions.

    Returns:
        The plurals of those that are not served.

    Raises:
        Stalled: it does not serve the first one in time.
    """
    first, *others = (RESOURCES[kind].plural for kind in kinds)
    loop = asyncio.get_running_loop()
    begun, said = loop.time(), ""
    while True:
        try:
            there = await served(client)
            missing = [plural for plural in (first, *others) if plural not in there]
            why = f"it does not serve {', '.join(sorted(missing))}" if missing else ""
        except Retry as fault:
            missing, why = [first], fault.message
        if not missing:
            return ()
        waited_s = loop.time() - begun
        if first not in missing and waited_s > others_within_s:
            log.warning("going on without %s, which are not served", ", ".join(missing))
            return tuple(missing)
        if waited_s > within_s:
            raise Stalled(
                "KindsNotServed",
                f"The API server at {client.host} can't be used: {why}. Are the "
                "CustomResourceDefinitions installed?",
            )
        if why != said:
            log.warning("waiting for the API server: %s", why)
            said = why
        await asyncio.sleep(every_s)


async def until_served(
    client: KubeClient, plurals: Iterable[str], *, every_s: float = _EVERY_S
) -> None:
    """Return once the API server serves all of these kinds.

    Raises:
        Stalled, Permanent: it refuses to say.
    """
    missing = set(plurals)
    while missing:
        await asyncio.sleep(every_s)
        with suppress(Retry):
            missing -= await served(client)


async def served(client: KubeClient) -> set[str]:
    """The plurals of the kinds of our group and version that the API server serves.

    Raises:
        Stalled, Retry, Permanent: it could not be asked.
    """
    try:
        found = await client.call("GET", f"/apis/{GROUP}/{VERSION}")
    except Refusal as refusal:
        if refusal.code == 404:
            return set()
        raise refusal.fault() from refusal
    return {item["name"] for item in found.get("resources") or ()}
