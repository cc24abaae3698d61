"""
Log observers for C{twistd --logger=connpool.services.logs.NAME}.

C{twistd}'s own log file keeps every old file for ever (Twisted #3361, #9122),
and Twisted's JSON log puts a record separator before each line that C{jq}
takes only with C{--seq}.

A file is C{$CONNPOOL_LOG}, or C{connpool.log} in the directory that systemd
made for logs, or C{connpool.log} in the working directory.  L{reopenFiles}
follows C{logrotate}, which renames a file and sends a signal.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import attrs
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    formatEvent,
    formatEventAsClassicLogText,
    globalLogPublisher,
)
from twisted.python.logfile import BaseLogFile, LogFile

__all__ = [
    "FILES",
    "FILE_BYTES",
    "jsonLine",
    "jsonLines",
    "logTogether",
    "reopenFiles",
    "rotating",
    "rotatingJSON",
    "textLines",
]

_log = Logger()

#: Bytes after which a new log file is begun, and how many are kept, the one
#: that is written included.
FILE_BYTES = 10_000_000
FILES = 10

#: Fields that Twisted's older log module adds to each event; they are in "text".
_LEGACY = frozenset({"format", "isError", "message", "system", "time", "why"})


def jsonLines() -> ILogObserver:
    """
    JSON lines on standard output, for journals and containers.  They are UTF-8 (RFC
    8259) in any locale.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    return FileLogObserver(sys.stdout, jsonLine)


def rotating() -> ILogObserver:
    """
    Text in a file.
    """
    return FileLogObserver(_open(), textLines)


def rotatingJSON() -> ILogObserver:
    """
    JSON lines in a file.
    """
    return FileLogObserver(_open(), jsonLine)


# -- lines --------------------------------------------------------------------


def textLines(event: LogEvent) -> str | None:
    """
    @return: as Twisted's own text log has it, with a line of its own for each receipt.
    """
    lines = [formatEventAsClassicLogText(each) for each in _single(event)]
    return "".join(line for line in lines if line) or None


def jsonLine(event: LogEvent) -> str:
    r"""
    @return: a JSON object and C{\n}, for each receipt one: C{time} (UTC), C{level},
        C{logger}, C{text}, C{traceback} after a failure, and the event's own values.
    """
    return "".join(map(_jsonLine, _single(event)))


def logTogether(log: Logger, lines: Sequence[dict[str, Any]], **fields: Any) -> None:
    """
    Log many lines by one event: an event takes Twisted as long as some small files take us.

    @param lines: of each C{text}, fit to be displayed, and more fields of its own.
    """
    if lines:
        text = "\n".join([line["text"] for line in lines])
        log.info("{text}", text=text, lines=tuple(lines), **fields)


def _single(event: LogEvent) -> Iterator[LogEvent]:
    """
    Yield an event for each receipt, as if its file had come alone: files that come together
    are one event.  The same for L{logTogether}.
    """
    together = event.get("lines")
    if isinstance(together, tuple) and together and isinstance(together[0], dict):
        for line in together:
            single = {**event, **line}
            del single["lines"]
            yield single
        return
    receipts, lines = event.get("receipts"), str(event.get("text")).split("\n")
    if not isinstance(receipts, tuple) or len(receipts) != len(lines):
        yield event
        return
    for line, receipt in zip(lines, receipts, strict=True):
        single = {**event, "text": line, "receipt": receipt, "id": receipt.transferId}
        del single["receipts"]
        yield single


def _jsonLine(event: LogEvent) -> str:
    failure = event.get("log_failure")
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": event["log_level"].name,
        "logger": event.get("log_namespace", ""),
        "text": formatEvent(event),
    }
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    for key, value in event.items():
        if not key.startswith("log_") and key not in _LEGACY and key not in line:
            plain = _plain(value)
            if plain is not None:
                line[key] = plain
    text = json.dumps(line, ensure_ascii=False)
    # half a surrogate pair, from a name that is not UTF-8, is no JSON
    return text.encode("utf-8", "replace").decode("utf-8") + "\n"


def _plain(value: Any) -> Any:
    """
    @return: C{value} as JSON has it; L{None} for a value that JSON does not have,
        and for fields that do not want to be shown.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        # beyond: no reader keeps it, and json refuses some thousand digits
        return value if value.bit_length() <= 64 else None
    if isinstance(value, str):
        return value
    if attrs.has(type(value)):
        fields = {
            field.name: _plain(getattr(value, field.name))
            for field in attrs.fields(type(value))
            if field.repr is not False
        }
        return {name: plain for name, plain in fields.items() if plain is not None}
    return None


# -- files --------------------------------------------------------------------


class RotatingFile(LogFile):
    """
    Rotates also after a change of user: renaming takes rights on the
    directory, not on the file that root opened.  Where even these are missing
    it says so in the log, every L{FILE_BYTES}.

    Symbolic links are not followed: root opens the file in a directory that
    belongs to the user we run as later.
    """

    def _openFile(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o640)
        self._file = os.fdopen(descriptor, "ab", 0)
        self.size = os.fstat(descriptor).st_size
        self.closed = False

    def write(self, data: str | bytes) -> None:
        # a name that is not UTF-8 must not cost the line
        line = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
        if self.shouldRotate():
            self.rotate()
        descriptor = self._file.fileno()
        written = self._file.write(line)
        if written < len(line):
            # the disk is full; half a line would spoil the one that fits again
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += written

    def reopen(self) -> None:
        """
        Write to the file that has the name now.

        @raise OSError: it cannot be opened; the old one stays in use.
        """
        old = self._file
        self._openFile()
        old.close()

    def rotate(self) -> None:
        old = self._file
        try:
            for number in range(FILES - 2, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            # not there if this went wrong between the two the last time
            with suppress(FileNotFoundError):
                os.replace(self.path, f"{self.path}.1")
            self._openFile()
        except OSError as e:
            self.size = 0
            with suppress(OSError):
                old.write(
                    f"cannot rotate {self.path}: {e.strerror}; "
                    f"let user {os.geteuid()} write to its directory\n".encode()
                )
        else:
            old.close()


def reopenFiles() -> None:
    """
    Reopen, by its name, each file that this process logs to: ours and twistd's own.
    Standard output has no name, and stays.
    """
    # neither has a public name; Twisted's own handler cannot be asked to reopen
    for observer in globalLogPublisher._observers:
        file = observer._outFile if isinstance(observer, FileLogObserver) else None
        if not isinstance(file, BaseLogFile):
            continue
        try:
            if not isinstance(file, RotatingFile):
                # Twisted's own closes the old one first, and must not be left without
                os.close(os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o640))
            file.reopen()
        except OSError as e:
            _log.error(
                "cannot open the log {path} again: {why}; the old file stays in use",
                path=file.path,
                why=e.strerror,
            )


def _open() -> Any:
    directory = os.environ.get("LOGS_DIRECTORY", "").partition(":")[0]
    path = os.environ.get("CONNPOOL_LOG") or os.path.join(directory, "connpool.log")
    directory, name = os.path.split(os.path.abspath(path))
    try:
        return RotatingFile(name, directory, FILE_BYTES)
    except OSError as e:
        why = "it is a symbolic link" if e.errno == errno.ELOOP else e.strerror
        sys.exit(f"cannot log to {path}: {why}; name another file in CONNPOOL_LOG")
