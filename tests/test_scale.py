"""docs/scale.md says what `tests.support.scale` prints, and the plans count what gateways say to each other."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Final

import pytest

from tests.support import scale, scale_costs, scale_traffic
from tests.support.fleet import until
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.patience import Sized
from tests.support.process import ROOT
from tests.support.scale import Load, plan, with_gateways
from tests.support.stations import NAME, Station

PAGE: Final = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
SECONDS: Final = 6.0


def rows(lines: Iterable[str]) -> list[str]:
    """The lines of tables that are not their heads."""
    return [line for line in lines if re.match(r"\| \d", line)]


def test_the_plans_of_the_page_are_those_that_are_computed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in re.findall(r"^ +python -m tests\.support\.scale (plan.*)$", PAGE, re.MULTILINE):
        scale.main(command.split())
        printed = rows(capsys.readouterr().out.splitlines())
        assert printed
        assert [line for line in printed if line not in PAGE] == [], command


def test_the_traffic_of_the_page_is_what_gateways_say(sized: Sized) -> None:
    members = list(scale.MEMBERS[: sized(2, 4)])
    printed = rows(scale.print_traffic(members))
    assert len(printed) == 5 * len(members) + 2
    assert [line for line in printed if line not in PAGE] == []


@pytest.mark.parametrize("members", [2, 7])
def test_a_plan_has_the_messages_that_gateways_send_to_each_other(members: int) -> None:
    """Without clients: heartbeats, and probes as long as calls are open."""
    net = scale_traffic.run(partial(scale_traffic.heartbeats, members, SECONDS, busy=True)).net
    idle = with_gateways(Load(connections=0), members)
    assert net.total().published / SECONDS == pytest.approx(idle.nats_in)
    assert net.total().delivered / SECONDS == pytest.approx(idle.nats_out)


def test_a_plan_has_a_gateway_more_than_it_needs() -> None:
    load = Load(connections=50_000)
    found = plan(load)
    assert found.gateways == 6
    assert found.objections() == []
    busy = plan(Load(connections=1000, calls=10.0))
    assert busy.gateways > 2
    assert with_gateways(busy.load, busy.gateways - 1).busy <= scale.BOUNDS.busy
    assert with_gateways(busy.load, busy.gateways - 2).busy > scale.BOUNDS.busy


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Load(connections=200_000), "registrations have"),
        (Load(connections=3_000_000, nodes=0.01, events=0.0), "and a cluster has 256 at most"),
        (Load(connections=1_000_000, nodes=0.0), "10,556 events/s by one stream"),
        (Load(connections=100_000, events=2.0), "what each gateway does for all takes"),
    ],
)
def test_a_plan_says_what_does_not_fit(load: Load, says: str) -> None:
    assert [one for one in plan(load).objections() if says in one]


def test_a_call_across_is_two_messages_and_a_copy_is_asked_for_page_by_page() -> None:
    called = scale_traffic.run(partial(scale_traffic.calls, 10, 100))
    assert (called.published, called.delivered) == (20, 20)
    small = scale_traffic.run(partial(scale_traffic.newcomer, 2, 10, 1))
    large = scale_traffic.run(partial(scale_traffic.newcomer, 2, 200, 1))
    assert small.published == 2 * 2
    assert large.published == large.delivered > small.published


async def test_events_are_measured_as_nats_delivers_them() -> None:
    async with NatsServer(jetstream=True) as server, Station(server.url) as station, NatsPeer(server.url) as peer:
        await station.within_reach()
        await peer.hear(f"{NAME}.live.>".encode())
        await station.stream.publish("t.topic0000", scale_costs.DATA, "kitchen-pi")
        await until(lambda: bool(peer.messages), "it has not come")
        _, _, headers, payload = peer.messages[0]
        epoch = station.replica.epoch
    heard = list[tuple[bytes, bytes]]()
    reader = scale_costs.reader_for(lambda subject, reply, headers, payload: heard.append((headers, payload)))
    reader.feed(scale_costs.republished(b"t.topic0000", 1, 0, payload))
    ((made, same),) = heard
    assert same == payload
    names = [re.findall(rb"^[\w./-]+", one, re.MULTILINE) for one in (headers, made)]
    assert names[0] == names[1]
    longer = len(headers) - len(made) - len(f"{epoch}.") - 2 * (len(NAME) - len("test"))
    assert -10 <= longer <= 3, "the time has as many digits as it needs"


@pytest.mark.parametrize("name", ["hearing", "roster", "events"])
def test_the_costs_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measurement asserts that it has done what it measures."""
    for constant, value in {"NODES": 1000, "EVENTS": 2000, "TOPICS": 10, "TIMES": 1}.items():
        monkeypatch.setattr(scale_costs, constant, value)
    found = scale_costs.MEASUREMENTS[name]()
    assert all(value > 0 for what, value in found.items() if what != "memory"), found
