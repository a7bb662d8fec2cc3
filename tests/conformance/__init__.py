"""Autobahn's cases, run by kosoku against `tests.echo` or a bare aiohttp handler. See `--help`."""
