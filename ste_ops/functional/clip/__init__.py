"""Gradient clipping: ``.grad`` in place, as `torch.nn.utils` has it, in an optimizer's step, and inside the graph.

Where the functions of `torch.nn.utils` and these differ, on purpose:

- the norm of float16 and bfloat16 gradients is a float32 (torch rounds it to their 11 and 8 bits) and every sum is
  taken in float64 in a fixed order: the same bits at any number of threads, and no overflow in between;
- ``norm_type=0`` counts the elements that are not zero; torch, which takes the norm of the norms, counts tensors;
- a tensor that is listed twice counts once and is scaled once; torch does both twice;
- nothing is written when nothing needs clipping (the version counters still move, as after torch's own call);
- a negative or NaN bound is refused: torch would flip the gradients' signs, or make them NaN;
- a negative ``norm_type`` other than -inf is refused: it is no norm, and 0 as soon as one element is.
"""

from ste_ops.functional.clip.agc import clip_grad_agc_
from ste_ops.functional.clip.fold import fold_grad_clip_
from ste_ops.functional.clip.grad_norm import clip_grad_norm_
from ste_ops.functional.clip.grad_value import clip_grad_value_
from ste_ops.functional.clip.in_graph import clip_gradient_norm, clip_gradient_value
from ste_ops.functional.clip.per_sample import clip_per_sample_
from ste_ops.functional.clip.result import ClipResult
from ste_ops.functional.clip.total_norm import get_total_norm
from ste_ops.functional.clip.with_norm import clip_grads_with_norm_

__all__ = [
    "ClipResult",
    "clip_grad_agc_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_gradient_norm",
    "clip_gradient_value",
    "clip_grads_with_norm_",
    "clip_per_sample_",
    "fold_grad_clip_",
    "get_total_norm",
]
