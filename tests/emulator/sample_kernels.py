"""Compiles sample_kernels.cu and calls its kernels by name."""

import ctypes

import numpy as np

import emulator

ORDERS = ["forward", "reverse", "1", "2", "3"]  # of the threads, as STE_OPS_EMULATED_ORDER names them


def build(folder, *defines):
    sources = [emulator.FOLDER / "sample_kernels.cu"]
    path = emulator.compile_sources(folder, "samples.so", sources, [*emulator.FLAGS, *defines], emulator.LINK)
    loaded = ctypes.CDLL(str(path))
    loaded.launch.restype = ctypes.c_char_p
    return loaded


def launcher(library, checked=False):
    def run(name, *arguments, blocks=1, threads=32, shared_bytes=0):
        blocks_x, blocks_y = blocks if isinstance(blocks, tuple) else (blocks, 1)
        shape = (ctypes.c_int * 4)(blocks_x, blocks_y, threads, shared_bytes)
        numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        for array in arrays if checked else []:
            library.emulator_add_allocation(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        library.emulator_check(int(checked))
        error = library.launch(name.encode(), shape, (ctypes.c_int64 * max(len(numbers), 1))(*numbers)).decode()
        library.emulator_check(0)
        for array in arrays:
            library.emulator_remove_allocation(ctypes.c_void_p(array.ctypes.data))
        if error:
            raise RuntimeError(error)

    return run
