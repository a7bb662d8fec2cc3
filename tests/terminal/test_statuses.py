"""The exit statuses: what a shell would show, and what --help says of them."""

import re
import signal

from gateway.terminal import statuses
from gateway.terminal.remote import EPILOG


def test_an_end_by_a_signal_is_what_a_shell_shows() -> None:
    assert (128 + signal.SIGINT, 128 + signal.SIGPIPE) == (statuses.INTERRUPTED, statuses.PIPE)


def test_help_names_them() -> None:
    named = {int(number) for number in re.findall(r"\b(\d+) [a-zC]", EPILOG)}
    assert named == {0, statuses.FAILED, statuses.WRONG, statuses.UNREACHABLE, statuses.INTERRUPTED}
