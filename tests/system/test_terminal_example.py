"""docs/example/terminal: a shell on a node that survives cuts of both networks."""

import asyncio
import os
import pty
import re
import sys
import termios
from pathlib import Path
from typing import Self

from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import ROOT, StartGateway, clean_environment
from tests.support.reaping import kill

EXAMPLE = ROOT / "docs/example/terminal"


class Screen:
    """A terminal with a window of 30 lines, and all that has been shown on it."""

    def __init__(self) -> None:
        self.mine, self.its = pty.openpty()
        termios.tcsetwinsize(self.its, (30, 100))
        self.shown = b""

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self.mine, self._read)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        asyncio.get_running_loop().remove_reader(self.mine)
        os.close(self.mine)
        os.close(self.its)

    def _read(self) -> None:
        self.shown += os.read(self.mine, 65_536)

    async def type(self, text: str, then: str) -> None:
        """Type this once there is a prompt, and wait until the other text is shown, which is not part of it."""
        await until(lambda: bool(self.shown), "there is no prompt")
        os.write(self.mine, text.encode())
        await until(lambda: then.encode() in self.shown, f"{then} is not shown")


async def start(program: str, url: str, stdin: int, stdout: int) -> asyncio.subprocess.Process:
    """Run one of the two programs."""
    environ = clean_environment() | {"GATEWAY_URL": url, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE / program)), stdin=stdin, stdout=stdout, stderr=stdout, env=environ, cwd=ROOT
    )


async def test_a_shell_survives_cuts_of_both_networks(gateway: StartGateway, tmp_path: Path) -> None:
    process = await gateway()
    async with FaultyProxy(process.host, process.port) as near, FaultyProxy(process.host, process.port) as far:
        with Screen() as screen, (tmp_path / "node").open("wb") as said:
            node = await start("node.py", far.url(), asyncio.subprocess.DEVNULL, said.fileno())
            try:
                await process.wait_event("node.online", node="kitchen-pi")
                before = termios.tcgetattr(screen.its)
                terminal = await start("terminal.py", near.url(), screen.its, screen.its)
                try:
                    await screen.type("tty; stty size; where=kept; set +m; echo $((6 * 7))th\r", "42th")
                    assert b"/dev/pts/" in screen.shown and b"30 100" in screen.shown
                    for number, cut in enumerate((near.cut, far.cut), 1):
                        cut("reset")
                        await screen.type(f"echo ${{where}}_{number}\r", f"kept_{number}")
                    await screen.type("seq 30000; echo the$((1 + 1))nd\r", "\r\n900\r\n")
                    near.cut("fin")
                    await until(lambda: b"the2nd" in screen.shown, "the rest is not shown")
                    os.write(screen.mine, b"exit $((3 + 4))\r")
                    assert await asyncio.wait_for(terminal.wait(), WAIT) == 7
                finally:
                    await kill(terminal)
                numbers = screen.shown.partition(b"\r1\r\n")[2].partition(b"the2nd")[0]
                for notice in (b"[away]", b"[open]"):
                    numbers = numbers.replace(b"\r\n%b\r\n" % notice, b"")
                assert numbers.split() == [b"%d" % number for number in range(2, 30_001)]
                assert termios.tcgetattr(screen.its) == before
            finally:
                await kill(node)
        assert near.cuts + far.cuts >= 3


async def test_leaving_the_terminal_hangs_the_shell_up(gateway: StartGateway, tmp_path: Path) -> None:
    process = await gateway()
    url = process.url("/ws", websocket=True)
    with Screen() as screen, (tmp_path / "node").open("wb") as said:
        node = await start("node.py", url, asyncio.subprocess.DEVNULL, said.fileno())
        try:
            await process.wait_event("node.online", node="kitchen-pi")
            terminal = await start("terminal.py", url, screen.its, screen.its)
            try:
                await screen.type("echo pid=$$=, $((6 * 7))th\r", "42th")
                (pid,) = re.findall(rb"pid=(\d+)=", screen.shown)
                shell = Path("/proc", pid.decode())
                assert shell.exists()
                os.write(screen.mine, b"\x1d")
                assert await asyncio.wait_for(terminal.wait(), WAIT) == 1
            finally:
                await kill(terminal)
            await until(lambda: not shell.exists(), "the shell still runs")
        finally:
            await kill(node)
    assert (tmp_path / "node").read_text() == "open \n"
