"""The quantizers that cite a source, against numbers from the source's equation: values and gradients.

The equations stand here in Python's math; nothing of ste_ops is used for them. Where the authors published code, its
place stands beside the equation; what differs from it stands in docs/peers.md.
"""

import math

import pytest
import torch

import ste_ops

DTYPES = [torch.float64, torch.float32]


def run(fn, *inputs, upstream, dtype, device):
    """The values and the gradient of every input, in float64 on the CPU."""
    tensors = [torch.tensor(x, dtype=dtype, device=device, requires_grad=True) for x in inputs]
    out = fn(*tensors)
    gradients = torch.autograd.grad(out, tensors, torch.tensor(upstream, dtype=dtype, device=device))
    return [t.detach().double().cpu() for t in (out, *gradients)]


def assert_numbers(received, expected, dtype):
    rtol, atol = (1e-12, 1e-14) if dtype == torch.float64 else (1e-5, 1e-6)
    for r, e in zip(received, expected, strict=True):
        torch.testing.assert_close(r, torch.tensor(e, dtype=torch.float64), rtol=rtol, atol=atol)


def upstream_of(count):
    return [math.cos(2 * i + 1) for i in range(count)]


def steps(x, bits):
    """DoReFa-Net (arXiv:1606.06160), eq. 5: r_o = round((2^k - 1) r_i) / (2^k - 1). Half to even, as tf.round."""
    n = 2**bits - 1
    return round(x * n) / n


def sign(x):
    """+1 at 0, where the authors of DoReFa-Net and XNOR-Net have 0."""
    return 1.0 if x >= 0 else -1.0


def mean(values):
    return sum(values) / len(values)


# Activations.

