"""The norms of `attn.modules._layers`, under their earlier public names."""

from attn.modules._layers import MapBatchNorm as MapBatchNorm
from attn.modules._layers import VectorBatchNorm as VectorBatchNorm
