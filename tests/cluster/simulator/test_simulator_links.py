from __future__ import annotations

from math import inf

import pytest

from cluster.simulator.events import Timeline
from cluster.simulator.links import Link, Network


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


def run(timeline: Timeline) -> None:
    timeline.run(until=lambda: False)


def test_flows_share_a_link_and_what_ends_leaves_its_share_to_the_others(
    timeline: Timeline,
) -> None:
    network, link, ends = Network(timeline), Link(100.0), {}

    def send(name: str, length_bytes: float) -> None:
        network.send([link], length_bytes, lambda: ends.update({name: timeline.now_s}))

    timeline.at(0.0, lambda: send("a", 300.0))
    timeline.at(1.0, lambda: send("b", 100.0))
    run(timeline)
    # a: 100 in the first second, then 50/s beside b until b ends at 3 s, then the last 100 alone.
    assert ends == pytest.approx({"b": 3.0, "a": 4.0})
    assert len(network) == 0


def test_flow_goes_at_the_smallest_share_of_its_links(timeline: Timeline) -> None:
    network, ends = Network(timeline), {}
    wide, narrow = Link(100.0), Link(40.0)
    network.send([wide, narrow], 80.0, lambda: ends.update(both=timeline.now_s))
    network.send([wide], 100.0, lambda: ends.update(wide=timeline.now_s))
    run(timeline)
    # 40/s through the narrow link; the other gets its half of the wide one, 50/s, until 2 s.
    assert ends == pytest.approx({"both": 2.0, "wide": 2.0})


def test_incast_takes_as_long_as_the_port_of_the_receiver(timeline: Timeline) -> None:
    network, port, ends = Network(timeline), Link(10.0), []
    for _ in range(4):
        network.send([Link(10.0), port], 10.0, lambda: ends.append(timeline.now_s))
    run(timeline)
    assert ends == pytest.approx([4.0] * 4)


def test_what_takes_no_time_is_done_at_once(timeline: Timeline) -> None:
    network, done = Network(timeline), []
    network.send([Link(inf)], 1e12, lambda: done.append("unlimited"))
    network.send([Link(1.0)], 0.0, lambda: done.append("nothing"))
    assert done == ["unlimited", "nothing"]


def test_prediction_counts_the_flows_that_are_there(timeline: Timeline) -> None:
    network, link = Network(timeline), Link(100.0)
    assert network.predict_s([link], 100.0) == pytest.approx(1.0)
    network.send([link], 1e6, lambda: None)
    assert network.predict_s([link], 100.0) == pytest.approx(2.0)
