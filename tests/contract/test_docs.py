"""The documents agree with the code: links, names, manifests, commands.

Code that is quoted is parsed, never run; what a command would do is not judged here.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from batchinference.app import main as command_line
from batchinference.app.settings import Settings, runtime_name
from batchinference.model import provider
from batchinference.model.codec import wire_name
from batchinference.model.status import Reason
from batchinference.records import codes
from batchinference.runtime.settings import RuntimeSettings
from batchinference.telemetry.metrics import DECLARED, PREFIX
from contract.crds import KINDS, ROOT, crd, problems
from control_plane import find_helm

DOCS = ROOT / "docs"
PACKAGE = ROOT / "operator" / "batchinference"
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [
        *DOCS.rglob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "charts").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
GROUP = "batchinference.dev/"


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# ---------------------------------------------------------------- reading Markdown


@dataclass(frozen=True)
class Block:
    """A block of code: fenced, with its language, or indented, with language "" ."""

    line: int
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """Every block of code, without its fence and its indent."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"( *)(```+)(\S*)", lines[at])
        start = at
        if fence:
            indent, mark, language = fence.groups()
            at += 1
            while not lines[at].strip().startswith(mark):
                at += 1
            body = [line.removeprefix(indent) for line in lines[start + 1 : at]]
            yield Block(start + 2, language or "text", "\n".join(body))
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ")):
                at += 1
            body = [line[4:] for line in lines[start : at + 1]]
            yield Block(start + 1, "", "\n".join(body))
        at += 1


def prose(text: str) -> str:
    """The page with its blocks of code blanked, fenced ones by their whole."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What can be linked to on a page, by GitHub's rule for headings."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", prose(text), flags=re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(words)


def rows(page: str) -> set[str]:
    """The words in backticks in the first column of the page's tables."""
    found: set[str] = set()
    for line in text_of(page).splitlines():
        if line.startswith("| `"):
            found |= set(re.findall(r"`([^`]+)`", line.split(" | ")[0]))
    return found


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())
        ):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_reached_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#:\s]+\.md)", page.read_text())
        waiting += [(page.parent / target).resolve() for target in targets]
    pages = {page.resolve() for page in DOCS.rglob("*.md")}
    assert {page.relative_to(ROOT).as_posix() for page in pages - reached} == set()


# ---------------------------------------------------------------- rules that are cited


def protocol_items() -> set[str]:
    """The sections of the protocol, as "4", and their items, as "4.4"."""
    found, section = set(), ""
    for line in text_of("docs/explanation/protocol.md").splitlines():
        if heading := re.match(r"## (\d+)\. ", line):
            section = heading[1]
            found.add(section)
        elif item := re.match(r"(\d+)\. ", line):
            found.add(f"{section}.{item[1]}")
    return found


def test_every_rule_of_the_protocol_that_is_cited_exists() -> None:
    number = r"\d+(?:\.\d+)?"
    citation = re.compile(rf"\bprotocol[\s#]+({number}(?:(?:,|[\s#]+and)[\s#]+{number})*)")
    items, cited, wrong = protocol_items(), set(), []
    for file in sorted(f for d in ("operator", "tests", "docs") for f in (ROOT / d).rglob("*")):
        if file.suffix not in {".py", ".md"}:
            continue
        for numbers in citation.findall(file.read_text(encoding="utf-8")):
            named = set(re.findall(number, numbers))
            cited |= named
            wrong += [f"{file.relative_to(ROOT)}: {name}" for name in sorted(named - items)]
    assert {"1.1", "4.4", "5", "7.4"} <= cited, "citations are not read rightly"
    assert wrong == []


# ---------------------------------------------------------------- names of the code


def test_troubleshooting_explains_every_reason_and_no_other() -> None:
    reasons = {value for name, value in vars(Reason).items() if name.isupper()}
    explained = rows("docs/how-to/troubleshoot.md")
    named = explained | {Reason.READY}  # told in a sentence of its own
    assert f"`{Reason.READY}`" in text_of("docs/how-to/troubleshoot.md")
    assert reasons - named == set()
    assert explained - reasons == set()


def test_the_error_codes_are_those_of_the_records() -> None:
    constants = {value for name, value in vars(codes).items() if name.isupper()}
    assert rows("docs/reference/error-codes.md") == constants


