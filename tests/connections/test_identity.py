"""The ids of connections. What else is told of one is in test_connection and test_sessions."""

import uuid

from gateway.connections.identity import new_id


def test_ids_are_uuids_of_version_4_and_never_the_same() -> None:
    ids = [new_id() for _ in range(5000)]
    assert len(set(ids)) == len(ids)
    for text in ids:
        made = uuid.UUID(text)
        assert (made.version, made.variant, str(made)) == (4, uuid.RFC_4122, text)
    # All that is not fixed is drawn: each digit of each place comes up.
    places = list(zip(*(text.replace("-", "") for text in ids), strict=True))
    assert [len(set(place)) for place in places] == [1 if n == 12 else 4 if n == 16 else 16 for n in range(32)]
