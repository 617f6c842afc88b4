"""Private torch: everything that ste_ops takes of torch without a public name, and why.

No other module reaches for a name of torch that begins with an underscore, so a new torch is looked through here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.autograd import forward_ad as _forward_ad
from torch.nn.modules import module as _modules
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

# Whether a transform of torch.func is running: `Function.apply` asks the same before it takes its slow way.
functorch_active = torch._C._are_functorch_transforms_active

# Whether torch.jit.trace records a program.
jit_tracing = torch._C._is_tracing

# Whether a tensor is one of a transform's, batched or differentiated.
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

# The tensor within a wrapper that outlived its transform, and any other tensor as it is: `Function.apply` does it too.
unwrap_if_dead = torch._C._functorch.unwrap_if_dead

# How many modes watch torch's functions, as `dispatch_modes` those of the dispatcher.
function_modes = torch._C._len_torch_function_stack

# The backward that is running in this thread, or -1.
current_backward = torch._C._current_graph_task_id

# Whether the profiler records: it sees only what the dispatcher sees.
profiled = torch.autograd._profiler_enabled

# The tensors in nested arguments, and what a function makes of them: torch has no public pytree.
tree_leaves, tree_map = torch.utils._pytree.tree_leaves, torch.utils._pytree.tree_map

# A view of the other sign: of a tensor with the negative bit what its memory holds.
negative_view = torch._neg_view

# The names of all registered operators, as "namespace::name": `dir(torch.ops.x)` lists those that were used.
all_operator_names = torch._C._dispatch_get_all_op_names


# What the dispatcher calls, but for operators that take functions.
OpOverload = torch._ops.OpOverload

_own_modes = threading.local()


class DispatchMode(torch.utils._python_dispatch.TorchDispatchMode):
    """What sees every operation that a thread runs, in `__torch_dispatch__`, but for those within compiled parts."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that would do so imports Dynamo, at the first operation

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else what `torch.compile` was applied to would run as it was


def alias(x: torch.Tensor) -> torch.Tensor:
    """`x.detach()`, which no mode sees: the same memory and version, without the graph that made it."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return x.detach()
    with torch._C._DisableTorchDispatch():
        return x.detach()


def dispatch_modes() -> int:
    """How many modes of others watch the dispatcher: a call past it would hide from them."""
    modes: int = torch._C._len_torch_dispatch_stack()
    return modes and modes - getattr(_own_modes, "count", 0)


@contextmanager
def own_mode(mode: Any) -> Iterator[None]:
    """A mode of this package, which changes no operation."""
    _own_modes.count = getattr(_own_modes, "count", 0) + 1
    try:
        with mode:
            yield
    finally:
        _own_modes.count -= 1


def function_of(node: Any) -> Any:
    """The autograd.Function whose node this is, or None of torch's own nodes."""
    return getattr(node, "_forward_cls", None)


# In exported programs, after each cast: that a tensor still has the dtype with which it was traced.
ASSERT_METADATA = torch.ops.aten._assert_tensor_metadata.default


_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_CONVOLVE = (None, *[convolution._conv_forward for convolution in _CONVOLUTIONS])


def convolves_as_torch(layer: Any) -> bool:
    """Whether neither a subclass nor the layer itself has a `_conv_forward` of its own."""
    return "_conv_forward" not in vars(layer) and getattr(type(layer), "_conv_forward", None) in _CONVOLVE


def class_of(module: Any) -> type:
    """The class of a module. Where a model holds any module twice, torch.export passes subclasses of that very name."""
    cls, *others = type(module).__mro__
    name = (cls.__module__, cls.__qualname__)
    return next((other for other in others if (other.__module__, other.__qualname__) == name), cls)


def is_fake(x: Any) -> bool:
    """Whether x stands for a tensor in a program that is recorded."""
    return type(x).__module__.startswith("torch._subclasses")


def schema_of(operation: Any) -> Any:
    """Which arguments an operation takes and writes to, and what it returns; None of what is no operator."""
    return getattr(operation, "_schema", None)


def asking_dataset(frame: FrameType) -> Any:
    """The dataset of the DataLoader that asks its sampler for an index in this call, or None: nothing else tells a
    sampler of it. torchdata's loaders inherit the call."""
    asks = frame.f_code.co_name == "_next_index" and frame.f_globals.get("__name__") == "torch.utils.data.dataloader"
    return frame.f_locals["self"]._dataset if asks else None


