"""`python -m gateway`, and the script `aisopod-gateway`."""

import sys

try:
    from gateway.terminal import startup, statuses
except KeyboardInterrupt:  # Ctrl-C before `startup.begin`
    sys.exit(130)


def main() -> int:
    """Run a command, with the arguments of the process; returns the exit status."""
    try:
        startup.begin()
        from gateway import cli  # noqa: PLC0415 - it takes time, in which a signal may come: after `begin`, not before

        return cli.main()
    except KeyboardInterrupt:  # before `begin`, or after asyncio has put Python's own handler back
        return statuses.INTERRUPTED
    finally:
        startup.over()


if __name__ == "__main__":
    sys.exit(main())
