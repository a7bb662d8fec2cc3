"""Which cases there are, how they are run, and what they come to.

Imports kosoku's cases, which changes `sys.path` and `binascii` for the whole process: only for `python -m
tests.conformance`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import kosoku
from kosoku.cases import CASES

CONFORMING = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
UNIMPLEMENTED = "UNIMPLEMENTED"
COMPRESSION_GROUPS = ("12", "13")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case came to, in Autobahn's words: `behavior` in the exchange of messages, `closing` at the end."""

    case: str
    behavior: str
    closing: str
    why: str

    @property
    def passed(self) -> bool:
        """Whether the server conforms; not to implement what is optional does."""
        return self.behavior == UNIMPLEMENTED or {self.behavior, self.closing} <= CONFORMING


@dataclass(frozen=True, slots=True)
class Group:
    """One group's cases, in order, and how long they took together, in seconds."""

    name: str
    outcomes: tuple[Outcome, ...]
    seconds: float


def select(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the cases of groups such as `7`, `7.9` or `7.9.5`, by group and in order; all where none is named.

    Raises ValueError for a name without cases.
    """
    for name in names:
        if not any(_in(case, name) for case in CASES):
            raise ValueError(f"there is no case {name}")
    chosen = [case for case in CASES if not names or any(_in(case, name) for name in names)]
    groups: dict[str, list[str]] = {}
    for case in chosen:
        groups.setdefault(case.partition(".")[0], []).append(case)
    return groups


def _in(case: str, name: str) -> bool:
    return case == name or case.startswith(f"{name}.")


async def run(url: str, name: str, cases: Sequence[str], jobs: int) -> Group:
    """Run cases, `jobs` at a time. AssertionError when the tool has not run each of them."""
    begin = time.monotonic()
    try:
        results = await kosoku.run_fuzzingclient(url, cases, concurrency=jobs)
    except kosoku.FailureError as failure:
        results = failure.results
    outcomes = tuple(map(_outcome, results))
    assert [outcome.case for outcome in outcomes] == list(cases), "the tool has not run each case"
    return Group(name, outcomes, time.monotonic() - begin)


def _outcome(result: Any) -> Outcome:
    why = dict.fromkeys(" ".join(text.split()) for text in (result.result, result.result_close) if text)
    return Outcome(result.case_id, result.behavior.value, result.behavior_close.value, " / ".join(why))


def mend() -> None:
    """Let the cases of compression come to a verdict also where a message arrives uncompressed. Once.

    RFC 7692 section 6 leaves it to the sender which messages it compresses. kosoku 0.1.0 gives these cases the
    payload as `bytes` where it was compressed, and otherwise as `str`: a text decoded, a binary message with a
    character for each byte. They cannot take the hash of that.
    """
    for name, case in CASES.items():
        if name.partition(".")[0] in COMPRESSION_GROUPS:
            mended: Any = case
            mended.onMessage = _with_bytes(mended.onMessage)


def _with_bytes(on_message: Callable[[Any, bytes, bool], None]) -> Callable[[Any, bytes | str, bool], None]:
    def mended(case: Any, payload: bytes | str, binary: bool) -> None:
        if isinstance(payload, str):
            payload = payload.encode("latin-1" if binary else "utf-8")
        on_message(case, payload, binary)

    return mended