POINTS = [-3.0, -0.7, -0.01, 0.0, 0.05, 0.2, 0.31, 0.45, 0.55, 0.7, 0.85, 0.99, 1.0, 1.01, 1.7, 2.2, 2.9, 3.5, 40.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_dorefa_activation(device, bits, dtype):
    """DoReFa-Net, eq. 11: quantize_k of an x bounded to [0, 1].

    tensorpack/tensorpack, examples/DoReFa-Net/dorefa.py, fa; tf.clip_by_value stands before it in alexnet-dorefa.py.
    """
    upstream = upstream_of(len(POINTS))
    expected = [steps(min(max(x, 0.0), 1.0), bits) for x in POINTS]
    gradient = [g if 0 <= x <= 1 else 0.0 for x, g in zip(POINTS, upstream, strict=True)]
    received = run(lambda x: ste_ops.dorefa_activation(x, bits), POINTS, upstream=upstream, dtype=dtype, device=device)
    assert_numbers(received, [expected, gradient], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("alpha", "bits"), [(1.0, 2), (2.9, 3), (6.3, 4), (0.55, 1), (10.0, 8)])
def test_pact(device, alpha, bits, dtype):
    """PACT (arXiv:1805.06085), eq. 1: y = (|x| - |x - a| + a) / 2; eq. 2: y_q = round(y n / a) a / n; eq. 3: dy_q / da
    is 0 below a and 1 from a on."""
    n, upstream = 2**bits - 1, upstream_of(len(POINTS))
    y = [0.5 * (abs(x) - abs(x - alpha) + alpha) for x in POINTS]
    expected = [round(v * n / alpha) * alpha / n for v in y]
    of_x = [g if 0 <= x < alpha else 0.0 for x, g in zip(POINTS, upstream, strict=True)]
    of_alpha = sum(g for x, g in zip(POINTS, upstream, strict=True) if x >= alpha)
    received = run(lambda x, a: ste_ops.pact(x, a, bits), POINTS, alpha, upstream=upstream, dtype=dtype, device=device)
    assert_numbers(received, [expected, of_x, of_alpha], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("scale", "offset", "low", "high"), [(0.3, -0.13, 0, 3), (0.27, 0.5, -4, 3), (1.1, -2.3, 0, 15)]
)
def test_lsq_plus(device, scale, offset, low, high, dtype):
    """LSQ+ (arXiv:2004.09576), eq. 3 and 4: x_bar = round(clamp((x - beta) / s, n, p)), x_hat = x_bar s + beta. The
    derivatives that follow them: with respect to s round(v) - v where n < v < p, n at and below n, p at and above p; to
    beta 0 where n < v < p and 1 elsewhere.

    The authors published none; ZouJiu1/LSQplus, quantization/lsqplus_quantize_V1.py, ALSQPlus, is the same off the
    bounds themselves.
    """
    upstream = upstream_of(len(POINTS))
    at = [(x - offset) / scale for x in POINTS]
    expected = [round(min(max(v, low), high)) * scale + offset for v in at]
    inside = [low < v < high for v in at]
    assert {True, False} == set(inside)
    of_x = [g if passes else 0.0 for g, passes in zip(upstream, inside, strict=True)]
    slopes = [round(v) - v if low < v < high else low if v <= low else high for v in at]
    of_scale = 0.7 * sum(g * slope for g, slope in zip(upstream, slopes, strict=True))
    of_offset = 0.7 * sum(g for g, passes in zip(upstream, inside, strict=True) if not passes)
    received = run(
        lambda x, s, b: ste_ops.lsq_plus(x, s, b, low, high, None, 0.7),
        POINTS,
        scale,
        offset,
        upstream=upstream,
        dtype=dtype,
        device=device,
    )
    assert_numbers(received, [expected, of_x, of_scale, of_offset], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bitnet_activation(device, bits, dtype):
    """BitNet b1.58 (arXiv:2402.17764), section 2: each token by its absmax to [-Q_b, Q_b], here dequantized again.

    microsoft/unilm, bitnet/The-Era-of-1-bit-LLMs__Training_Tips_Code_FAQ.pdf, activation_quant: Q_b is 2^(bits - 1) - 1
    for the scale, one more is allowed below, and the absmax is 1e-5 at least.
    """
    n = 2 ** (bits - 1) - 1
    tokens = [
        [0.3, -1.2, 0.8, 2.0],
        [5.0, 0.1, -4.9, 3.3],
        [-7.0, 6.9, 0.2, -0.4],
        [1e-3, 2e-3, -3.1e-3, 4e-4],
        [1e-6, -4e-6, 3e-6, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    expected = []
    for token in tokens:
        scale = n / max(*map(abs, token), 1e-5)
        expected.append([min(max(round(x * scale), -n - 1), n) / scale for x in token])
    upstream = [upstream_of(4) for _ in tokens]
    received = run(lambda x: ste_ops.bitnet_activation(x, bits), tokens, upstream=upstream, dtype=dtype, device=device)
    assert_numbers(received, [expected, upstream], dtype)


# Weights. Two output channels and more than ten weights; 1 and -1 are bounds of the sign's gradient.

WEIGHTS = [[0.5, -1.5, 0.25, 1.0, -0.7, 0.05], [0.9, -0.2, -1.0, 1.25, 0.0, -2.0]]
UPSTREAM = [[1.0, 2.0, -0.5, 0.25, 3.0, -1.5], [0.75, -2.0, 1.5, 0.5, 4.0, -0.25]]
FLAT = [w for row in WEIGHTS for w in row]
FLAT_UPSTREAM = [g for row in UPSTREAM for g in row]


def in_rows(flat):
    return [flat[:6], flat[6:]]


def run_weights(fn, dtype, device):
    return run(fn, WEIGHTS, upstream=UPSTREAM, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa_weight(device, bits, dtype):
    """DoReFa-Net, eq. 9: r_o = 2 quantize_k(tanh(r_i) / (2 max|tanh(r_i)|) + 1/2) - 1; the straight-through estimator
    is for quantize_k alone (eq. 10), so the maximum is differentiated.

    tensorpack/tensorpack, examples/DoReFa-Net/dorefa.py, fw.
    """
    t = [math.tanh(w) for w in FLAT]
    at = max(range(len(t)), key=lambda i: abs(t[i]))
    top = abs(t[at])
    expected = [2 * steps(x / (2 * top) + 0.5, bits) - 1 for x in t]
    of_t = [g / top for g in FLAT_UPSTREAM]
    of_t[at] -= math.copysign(1, t[at]) * sum(g * x for g, x in zip(FLAT_UPSTREAM, t, strict=True)) / top**2
    gradient = [g * (1 - x**2) for g, x in zip(of_t, t, strict=True)]
    received = run_weights(lambda w: ste_ops.dorefa_weight(w, bits), dtype, device)
    assert_numbers(received, [in_rows(expected), in_rows(gradient)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dorefa_weight_of_one_bit(device, dtype):
    """DoReFa-Net, eq. 7 and 8: sign(r_i) E(|r_i|) over all of the layer, and the gradient passes. The same fw."""
    scale = mean([abs(w) for w in FLAT])
    received = run_weights(lambda w: ste_ops.dorefa_weight(w, 1), dtype, device)
    assert_numbers(received, [in_rows([sign(w) * scale for w in FLAT]), UPSTREAM], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_xnor_weight(device, dtype):
    """XNOR-Net (arXiv:1603.05279), eq. 6: a = mean|W| of each filter. Section 3.1 gives the gradient of a sign(W) as
    dC/dW~_i (1/n + a 1(|W_i| <= 1)), whose first term is right for a filter of one weight; of n it is a sum over them:
    sign(W_i) / n sum_j dC/dW~_j sign(W_j), as jiecaoyu/XNOR-Net-PyTorch, notes/notes.pdf, derives it.

    allenai/XNOR-Net, util.lua, binarizeConvParms and updateBinaryGradWeight.
    """
    expected, gradient = [], []
    for row, grads in zip(WEIGHTS, UPSTREAM, strict=True):
        a, n = mean([abs(w) for w in row]), len(row)
        total = sum(g * sign(w) for g, w in zip(grads, row, strict=True))
        expected.append([sign(w) * a for w in row])
        gradient.append([g * a * (abs(w) <= 1) + sign(w) * total / n for g, w in zip(grads, row, strict=True)])
    assert_numbers(run_weights(ste_ops.xnor_weight, dtype, device), [expected, gradient], dtype)
    # A filter of one weight: the paper's own formula.
    for w, g in zip(FLAT, FLAT_UPSTREAM, strict=True):
        of_one = run(ste_ops.xnor_weight, [[w]], upstream=[[g]], dtype=dtype, device=device)
        assert_numbers(of_one, [[[w]], [[g * (1 + abs(w) * (abs(w) <= 1))]]], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitude_aware_sign(device, dtype):
    """Bi-Real Net (arXiv:1808.00278), section 3.3: mean|W| sign(W) of each filter, and the gradient mean|W| 1(|W| < 1).

    larq/larq, larq/quantizers.py, magnitude_aware_sign, whose bounds pass, as here.
    """
    expected, gradient = [], []
    for row, grads in zip(WEIGHTS, UPSTREAM, strict=True):
        a = mean([abs(w) for w in row])
        expected.append([sign(w) * a for w in row])
        gradient.append([g * a * (abs(w) <= 1) for g, w in zip(grads, row, strict=True)])
    assert_numbers(run_weights(ste_ops.magnitude_aware_sign, dtype, device), [expected, gradient], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 0.01, 1e-4, 1e-5, 1e-7, 0.0])
def test_bitnet_weight(device, size, dtype):
    """BitNet b1.58, eq. 1 to 3: RoundClip(W / (gamma + eps), -1, 1) with gamma = mean|W|, here times gamma again.

    microsoft/unilm, bitnet/The-Era-of-1-bit-LLMs__Training_Tips_Code_FAQ.pdf, weight_quant: max(gamma, 1e-5).
    """
    weights = [[w * size for w in row] for row in WEIGHTS]
    scale = 1 / max(mean([abs(w) * size for w in FLAT]), 1e-5)
    expected = [[min(max(round(w * scale), -1), 1) / scale for w in row] for row in weights]
    received = run(ste_ops.bitnet_weight, weights, upstream=UPSTREAM, dtype=dtype, device=device)
    assert_numbers(received, [expected, UPSTREAM], dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(received[0], torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (1, 3), (3, 6)])
@pytest.mark.parametrize("decay", [0.0, 2e-4, 0.5])
def test_sr_ste(device, n, m, decay, dtype):
    """SR-STE (arXiv:2102.04010), eq. 8: g(W~) + lambda (1 - mask) W, the mask of the n largest of m along the inputs.

    aojunzz/NM-sparsity, devkit/sparse_ops/sparse_ops.py, Sparse and, for convolutions, Sparse_NHWC.
    """
    expected, gradient = [], []
    for row, grads in zip(WEIGHTS, UPSTREAM, strict=True):
        kept = set()
        for start in range(0, len(row), m):
            group = sorted(range(start, start + m), key=lambda i: abs(row[i]))
            kept.update(group[m - n :])
        expected.append([w if i in kept else 0.0 for i, w in enumerate(row)])
        gradient.append([g + decay * (i not in kept) * row[i] for i, g in enumerate(grads)])
    received = run_weights(lambda w: ste_ops.sr_ste(w, n, m, decay), dtype, device)
    assert_numbers(received, [expected, gradient], dtype)
    # A convolution's neighbours are the inputs of one place of its kernel.
    of_convolution = run_weights(
        lambda w: ste_ops.sr_ste(w[:, :, None, None].expand(2, 6, 3, 1), n, m, decay)[:, :, 1, 0], dtype, device
    )
    assert_numbers(of_convolution[:1], [expected], dtype)
