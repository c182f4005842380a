"""What a process of the consumer does first: log to stderr, and stop when it is asked to."""

import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from threading import Event
from types import FrameType

from consumer.sections import LogSettings


def stop_on_signals(stop: Event) -> None:
    """Let SIGTERM and SIGINT set `stop`; the second of them ends the process at once."""

    def receive(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, receive)
    signal.signal(signal.SIGINT, receive)


def start_logging(settings: LogSettings) -> None:
    """Log to stderr, one line per event, as JSON or as text."""
    output = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        output.setFormatter(JsonFormatter())
    else:
        output.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=settings.level, handlers=[output], force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """The record's text followed by its `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        fields: dict[str, object] = getattr(record, "fields", {})
        told = (f"{k}={printable(str(v))}" for k, v in fields.items())
        return " ".join([super().format(record), *told])


def printable(text: str) -> str:
    """Return text of others for one line of a terminal: what is no character is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
