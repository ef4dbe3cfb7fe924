"""The command `batch-inference-operator sandbox`: runs in the foreground until told to stop.

Owns the command line. Must not know what is served.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .options import (
    DEFAULT_ACCESS_KEY,
    DEFAULT_ACCOUNT,
    DEFAULT_API_KEY,
    DEFAULT_PROJECT,
    Options,
)
from .server import Server
from .settings import UnknownSetting


def main(argv: list[str]) -> int:
    """Run a sandbox; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        options = _options(arguments)
        return asyncio.run(_serve(options, arguments.ready_file))
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, UnknownSetting, ValueError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sandbox",
        description="Local stand-ins for OpenAI, Bedrock, STS and S3 on 127.0.0.1.",
    )
    add = parser.add_argument
    add("--port", type=int, default=4010, help="OpenAI, Bedrock, STS, control; 0 = any")
    add("--s3-port", type=int, default=4011, help="S3; 0 = any")
    add("--no-s3", action="store_true", help="run without S3; then Bedrock jobs fail")
    add("--s3-bucket", action="append", default=[], metavar="NAME", help="made at start")
    add("--data-dir", type=Path, help="where files are kept; default: a temporary folder")
    add("--api-key", action="append", default=[], metavar="KEY[=PROJECT]")
    add("--aws-access-key", action="append", default=[], metavar="ID[=ACCOUNT]")
    add("--workers", type=int, default=1, help="processes that answer large batches")
    add("--ready-file", type=Path, help="written as JSON when everything listens")
    add(
        "--set",
        action="append",
        default=[],
        metavar="PROVIDER.NAME=VALUE",
        help="a setting, e.g. openai.in_progress_s=5 (value in JSON)",
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    changes: dict[str, dict[str, object]] = {"openai": {}, "bedrock": {}}
    for given in arguments.set:
        path, equals, value = given.partition("=")
        provider, dot, name = path.partition(".")
        if not equals or not dot or provider not in changes:
            raise ValueError(f"--set {given}: expected openai.NAME=VALUE or bedrock.NAME=VALUE")
        changes[provider][name] = _json_or_text(value)
    return Options(
        port=arguments.port,
        s3_port=arguments.s3_port,
        s3=not arguments.no_s3,
        s3_buckets=tuple(arguments.s3_bucket),
        data_dir=arguments.data_dir,
        api_keys=_pairs(arguments.api_key or [DEFAULT_API_KEY], DEFAULT_PROJECT),
        accounts=_pairs(arguments.aws_access_key or [DEFAULT_ACCESS_KEY], DEFAULT_ACCOUNT),
        worker_processes=arguments.workers,
        openai=changes["openai"],
        bedrock=changes["bedrock"],
    )


def _pairs(given: list[str], default: str) -> dict[str, str]:
    pairs = {}
    for one in given:
        key, _, value = one.partition("=")
        pairs[key] = value or default
    return pairs


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


async def _serve(options: Options, ready_file: Path | None) -> int:
    """Serve until a signal comes; the ready file stands exactly as long."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(options)
    try:
        await server.start()
        described = server.describe()
        if ready_file is not None:
            _write_whole(ready_file, json.dumps(described, indent=2) + "\n")
        for name, value in described.items():
            sys.stdout.write(f"{name}: {value}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await server.stop()
        if ready_file is not None:
            _remove(ready_file)
    return 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
