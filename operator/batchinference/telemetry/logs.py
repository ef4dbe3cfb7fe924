"""Logging: one JSON object per line, or text for people; scrubbed either way.

Owns the handler of the root logger. Loggers stay the standard library's; `extra=` members become
members of the object.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import TextIO

from batchinference.telemetry.scrubbing import scrub, scrub_text

FORMAT_VARIABLE = "BATCHINFERENCE_LOG_FORMAT"
LEVEL_VARIABLE = "BATCHINFERENCE_LOG_LEVEL"
"""How worker processes learn the settings of their parent; nothing secret."""

FORMATS = ("json", "text")
LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and what `extra=` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrub_text(record.getMessage()),
            "pid": record.process,
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and name not in line:
                line[name] = scrub(value, name)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = scrub_text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        extra = " ".join(
            f"{name}={scrub(value, name)}"
            for name, value in record.__dict__.items()
            if name not in _STANDARD and value not in ("", None)
        )
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        line = scrub_text(f"{line}  {extra}" if extra else line)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + scrub_text(self.formatException(record.exc_info))
        return line


def configure(level: str = "info", form: str = "json", stream: TextIO | None = None) -> None:
    """Log to standard error, replacing what was configured before.

    Args:
        level: one of `LEVELS`; foreign libraries speak from warning on.
        form: one of `FORMATS`.
        stream: instead of standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _level(level)))
    logging.getLogger("batchinference").setLevel(_level(level))
    logging.getLogger("kopf").setLevel(max(logging.INFO, _level(level)))
    # One line per watch event and object otherwise.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def configure_from_environment() -> None:
    """As `configure`, by the variables that `hand_on` wrote."""
    configure(os.environ.get(LEVEL_VARIABLE, "info"), os.environ.get(FORMAT_VARIABLE, "json"))


def hand_on(environment: MutableMapping[str, str], level: str, form: str) -> None:
    """Write the settings into the environment of worker processes."""
    environment[LEVEL_VARIABLE], environment[FORMAT_VARIABLE] = level, form


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name.upper()]


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return time.removesuffix("+00:00") + "Z"
