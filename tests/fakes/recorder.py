"""Events, kept in a list."""

from __future__ import annotations

from batchinference.ports import Event
from fakes.world import World, current_process


class FakeRecorder:
    """`ports.Recorder` that keeps what it is told; the dead tell nothing."""

    def __init__(self, world: World | None = None) -> None:
        self.events: list[Event] = []
        self._world = world or World()

    def record(self, event: Event) -> None:
        process = current_process()
        if process is not None and not process.alive:
            return
        self.events.append(event)
        self._world.trace(f"event {event.about.name} {event.reason}: {event.message}")

    def reasons(self, name: str = "") -> list[str]:
        """The reasons of the events about an object of that name, oldest first."""
        return [e.reason for e in self.events if not name or e.about.name == name]
