"""The log: one event a line, written by a thread, so that a stalled reader of the log never blocks the event loop.

Callers use only `logging` of the standard library. An event is a name and its fields:

    logger = logging.getLogger("gateway.connections.connection")
    logger.info("connection opened", extra={"event": "connection.opened", "connId": conn_id})

A record becomes a line in the thread that logs it, so its fields are as they were at that moment. The line then
waits in a queue that is bounded in bytes. Lost lines are counted, and a line `log.lost` reports them.
"""

import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from gateway import config
from gateway.limits import Sampler
from gateway.telemetry.formats import OWN, JsonFormatter, Kind, TextFormatter

QUEUE_BYTES = 8 * 1024 * 1024
"""How much may wait for the writer, in bytes of finished lines: about 30,000 lines of the usual length."""

BATCH_LINES = 256
"""How many lines may go into one write: about 64 KiB, the capacity of a pipe."""

PAUSE = 0.02
"""Seconds between two writes. Lines that come meanwhile share one write: waking the thread costs more than a line."""

RETRY = 1.0
"""Seconds from a failed write to the next attempt."""

CLOSE_TIMEOUT = 0.5
"""Seconds in which the last lines may be written when the process exits, or when another descriptor takes over."""

LIBRARIES = frozenset({"aiohttp", "asyncio", "opentelemetry", "py"})
"""Whose lines are sampled: those of the libraries below, which do it not themselves. `py` stands for warnings."""

LIBRARY_LINES = (100, 10.0)
"""How many lines of one logger of these are written, and in how many seconds. The lines of the gateway's own loggers
are bounded in `telemetry.lines`, and those of a user's methods are the user's."""


class LogWriter:
    """Writes whole lines to a file descriptor, in order, from a thread of its own.

    The descriptor may be a file, a pipe, a socket or a terminal, blocking or not. It is not closed, and must
    stay open until `close` has returned True. The thread is a daemon, so a stuck descriptor never delays the
    exit of the process.

    A line is lost if the queue has no room for it, or if its write fails. From then on every line is lost, until
    the queue is empty and writing works again. So there is one gap, and one line in its place that reports it.

    Args:
        fd: The file descriptor.
        report: Makes the line that says how many lines were lost, with its newline. It is called in the
            thread, and may be replaced at any time.
    """

    def __init__(self, fd: int, report: Callable[[int], bytes]) -> None:
        self.fd = fd
        self.report = report
        self.lost = 0
        """How many lines have been lost."""
        # Reentrant, because a finalizer or a signal handler may log while its thread is inside `write`.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: list[bytes] = []
        self._queued = 0  # bytes, including those of the present write
        self._gap = 0  # lines lost, and not reported yet
        self._reporting = 0  # lost lines that a report in the present write tells of
        self._rest = b""  # the part of a line that a failed write left unwritten
        self._failing = False  # the last write failed
        self._sleeping = False  # the thread waits for a line, and for nothing else
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def write(self, line: bytes) -> None:
        """Queue a line, which includes its newline. Never waits for the descriptor. May be called from any thread."""
        with self._lock:
            queued = self._queued + len(line)
            if self._gap or self._closing or queued > QUEUE_BYTES:
                self.drop()
                return
            self._queued = queued
            self._queue.append(line)
            if self._sleeping:
                self._wake()

    def drop(self, lines: int = 1) -> None:
        """Count lines as lost. May be called from any thread."""
        with self._lock:
            self.lost += lines
            if not self._closing:
                self._gap += lines
                if self._sleeping:
                    self._wake()

    def flush(self, timeout: float) -> bool:
        """Block until each line so far is written or lost, for at most `timeout` seconds.

        Returns:
            False if lines still wait.
        """
        with self._lock:
            self._wake()
            return self._changed.wait_for(
                lambda: not (self._queued or self._rest) and (self._failing or not self._gap), timeout
            )

    def close(self, timeout: float) -> bool:
        """Take no more lines, and wait for the last ones, for at most `timeout` seconds. May be called again.

        Returns:
            False if lines still wait. They are written once the descriptor takes them, if the process still runs.
        """
        with self._lock:
            self._closing = True
            self._wake()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        self._sleeping = False
        self._changed.notify_all()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            written = self._write(batch)
            with self._lock:
                self._settle(batch, written)
                if self._failing and self._closing:
                    break
                if self._failing:
                    self._changed.wait_for(lambda: self._closing, RETRY)
                elif not (self._queue or self._gap or self._closing):
                    self._changed.wait(PAUSE)
        if self._rest:
            self.drop()

    def _next(self) -> list[bytes] | None:
        """Wait for lines, and take at most `BATCH_LINES` of them, or the report of a gap if there are none.

        Returns None if the writer is closed and everything is written.
        """
        with self._lock:
            while not (self._queue or self._gap or self._rest or self._closing):
                self._sleeping = True
                self._changed.wait()
            self._sleeping = False
            if not (self._queue or self._gap or self._rest):
                return None
            self._reporting = 0 if self._queue else self._gap
            if self._reporting:
                line = self.report(self._reporting)
                self._queue.append(line)
                self._queued += len(line)
                self._gap -= self._reporting  # not earlier, because making the report may have lost a line of its own
            batch = self._queue[:BATCH_LINES]
            del self._queue[:BATCH_LINES]
            return batch

    def _settle(self, batch: list[bytes], written: int) -> None:
        """Note that the first `written` lines of the batch are written. After an error the whole queue is lost too."""
        self._queued -= sum(map(len, batch))
        unwritten = len(batch) - written
        self._failing = bool(unwritten or self._rest)
        if self._failing:
            if self._reporting and unwritten:  # a lost report is no lost line, but its lines are still to be reported
                self._gap += self._reporting
                unwritten = 0
            self.drop(unwritten + len(self._queue))
            self._queue.clear()
            self._queued = 0
        self._changed.notify_all()

    def _write(self, batch: list[bytes]) -> int:
        """Write lines, and return how many are written.

        A line of which only a part is written counts as well, because the next write begins with its rest.
        """
        lines = [self._rest, *batch]
        data = b"".join(lines)
        missing = len(data) - self._send(data)
        while len(lines) > 1 and missing >= len(lines[-1]):
            missing -= len(lines.pop())
        self._rest = lines[-1][-missing:] if missing else b""
        return len(lines) - 1

    def _send(self, data: bytes) -> int:
        """Write `data`, however long it takes. Returns how many bytes were written, which are fewer after an error."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return len(data) - len(view)


class LogHandler(logging.Handler):
    """Hands the line of each record to a writer. `logging.shutdown`, which runs at exit, closes both.

    The lines of `LIBRARIES` are sampled. What is left out is counted in the next line of the same logger.
    """

    def __init__(self, writer: LogWriter, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.writer = writer
        self._sampler = Sampler(clock, *LIBRARY_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line. A record that cannot be made into a line is counted as lost."""
        try:
            if record.name.partition(".")[0] in LIBRARIES:
                left_out = self._sampler.admit(record.name)
                if left_out is None:
                    return
                if left_out:
                    record.__dict__["leftOut"] = left_out
            self.writer.write(self.format(record).encode() + b"\n")
        except Exception:
            self.writer.drop()

    def put(self, kind: Kind, logger: str, text: str, fields: Mapping[str, object]) -> bool:
        """Queue the line of an event without making a record. Returns False if it needs one (`JsonFormatter.brief`)."""
        formatter = self.formatter
        if type(formatter) is not JsonFormatter:
            return False
        line = formatter.brief(time.time(), kind, logger, text, fields)
        if line is None:
            return False
        self.writer.write(line)
        return True

    def close(self) -> None:
        """Write the lines that wait, within `CLOSE_TIMEOUT` seconds. May be called again."""
        self.writer.close(CLOSE_TIMEOUT)
        super().close()