def setting_names(cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for found in dataclasses.fields(cls):
        name = prefix + wire_name(found)
        if dataclasses.is_dataclass(hints[found.name]):
            yield from setting_names(hints[found.name], f"{name}.")
        else:
            yield name


@pytest.mark.parametrize("layer", ["core", "runtime"])
def test_the_map_of_the_code_names_every_module(layer: str) -> None:
    page = text_of("docs/architecture.md")
    part = page[page.index(f"**`{layer}/`.**") :].split("\n\n**`")[0]
    modules = {path.stem for path in (PACKAGE / layer).glob("*.py")} - {"__init__"}
    named = set(re.findall(r"`(\w+)`", part))
    assert modules - named == set()


def test_the_settings_are_those_that_the_operator_reads() -> None:
    runtime = {f"runtime.{runtime_name(f.name)}" for f in dataclasses.fields(RuntimeSettings)}
    assert rows("docs/reference/settings.md") == {*setting_names(Settings), *runtime}


def test_the_defaults_of_the_runtime_are_told() -> None:
    page = text_of("docs/reference/settings.md")
    wrong = []
    for found in dataclasses.fields(RuntimeSettings):
        row = f"| `runtime.{runtime_name(found.name)}` | {found.default:.15g} |"
        if row not in page:
            wrong.append(row)
    assert wrong == []


def test_the_metrics_are_those_that_are_declared() -> None:
    page = text_of("docs/reference/metrics.md")
    named = set(re.findall(rf"`({PREFIX}[a-z_]+)`", page)) - {f"{PREFIX}build_info"}
    assert named == {PREFIX + metric.name for metric in DECLARED}


def test_metrics_that_nothing_fills_are_told_apart() -> None:
    code = "".join(
        file.read_text()
        for file in PACKAGE.rglob("*.py")
        if "sandbox" not in file.parts and "telemetry" not in file.parts
    )
    filled = {PREFIX + metric.name for metric in DECLARED if f'"{metric.name}"' in code}
    listed = {row for row in rows("docs/reference/metrics.md") if row.startswith(PREFIX)}
    assert listed == filled


def test_the_readme_lists_every_field_that_is_not_implemented() -> None:
    tree = ast.parse(inspect.getsource(provider.not_implemented_fields))
    paths = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch(r"spec\.[\w.]+", str(node.value))
    }
    assert paths
    assert [path for path in sorted(paths) if f"`{path}`" not in text_of("README.md")] == []


# ---------------------------------------------------------------- manifests

YAML = [
    pytest.param(block.text, id=f"{page}:{block.line}")
    for page in PAGES
    for block in blocks(text_of(page))
    if block.language in {"yaml", "yml"}
]


@pytest.mark.parametrize("block", YAML)
def test_manifests_in_the_documents_validate(block: str) -> None:
    for document in yaml.safe_load_all(block):
        is_ours = isinstance(document, Mapping) and document.get("kind") in KINDS
        if is_ours and str(document.get("apiVersion", "")).startswith(GROUP):
            assert problems(dict(document)) == []


JSON = [
    pytest.param(block.text, id=f"{page}:{block.line}")
    for page in PAGES
    for block in blocks(text_of(page))
    if block.language == "json"
]


@pytest.mark.parametrize("block", JSON)
def test_json_in_the_documents_parses(block: str) -> None:
    assert yaml.safe_load(block)


# ---------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def program(self) -> str:
        return self.words[0].rsplit("/", 1)[-1]


def commands() -> Iterator[Command]:
    """The commands of blocks that are shell, or indented; `console` blocks have prompts."""
    for page in PAGES:
        for block in blocks(text_of(page)):
            if block.language in {"", "sh", "bash", "console", "text"}:
                yield from commands_in(page, block)


