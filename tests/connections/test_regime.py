"""The limits that all links live under, taken from the configuration."""

import math

from gateway.config import parse
from gateway.connections.regime import CONTROL_SECONDS, Regime


def test_control_frames_have_a_rate_and_ten_seconds_of_it_at_once() -> None:
    regime = Regime(parse({"limits": {"control_rate": 7.0}}))
    assert regime.control_rate is not None
    assert (regime.control_rate.per_second, regime.control_rate.burst) == (7.0, 7.0 * CONTROL_SECONDS)
    assert Regime(parse({"limits": {"control_rate": 0.0}})).control_rate is None


def test_the_account_of_a_principal_has_a_bound_unless_all_have_one_name() -> None:
    tokens = {"auth": {"mode": "token", "tokens_file": "/dev/null"}, "limits": {"max_principal_bytes": 9_000_000}}
    assert Regime(parse(tokens)).accounts.of("pi").bound == 9_000_000
    assert Regime(parse({})).accounts.of("anonymous").bound == math.inf
