"""The table of `gradcheck_suite`: every operator with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ste_ops import reference
from ste_ops import surrogate as _surrogate
from ste_ops.reference.sampling.categorical import gumbel_noise as _noise
from ste_ops.reference.sampling.subset import relaxed_subset as _relaxed
from ste_ops.surrogate.base import native_surrogates
from ste_ops.testing._case import Case, elementwise_case, gradient_case
from ste_ops.testing._elementwise import SurrogateLike
from ste_ops.testing._windows import IntegerWindow, Window

BINARIZERS = ("heaviside", "sign", "ternary")

_RANDOM = {
    "vmap": "a draw belongs to its place in memory, which another batch changes",
    "compile": "the seed is drawn outside the graph",
}


def cases() -> Iterator[Case]:
    yield from _binarizers()
    yield from _learned_surrogates()
    yield from _elementwise()
    yield from _scaled()
    yield from _statistics()
    yield from _products()
    yield from _clipped()
    yield from _drawn()


# Binarizers with every surrogate.


class _Tent:
    """The surrogate that stands for a user's own."""

    def derivative(self, x: Tensor) -> Tensor:
        return (1 - x.abs()).clamp(min=0)

    def primitive(self, x: Tensor) -> Tensor:
        inside = x.clamp(-1, 1)
        return inside - inside * inside.abs() / 2

    def kinks(self) -> list[float]:
        return []


def _surrogates() -> Iterator[tuple[str, Any, SurrogateLike]]:
    """Every surrogate with its defaults: its name, the surrogate for the operator, and the one to compare with."""
    classes: list[Any] = list(native_surrogates())
    for surrogate in (cls() for cls in classes):
        yield repr(surrogate), surrogate, surrogate
    yield "Custom(...)", _surrogate.Custom(_Tent().derivative), _Tent()


def _binarizers() -> Iterator[Case]:
    for operator in BINARIZERS:
        for label, surrogate, stands_in in _surrogates():

            def call(fn: Callable[..., Tensor], x: Tensor, surrogate: Any = surrogate) -> Tensor:
                return fn(x, surrogate=surrogate)

            yield elementwise_case(operator, label, call, stands_in, points=(0.05,))
    clip = _surrogate.Clip(1.0)
    yield elementwise_case("heaviside", f"{clip!r}, at_zero=1", lambda fn, x: fn(x, clip, at_zero=1), clip)


def _learned_surrogates() -> Iterator[Case]:
    x = _values(3, 6)
    for cls in native_surrogates():
        if cls._by_parameters is _surrogate.Surrogate._by_parameters:
            continue
        parameters = [torch.tensor(float(value), dtype=torch.float64) for value in cls().parameters if value]

        def call(fn: Callable[..., Tensor], x: Tensor, *held: Tensor, cls: Any = cls) -> Tensor:
            return fn(x, cls(*held))

        def stand_in(x0: Tensor, *held0: Tensor, cls: Any = cls) -> Callable[..., Tensor]:
            step = (x0 > 0).double() - cls(*held0).primitive(x0)
            return lambda x, *held: step + cls(*held).primitive(x)

        yield gradient_case("heaviside", f"x, learned {cls.__name__}", call, stand_in, [x, *parameters])


# Elementwise quantizers, with respect to x.


def _seeded(fn: Callable[..., Tensor], x: Tensor) -> Tensor:
    return fn(x, generator=torch.Generator(x.device).manual_seed(3))


