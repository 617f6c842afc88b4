"""What the operator tests run over: one row for each surrogate, the steps, dtypes, layouts and special values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import ste_ops
from ste_ops.surrogate import (
    ApproxSign,
    ATan,
    Clip,
    Custom,
    Erf,
    FastSigmoid,
    Identity,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rect,
    ReSTE,
    Sigmoid,
    SoftSign,
    Surrogate,
    Swish,
    Tanh,
)

STEPS = ["heaviside", "sign"]
ALL_STEPS = [*STEPS, "ternary"]


def bump(x: Tensor) -> Tensor:
    return 1 / (1 + x * x)


def bump_primitive(x: Tensor) -> Tensor:
    return x.atan()


# A new surrogate is one row. Its first instance goes through every test but the expensive ones, which take
# representatives(), the others through the values.
SURROGATES: dict[str, list[Surrogate]] = {
    "Identity": [Identity()],
    "Clip": [Clip(1.0), Clip(0.1), Clip(1 / 3), Clip(1e-40), Clip(1e6), Clip(1e300)],
    "Rect": [Rect(), Rect(0.3), Rect(1e30)],
    "ApproxSign": [ApproxSign()],
    "Swish": [Swish(), Swish(0.5), Swish(100.0)],
    "Tanh": [Tanh(2.0, 0.5), Tanh(10.0, 1.0), Tanh(0.1, 10.0)],
    "ReSTE": [ReSTE(), ReSTE(1.0, 0.7), ReSTE(2.5, 0.05)],
    "Sigmoid": [Sigmoid(), Sigmoid(30.0)],
    "ATan": [ATan(), ATan(0.3)],
    "FastSigmoid": [FastSigmoid(), FastSigmoid(1.0)],
    "SoftSign": [SoftSign(), SoftSign(7.0)],
    "PiecewiseQuadratic": [PiecewiseQuadratic(), PiecewiseQuadratic(3.0)],
    "PiecewiseExp": [PiecewiseExp(), PiecewiseExp(20.0)],
    "Erf": [Erf(), Erf(0.4)],
    "Custom": [Custom(bump, bump_primitive)],
}

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# A layout makes a tensor out of `fill`, which gives a contiguous tensor of any shape, specials scattered in it.
Fill = Callable[..., Tensor]
LAYOUTS: dict[str, Callable[[Fill], Tensor]] = {
    "contiguous": lambda fill: fill(5, 7, 9),
    "transposed": lambda fill: fill(13, 29).t(),
    "permuted": lambda fill: fill(3, 4, 29).permute(2, 0, 1),
    "channels_last": lambda fill: fill(2, 3, 5, 11).contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda fill: fill(2, 3, 5, 2, 7).contiguous(memory_format=torch.channels_last_3d),
    "sliced": lambda fill: fill(20, 40)[1::2, ::3],
    "sliced_columns": lambda fill: fill(40, 20)[:, 3:10],
    "transposed_slice": lambda fill: fill(40, 20)[::2, 3:10].t(),
    "diagonal": lambda fill: fill(90, 90).diagonal(),
    "expanded_rows": lambda fill: fill(57).expand(4, 57),
    "expanded_columns": lambda fill: fill(57, 1).expand(57, 5),
    "expanded_scalar": lambda fill: fill().expand(3, 3),
    "overlapping": lambda fill: fill(100).as_strided((33, 4), (2, 1)),
    "empty": lambda fill: fill(0),
    "empty_inside": lambda fill: fill(3, 0, 4).transpose(0, 2),
    "scalar": lambda fill: fill(),
    "one_element": lambda fill: fill(1, 1, 1),
    "misaligned": lambda fill: fill(300)[3:],
    "misaligned_transposed": lambda fill: fill(301)[1:].view(20, 15).t(),
    "odd_stride_of_a_1": lambda fill: fill(72).as_strided((1, 12, 1, 6), (5, 6, 77, 1)),
    "odd_stride_of_a_1_transposed": lambda fill: fill(72).as_strided((6, 1, 12), (1, 999, 6)),
    "negated_view": lambda fill: torch._neg_view(fill(9, 15)),
}


def specials(dtype: torch.dtype, surrogate: Surrogate) -> Tensor:
    """Zeros, NaNs, infinities, ones, denormals, and every kink of the surrogate with its neighbours."""
    limits = torch.finfo(dtype)
    points = [0.0, 1.0, limits.tiny, limits.tiny / 2, limits.smallest_normal, limits.max, torch.inf, torch.nan]
    points += [abs(kink) for kink in surrogate.kinks()]
    exact = torch.tensor(points, dtype=torch.float64).to(dtype)
    exact = torch.cat([exact, -exact])
    return torch.cat([exact, torch.nextafter(exact, exact.new_tensor(torch.inf))])


def filler(dtype: torch.dtype, surrogate: Surrogate, device: str, seed: int = 0) -> Fill:
    generator = torch.Generator().manual_seed(seed)

    def fill(*shape: int) -> Tensor:
        values = torch.randn(torch.Size(shape).numel(), generator=generator, dtype=torch.float64).mul(1.5).to(dtype)
        special = specials(dtype, surrogate)
        special = special[torch.randperm(len(special), generator=generator)][: max(len(values) // 2, 1)]
        places = torch.randperm(len(values), generator=generator)[: len(special)]
        values[places] = special[: len(places)]
        return values.view(shape).to(device)

    return fill


def layouts(dtype: torch.dtype, surrogate: Surrogate, device: str) -> Iterator[tuple[str, Tensor]]:
    for name, make in LAYOUTS.items():
        yield name, make(filler(dtype, surrogate, device))


def first_instances() -> list[Surrogate]:
    return [row[0] for row in SURROGATES.values()]


def representatives() -> list[Surrogate]:
    """One of each kind: what saves nothing, what saves a mask and what saves its input."""
    return [SURROGATES[name][0] for name in ("Identity", "Clip", "Tanh")]


def curves() -> list[Surrogate]:
    return [surrogate for surrogate in all_instances() if surrogate.saves == "input"]


def pairs() -> list[tuple[str, Surrogate]]:
    """Every step with one surrogate of each kind, and every surrogate with one step: the two do not meet elsewhere."""
    every_step = [(step, surrogate) for step in ALL_STEPS for surrogate in representatives()]
    return every_step + [("heaviside", s) for s in first_instances() if s not in representatives()]


def all_instances() -> list[Surrogate]:
    return [surrogate for row in SURROGATES.values() for surrogate in row]


def bits(x: Tensor) -> Tensor:
    """The integers behind floating numbers, in which -0 is not 0 and NaN equals itself."""
    return x.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.dtype.itemsize])


def assert_same_bits(received: Tensor, expected: Tensor, message: str = "", any_nan: bool = False) -> None:
    assert received.shape == expected.shape, message
    assert received.dtype == expected.dtype, message
    same = bits(received) == bits(expected)
    if any_nan:
        same |= received.isnan() & expected.isnan()
    assert bool(same.all()), f"{message}: received {received[~same][:5]}, expected {expected[~same][:5]}"


def assert_gradient(surrogate: Surrogate, received: Tensor, expected: Tensor, grad: Tensor, message: str = "") -> None:
    """Exact where the surrogate is a mask or nothing, but for the payload of a NaN, which a product with 1 changes; a
    curve is computed in another order than its reference, and its zeros are exact."""
    if surrogate.saves in ("nothing", "mask"):
        assert_same_bits(received, expected, message, any_nan=True)
        return
    assert (received.shape, received.dtype) == (expected.shape, expected.dtype), message
    places = 8 * torch.finfo(expected.dtype).eps
    # Swish changes its sign, and what is left of it there is as precise as its terms, which grow with its parameter.
    steep = max(1.0, surrogate.derivative(torch.zeros(1, dtype=torch.float64)).item())
    error = (received.double() - expected.double()).abs()
    good = error <= places * (expected.double().abs() + 4 * steep * grad.double().abs())
    good &= (expected != 0) | (received == 0)
    good |= (received == expected) | (received.isnan() & expected.isnan())
    assert bool(good.all()), f"{message}: received {received[~good][:5]}, expected {expected[~good][:5]}"


def forward_and_gradient(fn: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    out = fn(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


def slope(curve: Surrogate, x: Tensor) -> Tensor:
    """s'(x) by the kernels."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(ste_ops.sign(x, curve).sum(), x)[0]


def tent(x: Tensor) -> Tensor:
    """A derivative for `Custom`."""
    return (1 - x.abs()).clamp(min=0)
