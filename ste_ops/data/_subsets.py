"""Random sets without repetition, many at a time, in time linear in their sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

FEW = 16  # up to so many places in a row, each is compared with all before it


def subsets(u: NDArray[np.float64], n: Integers, k: Integers) -> Integers:
    """In row r a random set of k[r] numbers below n[r], all sets equally likely; to the right of them 0.

    Where k[r] > n[r], each of the k[r] is drawn anew. Source: algorithm F2 of Bentley and Floyd, "A sample of
    brilliance" (Communications of the ACM, 1987), which takes one random number for each element: place j draws a
    number up to its top, n - k + j, and takes the top itself where an earlier place has taken the number.

    Args:
        u: uniform multiples of 2^-48 in [0, 1), [rows, the largest k].
        n, k: [rows].
    """
    # numpy, element by element: torch would share out each of these many small steps to threads.
    rows, most = u.shape
    n, k, place = n[:, None], k[:, None], np.arange(most)
    inside, once = place < k, k <= n
    top = np.where(once, n - k + place, n - 1)
    number = np.where(inside, u * (top + 1), 0).astype(np.int64)
    # An earlier place has drawn the number too, or has taken it as its top.
    again = repeated(number, int(n.max())) & once
    owner = number - (n - k)
    owned = once & (owner >= 0) & (owner < place)
    row = most * np.arange(rows)[:, None]
    taken = _followed(again.reshape(-1), np.where(owned, row + owner, -1).reshape(-1)).reshape(rows, most)
    return np.where(inside, np.where(taken, top, number), 0)


def repeated(numbers: Integers, below: int) -> NDArray[np.bool_]:
    """Which numbers stand further left in their row too; they are from 0 to below - 1."""
    rows, most = numbers.shape
    if most <= FEW:
        again = np.zeros((rows, most), dtype=bool)
        for j in range(1, most):
            again[:, j] = (numbers[:, :j] == numbers[:, j : j + 1]).any(axis=1)
        return again
    return _repeated((numbers + below * np.arange(rows)[:, None]).reshape(-1)).reshape(rows, most)


def _repeated(keys: Integers) -> NDArray[np.bool_]:
    """Which keys have an equal one before them: by a table where the first that comes to a slot holds it."""
    again = np.zeros(keys.size, dtype=bool)
    holder = np.empty(4 * keys.size, dtype=np.int64)
    left, size = np.arange(keys.size), holder.size
    while left.size:
        key = keys[left]
        slot = key % size
        holder[slot[::-1]] = left[::-1]  # of several that are written to one place, the last stays
        first = holder[slot]
        settled = keys[first] == key
        again[left] = settled & (first != left)
        left = left[~settled]
        size -= 1  # those whose slot another key holds come to other slots in the next round
    return again


def _followed(marked: NDArray[np.bool_], link: Integers) -> NDArray[np.bool_]:
    """Marks all that lead to a marked one by their links, which go back; -1 is none. Each round doubles their reach."""
    marked, link = np.append(marked, False), np.append(link, -1)
    while (link >= 0).any():
        marked |= marked[link]
        link = link[link]
    return marked[:-1]