def _elementwise() -> Iterator[Case]:
    passes = _surrogate.Identity()
    for operator in ("round", "floor", "ceil", "trunc"):
        yield elementwise_case(operator, "x", lambda fn, x: fn(x), passes, points=(2.5, 1000.5))
    yield elementwise_case("clamp", "x, -1, 1", lambda fn, x: fn(x, -1.0, 1.0), passes)
    yield elementwise_case("stochastic_round", "x", _seeded, passes, points=(0.3, 7.75), skip=_RANDOM)
    yield elementwise_case("bernoulli_ste", "p", _seeded, passes, points=(0.25,), domain=(0.0, 1.0), skip=_RANDOM)
    yield elementwise_case(
        "fake_quantize",
        "x, 0.3, 2, -4, 3",
        lambda fn, x: fn(x, 0.3, 2, -4, 3),
        IntegerWindow(-4, 3, 0.3, 2),
        points=[0.3 * (k + 0.5) for k in range(7)],
    )
    for learned in (False, True):  # a constant scale may take another way down
        how = "learned" if learned else "constant"
        yield elementwise_case(
            "lsq",
            f"x, {how} scale",
            lambda fn, x, scale: fn(x, scale, -4, 3),
            Window(-4 * 0.25, 3 * 0.25, closed="neither"),
            points=[0.25 * k for k in range(5)],
            scalar=(0.25, learned),
        )
        yield elementwise_case(
            "lsq_plus",
            f"x, {how} scale, offset 0.125",
            lambda fn, x, scale: fn(x, scale, torch.full_like(scale, 0.125), -4, 3),
            Window(0.125 - 4 * 0.25, 0.125 + 3 * 0.25, closed="neither"),
            points=[0.125 + 0.25 * k for k in range(5)],
            scalar=(0.25, learned),
        )
        yield elementwise_case(
            "pact",
            f"x, {how} alpha",
            lambda fn, x, alpha: fn(x, alpha, 2),
            Window(0.0, 1.5, closed="left"),
            points=(0.25, 0.75, 1.25),
            scalar=(1.5, learned),
        )
    yield elementwise_case(
        "dorefa_activation", "x, bits=2", lambda fn, x: fn(x, 2), Window(0.0, 1.0), points=(1 / 6, 5 / 6, 0.7)
    )


# Quantizers with a gradient for more than x, or with a scale for each channel. Rounded numbers are held at the inputs.


def _values(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) * scale


_SCALES = torch.tensor([0.2, 0.35, 0.5], dtype=torch.float64)
_ZEROS = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)


def _laid(s: Tensor) -> Tensor:
    return s.view(-1, 1) if s.dim() else s


