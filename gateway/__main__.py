"""`python -m gateway`, and the script `aisopod-gateway`."""

import sys

from gateway.terminal import startup, statuses


def main() -> int:
    """Run a command, with the arguments of the process; returns the exit status."""
    startup.begin()
    # Not imported above, because it takes time, and a signal may come meanwhile.
    from gateway import cli  # noqa: PLC0415 - the reason is above

    try:
        return cli.main()
    except KeyboardInterrupt:  # asyncio's own handler of signals has gone, and Python's is back
        return statuses.INTERRUPTED
    finally:
        startup.over()


if __name__ == "__main__":
    sys.exit(main())
