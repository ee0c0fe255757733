"""How log records look: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import textwrap
from datetime import UTC, datetime
from enum import StrEnum

from orchestrator.cli.display.printable import clean, one_line

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LogFormat(StrEnum):
    """How log records are written to standard error: for people, or one JSON object a line."""

    TEXT = "text"
    JSON = "json"


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ...}` and what the record was given besides."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        shown: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        shown |= {name: value for name, value in sorted(extra.items()) if name not in shown}
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            shown["exception"] = record.exc_text
        return json.dumps(shown, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """One line a record, whatever is in its message; a traceback is set in, and none of its lines looks like one.

    The time is that of this machine, with its offset from UTC.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it."""
        record.message = one_line(record.getMessage())
        record.asctime = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")
        lines = [one_line(self.formatMessage(record))]
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for more in (record.exc_text, record.stack_info):
            if more:
                lines.append(textwrap.indent(clean(more), "  "))
        return "\n".join(lines)


def formatter(kind: LogFormat) -> logging.Formatter:
    """The formatter of a kind."""
    if kind is LogFormat.JSON:
        return JsonFormatter()
    return TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
