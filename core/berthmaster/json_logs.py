"""Log lines as one JSON object each: time, level, logger, message, and the fields of `extra`.

Messages are constant, so that they can be counted; what varies stands in fields. The libraries' own
chatter is cut: a line per event would cost more than the work itself.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TALKATIVE = ("asyncio", "aiohttp", "kopf")

# An admission writes a line, so a line has to be quick.
_encode = msgspec.json.Encoder(enc_hook=str).encode


class JsonFormatter(logging.Formatter):
    """Write a record as one line of JSON; what is not JSON becomes its text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((key, it) for key, it in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return _encode(line).decode()
        except (UnicodeError, TypeError, ValueError, RecursionError):
            # Half a character, or a key that is no text: slower, and it writes everything.
            return json.dumps(line, default=str, skipkeys=True)


def set_up_logs(level: str) -> None:
    """Send everything from `level` on to standard error; libraries from warning on."""
    # What no line shows need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
