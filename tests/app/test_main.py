"""The command line."""

from __future__ import annotations

import socket
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from batchinference.app import main as command
from batchinference.app.settings import Configuration


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["version"]) == 0
    assert capsys.readouterr().out == f"{command.own_version()}\n"


def test_the_version_is_also_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{command.own_version()}\n"


def test_a_taken_port_ends_the_process_with_one_line_and_no_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = ["run", "--namespace", "bio", "--port", port, "--log-format", "text"]
        assert command.main(given) == 1
    said = capsys.readouterr().err
    assert f"{port}" in said
    assert "address already in use" in said
    assert "Traceback" not in said


def test_a_mistake_in_the_settings_is_told_with_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("http: {port: high}")
    assert command.main(["run", "--settings", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: http.port: must be a whole number" in said
    assert command.main(["run", "--settings", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize("option", ["--kubeconfig", "--namespace"])
def test_an_option_that_is_empty_does_not_mean_the_default(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["run", option, ""])
    assert ended.value.code == 2
    assert f"{option}: is empty; name a" in capsys.readouterr().err


def test_the_command_line_wins_over_the_file() -> None:
    arguments = ["run", "--namespace", "bio", "--port", "0", "--log-level", "debug"]
    options = command._parser([]).parse_args(arguments)
    settings = command._overridden(Configuration(), options).settings
    assert (settings.namespace, settings.http.port, settings.log.level) == ("bio", 0, "debug")
    options = command._parser([]).parse_args(["run"])
    assert command._overridden(Configuration(), options) == Configuration()


def given(argv: list[str]) -> int:
    return len(argv)


def test_further_commands_get_their_arguments_and_give_their_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = EntryPoint("sandbox", f"{__name__}:given", command.COMMANDS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: given)
    monkeypatch.setattr(command, "entry_points", lambda group: [entry])
    assert command.main(["sandbox", "--port", "1", "x"]) == 3


def test_a_further_command_that_lacks_its_extra_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = EntryPoint("sandbox", "batchinference.no_such_module:main", command.COMMANDS)
    monkeypatch.setattr(command, "entry_points", lambda group: [entry])
    assert command.main(["sandbox"]) == 2
    assert "batch-inference-operator[sandbox]" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["fly"])
    assert ended.value.code == 2
    assert "run" in capsys.readouterr().err