def alone(origin: logging.Logger, level: int) -> LogHandler | None:
    """Return the handler that would get a record of ``origin``, if it is a `LogHandler` and nobody else has a say.

    That is so unless the process has set up `logging` in another way: with handlers, filters or records of its own.
    Then a line needs a record.
    """
    if origin.filters or logging.getLogRecordFactory() is not logging.LogRecord:
        return None
    found: logging.Handler | None = None
    place: logging.Logger | None = origin
    while place is not None:
        handlers = place.handlers
        if handlers:
            if found is not None or len(handlers) > 1:
                return None
            found = handlers[0]
        place = place.parent if place.propagate else None
    return found if type(found) is LogHandler and not found.filters and found.level <= level else None


def configure(settings: config.Log, fd: int = 1) -> LogWriter:
    """Send the records of all loggers to `fd`. May be called again, to change the level and the format.

    If the descriptor is the same, the writer stays: nothing is lost, nothing waits, and `lost` goes on counting.
    If it is another one, there is a new writer, and the earlier one is closed.

    Args:
        settings: `level` is the lowest level that is logged; `format` is `json` or `text`.
        fd: Where the lines go; see `LogWriter`.
    """
    _tune()
    formatter = JsonFormatter() if settings.format == "json" else TextFormatter()
    report = partial(_report, formatter)
    root = logging.getLogger()
    root.setLevel(settings.level.upper())
    handler = next((handler for handler in root.handlers if isinstance(handler, LogHandler)), None)
    if handler and (handler.writer.fd != fd or handler.writer.closed):
        root.removeHandler(handler)
        handler.close()
        handler = None
    if not handler:
        handler = LogHandler(LogWriter(fd, report))
        root.addHandler(handler)
    handler.setFormatter(formatter)
    handler.writer.report = report
    return handler.writer


def adopt(settings: config.Log, fd: int = 1) -> LogHandler | None:
    """Send the records of the gateway's own loggers to `fd`, unless the process has set up `logging` for them.

    For an application under another runner, where nobody calls `configure`. A set-up is a handler of the root logger or
    of the logger `gateway`: then nothing changes. A level that the logger `gateway` has stays.

    Returns:
        The handler, to be given to `release`; None if nothing was changed.
    """
    own = logging.getLogger(OWN)
    if own.handlers or logging.getLogger().handlers:
        return None
    formatter = JsonFormatter() if settings.format == "json" else TextFormatter()
    handler = LogHandler(LogWriter(fd, partial(_report, formatter)))
    handler.setFormatter(formatter)
    if own.level == logging.NOTSET:
        own.setLevel(settings.level.upper())
    own.addHandler(handler)
    return handler


def release(handler: LogHandler) -> None:
    """Take back what `adopt` has done, after the last lines are written. The level stays."""
    logging.getLogger(OWN).removeHandler(handler)
    handler.close()


def _tune() -> None:
    """Keep `logging` from looking up what no line shows (Python's logging HOWTO, "Optimization")."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    logging.raiseExceptions = False  # it would report to standard error, which is often the same broken descriptor
    logging.captureWarnings(True)


def _report(formatter: logging.Formatter, lines: int) -> bytes:
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were lost", None, None)
    record.__dict__.update(event="log.lost", lines=lines)
    return formatter.format(record).encode() + b"\n"
