"""Debian's nginx in front of gateways, in a process of its own: it takes TLS off and says who called."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.certs import authority
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.peers import Target
from tests.support.process import GatewayProcess
from tests.support.reaping import end

X_FORWARDED_FOR: Final = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
"""Adds the client's address to what the client has sent, and leaves its Forwarded as it is."""

FORWARDED: Final = "proxy_set_header Forwarded for=$remote_addr; proxy_set_header X-Forwarded-For '';"
"""Forwarded alone; what the client has sent of either is gone."""

ADDED_FORWARDED: Final = "proxy_set_header Forwarded $added_forwarded; proxy_set_header X-Forwarded-For '';"
"""Forwarded alone; adds to what the client has sent, in quotes, as RFC 7239 wants it for IPv6."""

# One server process, so that clients take turns; a gateway that fails once is tried again with the next client.
CONFIG: Final = """
{user}
daemon off;
pid nginx.pid;
error_log error.log notice;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
  map $http_forwarded $added_forwarded {{
    default "$http_forwarded, for=\\"$remote_addr\\"";
    "" "for=\\"$remote_addr\\"";
  }}
  upstream gateways {{
    {upstream}
  }}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    location / {{
      proxy_pass http://gateways;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      {headers}
      proxy_next_upstream error timeout http_503;
    }}
  }}
}}
"""


class Nginx:
    """nginx over TLS in front of these gateways, as an async context manager: clients come by `target`.

    directory: an empty one, for its configuration and all that it writes. headers: how it says who called. choose:
    how it chooses a gateway; they take turns by default.
    """

    def __init__(
        self,
        directory: Path,
        gateways: Iterable[GatewayProcess],
        *,
        headers: str = X_FORWARDED_FOR,
        choose: str = "",
    ) -> None:
        self._directory = directory
        self._headers = headers
        servers = (f"server {_address(gateway)} max_fails=0;" for gateway in gateways)
        self._upstream = "\n    ".join((choose, *servers))
        self._process: subprocess.Popen[bytes] | None = None
        self.target = Target()

    async def __aenter__(self) -> Self:
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "nginx is missing; scripts/test installs it"
        authority().issue(self._directory)
        # It inherits its socket, as when a new nginx replaces an old one: no port can be taken in between.
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            self.target = Target(listening.getsockname()[1], tls=authority().client_context())
            self._configure(self.target.port)
            self._process = subprocess.Popen(
                [program, "-p", f"{self._directory}/", "-c", "nginx.conf", "-e", "error.log"],
                env=os.environ | {"NGINX": f"{listening.fileno()};"},
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        try:
            await until(self._started, "nginx does not start")
            assert self._process.poll() is None, self.errors()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        print(f"--- nginx\n{self.errors()}")
        await self._stop()

    def _configure(self, port: int) -> None:
        # Its server process would be nobody, who cannot open a gateway's Unix socket.
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        text = CONFIG.format(user=user, upstream=self._upstream, port=port, headers=self._headers)
        (self._directory / "nginx.conf").write_text(text)

    def _started(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or (self._directory / "nginx.pid").exists()

    async def _stop(self) -> None:
        assert self._process is not None
        status = await asyncio.to_thread(end, self._process, WAIT)  # and with it its server process
        assert status != -signal.SIGKILL, f"nginx had to be killed: {self.errors()}"

    def errors(self) -> str:
        """Return the log of nginx."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / "error.log").read_text()
        return ""


def _address(gateway: GatewayProcess) -> str:
    return f"unix:{gateway.unix}" if gateway.unix else f"{gateway.host}:{gateway.port}"
