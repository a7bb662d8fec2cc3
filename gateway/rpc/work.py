"""Work that is too much for one go, cut into steps. Pure.

Work is a generator. It yields after each step, so that others have their turn, and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeVar

STEPS: Final = 1000
"""How many small things one step does, or a few more: what `Pace` counts."""

Result = TypeVar("Result")
Work = Generator[None, None, Result]


class Pace:
    """Says when it is time to let others have their turn."""

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = 0

    def over(self, steps: int) -> bool:
        """Count so many steps. Returns whether that makes `STEPS`, and then begins again."""
        self._done += steps
        if self._done < STEPS:
            return False
        self._done = 0
        return True


def at_once(work: Work[Result]) -> Result:
    """Take all steps of this work, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: Result = done.value
            return result
