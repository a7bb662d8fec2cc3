"""The worst legal messages of every method, each alone, as a notification and in a batch: all are answered rightly.

For how long they hold the event loop is measured by `python -m tests.support.worst --full`.
"""

from pathlib import Path

import pytest

from gateway.app import GATEWAY, create_app
from gateway.config import parse
from tests.support.credentials import KeySet
from tests.support.patience import Sized
from tests.support.worst import FORMS, FULL, SMALL, entries, staged
from tests.support.worst_cases import WORST


def test_every_method_has_its_worst_messages(tmp_path: Path) -> None:
    app = create_app(parse({"auth": KeySet(tmp_path / "keys.json", "ed").auth}))
    assert set(app[GATEWAY].dispatcher.methods) == set(WORST) - {""}
    assert all(WORST.values())


@pytest.mark.timeout(3600)
async def test_the_worst_messages_of_every_method_are_answered(sized: Sized) -> None:
    """In full size as notifications and in batches, too."""
    full = sized(0, 1)
    async with staged((SMALL, FULL)[full]) as stage:
        for name, about, make, form in entries():
            if form != FORMS[0] and not full:
                continue
            try:
                held = await stage.run(make, form)
            except AssertionError as wrong:
                raise AssertionError(f"{name}, {form}: {about}") from wrong
            assert held > 0
