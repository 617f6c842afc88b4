"""torch.func over the steps, alone, composed and compiled, against autograd over the reference."""

import pytest
import torch
from support.surrogate_table import representatives
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import ste_ops
from ste_ops import reference
from ste_ops._functions.mask import BinarizeBackward
from ste_ops.surrogate import Clip

# Odd sizes: no row of a batch is a whole number of mask bytes.
SHAPE = (3, 5, 7)


class Case:
    """A step and what autograd says of its reference."""

    def __init__(self, step, surrogate):
        self.fn = lambda x: getattr(ste_ops, step)(x, surrogate=surrogate)
        self.reference = lambda x: getattr(reference, step)(x, surrogate=surrogate)
        self.slope = surrogate.derivative

    def loss(self, x):
        return (self.fn(x) * x.sin()).sum()

    def reference_loss(self, x):
        return (self.reference(x) * x.sin()).sum()

    def gradient(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.reference_loss(x), x)[0]

    def hessian_vector(self, x, v):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.reference_loss(x), x, create_graph=True)
        return torch.autograd.grad(gradient, x, v)[0]

    def hessian(self, x):
        return torch.autograd.functional.hessian(self.reference_loss, x)


# name -> what torch.func gives for x of SHAPE, and what it should be.
PROGRAMS = {
    "grad": (lambda c, x: grad(c.loss)(x), lambda c, x: c.gradient(x)),
    "vjp": (lambda c, x: vjp(c.fn, x)[1](x.cos())[0], lambda c, x: x.cos() * c.slope(x)),
    "jvp": (lambda c, x: jvp(c.fn, (x,), (x.cos(),))[1], lambda c, x: x.cos() * c.slope(x)),
    "jvp value": (lambda c, x: jvp(c.fn, (x,), (x.cos(),))[0], lambda c, x: c.reference(x)),
    "jvp of grad": (
        lambda c, x: jvp(grad(c.loss), (x,), (x.cos(),))[1],
        lambda c, x: c.hessian_vector(x, x.cos()),
    ),
    "grad of grad": (
        lambda c, x: grad(lambda x: (grad(c.loss)(x) * x.cos().detach()).sum())(x),
        lambda c, x: c.hessian_vector(x, x.cos()),
    ),
    "vmap": (lambda c, x: vmap(c.fn)(x), lambda c, x: c.reference(x)),
    "vmap over the last": (lambda c, x: vmap(c.fn, in_dims=-1, out_dims=-1)(x), lambda c, x: c.reference(x)),
    "vmap from 1 to 0": (lambda c, x: vmap(c.fn, in_dims=1)(x), lambda c, x: c.reference(x).movedim(1, 0)),
    "vmap of vmap": (lambda c, x: vmap(vmap(c.fn))(x), lambda c, x: c.reference(x)),
    "vmap of vmap from 1 and 1": (
        lambda c, x: vmap(vmap(c.fn, in_dims=1), in_dims=1)(x),
        lambda c, x: c.reference(x).permute(1, 2, 0),
    ),
    "vmap of scalars": (lambda c, x: vmap(c.fn)(x.flatten()), lambda c, x: c.reference(x).flatten()),
    "vmap of a transpose": (
        lambda c, x: vmap(lambda x: c.fn(x.t()))(x),
        lambda c, x: c.reference(x).transpose(1, 2),
    ),
    "vmap of expanded rows": (
        lambda c, x: vmap(lambda x: c.fn(x.expand(4, 7)))(x[0]),
        lambda c, x: c.reference(x[0])[:, None].expand(5, 4, 7),
    ),
    "vmap of grad": (lambda c, x: vmap(grad(c.loss))(x), lambda c, x: c.gradient(x)),
    "vmap of vmap of grad": (
        lambda c, x: vmap(vmap(grad(c.loss)), in_dims=1)(x.movedim(0, 1)),
        lambda c, x: c.gradient(x),
    ),
    "grad of vmap": (lambda c, x: grad(lambda x: vmap(c.loss, in_dims=1)(x).sum())(x), lambda c, x: c.gradient(x)),
    "vmap of vjp with one cotangent": (
        lambda c, x: vmap(lambda row: vjp(c.fn, row)[1](x[0].cos())[0])(x),
        lambda c, x: x[0].cos() * c.slope(x),
    ),
    "vmap of one vjp": (
        lambda c, x: vmap(vjp(c.fn, x[0])[1])(x.cos())[0],
        lambda c, x: x.cos() * c.slope(x[0]),
    ),
    "vmap of one vjp over the last": (
        lambda c, x: vmap(vjp(c.fn, x[..., 0])[1], in_dims=-1, out_dims=-1)(x.cos())[0],
        lambda c, x: x.cos() * c.slope(x[..., :1]),
    ),
    "vmap of jvp at one x": (
        lambda c, x: vmap(lambda t: jvp(c.fn, (x[0],), (t,))[1])(x.cos()),
        lambda c, x: x.cos() * c.slope(x[0]),
    ),
    "vmap of jvp with one tangent": (
        lambda c, x: vmap(lambda row: jvp(c.fn, (row,), (x[0].cos(),))[1])(x),
        lambda c, x: x[0].cos() * c.slope(x),
    ),
    "jacrev": (lambda c, x: jacrev(c.fn)(x[0, 0]), lambda c, x: c.slope(x[0, 0]).diag()),
    "jacfwd": (lambda c, x: jacfwd(c.fn)(x[0, 0]), lambda c, x: c.slope(x[0, 0]).diag()),
    "vmap of jacrev": (lambda c, x: vmap(jacrev(c.fn))(x[0]), lambda c, x: c.slope(x[0]).diag_embed()),
    "vmap of jacfwd": (lambda c, x: vmap(jacfwd(c.fn))(x[0]), lambda c, x: c.slope(x[0]).diag_embed()),
    "hessian": (lambda c, x: hessian(c.loss)(x[0, 0]), lambda c, x: c.hessian(x[0, 0])),
    "jacrev of grad": (lambda c, x: jacrev(grad(c.loss))(x[0, 0]), lambda c, x: c.hessian(x[0, 0])),
    "vmap of hessian": (
        lambda c, x: vmap(hessian(c.loss))(x[0]),
        lambda c, x: torch.stack([c.hessian(row) for row in x[0]]),
    ),
    "gradient of each sample": (
        lambda c, x: vmap(grad(lambda w, row: (c.fn(w) @ row).square().sum()), in_dims=(None, 0))(x[0].t(), x),
        lambda c, x: torch.stack([_sample_gradient(c, x[0].t(), row) for row in x]),
    ),
}


