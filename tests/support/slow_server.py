"""`python -m tests.support.slow_server --config FILE`: the gateway, and a path `/slow` that works before its 101.

It is the gateway's own command line, listener and connection; only the application has one route more.
"""

import asyncio
import logging
import sys
from unittest import mock

from aiohttp import web

from gateway import cli
from gateway.app import CONFIG, GATEWAY, create_app
from gateway.config import Config

logger = logging.getLogger("gateway.tests")

WORK = 1.4
"""How many handshake timeouts the work before the upgrade takes."""


async def slow(request: web.Request) -> web.StreamResponse:
    """Work, then upgrade; logs `slow.ended` with `how` it ended."""
    how = "cancelled"
    try:
        await asyncio.sleep(WORK * request.app[CONFIG].server.handshake_timeout)
        how = "returned"
        return await request.app[GATEWAY].websocket(request)
    except Exception as error:
        how = type(error).__name__
        raise
    finally:
        logger.info("the slow handler ended", extra={"event": "slow.ended", "how": how})


def create_slow_app(config: Config) -> web.Application:
    """Build the gateway's application with the slow path."""
    app = create_app(config)
    app.router.add_get("/slow", slow)
    return app


if __name__ == "__main__":
    with mock.patch("gateway.server.create_app", create_slow_app):
        sys.exit(cli.main())
