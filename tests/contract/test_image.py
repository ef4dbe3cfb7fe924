"""The image's recipe, read as text: there is no container engine where the tests run."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Stage:
    base: str
    name: str | None
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.instructions if name == instruction]


def stages() -> list[Stage]:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, value = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            found.append(Stage(base, name or None))
        elif found:
            found[-1].instructions.append((instruction, value))
    return found


def context_allows() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}


def test_the_final_stage_holds_the_environment_and_nothing_else() -> None:
    build, final = stages()
    assert final.base == build.base
    assert final.values("COPY") == ["--from=build /opt/venv /opt/venv"]
    assert final.values("RUN") == final.values("ADD") == []


def test_the_operator_runs_as_the_same_unprivileged_user_as_in_the_chart() -> None:
    (user,) = stages()[-1].values("USER")
    assert user == "65532:65532"
    deployment = (ROOT / "charts/batch-inference-operator/templates/deployment.yaml").read_text()
    assert "runAsUser: 65532" in deployment
    assert "runAsGroup: 65532" in deployment


def test_the_entry_point_is_a_command_of_the_wheel() -> None:
    (entry_point,) = stages()[-1].values("ENTRYPOINT")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(entry_point) == ["batch-inference-operator"]
    assert "batch-inference-operator" in scripts


def test_nothing_is_written_outside_tmp() -> None:
    (environment,) = stages()[-1].values("ENV")
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert "HOME=/tmp" in environment


def test_every_dependency_is_checked_by_its_hash() -> None:
    (build, _) = stages()
    installs = [
        command
        for run in build.values("RUN")
        for command in run.split("&&")
        if re.search(r"\bpip\b.*\binstall\b", command)
    ]
    assert len(installs) == 2
    locked, wheel = installs
    assert "--require-hashes -r requirements.lock" in locked
    assert "--no-deps --no-index" in wheel


def test_the_build_copies_only_what_its_context_lets_in() -> None:
    (build, _) = stages()
    copied = {source.rstrip("/") for copy in build.values("COPY") for source in copy.split()[:-1]}
    assert copied == context_allows()


def test_the_image_has_the_oldest_python_that_the_project_supports_and_is_tested_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    default = re.search(
        r"^ARG PYTHON_IMAGE=python:([\d.]+)-slim$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert default is not None
    assert project["requires-python"] == f">={default.group(1)}"


def test_the_port_of_the_image_is_the_chart_s() -> None:
    template = (ROOT / "charts/batch-inference-operator/templates/deployment.yaml").read_text()
    assert stages()[-1].values("EXPOSE") == ["8080"]
    assert "containerPort: 8080" in template


def test_the_image_s_name_in_the_chart_is_the_project_s() -> None:
    values = yaml.safe_load((ROOT / "charts/batch-inference-operator/values.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert values["image"]["repository"] == project["name"]
