"""The CUDA emulator: right kernels give right results in every order, wrong ones are caught."""

import threading

import numpy as np
import pytest

import emulator
from emulator.sample_kernels import ORDERS, build, launcher


@pytest.fixture(scope="module")
def library():
    return build(emulator.ROOT / "build" / "emulator" / "samples")


@pytest.fixture
def launch(library):
    return launcher(library)


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("STE_OPS_EMULATED_ORDER", request.param)
    return request.param


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
def test_block_sum_is_exact_and_equal_in_every_order(launch, monkeypatch, threads):
    x = np.random.default_rng(0).standard_normal(10_000)
    sums = []
    for order in ORDERS:
        monkeypatch.setenv("STE_OPS_EMULATED_ORDER", order)
        of_block = np.full(3, np.nan)
        launch("sum_float64", x, x.size, of_block, blocks=3, threads=threads)
        sums.append(of_block)
    assert all(np.array_equal(sums[0], other) for other in sums)
    np.testing.assert_allclose(sums[0].sum(), x.sum(), rtol=1e-12)


def test_block_sum_of_integers(launch, order):
    x = np.random.default_rng(0).integers(0, 2**63, 5000, dtype=np.uint64)
    of_block = np.zeros(2, np.uint64)
    launch("sum_uint64", x, x.size, of_block, blocks=2, threads=160)
    assert of_block.sum() == x.sum()


def test_block_reduce_of_a_struct(launch, order):
    x = np.random.default_rng(1).integers(0, 50, 3000).astype(np.float32)
    index = np.full(1, -1, np.int64)
    launch("largest", x, x.size, index, threads=512)
    assert index[0] == x.argmax()


@pytest.mark.parametrize("threads", [32, 64, 1024])
def test_scan(launch, order, threads):
    x = np.random.default_rng(2).integers(0, 2**62, 3001, dtype=np.uint64)
    sums = np.zeros_like(x)
    launch("scan", x, x.size, sums, threads=threads)
    assert np.array_equal(sums, np.cumsum(x, dtype=np.uint64))


def test_compaction_by_ballot_and_atomics(launch, order):
    x = np.random.default_rng(3).integers(-50, 50, 2500).astype(np.int32)
    positive, count = np.zeros(2500, np.int32), np.zeros(1, np.int32)
    launch("compact", x, x.size, positive, count, blocks=10, threads=256)
    assert count[0] == (x > 0).sum()
    assert np.array_equal(np.sort(positive[: count[0]]), np.sort(x[x > 0]))


@pytest.mark.parametrize("n", [1, 33, 200, 256])
def test_threads_that_returned_are_not_waited_for(launch, order, n):
    x, reversed_ = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    launch("early_return", x, n, reversed_, threads=256, shared_bytes=4 * n)
    assert np.array_equal(reversed_, x[::-1])


def test_two_barriers_in_a_loop(launch, order):
    x = np.arange(256, dtype=np.int32)
    launch("rotate", x, 5, threads=256)
    assert np.array_equal(x, np.roll(np.arange(256), -5))


@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("argument", [0, 1, 3, 16, 31])
def test_warp_operations_follow_their_definitions(launch, order, width, argument):
    x, results = np.arange(60, 92, dtype=np.int32), np.zeros((7, 32), np.int32)
    launch("exchanges", x, width, argument, results, threads=32)
    lane = np.arange(32)
    first = lane // width * width
    last = first + width - 1
    up, down, xor = lane - argument, lane + argument, lane ^ argument
    sources = [first + argument % width, np.where(up < first, lane, up), np.where(down > last, lane, down)]
    sources.append(np.where(xor > last, lane, xor))
    assert np.array_equal(results[:4], x[np.array(sources)])
    assert (results[4] == 1).all()
    assert (results[5] == 1).all()
    assert (results[6, :16] == 0xAAAA).all()
    assert (results[6, 16:].view(np.uint32) == 0xAAAA0000).all()


def test_a_grid_of_two_dimensions(launch, order):
    x = np.zeros((3, 5), np.int32)
    launch("grid", x, blocks=(5, 3))
    assert np.array_equal(x, np.arange(3)[:, None] * 100 + np.arange(5))


