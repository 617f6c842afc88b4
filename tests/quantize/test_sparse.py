"""N:M sparsity against the reference, on every device."""

import math

import pytest
import torch
from support.surrogate_table import DTYPES, assert_same_bits, filler, forward_and_gradient
from torch.func import grad, jvp, vmap

import ste_ops
from ste_ops import reference
from ste_ops._functions.quantize.sparse import SRSTEBackward
from ste_ops._library import ops
from ste_ops.surrogate import Clip

nan, inf = math.nan, math.inf

# A shape for each way through the kernels: neighbours side by side, a few apart, far apart, more than a tile of them.
LAYOUTS = {
    "contiguous": lambda fill: fill(37, 24),
    "long": lambda fill: fill(3, 24 * 23),
    "convolution": lambda fill: fill(7, 24, 3, 3),
    "one pixel": lambda fill: fill(7, 24, 1, 1),
    "channels_last": lambda fill: fill(5, 24, 3, 5).contiguous(memory_format=torch.channels_last),
    "transposed": lambda fill: fill(24, 300).t(),
    "permuted": lambda fill: fill(3, 70, 24).permute(1, 2, 0),
    "sliced": lambda fill: fill(20, 48)[::3, ::2],
    "expanded": lambda fill: fill(24).expand(5, 24),
    "misaligned": lambda fill: fill(241)[1:].view(10, 24),
    "vector": lambda fill: fill(48),
    "strided vector": lambda fill: fill(96)[::2],
    "empty": lambda fill: fill(0, 24),
    "empty inside": lambda fill: fill(3, 0, 2),
}


def fill_of(dtype, seed=0):
    return filler(dtype, Clip(1.0), "cpu", seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(device, dtype):
    for name, make in LAYOUTS.items():
        w = make(fill_of(dtype)).to(device)
        for upstream in (fill_of(dtype, 1)(*w.shape), fill_of(dtype, 1)(*w.shape[::-1]).permute(*range(w.dim())[::-1])):
            upstream = upstream.to(device)
            for n, m in ((2, 4), (1, 4), (4, 8), (1, 2), (5, 6), (1, 1), (4, 4)):
                received = forward_and_gradient(lambda w, n=n, m=m: ste_ops.sr_ste(w, n, m, 0.03), w, upstream)
                expected = forward_and_gradient(lambda w, n=n, m=m: reference.sr_ste(w, n, m, 0.03), w, upstream)
                assert_same_bits(received[0], expected[0], f"{name} {n}:{m}", any_nan=True)
                assert_same_bits(received[1], expected[1], f"{name} {n}:{m}", any_nan=True)
                assert received[0].stride() == torch.empty_like(w).stride(), name


def test_what_is_written_in_the_docs(device):
    """The reference is held to the same numbers, so that a mistake in both does not cancel."""
    w = torch.tensor([[1.0, -1.0, 1.0, 0.5], [-0.0, 0.0, 0.0, 0.0], [nan, 2.0, inf, -nan], [0.1, -3.0, 2.0, 0.2]])
    kept = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    for module in (ste_ops, reference):
        out, gradient = forward_and_gradient(
            lambda w, module=module: module.sr_ste(w, 2, 4, 0.5), w.to(device), torch.ones(4, 4)
        )
        assert_same_bits(out.cpu(), torch.where(kept, w, 0.0), any_nan=True)
        assert_same_bits(gradient.cpu(), torch.where(kept, 1.0, 1 + 0.5 * w), any_nan=True)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8), (7, 64)])
def test_keeps_n_of_m_and_changes_nothing_more(device, n, m):
    w = torch.randn(20, 128, 2, device=device)
    out = ste_ops.sr_ste(w, n, m)
    assert bool(((out != 0).view(20, -1, m, 2).sum(2) == n).all())
    assert torch.equal(ste_ops.sr_ste(out, n, m), out)


def test_more_neighbours_than_a_small_integer_counts(device):
    w = torch.randn(1, 700, device=device).to(torch.bfloat16)
    assert_same_bits(ste_ops.sr_ste(w, 300, 700), reference.sr_ste(w, 300, 700))
    assert ste_ops.sr_ste(torch.ones((), device=device), 1, 1).item() == 1


