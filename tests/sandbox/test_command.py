"""The command, as a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from batchinference.sandbox import Control, Sandbox
from batchinference.sandbox.main import main
from sandbox.sandbox_requests import until


def start(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinference.sandbox", "--port", "0", "--s3-port", "0",
         "--ready-file", str(ready), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: ready.exists() or process.poll() is not None, bool, within_s=60)
    assert process.poll() is None, process.communicate()
    return process, json.loads(ready.read_text())


def children_of(process: subprocess.Popen[str]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_command_runs_until_sigterm_and_leaves_nothing_behind(tmp_path):
    data = tmp_path / "data"
    process, ready = start(
        tmp_path, "--s3-bucket", "one-bucket", "--s3-bucket", "two-bucket", "--api-key", "k=proj",
        "--aws-access-key", "ak=111122223333", "--data-dir", str(data),
        "--set", "openai.in_progress_s=0.01", "--set", "openai.absent_file_ids=missing",
    )  # fmt: skip
    try:
        settings = Control(ready["url"]).state(brief=True)["settings"]["openai"]
        assert (settings["in_progress_s"], settings["absent_file_ids"]) == (0.01, "missing")
        assert ready["buckets"] == ["one-bucket", "two-bucket"]
        with OpenAI(api_key="k", base_url=ready["openaiBaseURL"]) as client:
            client.files.create(file=("notes.txt", b"x"), purpose="user_data")
        assert any((data / "files").iterdir())
        children = children_of(process)
        assert children
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""
    assert "openaiBaseURL" in output
    assert not (tmp_path / "ready.json").exists()
    assert not any(is_running(child) for child in children)


def test_s3_ends_when_the_sandbox_is_killed(tmp_path):
    process, _ = start(tmp_path)
    children = children_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert children
    until(lambda: [child for child in children if is_running(child)], lambda left: not left)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--set=openai.speed=1", "no such setting"),
        ("--set=azure.speed=1", "expected openai.NAME=VALUE"),
        ("--s3-bucket=No_Good", "S3 did not start"),
    ],
)
def test_wrong_options_end_with_a_reason(argument, words, capsys):
    assert main(["--port=0", "--s3-port=0", argument]) == 1
    assert words in capsys.readouterr().err


def test_a_taken_port_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([f"--port={port}", "--no-s3"]) == 1
        assert str(port) in capsys.readouterr().err
        with pytest.raises(OSError, match=str(port)):
            Sandbox.start(port=port, s3=False)


def test_two_sandboxes_live_side_by_side_without_knowing_each_other(openai):
    with Sandbox.start(s3=False) as other:
        with OpenAI(api_key="sandbox-key", base_url=other.openai_base_url) as client:
            client.files.create(file=("notes.txt", b"x"), purpose="user_data")
            assert len(client.files.list().data) == 1
        assert openai.files.list().data == []
        assert other.control.state()["calls"]["s3"] == {}