def test_several_host_threads(launch, library):
    def work(seed, sums):
        x = np.random.default_rng(seed).integers(0, 2**32, 4000, dtype=np.uint64)
        of_block = np.zeros(2, np.uint64)
        launch("sum_uint64", x, x.size, of_block, blocks=2, threads=256)
        sums[seed] = of_block.sum() == x.sum()

    sums = {}
    workers = [threading.Thread(target=work, args=(seed, sums)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sums == dict.fromkeys(range(4), True)


def test_the_portable_fibers(tmp_path):
    launch = launcher(build(tmp_path, "-DEMULATOR_UCONTEXT"))
    x = np.arange(256, dtype=np.int32)
    launch("rotate", x, 5, threads=256)
    assert np.array_equal(x, np.roll(np.arange(256), -5))
    with pytest.raises(RuntimeError, match="thrown by thread 33"):
        launch("throwing", blocks=4, threads=64)


# Planted mistakes.


def run_reversal(launch, kernel, threads):
    x, reversed_ = np.arange(threads, dtype=np.int32), np.zeros(threads, np.int32)
    launch(kernel, x, reversed_, threads=threads)
    return np.array_equal(reversed_, x[::-1])


@pytest.mark.parametrize(("kernel", "threads"), [("missing_barrier", 256), ("missing_warp_barrier", 32)])
def test_a_missing_barrier_gives_wrong_results(launch, order, kernel, threads):
    assert not run_reversal(launch, kernel, threads)


def test_a_missing_barrier_at_the_end_of_a_loop_gives_wrong_results(launch, order):
    x = np.arange(256, dtype=np.int32)
    launch("missing_second_barrier", x, 5, threads=256)
    assert not np.array_equal(x, np.roll(np.arange(256), -5))


def test_a_skipped_barrier_is_a_deadlock(launch, order):
    with pytest.raises(
        RuntimeError,
        match=r"skipped_barrier_kernel.* launched by test, block 0: deadlock: threads 0\.\.39 "
        r"wait in __syncthreads at .*sample_kernels.cu:\d+ .*; threads 40\.\.63 wait in __shfl_sync",
    ):
        launch("skipped_barrier", threads=64)


def test_divergent_barriers_raise(launch, order):
    with pytest.raises(RuntimeError, match=r"divergent_barrier_kernel.*divergent barriers: threads 0\.\.31 .*32\.\.63"):
        launch("divergent_barrier", threads=64)


def test_absent_lanes_raise(launch, order):
    with pytest.raises(
        RuntimeError, match=r"deadlock: threads 0\.\.15 wait in __shfl_sync .*16\.\.31 wait in __syncthreads"
    ):
        launch("absent_lanes", threads=32)


def test_a_lane_outside_its_own_mask_raises(launch, order):
    with pytest.raises(RuntimeError, match=r"__shfl_sync at .*: lane (1[6-9]|2\d|3[01]) is not in its own mask 65535"):
        launch("foreign_mask", threads=32)


def test_shared_memory_starts_as_garbage_in_every_block(launch, order):
    out = np.zeros((3, 64), np.float32)
    launch("uninitialized_shared", out, blocks=3, threads=64)
    assert np.isnan(out).all()


def test_a_lane_that_returned_has_no_value(launch, order):
    out = np.zeros(16, np.float32)
    launch("returned_lane", out, threads=32)
    assert (out[:15] == 1).all()
    assert np.isnan(out[15])


def test_dynamic_shared_memory_ends(launch, order):
    launch("overrun", 15, shared_bytes=64)
    with pytest.raises(RuntimeError, match="wrote byte 64 of 64 bytes of dynamic shared memory"):
        launch("overrun", 16, shared_bytes=64)


def test_an_index_outside_an_array_raises(launch, order):
    out = np.ones(64, np.int32)
    launch("index", 0, out, threads=64)
    assert (out == 0).all()
    with pytest.raises(RuntimeError, match=r"index 6[4-9] outside 'int \[64\]' at .*sample_kernels.cu"):
        launch("index", 6, out, threads=64)


def test_a_misaligned_vector_access_raises(launch, order):
    x, out = np.arange(300, dtype=np.float32), np.zeros(300, np.float32)
    x, out = (a[-a.ctypes.data % 16 // 4 :] for a in (x, out))
    launch("misaligned", x, out)
    assert np.array_equal(out[:128], x[:128])
    with pytest.raises(RuntimeError, match=r"misaligned access at .*: 'const struct float4' needs 16 bytes"):
        launch("misaligned", x[1:], out)


def test_exceptions_reach_the_launching_thread_and_leave_the_emulator_usable(launch, order):
    for _ in range(3):
        with pytest.raises(RuntimeError, match="thrown by thread 33"):
            launch("throwing", blocks=4, threads=64)
        x = np.arange(256, dtype=np.int32)
        launch("rotate", x, 1, threads=256)
        assert np.array_equal(x, np.roll(np.arange(256), -1))


def test_a_block_does_one_atomic_on_memory_of_the_host(launch, order):
    claimed = np.zeros(1, dtype=np.uint64)
    launch("host_atomics", claimed, 1, blocks=3, threads=64)
    assert claimed == 1
    with pytest.raises(RuntimeError, match="more than one atomic on memory of the host: atomicCAS_system at "):
        launch("host_atomics", claimed, 2, blocks=3, threads=64)


def test_block_sizes_are_whole_warps(launch):
    with pytest.raises(RuntimeError, match="multiple of 32 up to 1024, got 48"):
        launch("grid", np.zeros(1, np.int32), threads=48)


def test_an_unknown_order_raises(launch, monkeypatch):
    monkeypatch.setenv("STE_OPS_EMULATED_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="forward, reverse or a seed, got sideways"):
        launch("grid", np.zeros(1, np.int32))
