"""torch.hub: `torch.hub.load("PATH or OWNER/REPOSITORY", "ba_resnet50", num_classes=10)`.

One entry per pairing, `ATTENTION_BACKBONE` as in timm's registry (`attn.timm`), and two for all others: `create_model` and `load_checkpoint`.
"""

dependencies = ["torch", "timm", "hydra", "omegaconf"]

import attn.timm as _pairings  # noqa: E402
from attn.models.create import create_model  # noqa: E402, F401  # create_model("resnet26d", "ba"): any pairing
from attn.runs.load import load as load_checkpoint  # noqa: E402, F401  # a file, a folder or hf-hub:

globals().update({_name: getattr(_pairings, _name) for _name in _pairings.default_cfgs})