def _lsq(grad_scale: float) -> Callable[[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """s * (the integer at the inputs + what the clamped x / s moves), s moving with grad_scale (arXiv:1902.08153)."""

    def at(x0: Tensor, s0: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        integer = torch.round(x0 / _laid(s0)).clamp(-4, 3)

        def stand_in(x: Tensor, s: Tensor) -> Tensor:
            s = _laid(s0 + grad_scale * (s - s0))
            return s * (integer + (x / s).clamp(-4, 3) - (x0 / _laid(s0)).clamp(-4, 3))

        return stand_in

    return at


def _lsq_plus(grad_scale: float) -> Callable[..., Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The same of x - b, plus b, which moves with grad_scale too (arXiv:2004.09576)."""

    def at(x0: Tensor, s0: Tensor, b0: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def stand_in(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
            b = _laid(b0 + grad_scale * (b - b0))
            return _lsq(grad_scale)(x0 - _laid(b0), s0)(x - b, s) + b

        return stand_in

    return at


def _scaled() -> Iterator[Case]:
    x = _values(3, 6)

    def per_channel(fn: Callable[..., Tensor], x: Tensor) -> Tensor:
        dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
        return fn(x, _SCALES.to(x.device, dtype), _ZEROS.to(x.device, dtype), -4, 3, axis=0)

    def inside(x0: Tensor) -> Callable[[Tensor], Tensor]:
        scales, zeros = _SCALES.to(x0.device).view(-1, 1), _ZEROS.to(x0.device).view(-1, 1)
        return lambda x: torch.maximum(torch.minimum(x, (3.5 - zeros) * scales), (-4.5 - zeros) * scales)

    yield gradient_case("fake_quantize", "x, axis=0", per_channel, inside, [x])
    one = torch.tensor(0.3, dtype=torch.float64)
    default = 1 / math.sqrt(18 * 3)
    yield gradient_case("lsq", "x and scale", lambda fn, x, s: fn(x, s, -4, 3), _lsq(default), [x, one])
    yield gradient_case(
        "lsq", "x and scale, axis=0", lambda fn, x, s: fn(x, s, -4, 3, axis=0, grad_scale=0.5), _lsq(0.5), [x, _SCALES]
    )
    plus = "x, scale and offset"
    yield gradient_case(
        "lsq_plus", plus, lambda fn, x, s, b: fn(x, s, b, -4, 3), _lsq_plus(default), [x, one, one - 0.4]
    )
    yield gradient_case(
        "lsq_plus",
        f"{plus}, axis=0",
        lambda fn, x, s, b: fn(x, s, b, -4, 3, axis=0, grad_scale=0.5),
        _lsq_plus(0.5),
        [x, _SCALES, _SCALES.flip(0) - 0.5],
    )
    # The rounding passes the gradient as a whole, so that alpha's is 0 below alpha (PACT, eq. 3).
    yield gradient_case(
        "pact",
        "x and alpha",
        lambda fn, x, a: fn(x, a, 2),
        lambda *_: lambda x, a: torch.minimum(x.clamp(min=0), a),
        [x, torch.tensor(0.75, dtype=torch.float64)],
    )


# Weights and tokens, whose scale is a statistic of themselves.


def _sign_at(w0: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda w: torch.sign(w0) + w.clamp(-1, 1) - w0.clamp(-1, 1)


def _curved_sign_at(w0: Tensor) -> Callable[[Tensor], Tensor]:
    primitive = _surrogate.ApproxSign().primitive
    return lambda w: torch.sign(w0) + primitive(w) - primitive(w0)


def _rows(w: Tensor) -> Tensor:
    return w.abs().mean(1, keepdim=True)


def _statistics() -> Iterator[Case]:
    w = _values(4, 8, scale=0.8)
    of_w: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
        "xnor_weight": lambda w0: lambda w: _sign_at(w0)(w) * _rows(w),
        "magnitude_aware_sign": lambda w0: lambda w: _sign_at(w0)(w) * _rows(w0),
        "bitnet_weight": lambda w0: lambda w: w,
        "bitnet_activation": lambda w0: lambda w: w,
    }
    for operator, stand_in in of_w.items():
        letter = "x" if operator == "bitnet_activation" else "w"
        yield gradient_case(operator, letter, lambda fn, w: fn(w), stand_in, [w])
    of_curve: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
        "xnor_weight": lambda w0: lambda w: _curved_sign_at(w0)(w) * _rows(w),
        "magnitude_aware_sign": lambda w0: lambda w: _curved_sign_at(w0)(w) * _rows(w0),
    }
    for operator, stand_in in of_curve.items():
        yield gradient_case(operator, "w, ApproxSign()", lambda fn, w: fn(w, _surrogate.ApproxSign()), stand_in, [w])
    yield gradient_case(
        "dorefa_weight",
        "w, bits=2",
        lambda fn, w: fn(w, 2),
        lambda _: lambda w: torch.tanh(w) / torch.tanh(w).abs().amax(),
        [w],
    )
    yield gradient_case("dorefa_weight", "w, bits=1", lambda fn, w: fn(w, 1), lambda _: lambda w: w, [w])

    def decayed(w0: Tensor) -> Tensor:
        return torch.where(reference.sr_ste(w0, 2, 4, 0.0) == 0, w0, 0.0)

    # Its backward is that of the identity, plus that of a penalty on the weights that were set to 0.
    yield gradient_case(
        "sr_ste",
        "w, 2, 4, decay=0.1",
        lambda fn, w: fn(w, 2, 4, 0.1),
        lambda _: lambda w: w,
        [w],
        potential=lambda grad, w: (grad * w).sum() + 0.05 * (decayed(w) ** 2).sum(),
    )


# Draws from softmax(logits), under one seed.


def _seed(device: torch.device) -> Tensor:
    return torch.randint(2**63 - 1, (1,), device=device, generator=torch.Generator(device).manual_seed(3))


def _one_hot(estimator: str, tau: float) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """The draw, and what the estimator's softmaxes move; reinmax holds the half that the draw has in one of them."""

    def at(x0: Tensor) -> Callable[[Tensor], Tensor]:
        noise = _noise(x0, _seed(x0.device))
        drawn = torch.nn.functional.one_hot((x0 + noise).argmax(-1), x0.shape[-1]).double()
        held = ((drawn + torch.softmax(x0 / tau, -1)) / 2).log() - x0

        def soft(x: Tensor) -> Tensor:
            if estimator == "reinmax":
                return 2 * torch.softmax(held + x, -1) - torch.softmax(x, -1) / 2
            return torch.softmax((x + noise if estimator == "gumbel" else x) / tau, -1)

        return lambda x: drawn + soft(x) - soft(x0)

    return at


def _k_hot(k: int, tau: float) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    def at(x0: Tensor) -> Callable[[Tensor], Tensor]:
        noise = _noise(x0, _seed(x0.device))
        drawn = torch.zeros_like(x0).scatter(-1, (x0 + noise).topk(k).indices, 1.0)
        return lambda x: drawn + _relaxed(x + noise, k, tau) - _relaxed(x0 + noise, k, tau)

    return at


def _drawn() -> Iterator[Case]:
    x = _values(3, 6)
    for estimator, tau in (("straight_through", 1.0), ("gumbel", 0.5), ("reinmax", 1.0)):

        def call(fn: Callable[..., Tensor], x: Tensor, how: tuple[str, float] = (estimator, tau)) -> Tensor:
            return fn(x, *how, generator=torch.Generator(x.device).manual_seed(3))

        label = f"logits, {estimator}, tau={tau}"
        yield gradient_case("categorical_ste", label, call, _one_hot(estimator, tau), [x], skip=_RANDOM)
    yield gradient_case(
        "subset_ste",
        "logits, 3, tau=0.5",
        lambda fn, x: fn(x, 3, 0.5, generator=torch.Generator(x.device).manual_seed(3)),
        _k_hot(3, 0.5),
        [x],
        skip=_RANDOM,
    )


# Products of signs: both sides pass their gradients.


def _through(x0: Tensor) -> Callable[[Tensor], Tensor]:
    held = torch.where(x0 >= 0, 1.0, -1.0).to(x0.dtype) - x0
    return lambda x: held + x


def _products() -> Iterator[Case]:
    x, weight, scale = _values(3, 6), _values(4, 6).flip(0), torch.tensor([0.5, 1.5, 0.25, 2.0], dtype=torch.float64)
    numeric = {"gradgradcheck": "a gradient is of the other side's signs, held to finite differences"}

    def linear(x0: Tensor, weight0: Tensor, _: Tensor) -> Callable[..., Tensor]:
        of_x, of_weight = _through(x0), _through(weight0)
        return lambda x, weight, scale: of_x(x) @ of_weight(weight).t() * scale

    yield gradient_case(
        "binary_linear",
        "x, weight, scale",
        lambda fn, x, weight, scale: fn(x, weight, scale=scale),
        linear,
        [x, weight, scale],
        skip=numeric,
    )
    for dims, name in ((1, "binary_conv1d"), (2, "binary_conv2d")):
        convolve = torch.nn.functional.conv1d if dims == 1 else torch.nn.functional.conv2d
        shapes = ((1, 4, 6), (4, 4, 3)) if dims == 1 else ((1, 4, 3, 4), (5, 4, 3, 2))

        def convolution(x0: Tensor, weight0: Tensor, convolve: Any = convolve) -> Callable[..., Tensor]:
            of_x, of_weight = _through(x0), _through(weight0)
            return lambda x, weight: convolve(of_x(x), of_weight(weight), None, 1, 1)

        yield gradient_case(
            name,
            "input, weight, padding=1",
            lambda fn, x, weight: fn(x, weight, padding=1),
            convolution,
            [_values(math.prod(shape)).view(shape) for shape in shapes],
            skip=numeric,
        )


# Clipping inside the graph: identity forward.


def _clipped() -> Iterator[Case]:
    x = _values(3, 6)

    def scaled(grad: Tensor, x: Tensor) -> Tensor:
        return (grad * (1.5 / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0) * x).sum()

    yield gradient_case(
        "clip_gradient_value",
        "x, 1.5",
        lambda fn, x: fn(x, 1.5),
        lambda _: lambda x: x,
        [x],
        potential=lambda grad, x: (grad.clamp(-1.5, 1.5) * x).sum(),
    )
    yield gradient_case(
        "clip_gradient_norm",
        "x, 1.5, dim=1",
        lambda fn, x: fn(x, 1.5, dim=1),
        lambda _: lambda x: x,
        [x],
        potential=scaled,
    )
