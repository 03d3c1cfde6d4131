from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from .bench import Lab
from .families import Family
from .nodes import Nodes, StoreNode

FAMILIES = {
    "llama": 0,
    "qwen2": 1,
    "qwen2-some-layers-sliding": 1,
    "qwen3": 1,
    "mistral-sliding": 1,
    "gemma2-softcap-sliding": 0,
    "gemma3-sliding": 0,
    "phi": 1,
    "phi3": 0,
    "gpt-neox": 0,
    "opt-no-rope": 0,
    "mixtral-moe": 1,
    "qwen3-moe": 0,
    "gpt-oss-sinks-moe": 0,
}
"""With a seed of weights that answer all prompts of these tests clearly."""


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """For models as small as these, torch's threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    families: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in families:
            families[name] = Family(name, FAMILIES[name], tmp_path_factory.mktemp("family") / name)
        return families[name]

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, family_of: Callable[[str], Family]) -> Family:
    return family_of(request.param)


@pytest.fixture
def lab(family: Family, request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(family, salt=request.node.nodeid)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    near = StoreNode(folder / "near")
    far = StoreNode(folder / "far", peers=near.endpoint)
    disk = StoreNode(folder / "disk", host="1MiB", disk="64MiB", disk_path=str(folder / "segments"))
    quiet = StoreNode(folder / "quiet")
    yield Nodes(near, far, disk, quiet)
    for node in (far, near, disk, quiet):
        node.close()
