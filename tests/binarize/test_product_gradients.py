"""Gradients of the products of signs: those of torch's own products, straight through the signs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ste_ops
from ste_ops.functional.binarize.convolutions import conv2d_by_sizes
from ste_ops.functional.binarize.products import linear_by_sizes, weight_panels

IDENTITY = ste_ops.surrogate.Identity()


def leaves(*shapes: tuple[int, ...], device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def both_orders(fn, tensors: list[Tensor]) -> list[Tensor | None]:
    torch.manual_seed(3)
    out = fn(*tensors)
    grad = torch.randn_like(out).requires_grad_()
    first = torch.autograd.grad(out, tensors, grad, create_graph=True)
    upper = [torch.randn_like(t) for t in first]
    total = sum((f * u).sum() for f, u in zip(first, upper, strict=True))
    return [out, *first, *torch.autograd.grad(total, [*tensors, grad], allow_unused=True)]


def with_zeros(x: Tensor) -> Tensor:
    """A fifth of its numbers 0, which a sign takes for +1 and a step for 0."""
    x.detach().view(-1)[::5] = 0
    return x


def signs(x: Tensor, step: bool) -> Tensor:
    return ste_ops.heaviside(x, IDENTITY) if step else ste_ops.sign(x, IDENTITY)


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("shape", [(5, 40), (40,), (2, 3, 40)], ids=str)
def test_linear_in_both_orders(device, shape, step):
    tensors = leaves(shape, (7, 40), (7,), (7,), device=device)
    with_zeros(tensors[0])
    received = both_orders(lambda x, w, b, s: ste_ops.binary_linear(x, w, b, scale=s, step=step), tensors)
    expected = both_orders(lambda x, w, b, s: F.linear(signs(x, step), signs(w, False)) * s + b, tensors)
    torch.testing.assert_close(received, expected)


CONVOLUTIONS = [
    {"padding": 1, "groups": 2},
    {"padding": (1, 0), "padding_value": -1, "stride": 2, "groups": 2},
    {"padding": "same", "padding_value": 1, "dilation": (1, 3), "groups": 2},
    {"step": True, "padding": 2, "padding_value": 1, "groups": 2},
    {"padding": 1, "groups": 8},  # floats
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolutions_in_both_orders(device, settings):
    groups = settings["groups"]
    tensors = leaves((2, 8, 7, 6), (16, 8 // groups, 3, 2), (16,), (1,), device=device)
    step, value = settings.get("step", False), settings.get("padding_value", 0)

    def plain(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Tensor:
        padding, dilation = settings["padding"], settings.get("dilation", 1)
        high, wide = (padding, padding) if isinstance(padding, int) else (1, 0)
        sides = [1, 2, 1, 1] if padding == "same" else [wide, wide, high, high]
        x = F.pad(signs(x, step), sides, value=float(value))
        return F.conv2d(x, signs(w, False), None, settings.get("stride", 1), 0, dilation, groups) * s + b[:, None, None]

    received = both_orders(lambda x, w, b, s: ste_ops.binary_conv2d(x, w, b, scale=s, **settings), tensors)
    torch.testing.assert_close(received, both_orders(plain, tensors))


def test_packed_weights_pass_the_gradient_of_x(device):
    x, w = leaves((3, 40), (20, 40), device=device)
    (expected,) = torch.autograd.grad(ste_ops.binary_linear(x, w).square().sum(), x)
    for weight in (ste_ops.pack_bits(w), weight_panels(w, 40)):
        out = linear_by_sizes("binary_linear", x, weight, None, None, 40, 20)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], expected)
    image, kernel = leaves((2, 80, 5, 4), (36, 40, 3, 1), device=device)
    sizes = ((3, 1), (1, 1), (1, 0, 1, 0), (1, 1), 2)
    out = ste_ops.binary_conv2d(image, kernel, padding=(1, 0), groups=2)
    (expected,) = torch.autograd.grad(out.square().sum(), image)
    again = conv2d_by_sizes("binary_conv2d", image, weight_panels(kernel, 40, 2), None, None, 80, 36, *sizes)
    assert torch.equal(again, out)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), image)[0], expected)


def test_a_bit_an_element_is_kept():
    x, w = leaves((64, 512), (96, 512), device="cpu", dtype=torch.float32)
    out = ste_ops.binary_linear(x, w)
    memories = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in out.grad_fn.saved_tensors if t is not None
    }
    assert sum(memories.values()) == (64 + 96) * 512 // 8 + 2 * x.element_size()  # and a zero that leads to each


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_transforms(device, name):
    if name == "linear":
        tensors = leaves((3, 40), (7, 40), device=device)
        ours, plain = ste_ops.binary_linear, lambda x, w: F.linear(signs(x, False), signs(w, False))
    else:
        tensors = leaves((2, 8, 5, 4), (6, 8, 3, 3), device=device)
        ours, plain = ste_ops.binary_conv2d, lambda x, w: F.conv2d(signs(x, False), signs(w, False))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    batches = [torch.stack([t, -t.flip(0)]).detach() for t in tensors]
    for transformed in (
        lambda fn: torch.func.jvp(fn, tuple(t.detach() for t in tensors), tangents),
        lambda fn: torch.func.vmap(fn)(*batches),
        lambda fn: torch.func.vmap(torch.func.grad(lambda x, w: fn(x, w).square().sum(), (0, 1)))(*batches),
        lambda fn: torch.func.jacrev(lambda x: fn(x, tensors[1].detach()))(tensors[0].detach()),
    ):
        torch.testing.assert_close(transformed(ours), transformed(plain))


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
def test_compiled(device):
    torch._dynamo.reset()

    def loss(x: Tensor, w: Tensor, image: Tensor, kernel: Tensor) -> Tensor:
        out = ste_ops.binary_conv2d(image, kernel, padding=1, scale=0.5)
        return ste_ops.binary_linear(x, w).square().sum() + out.square().sum()

    tensors = leaves((3, 40), (7, 40), (2, 8, 5, 4), (6, 8, 3, 3), device=device)
    received = torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors)
    expected = loss(*tensors)
    torch.testing.assert_close(received, expected)
    of_received, of_expected = (torch.autograd.grad(out, tensors) for out in (received, expected))
    torch.testing.assert_close(of_received, of_expected)


REFUSED = [
    (TypeError, r"binary_linear: x must be floating, or uint8 of pack_bits, got torch.int64",
     lambda x, w: ste_ops.binary_linear(x.long(), w)),
    (TypeError, r"binary_linear: scale must be a number or a floating tensor, got str",
     lambda x, w: ste_ops.binary_linear(x, w, scale="1")),
    (ValueError, r"binary_linear: x, weight and in_features must agree, got \(3, 40\), \(7, 39\) and None",
     lambda x, w: ste_ops.binary_linear(x, w[:, 1:])),
    (ValueError, r"binary_linear: in_features must be given where both operands are packed",
     lambda x, w: ste_ops.binary_linear(ste_ops.pack_bits(x), ste_ops.pack_bits(w))),
    (ValueError, r"binary_linear: in_features must be what 5 bytes hold, got 41",
     lambda x, w: ste_ops.binary_linear(ste_ops.pack_bits(x), ste_ops.pack_bits(w), in_features=41)),
    (ValueError, r"binary_linear: bias must have shape \(7,\), got \(1,\)",
     lambda x, w: ste_ops.binary_linear(x, w, torch.ones(1))),
    (TypeError, r"binary_linear: dtype must be float64, .* got torch.int32",
     lambda x, w: ste_ops.binary_linear(x, w, dtype=torch.int32)),
    (ValueError, r"binary_conv1d: input must have 3 dimensions, .* got \(40,\) and \(7, 40\)",
     lambda x, w: ste_ops.binary_conv1d(x[0], w)),
    (ValueError, r"binary_conv1d: groups must be positive and divide 7, got 2",
     lambda x, w: ste_ops.binary_conv1d(x[None], w[..., None], groups=2)),
    (ValueError, r"binary_conv1d: padding_value must be -1, 0 or 1, got 2",
     lambda x, w: ste_ops.binary_conv1d(x[:, :, None], w[..., None], padding_value=2)),
    (ValueError, r"binary_conv1d: padding_value must be 0 or 1 beside steps, got -1",
     lambda x, w: ste_ops.binary_conv1d(x[:, :, None], w[..., None], padding_value=-1, step=True)),
    (ValueError, r"binary_conv1d: padding 'same' needs a stride of 1, got \[2\]",
     lambda x, w: ste_ops.binary_conv1d(x[:, :, None], w[..., None], None, 2, "same")),
    (ValueError, r"unpack_bits: size must be what 40 bytes along dimension 1 hold, got 3",
     lambda x, w: ste_ops.unpack_bits(x.to(torch.uint8), 3)),
    (IndexError, r"pack_bits: dim must be in \[-2, 2\), got 2", lambda x, w: ste_ops.pack_bits(x, 2)),
    (RuntimeError, r"binary_conv2d: the kernel reaches over 1 x 3, more than the padded input of 1 x 1",
     lambda x, w: ste_ops.binary_conv1d(x[:, :, None], w[:, :, None].expand(7, 40, 3))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(error, message, call):
    with pytest.raises(error, match=message):
        call(torch.ones(3, 40), torch.ones(7, 40))


def at_level(level: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STE_OPS_CPU_CAPABILITY": level, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_level_counts_the_same(level):
    best = ste_ops.build_info()["cpu_capability"].split()[0]
    found = at_level(level, "-c", "import ste_ops; print(ste_ops.build_info()['cpu_capability'])")
    order = ["default", "avx2", "avx512"]
    if order.index(level) > order.index(best):
        assert "asks for instructions that this processor lacks, got " + level in found.stderr
        return
    assert found.stdout.split()[0] == level
    if level == best:
        return  # as the other tests have run
    values = str(Path(__file__).with_name("test_products.py"))
    run = at_level(level, "-m", "pytest", "-q", "-p", "no:xdist", values, "-k", "cpu")
    assert run.returncode == 0, run.stdout[-3000:]


def test_an_unknown_level_is_refused():
    run = at_level("sse9", "-c", "import torch, ste_ops; ste_ops.pack_bits(torch.ones(8))")
    assert "pack_bits: STE_OPS_CPU_CAPABILITY must be default, avx2 or avx512, got sse9" in run.stderr
