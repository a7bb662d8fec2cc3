"""The log: a writer that loses nothing unseen and never blocks."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.telemetry import formats, log
from tests.support.patience import START
from tests.support.records import record

DEADLINE = START

logger = logging.getLogger("gateway.test")


# The writer


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what `configure` does to the process, and close the writers."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    for name in ("raiseExceptions", "logThreads", "logProcesses", "logMultiprocessing", "_srcfile"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    yield
    logging.captureWarnings(False)
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()


class Pipe:
    """A pipe whose reader reads when told to."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.data = b""
        self._thread: threading.Thread | None = None

    def read(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self.reader, 65536):
            self.data += chunk

    def until(self, text: bytes) -> list[dict[str, Any]]:
        """Wait for `text`; return the lines so far."""
        wait(lambda: text in self.data and self.data.endswith(b"\n"))
        return lines(self.data)

    def close(self) -> None:
        """Close both ends. The writing one first, which ends the reading."""
        os.close(self.writer)
        if self._thread:
            self._thread.join(DEADLINE)
        os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, log.LogHandler):
            if not made._thread:
                made.read()
            handler.close()
    made.close()


def wait(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(data: bytes) -> list[dict[str, Any]]:
    """Decode JSON lines; a torn one raises."""
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data[:-1].split(b"\n")]


