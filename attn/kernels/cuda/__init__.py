"""The Triton form, for float32, float16 and bfloat16 on a GPU.

`form` has the operators of `attn.kernels.ops`, as functions that start the kernels of `maps` (passes over a map) and `vectors`
(what is between two passes). Only these two files and `activations` import Triton, and they are imported when a kernel is first
needed. No kernel adds atomically, and work is shared out by shapes alone: results do not differ from run to run.
"""
