"""The emulator's checker reports planted races and accesses outside memory, and none in our kernels."""

import re

import numpy as np
import pytest
import torch
from support.operator_arguments import ARGUMENTS

import emulator
import ste_ops
from emulator import emulated_kernels
from emulator.sample_kernels import ORDERS, build, launcher
from ste_ops._library import ops


@pytest.fixture(scope="module")
def library():
    return build(emulator.ROOT / "build" / "emulator" / "samples")


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("STE_OPS_EMULATED_ORDER", request.param)
    return request.param


@pytest.fixture
def launch(library):
    return launcher(library, checked=True)


def ints(n):
    return np.arange(n, dtype=np.int32)


@pytest.mark.parametrize("threads", [32, 256])
def test_right_kernels_pass(launch, order, threads):
    x = np.random.default_rng(0).standard_normal(1000)
    launch("sum_float64", x, x.size, np.zeros(3), blocks=3, threads=threads)
    launch("scan", ints(1000).astype(np.uint64), 1000, np.zeros(1000, np.uint64), threads=threads)
    launch("compact", ints(1000), 1000, np.zeros(1000, np.int32), np.zeros(1, np.int32), blocks=5, threads=threads)
    launch("rotate", ints(256), 3, threads=threads)
    launch("exchanges", ints(32), 8, 3, np.zeros((7, 32), np.int32))
    launch("warp_exchange", ints(32), ints(32), True)
    launch("histogram", ints(threads), ints(4), True, threads=threads)
    launch("total", ints(3 * threads), ints(1), True, blocks=3, threads=threads)
    launch("neighbours", ints(threads), 2, threads=threads)
    launch(
        "early_return",
        ints(threads).astype(np.float32),
        threads,
        np.zeros(threads, np.float32),
        threads=threads,
        shared_bytes=4096,
    )


HERE = r"thread \d+ (reads|writes|atomically updates) at sample_kernels.cu:\d+ "
SHARED = rf"block \d: race in shared memory: {HERE}what thread \d+ (read|wrote|atomically updated) at sample_kernels.cu"


@pytest.mark.parametrize(
    ("kernel", "arguments", "threads"),
    [
        ("missing_barrier", (ints(256), ints(256)), 256),
        ("missing_second_barrier", (ints(256), 5), 256),
        ("missing_warp_barrier", (ints(32), ints(32)), 32),
        ("same_value", (ints(64),), 64),
        ("neighbours", (ints(64), 1), 64),
        ("warp_exchange", (ints(32), ints(32), False), 32),
        ("histogram", (ints(64), ints(4), False), 64),
    ],
)
def test_races_of_threads(launch, order, kernel, arguments, threads):
    with pytest.raises(RuntimeError, match=rf"{kernel}_kernel.*{SHARED}:\d+, and no barrier stands between them"):
        launch(kernel, *arguments, threads=threads)


def test_a_race_that_no_order_shows_gives_right_results(library, order):
    out = np.zeros(64, np.int32)
    launcher(library)("same_value", out, threads=64)
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("kernel", "arguments"), [("total", (ints(96), ints(1), False)), ("shift", (ints(4),))], ids=["total", "shift"]
)
def test_races_of_blocks(launch, order, kernel, arguments):
    with pytest.raises(RuntimeError, match=rf"race in global memory: {HERE}.*nothing orders the blocks of a launch"):
        launch(kernel, *arguments, blocks=3)


def test_a_barrier_that_not_every_thread_reaches(launch, library, order):
    launcher(library)("barrier_after_return", threads=64)
    with pytest.raises(
        RuntimeError,
        match=r"a barrier that not every thread reaches: threads 0\.\.39 wait in __syncthreads at .*; "
        r"threads 40\.\.63 have returned",
    ):
        launch("barrier_after_return", threads=64)


def test_warp_operations_with_a_lane_that_has_left(launch, library, order):
    launcher(library)("ballot_after_return")
    with pytest.raises(RuntimeError, match=r"__ballot_sync at .*: its mask names thread 16, which has returned"):
        launch("ballot_after_return")
    with pytest.raises(RuntimeError, match=r"__shfl_down_sync at .*: its mask names thread 16, which has returned"):
        launch("returned_lane", np.zeros(16, np.float32))
    with pytest.raises(RuntimeError, match=r"thread 12 reads thread 16, which the mask does not name"):
        launch("unnamed_lane", ints(16))


def test_accesses_outside_an_allocation(launch, library, order):
    memory = ints(200)
    x, out = memory[:50], memory[100:150]
    launch("copy", x, out, 50, blocks=2)
    for arguments, byte in [((x, out, 51), 200), ((memory[:51], out, 51), 200)]:
        with pytest.raises(
            RuntimeError,
            match=rf"thread 18 (reads|writes) at sample_kernels.cu:\d+ 4 bytes from byte {byte} of an allocation of 20",
        ):
            launch("copy", *arguments, blocks=2)
    with pytest.raises(RuntimeError, match="4 bytes outside every allocation"):
        launch("copy", np.int64(64), out, 50)


def test_accesses_outside_dynamic_shared_memory(launch, order):
    launch("read_past_shared", ints(32), 0, shared_bytes=128)
    with pytest.raises(RuntimeError, match=r"reads at .* 4 bytes from byte 128 of 128 bytes of dynamic shared memory"):
        launch("read_past_shared", ints(32), 1, shared_bytes=128)


