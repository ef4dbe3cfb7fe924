"""Tasks as they cross a process border."""

from __future__ import annotations

from itertools import product

from batchinference.model.work import Task, TaskKind
from builders import run_of


def test_tasks_that_may_be_under_way_together_have_different_ids() -> None:
    tasks = [
        Task(kind, run_of(name), shard, ordinal)
        for kind, name, (shard, ordinal) in product(
            TaskKind, ("a", "b"), ((None, None), (0, None), (0, 1), (1, 1), (0, 11), (11, 1))
        )
    ]
    assert len({task.id for task in tasks}) == len(tasks)


def test_an_id_names_its_run() -> None:
    run = run_of()
    assert Task(TaskKind.COLLECT, run, 3, 2).id == f"{run.key}/Collect/3/2"