def _sample_gradient(case, w, row):
    w = w.detach().requires_grad_()
    return torch.autograd.grad((case.reference(w) @ row).square().sum(), w)[0]


def points(device):
    return torch.randn(SHAPE, dtype=torch.float64, device=device) * 1.5


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
@pytest.mark.parametrize("step", ["heaviside", "ternary"])
def test_transform(device, step, surrogate, program):
    case, x = Case(step, surrogate), points(device)
    transform, expected = PROGRAMS[program]
    torch.testing.assert_close(transform(case, x), expected(case, x))


# Dynamo's capture does not depend on the kernels; the emulated ones get the programs that call all of them.
# torch 2.13 fails to compile vmap of hessian over its own operators too, and leaves functorch broken behind it.
COMPILED = [(device, program) for device in ("cpu", "cuda") for program in PROGRAMS if program != "vmap of hessian"]
COMPILED += [("emulated", program) for program in ("grad", "jvp of grad", "vmap of grad")]


@pytest.mark.parametrize(("device", "program"), COMPILED, indirect=["device"])
@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
def test_compiled_transform(device, surrogate, program):
    torch._dynamo.reset()
    case, x = Case("heaviside", surrogate), points(device)
    transform, expected = PROGRAMS[program]
    compiled = torch.compile(lambda x: transform(case, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected(case, x))


@pytest.mark.parametrize("step", ["heaviside", "ternary"])
def test_forward_mode_of_autograd(device, step):
    x = torch.randn(13, device=device) * 1.5
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        for surrogate in representatives():
            out = torch.autograd.forward_ad.unpack_dual(getattr(ste_ops, step)(dual, surrogate=surrogate))
            assert torch.equal(out.primal, getattr(reference, step)(x))
            torch.testing.assert_close(out.tangent, tangent * surrogate.derivative(x))


def test_forward_over_reverse_of_autograd(device):
    x = (torch.randn(13, device=device) * 1.5).requires_grad_()
    tangent = torch.randn(13, device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        (gradient,) = torch.autograd.grad(ste_ops.sign(dual, Clip(1.0)).sin().sum(), x, create_graph=True)
        received = torch.autograd.forward_ad.unpack_dual(gradient).tangent
    passes = (x.abs() <= 1).float()
    torch.testing.assert_close(received, -reference.sign(x).sin() * tangent * passes * passes)


@pytest.mark.parametrize("surrogate", representatives(), ids=repr)
def test_a_batch_of_none(device, surrogate):
    x = torch.zeros(0, 3, device=device)
    received = vmap(grad(lambda row: ste_ops.sign(row, surrogate).sum()))(x)
    assert received.shape == (0, 3)
    assert vmap(lambda row: ste_ops.sign(row, surrogate))(torch.zeros(4, 0, device=device)).shape == (4, 0)


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 1), (-1, 1), (None, 1), (1, None)])
def test_vmap_of_the_backward_alone(device, in_dims):
    """Its own rule for a mask and a gradient whose batches lie anywhere; a transform gives them the batch first."""
    grads = torch.randn(3, 11, device=device)
    masks = torch.randint(0, 256, (3, 2), dtype=torch.uint8, device=device)
    rows = [[0, 0, 0] if dim is None else [0, 1, 2] for dim in in_dims]
    expected = [BinarizeBackward.apply(grads[i], masks[j], 2.5) for i, j in zip(*rows, strict=True)]
    arguments = [
        batch[0] if dim is None else batch.movedim(0, dim) for batch, dim in zip((grads, masks), in_dims, strict=True)
    ]
    received = vmap(BinarizeBackward.apply, in_dims=(*in_dims, None))(*arguments, 2.5)
    assert torch.equal(received, torch.stack(expected))


@pytest.mark.parametrize("layout", [(4, 3, 6), (6, 4, 3), (3, 4, 6)])
def test_vmap_of_a_closed_over_batch_in_another_layout(device, layout):
    """The gradient and the mask are in different memory orders, and one of them has no batch."""
    x = torch.randn(4, 3, 6, device=device) * 1.5
    order = [(4, 3, 6).index(size) for size in layout]
    strided = x.permute(order).contiguous().permute([order.index(d) for d in range(3)])
    cotangent = torch.randn(3, 6, device=device)
    received = vmap(lambda row: vjp(ste_ops.sign, row)[1](cotangent)[0])(strided)
    torch.testing.assert_close(received, cotangent * (x.abs() <= 1))
    received = vmap(lambda t: vjp(ste_ops.sign, strided)[1](t)[0])(torch.stack([x.cos(), x.sin()]))
    torch.testing.assert_close(received, torch.stack([x.cos(), x.sin()]) * (x.abs() <= 1))
