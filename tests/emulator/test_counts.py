"""The emulator's counter: global memory alone, distinct bytes, and what is asked for again."""

import numpy as np
import pytest
from support.kernel_moves import definitions_of, differences

import emulator
from emulator.counts import Traffic, counted_in
from emulator.sample_kernels import build, launcher


@pytest.fixture(scope="module")
def library():
    return build(emulator.ROOT / "build" / "emulator" / "samples")


@pytest.fixture
def count(library):
    """The loads and the stores of one launch of a sample."""

    def run(name, *arguments, checked=False, **shape):
        with counted_in(library) as launches:
            launcher(library, checked)(name, *arguments, **shape)
        (launch,) = launches
        assert launch.kernel == f"{name}_kernel"
        return launch

    return run


def once(n):
    return Traffic(n, n, 0)


def ints(n):
    return np.arange(n, dtype=np.int32)


def floats(n):
    return np.arange(n, dtype=np.float32)


@pytest.mark.parametrize("checked", [False, True])
def test_each_byte_counts_once_where_it_moves_once(count, checked):
    launch = count("copy", ints(50), ints(50), 50, blocks=2, checked=checked)
    assert (launch.loads, launch.stores) == (once(200), once(200))
    launch = count("saxpy", 2, floats(100), floats(100), 100, blocks=3, checked=checked)
    assert (launch.loads, launch.stores) == (once(800), once(400))


def test_shared_memory_and_parameters_are_no_traffic(count):
    launch = count("early_return", floats(200), 200, floats(200), threads=256, shared_bytes=800)
    assert (launch.loads, launch.stores) == (once(800), once(800))
    launch = count("histogram", ints(64), ints(4), True, threads=64)
    assert (launch.loads, launch.stores) == (once(256), once(16))


def test_lanes_that_read_a_byte_together_read_it_once(count):
    launch = count("mask", np.full(8, 0x55, np.uint8), ints(64), threads=64)
    assert (launch.loads, launch.stores) == (Traffic(64, 8, 0), once(256))


def test_an_atomic_loads_and_stores(count):
    launch = count("total", ints(96), ints(1), True, blocks=3)
    assert (launch.loads, launch.stores) == (Traffic(384 + 12, 384 + 4, 4), Traffic(12, 4, 4))


def test_what_is_moved_again(count):
    launch = count("rotate", ints(256), 3, threads=256)  # a thread, the same instruction
    assert launch.loads == launch.stores == Traffic(3072, 1024, 1024)
    launch = count("largest", floats(1000), 1000, np.zeros(1, np.int64), blocks=2)  # another block
    assert launch.loads == Traffic(8000, 4000, 4000)


def test_launches_come_in_order_and_only_while_they_are_counted(library):
    launch = launcher(library)
    launch("copy", ints(50), ints(50), 50, blocks=2)
    with counted_in(library) as launches:
        launch("copy", ints(50), ints(50), 20, blocks=2)
        launch("saxpy", 2, floats(30), floats(30), 30)
        assert launches == []
    launch("copy", ints(50), ints(50), 50, blocks=2)
    assert [(one.kernel, one.stores) for one in launches] == [("copy_kernel", once(80)), ("saxpy_kernel", once(120))]


PLANTED = definitions_of((emulator.FOLDER / "sample_kernels.cu").read_text(), "kernel")


def test_an_array_that_is_read_twice_is_seen(count):
    planted, sizes = PLANTED["passes_kernel"], {"n": 4096, "blocks": 2}
    arguments = (floats(4096), 4096)
    assert differences(count("passes", *arguments, 1, floats(2), blocks=2), planted, sizes) == []
    assert differences(count("passes", *arguments, 2, floats(2), blocks=2), planted, sizes) == [
        "passes_kernel reads 0 bytes again, counted were 16384"
    ]
    assert differences(
        count("reversed_sum", *arguments, floats(4096), blocks=2), PLANTED["reversed_sum_kernel"], sizes
    ) == ["reversed_sum_kernel reads 0 bytes again, counted were 16384"]


def test_bytes_beyond_what_a_line_says_are_seen(count):
    launch = count("passes", floats(4096), 4096, 1, floats(2), blocks=2)
    assert differences(launch, PLANTED["passes_kernel"], {"n": 4095, "blocks": 3}) == [
        "passes_kernel reads n * T = 16380 bytes, counted were 16384",
        "passes_kernel writes blocks * T = 12 bytes, counted were 8",
    ]
