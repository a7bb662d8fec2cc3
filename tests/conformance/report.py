"""A run's table for a person, and the same as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.conformance.cases import Group, Outcome

BEHAVIORS = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED", "ERROR")
# Worth a look, but conforming: named in one line.
NOTED = ("NON-STRICT", "INFORMATIONAL")


def to_text(title: str, groups: Sequence[Group]) -> str:
    """Return the table, the cases that are worth a look, and a line for each that did not pass."""
    whole = Group("all", tuple(_outcomes(groups)), sum(group.seconds for group in groups))
    rows = [("group", "cases", *BEHAVIORS, "seconds"), *map(_row, (*groups, whole))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [title, *("  ".join(map(str.rjust, row, widths)) for row in rows)]
    lines.append(f"closing: {', '.join(f'{n} {name}' for name, n in _closings(whole.outcomes).items())}")
    for behavior in NOTED:
        noted = [outcome.case for outcome in whole.outcomes if outcome.behavior == behavior]
        if noted:
            lines.append(f"{behavior}: {' '.join(noted)}")
    lines += [
        f"{outcome.case}: {outcome.behavior}, closing {outcome.closing}: {outcome.why}"
        for outcome in whole.outcomes
        if not outcome.passed
    ]
    return "\n".join(lines) + "\n"


def to_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Return counts, and the cases by behaviour but for those that are simply OK."""
    outcomes = list(_outcomes(groups))
    return {
        "cases": len(outcomes),
        "behavior": dict(Counter(outcome.behavior for outcome in outcomes)),
        "closing": _closings(outcomes),
        "seconds": round(sum(group.seconds for group in groups), 1),
        "noted": {name: [o.case for o in outcomes if o.behavior == name] for name in NOTED},
        "failed": [
            {"case": o.case, "behavior": o.behavior, "closing": o.closing, "why": o.why}
            for o in outcomes
            if not o.passed
        ],
    }


def passed(groups: Sequence[Group]) -> bool:
    """Whether there was a case, and none that did not pass."""
    outcomes = list(_outcomes(groups))
    return bool(outcomes) and all(outcome.passed for outcome in outcomes)


def _outcomes(groups: Iterable[Group]) -> Iterable[Outcome]:
    return (outcome for group in groups for outcome in group.outcomes)


def _row(group: Group) -> tuple[str, ...]:
    behaviors = Counter(outcome.behavior for outcome in group.outcomes)
    counts = (str(behaviors[name] or "–") for name in BEHAVIORS)
    return (group.name, str(len(group.outcomes)), *counts, f"{group.seconds:.1f}")


def _closings(outcomes: Iterable[Outcome]) -> dict[str, int]:
    return dict(Counter(outcome.closing for outcome in outcomes))
