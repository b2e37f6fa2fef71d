"""The norms of `attn.modules._layers`, by the names under which they were first public."""

from attn.modules._layers import MapBatchNorm as MapBatchNorm
from attn.modules._layers import VectorBatchNorm as VectorBatchNorm