def lazy_clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that shares memory until one of the two is written; at once, of memory that torch did not allocate."""
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # NumPy's, another process's
        return tensor.clone()


def tracked(tensor: torch.Tensor) -> bool:
    """Whether autograd or a transform may ask for what moves with this tensor."""
    if tensor.requires_grad or _wrapped(tensor):
        return True
    return _forward_ad._current_level >= 0 and _forward_ad.unpack_dual(tensor).tangent is not None


# Whether a tensor has memory of its own kind: a sparse one has not.
has_storage = torch._C._has_storage

# Turns the forward mode on or off, as a context.
forward_mode = _forward_ad._set_fwd_grad_enabled


def primal(x: torch.Tensor) -> torch.Tensor:
    """x without its tangent. `unpack_dual` looks at a level that a graph of Dynamo does not set."""
    return torch._VF._unpack_dual(x, level=0)[0]  # type: ignore[attr-defined]


def differentiated_around() -> bool:
    """Whether forward-mode AD or a transform of torch.func is running: neither need show on a tensor itself."""
    return _forward_ad._current_level >= 0 or functorch_active()


def constant_in_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.assume_constant_result`, which would import Dynamo: it sets this and nothing else."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def skip_frames(function: Callable[..., Any]) -> None:
    """Has Dynamo take the function as the end of a graph; it may compile what the function calls."""
    from torch._dynamo.decorators import skip

    skip(function)


# Where Inductor has its table of decompositions, and how it hands tensors to operators that it does not know.
INDUCTOR_DECOMPOSITIONS, INDUCTOR_LOWERINGS = "torch._inductor.decomposition", "torch._inductor.lowering"


def decompose(pair: tuple[Any, Callable[..., Any]]) -> None:
    """Has Inductor trace a function in place of an operator. The table that it uses is a copy, made once."""
    from torch._inductor import decomposition

    operator, function = pair
    decomposition.decompositions[operator] = function
    decomposition.fast_random_decomps.cache_clear()


def forget_decompositions(namespace: str) -> None:
    """Takes out of the table what `decompose` put there for the operators of a namespace."""
    module: Any = sys.modules.get(INDUCTOR_DECOMPOSITIONS)
    table: dict[Any, Any] = getattr(module, "decompositions", {})
    for operator in [operator for operator in table if getattr(operator, "namespace", None) == namespace]:
        del table[operator]
    if hasattr(module, "fast_random_decomps"):
        module.fast_random_decomps.cache_clear()


def is_input_of_graph(x: torch.Tensor) -> bool:
    """Whether a tensor that Inductor traces is an argument of the graph, or another name of one."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

    mode = get_proxy_mode()
    slot = None if mode is None else get_proxy_slot(x, mode.tracer, None)
    if slot is None:
        return False
    node: Any = slot.proxy.node
    while node.target in (torch.ops.aten.alias.default, torch.ops.aten.detach.default):
        node = node.args[0]
    return bool(node.op == "placeholder")


def call_beside_decomposition(operator: Any) -> None:
    """Inductor otherwise takes no call of an operator in its table, which it finds where the function refused."""
    from torch._inductor import lowering

    constraint = lowering.tag_to_layout_constraint(lowering.get_layout_constraint_tag(operator, with_default=True))
    lowering.make_fallback(operator, constraint, warn=False, override_decomp=True)


def call_with_alike(operator: Any) -> None:
    """Has Inductor call an operator with its first two tensors in one memory order, whichever they have by then.

    It otherwise copies a tensor whose order it chose differently than that was in the traced program. A second argument
    of the form where(.., x, x) is x itself.
    """
    from torch._inductor import ir, lowering
    from torch._inductor.virtualized import V

    def alike(node: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        source = node.args[1]
        second = args[1]
        if source.target is torch.ops.aten.where.self and source.args[1] is source.args[2]:
            second = V.graph.env.get(source.args[1], second)  # unless nothing else needs it any more
        pair = args[0], second
        for tensor in pair:
            tensor.realize()
        decided = [tensor.get_stride() for tensor in pair if not isinstance(tensor.get_layout(), ir.FlexibleLayout)]
        strides = decided[0] if decided else node.args[0].meta["val"].stride()
        order = ir.get_stride_order(strides, V.graph.sizevars.shape_env)
        return (*(ir.ExternKernel.require_stride_order(tensor, order) for tensor in pair), *args[2:]), kwargs

    lowering.make_fallback(operator, alike, warn=False)


def never_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has Dynamo compile neither the function nor what it calls where it runs within something compiled, as a hook on
    saved tensors does. `torch.compiler.disable` would import Dynamo."""
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):  # else Dynamo looks at what it may compile, which is slower and right
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


def fsdp_manages(module: torch.nn.Module) -> bool:
    """Whether `fully_shard` or `FullyShardedDataParallel` puts other parameters there for the forward."""
    return getattr(module, "_is_fsdp_managed_module", False)


def within_backward() -> bool:
    """Whether autograd runs a backward in this thread, in which checkpointing runs forwards once more."""
    return torch._C._current_graph_task_id() != -1


def has_forward_hooks(module: torch.nn.Module) -> bool:
    """Whether hooks, its own or those of all modules, run around its forward."""
    of_all = _modules._global_forward_hooks or _modules._global_forward_pre_hooks
    return bool(of_all or module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def without_transforms() -> Iterator[None]:
    """Within a backward that a transform of torch.func or forward-mode AD runs: outside of both."""
    level, _forward_ad._current_level = _forward_ad._current_level, -1
    try:
        if not functorch_active():
            yield
            return
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

        with temporarily_clear_interpreter_stack():
            yield
    finally:
        _forward_ad._current_level = level


def keeps_saved_tensors() -> bool:
    """Whether autograd keeps what a forward saves as it is: nobody's hooks move or drop it, and none are forbidden."""
    return (
        torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
