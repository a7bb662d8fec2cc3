"""The way to another gateway, as those see it who send to it. Pure."""

from __future__ import annotations


class Road:
    """What a link is for a connection: whether another gateway takes what is sent to it. A `calls.Link`."""

    __slots__ = ("pressed",)

    def __init__(self) -> None:
        self.pressed = False

    @property
    def barred(self) -> bool:
        """Whether others may send nothing more to it."""
        return self.pressed

    def wait(self) -> None:
        """Do nothing: nobody is kept from reading another gateway's mail."""

    def go_on(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing: mail leaves at the end of the event-loop iteration."""
