"""What Linux knows about a process: its CPU time, memory, open files and cores. Standard library only."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# CPUCLOCK_SCHED, the clock of clock_getcpuclockid(3) for a whole process.
CPU_CLOCK = 2


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of a process, or of several, and the time that it had to wait for a core, both in seconds."""

    cpu: float
    waited: float

    @classmethod
    def of(cls, *pids: int) -> Self:
        """Return what the processes have used so far, all together."""
        return cls(sum(map(cpu_seconds, pids)), sum(map(waited_seconds, pids)))

    def since(self, earlier: Self) -> "Usage":
        """Return what was used between two readings."""
        return Usage(self.cpu - earlier.cpu, self.waited - earlier.waited)


NOTHING = Usage(0.0, 0.0)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far in seconds: user and system, all threads.

    This is the clock that clock_getcpuclockid(3) names. It counts nanoseconds; /proc/PID/stat counts 10 ms.
    """
    return time.clock_gettime((~pid << 3) | CPU_CLOCK)


def waited_seconds(pid: int) -> float:
    """Return how long the threads of a process could have run but had no core, in seconds.

    From /proc/PID/task/*/schedstat; 0.0 on a kernel without it.
    """
    waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            waited += int(path.read_text().split()[1])
        except FileNotFoundError:
            # The thread has ended since the directory was read.
            continue
    return waited / 1e9


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes: `Rss` of /proc/PID/smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no Rss")


def forget_peak(pid: int) -> None:
    """Let the peak of the resident memory be what it is now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Return the highest resident memory since `forget_peak`, in bytes: `VmHWM` of /proc/PID/status."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pin(pid: int, core: int | None) -> None:
    """Keep all threads of a process, and those that they start, on one core. None: leave it."""
    if core is not None:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})
