"""A message as its subscribers get it."""

import json

from gateway.cluster.stream import Position, message


def test_a_message_is_a_notification_with_its_data_byte_for_byte() -> None:
    text = message("küche.licht", Position("3f0c", 7), "2026-11-23T08:30:12.003Z", b'{"n": 1.50 }')
    assert text.endswith(b'"data":{"n": 1.50 }}}')
    assert json.loads(text) == {
        "jsonrpc": "2.0",
        "method": "event.message",
        "params": {
            "topic": "küche.licht",
            "offset": 7,
            "epoch": "3f0c",
            "time": "2026-11-23T08:30:12.003Z",
            "data": {"n": 1.5},
        },
    }