def test_the_checker_goes_on_after_a_finding(launch, order):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="race in shared memory"):
            launch("missing_barrier", ints(256), ints(256), threads=256)
        launch("rotate", ints(256), 3, threads=256)


# Ours.


def large() -> list[tuple]:
    """Calls of several blocks, where ARGUMENTS has few elements."""
    x = torch.randn(3, 40_000)
    mask = torch.randint(0, 256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
    scale = torch.rand(3) + 0.1
    channels = torch.randn(700, 3)  # the last of several rows of channels is not full
    grads = [torch.randn(n) for n in (70_000, 3, 0, 5000)]
    weights, seed = torch.rand(5000).round(decimals=1), torch.tensor([4])
    return [
        ("heaviside", x, 1, 1.0, 0.0),
        ("binarize_backward", x.t(), mask),
        ("lsq", x, scale, -4, 3, 0),
        ("lsq_backward", x, x, scale, -4, 3, 0, 0.5),
        *(("lsq_backward", y, y, scale[:1], -4, 3, -1, 0.5) for y in (x, torch.randn(300_000))),
        ("lsq_plus_backward", x, x, scale, scale / 2, -4, 3, 0, 0.5),
        ("lsq_plus_backward", channels, channels, torch.rand(700) + 0.1, torch.rand(700), -4, 3, 0, 0.5),
        ("lsq_backward", channels, channels, torch.rand(700) + 0.1, -4, 3, 0, 0.5),
        ("dorefa_weight", channels, 3, True),
        ("xnor_weight", x, True),
        ("dorefa_weight", x.t(), 3, False),
        ("bitnet_activation", x, 8),
        ("sr_ste", x, 2, 4),
        *(("total_norm", [*grads, x.t(), x[:, ::2]], p, each) for p in (2.0, 3.0) for each in (False, True)),
        ("total_norm", [*grads, x[:, ::2]], float("inf")),
        ("total_norm", [torch.full((9000,), 1e-200, dtype=torch.float64)], 2.0),
        ("clip_grad_norm_", [*(torch.randn(5) for _ in range(300)), torch.randn(90, 100)[:, ::2]], 0.5, 2.0),
        ("clip_grad_agc_", grads, [g * 9 for g in grads], 0.01, 1e-3),
        ("clip_per_sample_", [x], [torch.zeros(40_000)], 0.5),
        ("clip_gradient_norm_backward", x, 1, 0.5, 2.0),
        ("clip_gradient_norm_backward", x[:, :100].t(), 1, 0.5, 2.0),
        ("clip_gradient_norm_backward", x.reshape(1, -1), 1, 0.5, 3.0),
        ("alias_table", weights),
        ("alias_sample", *ops.alias_table(weights), seed, 0, 5000),
        ("inverse_cdf_sample", weights, seed, 30),
        *(("multinomial_without_replacement", weights, seed, k, "multinomial") for k in (5, 400)),
        *((name, weights, seed, 5000) for name in ("systematic_resample", "stratified_resample", "residual_resample")),
        ("refuse_states", torch.ones(5000, 2), torch.ones(5000, dtype=torch.int64), "multinomial"),
        ("sum_tree", weights),
        *(
            ("sum_tree_update_", weights, ops.sum_tree(weights)[1], torch.arange(n) % 700, torch.rand(n))
            for n in (20, 3000)
        ),
        ("sum_tree_sample", ops.sum_tree(weights)[1], 5000, seed, 0, 3000),
        *((name, x[:, :1500], seed) for name in ("categorical", "gumbel_noise")),
        *(("categorical_backward", x[:, :1500], x[:, :1500], seed, torch.tensor([3, 9, 2]), e, 0.5) for e in range(3)),
        ("subset", x[:, :1500], seed, 3),
        ("subset_backward", x[:, :1500], x[:, :1500], seed, 5, 0.5),
        ("bernoulli", x.sigmoid(), seed),
    ]


def kernels_of_the_sources() -> set[str]:
    sources = [path for path in (emulator.ROOT / "csrc" / "cuda").rglob("*") if path.suffix in (".cu", ".cuh")]
    return {name for path in sources for name in re.findall(r"\b(\w+_kernel)\(", path.read_text())}


# The blocks in their order too where everything is checked (make races).
@pytest.mark.parametrize("order", ["forward", "1"] if emulator.CHECK_EVERYTHING else ["1"])
def test_no_kernel_of_ours_races_or_leaves_its_memory(monkeypatch, order):
    monkeypatch.setenv("STE_OPS_EMULATED_ORDER", order)
    with emulated_kernels(), emulator.checked():
        for name, arguments in ARGUMENTS.items():
            for sample in arguments("cpu"):
                getattr(ops, name)(*sample)
        for name, *arguments in large():
            getattr(ops, name)(*arguments)
    checked = set(re.findall(r"(\w+_kernel)\b", emulator.checked_kernels()))
    assert kernels_of_the_sources() - checked == set()


def test_the_record_of_an_error_is_memory_of_the_device():
    with emulated_kernels(), emulator.checked():
        ste_ops.bernoulli_ste(torch.tensor([0.5, 1.5]))
        with pytest.raises(RuntimeError, match=r"bernoulli_ste: p must be in \[0, 1\], got 1\.5 at index 1"):
            ops.raise_deferred(torch.empty(0))