def test_many_threads_equal_one(device):
    w, upstream = torch.randn(300, 400, device=device), torch.randn(300, 400, device=device)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(forward_and_gradient(lambda w: ste_ops.sr_ste(w, 2, 4, 0.1), w, upstream))
    finally:
        torch.set_num_threads(threads)
    for received, expected in zip(*results, strict=True):
        assert_same_bits(received, expected)


def test_saves_w_and_nothing_more(device):
    w, saved = torch.randn(8, 8, device=device, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        ste_ops.sr_ste(w, 2, 4)
    assert saved == [w.data_ptr()]


def test_second_order(device):
    w = torch.randn(3, 8, dtype=torch.float64, device=device).requires_grad_()
    upstream = torch.randn(3, 8, dtype=torch.float64, device=device).requires_grad_()
    found = []
    for fn in (ste_ops.sr_ste, reference.sr_ste):
        (first,) = torch.autograd.grad(fn(w, 2, 4, 0.3), w, upstream, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (w, upstream)))
        # The decay depends on w although the incoming gradient does not.
        (first,) = torch.autograd.grad(fn(w, 2, 4, 0.3).sum(), w, create_graph=True)
        found[-1] += torch.autograd.grad(first.square().sum(), w)
    torch.testing.assert_close(found[0], found[1])
    assert torch.autograd.gradcheck(lambda g, w: SRSTEBackward.apply(g, w, 2, 4, 0.3), (upstream, w), eps=1e-7)


def test_transforms(device):
    w = torch.randn(5, 3, 8, dtype=torch.float64, device=device)
    loss = lambda w: (ste_ops.sr_ste(w, 2, 4, 0.3) * w.sin()).sum()  # noqa: E731
    slow = lambda w: (reference.sr_ste(w, 2, 4, 0.3) * w.sin()).sum()  # noqa: E731
    rows = torch.stack([torch.autograd.functional.jacobian(slow, row) for row in w])
    torch.testing.assert_close(vmap(grad(loss))(w), rows)
    torch.testing.assert_close(vmap(grad(loss), in_dims=2)(w.movedim(0, 2)), rows)
    torch.testing.assert_close(vmap(vmap(grad(loss)))(w), vmap(grad(loss))(w.flatten(0, 1)).view_as(w))
    assert_same_bits(vmap(lambda w: ste_ops.sr_ste(w, 2, 4))(w[0]), reference.sr_ste(w[0], 2, 4))
    assert_same_bits(vmap(lambda w: ste_ops.sr_ste(w, 1, 1))(w[0, 0]), w[0, 0])
    assert_same_bits(vmap(lambda w: ste_ops.sr_ste(w, 2, 4))(w), torch.stack([reference.sr_ste(x, 2, 4) for x in w]))
    received = jvp(lambda w: ste_ops.sr_ste(w, 2, 4), (w[0],), (w[0].cos(),))
    assert_same_bits(received[0], reference.sr_ste(w[0], 2, 4))
    assert_same_bits(received[1], w[0].cos())
    # The backward adds a decay and the tangent does not, so the two orders of differentiation differ by it.
    x, v, out = w[0], w[0].cos(), reference.sr_ste(w[0], 2, 4)
    received = jvp(grad(loss), (x,), (v,))[1]
    torch.testing.assert_close(received, v * (2 * x.cos() - out * x.sin() + 0.3 * (out == 0)))


def test_training_compiles(device):
    torch._dynamo.reset()
    layer = torch.nn.Linear(8, 6).to(device)
    x = torch.randn(4, 8, device=device)

    def loss(x):
        return torch.nn.functional.linear(x, ste_ops.sr_ste(layer.weight, 2, 4, 0.1), layer.bias).square().mean()

    expected = torch.autograd.grad(loss(x), layer.weight)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), layer.weight)[0], expected)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "sr_ste: w must be a tensor, got list", ([1.0], 1, 1)),
        (TypeError, "sr_ste: w must be float64, .* got torch.int64", (torch.ones(4, dtype=torch.int64), 2, 4)),
        (TypeError, "sr_ste: n must be an integer, got 2.0", (torch.ones(4), 2.0, 4)),
        (TypeError, "sr_ste: m must be an integer, got True", (torch.ones(4), 1, True)),
        (ValueError, r"sr_ste: n must be in \[1, m = 4\], got 5", (torch.ones(4), 5, 4)),
        (ValueError, r"sr_ste: n must be in \[1, m = 4\], got 0", (torch.ones(4), 0, 4)),
        (ValueError, r"sr_ste: n must be in \[1, m = 0\], got 0", (torch.ones(4), 0, 0)),
        (ValueError, "sr_ste: m must divide the size of dim 1, which is 6, got 4", (torch.ones(8, 6), 2, 4)),
        (ValueError, "sr_ste: m must divide the size of dim 0, which is 6, got 4", (torch.ones(6), 2, 4)),
        (ValueError, "sr_ste: decay must be a finite number >= 0, got -1", (torch.ones(4), 2, 4, -1)),
        (ValueError, "sr_ste: decay must be a finite number >= 0, got nan", (torch.ones(4), 2, 4, nan)),
        (ValueError, "sr_ste: decay must be a finite number >= 0, got inf", (torch.ones(4), 2, 4, inf)),
    ],
)
def test_bad_input_is_refused(error, words, arguments):
    with pytest.raises(error, match=words):
        ste_ops.sr_ste(*arguments)


