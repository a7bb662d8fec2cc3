"""A process that has imported the gateway, and forks at each request: see tests.support.forks.

Run as `python -m tests.support.fork_server FD`. FD is a socket that preserves messages: a request is a Program as JSON,
with four descriptors: standard input, output and error, and a socket for the reply. The reply is two messages: the pid,
and the exit status when the process has ended. The pid stays the process's until the reply's other end is closed. What
runs when that is closed is killed; when FD's other end is closed, everything is, and the server ends.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Self

PRELOADED: Final = ("gateway.cli", "gateway.server", "uvloop", "tests.support.credentials")
LARGEST: Final = 1 << 17
"""Bytes of a request, most of which are the environment."""


@dataclass(frozen=True)
class Program:
    """`python -m module arguments…`. nofile: RLIMIT_NOFILE, soft and hard; None leaves it."""

    module: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    nofile: int | None = None

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what `to_json` has written."""
        return cls(**json.loads(data))

    def to_json(self) -> bytes:
        """Return it as a request of at most LARGEST bytes."""
        return json.dumps(asdict(self)).encode()

    def run(self) -> None:
        """Be this program: this process has just been forked. SystemExit is the program's own."""
        os.environ.clear()
        os.environ.update(self.environ)
        time.tzset()
        if self.nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.nofile, self.nofile))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Those of the server remember whether one can seek in what it had for its own.
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
        sys.argv = [self.module, *self.arguments]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


@dataclass(frozen=True)
class Child:
    """A forked process, and the socket of its reply."""

    pid: int
    pidfd: int
    reply: socket.socket

    def tell_end(self) -> None:
        """Send the exit status, negative after a signal; the process is not reaped yet."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self.reply.send(str(status).encode())

    def reap(self) -> None:
        """Kill it if it still runs, and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.reply.close()


class Server:
    """Forks at each request from `control`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._by_pidfd: dict[int, Child] = {}
        self._by_reply: dict[int, Child] = {}

    def serve(self) -> Program | None:
        """Return what to be in each forked process, and None in this process, after the control's other end is closed.

        An error of one request would be an error of all, so none is caught.
        """
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._by_pidfd:
                    self._poll.unregister(fd)
                    self._by_pidfd.pop(fd).tell_end()
                elif fd in self._by_reply:
                    self._forget(self._by_reply.pop(fd))
                else:
                    data, fds, _, _ = socket.recv_fds(self._control, LARGEST, 4)
                    if not data:
                        self._end()
                        return None
                    if self._fork(fds):
                        return Program.from_json(data)

    def _fork(self, fds: list[int]) -> bool:
        """Fork; returns whether this is the new process."""
        pid = os.fork()
        if pid == 0:
            self._become_child(fds)
            return True
        for fd in fds[:3]:
            os.close(fd)
        child = Child(pid, os.pidfd_open(pid), socket.socket(fileno=fds[3]))
        child.reply.send(str(pid).encode())
        for key, known in ((child.pidfd, self._by_pidfd), (child.reply.fileno(), self._by_reply)):
            self._poll.register(key, select.POLLIN)
            known[key] = child
        return False

    def _become_child(self, fds: list[int]) -> None:
        for standard, fd in enumerate(fds[:3]):
            os.dup2(fd, standard)
        # Python would close the sockets once more later, when their numbers may be another's.
        self._control.detach()
        for child in self._by_reply.values():
            child.reply.detach()
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def _forget(self, child: Child) -> None:
        self._poll.unregister(child.reply)
        if self._by_pidfd.pop(child.pidfd, None):
            self._poll.unregister(child.pidfd)
        child.reap()

    def _end(self) -> None:
        for child in self._by_reply.values():
            child.reap()


def main() -> None:
    """Import what the programs need, and serve. Ctrl-C is for the programs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    # What has been imported stays as it is. Without this, each process copies all of it when it ends, to collect it.
    gc.freeze()
    program = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if program is not None:
        program.run()


if __name__ == "__main__":
    main()
