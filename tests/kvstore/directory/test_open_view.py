"""Settings → view."""

from __future__ import annotations

import pytest

from kvstore.client.describe import describe
from kvstore.core.errors import ConfigurationError
from kvstore.core.ids import NodeId
from kvstore.directory.base import NodeRecord
from kvstore.directory.null import NullView
from kvstore.directory.open import open_view
from kvstore.directory.peers import PeerEventsView
from kvstore.directory.redis_view import RedisView
from kvstore.node.config import NodeConfig
from kvstore.testing.view_conformance import keys
from kvstore.tiers.base import TierKind


@pytest.mark.parametrize(
    ("directory", "peers", "kind"),
    [
        ("", [], NullView),
        ("", ["tcp://127.0.0.1:1"], PeerEventsView),
        ("redis://127.0.0.1:1/0", [], RedisView),
    ],
)
def test_the_settings_choose(directory: str, peers: list[str], kind: type) -> None:
    assert type(open_view(directory, peers, describe=describe)) is kind


def test_both_at_once_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="both"):
        open_view("redis://127.0.0.1:1/0", ["tcp://127.0.0.1:1"], describe=describe)


def test_peers_are_a_list_with_commas() -> None:
    assert NodeConfig().peer_endpoints == ()
    config = NodeConfig(peers=" tcp://a:1, ipc:///b,")
    assert config.peer_endpoints == ("tcp://a:1", "ipc:///b")


async def test_a_node_alone_has_a_view_of_nobody() -> None:
    view = NullView()
    await view.start(NodeRecord(NodeId("a"), 1, "h", "", "", "", ""), list)
    view.sink.stored(TierKind.HOST, keys(0, 2))
    assert await view.locate(keys(0, 2), deadline_s=1) == [(), ()]
    assert dict(view.nodes()) == {}
    await view.stop()