def test_raw_operators_check_what_they_index_with(device):
    w = torch.ones(4, 6, device=device)
    with pytest.raises(RuntimeError, match=r"sr_ste: n must be in \[1, m = 2\], got 3"):
        ops.sr_ste(w, 3, 2)
    with pytest.raises(RuntimeError, match="sr_ste: m must divide the size of dim 1, which is 6, got 4"):
        ops.sr_ste(w, 2, 4)
    with pytest.raises(RuntimeError, match="sr_ste_backward: grad must have w's shape"):
        ops.sr_ste_backward(w[1:], w, 1, 2, 0.0)
    with pytest.raises(RuntimeError, match="sr_ste: w must be float64, float32, bfloat16 or float16, got Int"):
        ops.sr_ste(w.int(), 1, 2)


# The decay outside the loss.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_decay_outside_the_loss_equals_the_reference(device, dtype):
    for name in ("contiguous", "convolution", "channels_last", "transposed", "sliced", "vector", "empty"):
        w, grads = LAYOUTS[name](fill_of(dtype)).to(device), []
        for module in (ste_ops, reference):
            parameter = w.detach().requires_grad_()
            upstream = fill_of(dtype, 1)(*w.shape).to(device)
            (module.sr_ste(parameter, 1, 2, 0.0) * upstream).sum().backward()
            before = parameter.grad.data_ptr()
            module.sr_ste_decay_(parameter, 1, 2, 0.03)
            assert parameter.grad.data_ptr() == before
            grads.append(parameter.grad)
        assert_same_bits(*grads, name, any_nan=True)


@pytest.mark.parametrize(("scale", "batches"), [(1.0, 1), (65536.0, 1), (65536.0, 8), (1.0, 8)])
def test_neither_a_loss_scale_nor_accumulation_changes_the_decay(device, scale, batches):
    w = torch.randn(6, 8, device=device, requires_grad=True)
    x = torch.randn(8, 6, 8, device=device)
    sparse = ste_ops.nn.SRSTE(2, 4, decay=0)
    for batch in x.chunk(batches):
        ((sparse(w) * batch).sum() * scale).backward()
    w.grad.div_(scale)
    sparse.add_decay_(w, 0.25)
    expected = x.sum(0) + 0.25 * torch.where(reference.sr_ste(w, 2, 4) == 0, w, 0.0)
    torch.testing.assert_close(w.grad, expected.detach())


def test_weights_without_a_gradient_stay_without_and_bad_input_is_refused():
    w = torch.ones(4, requires_grad=True)
    ste_ops.sr_ste_decay_(w, 2, 4)
    assert w.grad is None
    with pytest.raises(ValueError, match="sr_ste_decay_: m must divide the size of dim 0, which is 4, got 3"):
        ste_ops.sr_ste_decay_(w, 2, 3)
    with pytest.raises(ValueError, match="sr_ste_decay_: decay must be a finite number >= 0, got -1"):
        ste_ops.sr_ste_decay_(w, 2, 4, -1)
    with pytest.raises(RuntimeError, match=r"SRSTE: decay must be 0 for add_decay_, or it would count twice, got 0\.1"):
        ste_ops.nn.SRSTE(2, 4, 0.1).add_decay_(w)
    w.grad = torch.ones(4).to_sparse()
    with pytest.raises(TypeError, match=r"sr_ste_decay_: w.grad must have w's dtype and layout, .* got .*sparse_coo"):
        ste_ops.sr_ste_decay_(w, 2, 4)