def commands_in(page: str, block: Block) -> Iterator[Command]:
    has_prompts = block.language == "console"
    text = re.sub(r"<<'(\w+)'(.*?)^\1$", r"\2", block.text, flags=re.DOTALL | re.MULTILINE)
    for number, line in enumerate(text.replace("\\\n", " \0").splitlines()):
        if has_prompts and not line.startswith("$ "):
            continue
        for part in re.split(r" \| (?=\w)| && ", line.removeprefix("$ ").replace("\0", "")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue  # a line of another language
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                yield Command(page, block.line + number, tuple(words))


COMMANDS = list(commands())


def of(*programs: str) -> list[Any]:
    found = [command for command in COMMANDS if command.program in programs]
    assert found, f"no command of {programs} in the documents: they are not read rightly"
    return [pytest.param(command, id=str(command)) for command in found]


def options_values(words: tuple[str, ...], *names: str) -> list[str]:
    """The values of an option, under any of its names."""
    found = []
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            found.append(value if equals else words[at + 1])
    return found


def is_written_by_the_reader(page: str, path: str) -> bool:
    """Whether the page tells to make the file, or shows it under this name."""
    text = text_of(page)
    return path == "-" or f"# {Path(path).name}" in text or f"> {path}" in text


@pytest.mark.parametrize("command", of("make"))
def test_make_targets_exist(command: Command) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    asked = {word for word in command.words[1:] if "=" not in word and not word.startswith("-")}
    assert asked - targets == set()


def test_make_help_lists_every_target() -> None:
    lines = re.findall(r"^[a-z-]+:.*", text_of("Makefile"), flags=re.MULTILINE)
    assert [line for line in lines if " ## " not in line] == []


@pytest.mark.parametrize("command", of("kubectl"))
def test_files_that_kubectl_reads_exist(command: Command) -> None:
    for path in options_values(command.words, "-f", "--filename"):
        assert (ROOT / path).exists() or is_written_by_the_reader(command.page, path), path


KUBECTL_VERBS = {
    *("annotate", "apply", "config", "create", "delete", "describe", "explain", "get", "label"),
    *("logs", "patch", "rollout", "scale", "wait"),
}
OTHERS = {
    *("configmap", "configmaps", "crd", "deployment", "lease", "namespace", "pods", "quota"),
    "secret",
}


@cache
def resource_names() -> set[str]:
    """Every name by which kubectl knows our kinds."""
    found = {kind.lower() for kind in KINDS}
    for kind in KINDS:
        names = crd(kind)["spec"]["names"]
        found |= {names["plural"], names["singular"], *names["shortNames"]}
    return found


@pytest.mark.parametrize("command", of("kubectl"))
def test_kubectl_is_asked_for_what_it_knows(command: Command) -> None:
    words = [word for word in command.words[1:] if not word.startswith("-")]
    if not words:
        return
    verb = words[0]
    assert verb in KUBECTL_VERBS
    known = resource_names() | OTHERS
    named = {"get", "describe", "delete", "patch", "wait", "label", "annotate"}
    if verb in named and words[1:] and not options_values(command.words, "-f"):
        assert words[1].partition("/")[0] in known


@pytest.mark.parametrize("command", of("kubectl"))
def test_no_wait_goes_on_after_the_job_has_failed(command: Command) -> None:
    """A job that ends as it should not never gets the condition that is waited for."""
    if "wait" in command.words and {"bij", "batchinferencejob"} & {
        word.partition("/")[0] for word in command.words
    }:
        conditions = options_values(command.words, "--for")
        assert [given for given in conditions if not given.startswith("jsonpath=")] == []


@pytest.mark.parametrize("command", of("helm"))
def test_charts_and_values_that_helm_is_given_exist(command: Command) -> None:
    chart = next((word for word in command.words if word.startswith("charts/")), None)
    if "install" in command.words or "upgrade" in command.words:
        assert chart is not None
        assert (ROOT / chart / "Chart.yaml").exists()
    else:
        assert command.words[1] == "uninstall"
    for path in options_values(command.words, "--values", "-f"):
        assert is_written_by_the_reader(command.page, path), path
    lost_by_the_next_upgrade = options_values(command.words, "--set")
    assert lost_by_the_next_upgrade == []


def test_the_values_that_the_reader_of_the_install_page_collects_are_valid(
    tmp_path: Path,
) -> None:
    page = text_of("docs/how-to/install.md")
    values: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "yaml":
            added = yaml.safe_load(block.text)
            assert not values.keys() & added.keys(), "a section would replace that of another"
            values |= added
    assert {"image", "watchNamespaces", "admissionPolicy"} <= values.keys()
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    chart = str(ROOT / "charts" / "batch-inference-operator")
    name = ("batch-inference-operator", chart, "--namespace", "batch-inference")
    made = subprocess.run(
        [find_helm(), "template", *name, "--values", str(tmp_path / "values.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "registry.example.com/batch-inference-operator:0.1.0" in made.stdout


@pytest.mark.parametrize("command", of("batch-inference-operator"))
def test_the_operators_commands_parse(command: Command) -> None:
    words = list(command.words[1:])
    if words[:1] == ["sandbox"]:
        return  # has its own page and its own test
    parser = command_line._parser([])
    try:
        parser.parse_args([word for word in words if word != "--help"])
    except SystemExit as fault:
        pytest.fail(f"{command}: exit code {fault.code}")
    except argparse.ArgumentError as fault:
        pytest.fail(f"{command}: {fault}")


@pytest.mark.parametrize("command", of("python", "python3"))
def test_modules_and_scripts_that_python_runs_exist(command: Command) -> None:
    words = command.words
    if "-m" in words:
        module = words[words.index("-m") + 1].replace(".", "/")
        roots = (ROOT / "operator", ROOT / "tests")
        places = [root / module for root in roots]
        assert words[words.index("-m") + 1] in {"pytest", "json.tool"} or any(
            place.is_dir() or place.with_suffix(".py").exists() for place in places
        )
    for word in words[1:]:
        if word.startswith(("hack/", "tests/")):
            assert (ROOT / word).exists()
