"""The command `batch-inference-operator`: the pod's process, and commands that other parts add.

Exit codes: 0 = stopped as asked, 1 = failed and worth a restart, 2 = called or set up wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path

from batchinference.adapters import network
from batchinference.app.settings import Configuration, load
from batchinference.app.wiring import Assembly
from batchinference.errors import BatchInferenceError, InvalidObject
from batchinference.telemetry.logs import FORMATS, LEVELS, configure

log = logging.getLogger(__name__)

COMMANDS = "batchinference.commands"
"""Entry point group of further commands: `main(argv: list[str]) -> int`."""

FAILED, WRONG = 1, 2

Command = Callable[[list[str]], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    further = {entry.name: entry for entry in entry_points(group=COMMANDS)}
    if given and given[0] in further:
        return _delegate(further[given[0]], given[1:])
    options = _parser(sorted(further)).parse_args(given)
    if options.command == "version":
        sys.stdout.write(f"{own_version()}\n")
        return 0
    return _run(options)


def own_version() -> str:
    """The installed version."""
    try:
        return version("batch-inference-operator")
    except PackageNotFoundError:
        return "0+unknown"


def _parser(further: Sequence[str]) -> argparse.ArgumentParser:
    more = f" Further commands here: {', '.join(further)}." if further else ""
    parser = argparse.ArgumentParser(
        prog="batch-inference-operator",
        description="Runs BatchInferenceJobs of a Kubernetes cluster." + more,
    )
    parser.add_argument("--version", action="version", version=own_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the operator until it is told to stop")
    run.add_argument("--settings", type=Path, metavar="FILE", help="settings file (YAML)")
    run.add_argument(
        "--kubeconfig",
        metavar="FILE",
        type=_named("a file"),
        help="instead of the pod's ServiceAccount",
    )
    run.add_argument(
        "--namespace",
        metavar="NAME",
        type=_named("a namespace"),
        help="the operator's own namespace",
    )
    run.add_argument("--port", type=int, help="port of health and metrics; 0 = any free one")
    run.add_argument("--log-format", choices=FORMATS, help="json, or text for people")
    run.add_argument("--log-level", choices=LEVELS)
    commands.add_parser("version", help="print the version")
    return parser


def _named(what: str) -> Callable[[str], str]:
    """An option's value that must not be empty: an unset variable in a script would mean another
    cluster, or another namespace, than was meant.
    """

    def named(given: str) -> str:
        if not given.strip():
            raise argparse.ArgumentTypeError(f"is empty; name {what}, or leave the option out")
        return given

    return named


def _delegate(entry: EntryPoint, arguments: list[str]) -> int:
    try:
        command: Command = entry.load()
    except ImportError as fault:
        sys.stderr.write(
            f"batch-inference-operator {entry.name} is not installed completely: {fault}\n"
            f"Install the extra: pip install 'batch-inference-operator[{entry.name}]'\n"
        )
        return WRONG
    return command(arguments) or 0


def _run(options: argparse.Namespace) -> int:
    try:
        configuration = _overridden(load(options.settings), options)
        log_settings = configuration.settings.log
        configure(log_settings.level, log_settings.format)
        network.check()
        assembly = Assembly(configuration, own_version())
    except (InvalidObject, OSError) as fault:
        where = f"{options.settings}: " if options.settings else ""
        sys.stderr.write(f"batch-inference-operator: {where}{fault}\n")
        return WRONG
    return asyncio.run(_operate(assembly, configuration.settings.shutdown_seconds))


def _overridden(configuration: Configuration, options: argparse.Namespace) -> Configuration:
    """The settings with what the command line says instead."""
    settings = configuration.settings
    log_settings = replace(
        settings.log,
        level=options.log_level or settings.log.level,
        format=options.log_format or settings.log.format,
    )
    http = settings.http
    if options.port is not None:
        http = replace(http, port=options.port)
    return replace(
        configuration,
        settings=replace(
            settings,
            kubeconfig=options.kubeconfig or settings.kubeconfig,
            namespace=options.namespace or settings.namespace,
            log=log_settings,
            http=http,
        ),
    )


async def _operate(assembly: Assembly, shutdown_s: float) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # kopf takes them over while it watches
        loop.add_signal_handler(number, stop.set)
    code = 0
    try:
        if await _unless(stop, assembly.start()):
            await assembly.watch(stop)
    except BatchInferenceError as fault:
        log.error("%s", fault)  # noqa: TRY400 - its message says what to do, its trace does not
        code = FAILED
    except Exception:
        log.exception("the operator failed")
        code = FAILED
    finally:
        try:
            async with asyncio.timeout(shutdown_s):
                await assembly.stop()
        except TimeoutError:
            log.error("stopping took longer than %g s", shutdown_s)  # noqa: TRY400 - no news
            code = code or FAILED
    log.info("stopped")
    return code


async def _unless(stop: asyncio.Event, starting: Coroutine[None, None, None]) -> bool:
    """Await it; False when we are told to stop in the meantime."""
    start = asyncio.create_task(starting)
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({start, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not start.done():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return False
    await start
    return not stop.is_set()


if __name__ == "__main__":
    sys.exit(main())
