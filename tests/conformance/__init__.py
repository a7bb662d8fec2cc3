"""Autobahn's cases, run by kosoku against `tests.support.echo` or a bare aiohttp handler. See `--help`."""
