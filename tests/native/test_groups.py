"""Groups of elements and their partition for reductions, from csrc/core/groups.h, against NumPy."""

import numpy as np
import pytest

from native import load

SHAPES = [(1,), (7,), (40,), (3, 5), (5, 3), (2, 40), (40, 2), (2, 3, 4), (3, 20, 2), (2, 9, 9), (70, 4, 3), (1, 1, 1)]


def expected_groups(kind, shape, axis):
    index = np.indices(shape)
    if kind == "whole":
        return np.zeros(shape, np.int64).ravel()
    if kind == "channels":
        return index[axis].ravel()
    others = [d for d in range(len(shape)) if d != axis]
    return np.ravel_multi_index([index[d].ravel() for d in others], [shape[d] for d in others]) if others else 0


@pytest.mark.parametrize(("span", "block"), [(8, 16), (16, 16), (64, 256), (5, 11)])
@pytest.mark.parametrize("kind", ["whole", "channels", "tokens"])
def test_every_element_is_visited_once_in_its_group(kind, span, block):
    native = load().quantize
    for shape in SHAPES:
        for axis in range(len(shape)):
            numel, stride = int(np.prod(shape)), int(np.prod(shape[axis + 1 :]))
            group, visited, result, lengths, count, results = native.walk_groups(
                kind, numel, shape[axis], stride, span, block
            )
            message = f"{kind} {shape} {axis}"
            np.testing.assert_array_equal(group, expected_groups(kind, shape, axis), message)
            np.testing.assert_array_equal(visited, group, message)
            assert count == max(group) + 1, message
            # Every result is written: none is read that no task filled.
            assert set(result) == set(range(results)), message
            assert max(lengths) <= max(block, 32 * span), message


def test_groups_of_nothing():
    native = load().quantize
    for kind, size, count in (("whole", 1, 1), ("channels", 3, 3), ("channels", 0, 0), ("tokens", 3, 0)):
        group, _, _, lengths, groups, results = native.walk_groups(kind, 0, size, 1, 8, 16)
        assert (group, lengths, groups, results) == ([], [], count, 0)


@pytest.mark.parametrize("kind", ["whole", "channels", "tokens"])
def test_a_walk_comes_through_the_groups_of_its_elements(kind):
    native = load().quantize
    for shape in SHAPES:
        for axis in range(len(shape)):
            numel, stride = int(np.prod(shape)), int(np.prod(shape[axis + 1 :]))
            groups = expected_groups(kind, shape, axis) + np.zeros(numel, np.int64)
            for start in {0, 1 % numel, numel // 2, numel - 1}:
                # Past the end the groups begin anew.
                walked = native.groups_from(kind, numel, shape[axis], stride, start, numel - start + 8)
                expected = np.resize(groups, 2 * numel + 8)[start : numel + 8]
                np.testing.assert_array_equal(walked, expected, f"{kind} {shape} {axis} {start}")


def test_divisions_of_both_widths():
    native = load().quantize
    numbers = [1, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 7]
    assert all(native.divided(a, b) == a // b for a in [0, *numbers] for b in numbers)
