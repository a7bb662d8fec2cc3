"""Which reply belongs to which message, where several would do."""

from collections.abc import Callable, Sequence


def strangers(
    left: int, right: int, fits: Callable[[int, int], bool], obliged: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Pair the numbers below `left` with those below `right`, each once at most.

    Returns who of the `obliged` on the left stays without a partner, and who on the right does. Both are as few as
    can be: a pairing that serves all obliged and one that serves all of the right can always be joined (Mendelsohn
    and Dulmage), and paths that lead to a free partner (Kuhn) never free one who has a partner.
    """
    rightward = [[there for there in range(right) if fits(here, there)] for here in range(left)]
    leftward = [[here for here in range(left) if there in rightward[here]] for there in range(right)]
    of_left: dict[int, int] = {}
    of_right: dict[int, int] = {}
    alone_left = [one for one in obliged if not _augment(one, rightward, of_left, of_right, set())]
    alone_right = [
        one for one in range(right) if one not in of_right and not _augment(one, leftward, of_right, of_left, set())
    ]
    return alone_left, alone_right


def _augment(
    one: int, edges: Sequence[Sequence[int]], mine: dict[int, int], theirs: dict[int, int], tried: set[int]
) -> bool:
    for other in edges[one]:
        if other in tried:
            continue
        tried.add(other)
        if other not in theirs or _augment(theirs[other], edges, mine, theirs, tried):
            mine[one], theirs[other] = other, one
            return True
    return False