def test_twenty_thousand_lines_arrive_whole_and_in_order(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    for number in range(20_000):
        logger.info("line", extra={"event": "test", "n": number})
    assert writer.flush(DEADLINE)
    seen = pipe.until(b'"n":19999}')
    assert [line["n"] for line in seen] == list(range(20_000))
    assert writer.lost == 0


def test_threads_share_the_log_without_tearing_lines(pipe: Pipe) -> None:
    log.configure(config.Log(), pipe.writer)
    pipe.read()

    def talk(who: int) -> None:
        for number in range(1000):
            logger.info("x" * number, extra={"who": who, "n": number})

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(lambda: pipe.data.count(b"\n") == 4000)
    seen = lines(pipe.data)
    for who in range(4):
        assert [line["n"] for line in seen if line["who"] == who] == list(range(1000))


def test_a_stalled_pipe_loses_one_stretch_of_lines_and_says_how_many(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "QUEUE_BYTES", 100_000)
    writer = log.configure(config.Log(), pipe.writer)
    for number in range(3000):  # about 300 KB; a pipe holds 64 KiB, and a blocking write would hang here
        logger.info("line", extra={"n": number})
    assert not writer.flush(0.01)
    assert 0 < writer.lost < 3000
    pipe.read()
    seen = pipe.until(b"log.lost")
    kept = 3000 - writer.lost
    assert [line["n"] for line in seen[:kept]] == list(range(kept))
    (report,) = seen[kept:]
    assert (report["event"], report["level"], report["lines"]) == ("log.lost", "warning", writer.lost)
    assert list(report) == ["time", "level", "logger", "event", "message", "lines"]
    logger.info("after")
    assert pipe.until(b'"after"')[kept + 1 :][0]["message"] == "after"
    assert writer.lost == 3000 - kept


def test_a_line_that_is_larger_than_the_queue_is_lost_alone(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_BYTES", 1000)
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    logger.info("before")
    assert writer.flush(DEADLINE)
    logger.info("x" * 1000)
    pipe.until(b'"lines":1}')
    logger.info("after")
    seen = pipe.until(b'"after"')
    assert [line["event"] for line in seen] == ["log", "log.lost", "log"]
    assert writer.lost == 1


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    writer = log.configure(config.Log(), pipe.writer)
    for number in range(2000):
        logger.info("x" * 100, extra={"n": number})
    assert not writer.flush(0.01)
    pipe.read()
    assert [line["n"] for line in pipe.until(b'"n":1999}')] == list(range(2000))
    assert writer.lost == 0


def test_a_reader_that_comes_back_is_told_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "RETRY", 0.02)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    writer = log.configure(config.Log(), fd)
    os.close(reader)
    for _ in range(10):
        logger.info("nobody reads this")
    wait(lambda: writer.lost == 10)
    assert writer.flush(DEADLINE)
    with path.open("rb") as file:
        report = json.loads(file.readline())
        assert (report["event"], report["lines"]) == ("log.lost", 10)
        logger.info("after")
        assert json.loads(file.readline())["message"] == "after"
        assert writer.close(DEADLINE)
        os.close(fd)
        assert file.read() == b""
    assert writer.lost == 10


def test_a_pipe_that_breaks_while_it_is_full_loses_all_that_waits() -> None:
    reader, fd = os.pipe()
    writer = log.configure(config.Log(), fd)
    for _ in range(2000):
        logger.info("x" * 1000)
    assert not writer.flush(0.01)
    os.close(reader)
    assert writer.close(DEADLINE)
    os.close(fd)
    assert 2000 - 65536 / 1000 < writer.lost < 2000  # what went into the pipe was written


def test_a_record_that_cannot_be_formatted_is_counted_and_reported(pipe: Pipe) -> None:
    class Broken(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise RecursionError

    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    (handler,) = (found for found in logging.getLogger().handlers if isinstance(found, log.LogHandler))
    handler.setFormatter(Broken())
    logger.info("x")
    assert pipe.until(b"log.lost")[0]["lines"] == 1
    assert writer.lost == 1


def test_a_finalizer_may_log_while_its_thread_queues_a_line(pipe: Pipe) -> None:
    class Line(bytes):
        interrupted = False

        def __len__(self) -> int:  # called with the writer's lock held, as the collector may call a finalizer
            if not self.interrupted:
                self.interrupted = True
                logger.info("inner")
            return super().__len__()

    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    writer.write(Line(b'{"message":"outer"}\n'))
    assert [line["message"] for line in pipe.until(b'"outer"')] == ["inner", "outer"]


def test_a_line_that_is_lost_while_a_loss_is_reported_is_reported_next(pipe: Pipe) -> None:
    reports: list[int] = []

    def report(count: int) -> bytes:
        reports.append(count)
        if len(reports) == 1:
            writer.write(b"nested\n")
        return b'{"lines":%d}\n' % count

    writer = log.LogWriter(pipe.writer, report)
    pipe.read()
    writer.drop(3)
    assert writer.flush(DEADLINE)
    assert writer.close(DEADLINE)
    assert pipe.until(b'{"lines":1}') == [{"lines": 3}, {"lines": 1}]
    assert writer.lost == 4


def test_lines_of_libraries_are_sampled_and_counted_by_logger(pipe: Pipe) -> None:
    now = [1000.0]
    pipe.read()
    writer = log.LogWriter(pipe.writer, lambda lost: b"")
    handler = log.LogHandler(writer, lambda: now[0])
    handler.setFormatter(formats.JsonFormatter())
    burst, window = log.LIBRARY_LINES
    for _ in range(burst + 7):
        for name in ("asyncio", "aiohttp.server", "gateway.x", "a.method.of.yours"):
            handler.handle(record("m", name=name))
    now[0] += window
    handler.handle(record("later", name="asyncio"))
    found = pipe.until(b'"later"')
    handler.close()
    assert Counter(line["logger"] for line in found) == {
        "asyncio": burst + 1,
        "aiohttp.server": burst,
        "gateway.x": burst + 7,
        "a.method.of.yours": burst + 7,
    }
    assert [line["leftOut"] for line in found if "leftOut" in line] == [7]


def test_closing_writes_what_waits_and_may_be_repeated(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    pipe.read()
    for number in range(500):
        logger.info("line", extra={"n": number})
    assert not writer.closed
    assert writer.close(DEADLINE)
    assert writer.close(DEADLINE)
    assert writer.closed
    assert len(pipe.until(b'"n":499}')) == 500
    logger.info("too late")
    assert writer.lost == 1
    assert writer.flush(DEADLINE)


def test_closing_a_stuck_writer_gives_up_in_time(pipe: Pipe) -> None:
    writer = log.configure(config.Log(), pipe.writer)
    logger.info("x" * 200_000)
    start = time.monotonic()
    assert not writer.flush(0.05)
    assert not writer.close(0.05)
    assert time.monotonic() - start < DEADLINE
    pipe.read()
    assert writer.close(DEADLINE)
    (line,) = pipe.until(b"x")
    assert len(line["message"]) == 200_000


# configure


@pytest.mark.parametrize(
    ("level", "logged"),
    [("debug", 5), ("info", 4), ("warning", 3), ("error", 2), ("critical", 1)],
)
def test_level_is_the_lowest_that_is_logged(pipe: Pipe, level: Any, logged: int) -> None:
    log.configure(config.Log(level=level), pipe.writer)
    pipe.read()
    for number in (10, 20, 30, 40, 50):
        logger.log(number, "m")
    seen = [line["level"] for line in pipe.until(b'"critical"')]
    assert seen == ["debug", "info", "warning", "error", "critical"][5 - logged :]


def test_configuring_again_changes_level_and_format_and_keeps_the_writer(pipe: Pipe) -> None:
    first = log.configure(config.Log(level="warning"), pipe.writer)
    logger.info("left out")
    logger.warning("one")
    pipe.read()
    assert first.flush(DEADLINE)
    second = log.configure(config.Log(level="debug", format="text"), pipe.writer)
    assert second is first
    second.drop(2)
    assert second.flush(DEADLINE)
    assert second.lost == 2
    logger.debug("two", extra={"event": "e"})
    assert second.flush(DEADLINE)
    wait(lambda: pipe.data.endswith(b"DEBUG e two\n"))
    one, report, two = pipe.data.decode().splitlines()
    assert json.loads(one)["message"] == "one"
    assert report[12:] == " WARN  log.lost lines=2 log lines were lost"
    assert two[12:] == " DEBUG e two"


def test_another_descriptor_takes_over_and_the_earlier_writer_is_closed(pipe: Pipe, tmp_path: Path) -> None:
    with (tmp_path / "first").open("wb") as file:
        first = log.configure(config.Log(), file.fileno())
        logger.info("one")
        second = log.configure(config.Log(), pipe.writer)
        assert first.closed and not second.closed
    logger.info("two")
    pipe.read()
    assert [line["message"] for line in pipe.until(b'"two"')] == ["two"]
    assert [line["message"] for line in lines((tmp_path / "first").read_bytes())] == ["one"]


def test_a_writer_that_was_closed_is_replaced(pipe: Pipe) -> None:
    first = log.configure(config.Log(), pipe.writer)
    first.close(DEADLINE)
    assert log.configure(config.Log(), pipe.writer) is not first
    pipe.read()
    logger.info("one")
    assert [line["message"] for line in pipe.until(b'"one"')] == ["one"]


def test_warnings_are_logged(pipe: Pipe) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure(config.Log(), pipe.writer)
        pipe.read()
        warnings.warn("that is old", DeprecationWarning, stacklevel=1)
        (line,) = pipe.until(b"that is old")
    assert (line["level"], line["logger"], line["event"]) == ("warning", "py.warnings", "log")


# A process of its own

PRELUDE = """
import asyncio, logging, os, resource, sys, time
from gateway import config
from gateway.telemetry import log
from tests.support.patience import START
logger = logging.getLogger("gateway.test")
writer = log.configure(config.Log())
"""


def start(program: str, stdout: int) -> subprocess.Popen[bytes]:
    """Start a process that logs to `stdout`, and says on standard error what the test wants to know."""
    command = [sys.executable, "-c", PRELUDE + program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE)


def test_the_last_lines_are_written_at_exit() -> None:
    program = """
for number in range(1000):
    logger.info("line", extra={"n": number})
sys.exit(3)
"""
    process = start(program, subprocess.PIPE)
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (3, b"")
    assert [line["n"] for line in lines(output)] == list(range(1000))


STALL = """
async def main():
    beats = 0
    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1
    beating = asyncio.create_task(beat())
    for number in range(12000):
        logger.info("x" * 1000, extra={"n": number})
        if number % 50 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    print(beats, writer.lost, file=sys.stderr, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def test_a_reader_that_stalls_does_not_block_the_event_loop() -> None:
    process = start(STALL, subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    beats, lost = process.stderr.readline().split()
    assert int(beats) > 5  # a blocked loop would not have come here at all
    assert 12_000 - log.QUEUE_BYTES / 1000 < int(lost) < 12_000
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == "log.lost":
            process.stdin.close()
    assert process.wait(DEADLINE) == 0
    assert seen.pop()["lines"] == int(lost)
    assert [line["n"] for line in seen] == list(range(12_000 - int(lost)))
    assert process.stderr.read() == b""
    process.stdout.close()
    process.stderr.close()


def test_a_stuck_pipe_does_not_hold_up_the_exit() -> None:
    process = start('logger.info("x" * 1_000_000); sys.stderr.close(); sys.exit(4)', subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    assert process.stderr.read() == b""
    assert process.wait(log.CLOSE_TIMEOUT + DEADLINE) == 4
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@pytest.mark.parametrize("fault", ["broken pipe", "disk full"])
def test_e6_the_process_lives_on_without_its_log_and_counts_the_loss(fault: str) -> None:
    if fault == "broken pipe":
        reader, stdout = os.pipe()
        os.close(reader)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    program = """
for number in range(100):
    logger.info("line")
    writer.flush(10)
try:
    raise ValueError
except ValueError:
    logger.exception("defect")
print(writer.flush(10), writer.lost, file=sys.stderr)
"""
    process = start(program, stdout)
    os.close(stdout)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors.split()) == (0, [b"True", b"101"])


LIMIT = """
log.RETRY = 0.05
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for number in range(30):
    logger.info("line", extra={"n": number})
print(writer.flush(0.5), os.fstat(1).st_size, file=sys.stderr)
"""


def test_e6_a_disk_that_was_full_in_the_middle_of_a_line_has_no_torn_line_afterwards(tmp_path: Path) -> None:
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(writer.flush(10), writer.lost, file=sys.stderr)
logger.info("after")
"""
    path = tmp_path / "log"
    with path.open("wb") as file:
        process = start(LIMIT + program, file.fileno())
        _, errors = process.communicate(timeout=DEADLINE)
    full, size, flushed, lost = errors.split()
    assert (process.returncode, full, size, flushed) == (0, b"False", b"1000", b"True")
    assert path.read_bytes()[999:1000] != b"\n"  # the limit was inside of a line
    *kept, report, after = lines(path.read_bytes())
    assert [line["n"] for line in kept] == list(range(30 - int(lost)))
    assert (report["event"], report["lines"]) == ("log.lost", int(lost))
    assert after["message"] == "after"


def test_e6_a_line_that_stays_unfinished_counts_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        process = start(LIMIT + "print(writer.close(10), writer.lost, file=sys.stderr)", file.fileno())
        _, errors = process.communicate(timeout=DEADLINE)
    _, _, closed, lost = errors.split()
    assert closed == b"True"
    assert int(lost) == 30 - path.read_bytes().count(b"\n")


# Under another runner

ADOPTED = """
import logging, sys
from gateway import config
from gateway.telemetry import log

def handle(name):
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("theirs: %(message)s"))
    logging.getLogger(name).addHandler(handler)

{setup}
handler = log.adopt(config.Log())
logging.getLogger("gateway.x").info("ours", extra={{"event": "connection.opened"}})
logging.getLogger("other").info("other")
if handler is not None:
    log.release(handler)
    assert logging.getLogger("gateway").handlers == []
"""


def adopted(setup: str) -> list[str]:
    """Return the lines that a process prints which has set up `logging` like this."""
    program = ADOPTED.format(setup=setup)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_without_a_set_up_the_gateway_s_own_lines_are_written_as_json() -> None:
    (line,) = adopted("")
    said = json.loads(line)
    assert (said["logger"], said["event"], said["message"]) == ("gateway.x", "connection.opened", "ours")


@pytest.mark.parametrize("name", ["''", "'gateway'"])
def test_a_set_up_of_the_user_s_own_is_left_alone(name: str) -> None:
    assert adopted(f"handle({name}); logging.getLogger({name}).setLevel('WARNING')") == []
    lines = adopted(f"handle({name}); logging.getLogger({name}).setLevel('INFO')")
    assert lines == ["theirs: ours", *(["theirs: other"] if name == "''" else [])]


def _filtered(handler: log.LogHandler) -> None:
    handler.addFilter(lambda record: True)


def _deaf(handler: log.LogHandler) -> None:
    handler.setLevel(logging.ERROR)


def _doubled(handler: log.LogHandler) -> None:
    logging.getLogger("gateway").addHandler(logging.NullHandler())


def _chosen(handler: log.LogHandler) -> None:
    logger.addFilter(lambda record: True)


def _made(handler: log.LogHandler) -> None:
    logging.setLogRecordFactory(partial(logging.LogRecord))


def _cut_off(handler: log.LogHandler) -> None:
    logger.propagate = False


@pytest.mark.parametrize("change", [_filtered, _deaf, _doubled, _chosen, _made, _cut_off])
def test_a_line_goes_without_a_record_only_where_nobody_else_has_a_say(
    change: Callable[[log.LogHandler], None], pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    own = logging.getLogger("gateway")
    monkeypatch.setattr(own, "handlers", [])
    for name in ("filters", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name) if name == "propagate" else [])
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    log.configure(config.Log(), pipe.writer)
    (handler,) = root.handlers
    assert log.alone(logger, logging.INFO) is handler
    assert isinstance(handler, log.LogHandler)
    change(handler)
    assert log.alone(logger, logging.INFO) is None
