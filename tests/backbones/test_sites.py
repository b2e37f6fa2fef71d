"""What an attention is told about its site, in a network whose sites are known."""

from __future__ import annotations

import attn
from attn.attention import Attention, Site


class Recorder(Attention):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site


def test_sites_of_resnet18() -> None:
    model = attn.create_model("resnet18", {"block": Recorder})
    sites = [module.site for module in model.modules() if isinstance(module, Recorder)]
    assert [(s.stage, s.block, s.depth, s.stride) for s in sites] == [
        (1, 0, 0, 4), (1, 1, 1, 4), (2, 0, 2, 8), (2, 1, 3, 8), (3, 0, 4, 16), (3, 1, 5, 16), (4, 0, 6, 32), (4, 1, 7, 32),
    ]  # fmt: skip
    widths = [(64, 64, 64), (64, 64, 64), (64, 128, 128), (128, 128, 128), (128, 256, 256), (256, 256, 256)]
    widths += [(256, 512, 512), (512, 512, 512)]
    assert [s.widths for s in sites] == widths
    assert [s.prev for s in sites] == [None, *widths[:-1]]
    assert not any(s.native for s in sites)
