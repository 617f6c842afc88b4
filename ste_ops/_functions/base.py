"""What every autograd.Function of this package stands on: the register of fake kernels, the base classes, and the rules
that they share for a batch, a tangent and an order in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_exporting

from ste_ops._dtensor import is_dtensor
from ste_ops._dynamo import allow_in_graph
from ste_ops._functions.sharding import Sharding
from ste_ops._library import stand_in
from ste_ops._torch import differentiated_around, forward_mode, functorch_active, jit_tracing, primal, unwrap_if_dead

# The types of most arguments that are no tensor; isinstance would ask the metaclass of Tensor, which takes longer.
_PLAIN = frozenset({int, float, type(None), str, tuple})

FAKES: dict[str, Callable[..., Any]] = {}


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the shape, dtype and stride rule of operator `name`, for FakeTensor and meta tensors."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        FAKES[name] = rule
        torch.library.register_fake(f"ste_ops::{name}", rule)
        return rule

    return register


def recording() -> bool:
    """Whether torch.export or torch.jit.trace records a program, which may be trained."""
    return is_exporting() or torch.jit.is_tracing()  # which Dynamo knows


def compiling() -> bool:
    """Whether Dynamo traces for a compiler, which makes better use of arithmetic that it sees than of an operator."""
    return torch.compiler.is_compiling() and not recording()


class NativeFunction(torch.autograd.Function):
    """An autograd.Function over registered operators.

    `torch.autograd.Function.apply` binds a Python signature at every call as soon as `setup_context` is defined (about
    20 µs); outside functorch transforms nothing needs it. Dynamo takes the classes as opaque calls: they hold nothing
    but registered operators, and its own tracing of an autograd.Function drops the backward under a compiled
    `torch.func.grad` and refuses a custom `jvp` (docs/decisions/autograd-functions.md).

    A family of Functions has one `vmap`, a classmethod of their base class that calls `cls.apply`. What users call also
    says how it works on the parts of a DTensor; a backward sees plain tensors alone.

    For one that is `recorded` an operator stands in exported and traced programs.
    """

    _apply: Callable[..., Any]
    _operator: Callable[..., Any] | None = None
    # Whether forward returns something after the result, a mask as a rule, which the operator leaves out.
    returns_more = False
    sharding: ClassVar[Sharding | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]
        if "jvp" in vars(cls):
            cls.jvp = _in_forward_mode(vars(cls)["jvp"])  # type: ignore[method-assign]
        allow_in_graph(cls)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if functorch_active():
            return super().apply(*args)
        if type(args[0]) is not Tensor and is_dtensor(args[0]):
            from ste_ops._functions import distributed  # which stands on this module

            return distributed.apply(cls, args)
        if (is_exporting() or jit_tracing()) and cls._operator is not None:
            out = cls._operator(*cls.operands(*args))
            return (out,) if cls.returns_more else out
        # A tensor that outlived its transform is unwrapped, as Function.apply does.
        return cls._apply(
            *[arg if type(arg) in _PLAIN or not isinstance(arg, Tensor) else unwrap_if_dead(arg) for arg in args]
        )

    @classmethod
    def operands(cls, *args: Any) -> tuple[Any, ...]:
        """The arguments of the operator that stands for the Function."""
        return args

    @classmethod
    def run(cls, *args: Any) -> Tensor:
        """The kernel of that operator."""
        args = tuple(tuple(arg) if isinstance(arg, list) else arg for arg in args)
        out = super().apply(*args) if functorch_active() else cls._apply(*args)
        return out[0] if cls.returns_more else out


class _Primals:
    """A context whose saved tensors are without the tangents of the level that a `jvp` is of."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = [x if x is None else primal(x) for x in ctx.saved_tensors]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _in_forward_mode(jvp: Any) -> Any:
    """A `jvp` under forward mode, which autograd turns off around it.

    Within another forward mode (`jacfwd` of `jacfwd`) the tangent has a tangent of its own, to which everything that
    torch's operators do to it in `jvp` belongs: it would be 0 without a word.
    """
    function = jvp.__func__

    def through(*args: Any) -> Any:
        *cls, ctx = args[:1] if isinstance(jvp, staticmethod) else args[:2]
        with forward_mode(True):
            return function(*cls, _Primals(ctx), *args[len(cls) + 1 :])

    return type(jvp)(functools.wraps(function)(through))


def recorded(name: str) -> Callable[[type[NativeFunction]], Any]:
    """Makes the operator `autograd_name` stand for a Function, with its arguments, in exported and traced programs.

    Those cannot hold a Function. The operator calls it where the program runs, and so keeps its gradient
    (docs/decisions/exported-gradients.md).
    """

    def register(function: type[NativeFunction]) -> type[NativeFunction]:
        function._operator = stand_in(name, function.run)
        return function

    return register


class Elementwise(NativeFunction):
    """A Function of each element of its first argument, the only tensor: to it a batch is one more dimension."""

    sharding: ClassVar[Sharding | None] = Sharding()

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], x: Tensor, *others: Any) -> tuple[Tensor, int]:
        return cls.apply(x, *others), in_dims[0]


class PassThrough(NativeFunction):
    """`forward(x, ...) -> out` with the identity as gradient of x; nothing is saved."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.others = (None,) * (len(inputs) - 1)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return grad, *ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        return new_tangent(tangent)


class SeededPassThrough(PassThrough):
    """`forward(x, seed) -> out`, drawn element by element."""

    sharding: ClassVar[Sharding | None] = Sharding(seed=1)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], x: Tensor, seed: Tensor) -> tuple[Tensor, int]:
        # A row of the batch is drawn as it would be alone: under its own seed, or all under the one seed.
        x, seed = batch_first(info, in_dims, x, seed)
        seeds = seed.reshape(-1)
        rows = x.reshape(seeds.numel(), x.numel() // max(seeds.numel(), 1))
        return cls.apply(rows.contiguous(), seeds.contiguous()).reshape(x.shape), 0


def needs_function(tensor: Tensor) -> bool:
    """Whether a backward must itself be recorded: under create_graph, forward-mode AD or a functorch transform."""
    # A dual tensor need not require a gradient, and a registered operator without autograd would drop its tangent.
    return differentiated_around() or (torch.is_grad_enabled() and tensor.requires_grad)


def batch_first(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """The tensors of a vmap rule with the batch as their first dimension, repeated where one has none."""
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def new_tangent(tangent: Tensor | None) -> Tensor | None:
    """Forward-mode AD does not take its input back as the tangent of another output: a new tensor object."""
    return None if tangent is None else tangent.view_as(tangent)


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 in float32, as the kernels compute."""
    return x if x.dtype.itemsize >= 4 else x.float()


def memory_order(x: Tensor) -> list[int] | None:
    """The permutation that makes a dense tensor row-major, or None where it already is."""
    if x.is_contiguous():
        return None
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda d: strides[d], reverse=True)


def inverse(order: list[int]) -> list[int]:
    places = [0] * len(order)
    for place, dim in enumerate(order):
        places[dim] = place
    return places
