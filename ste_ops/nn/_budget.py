"""How much of a forward may come back in the backward to make a tensor anew, before it is rather kept."""

from __future__ import annotations

from ste_ops.nn._cells import Cell, Recipe

# What is made anew may bring back so many times its bytes; of what has codes, so many where its input is not saved.
MOST, MOST_OF_CODES = 8, 4
# And so many operations run for it, which bounds also those on parameters alone.
MOST_STEPS = 16


def most_for(cell: Cell, recipe: Recipe) -> int:
    """The bytes that may come back with a cell.

    What a quantizer puts out, or a mask beside that, comes back for little more than its input, if that is saved too: a
    learned scale needs it. Else there are codes, of 4 bits and fewer an eighth of the floats, and the mask itself.
    """
    first = recipe.inputs[0].cell if recipe.inputs else None
    mask = recipe.output is not None and recipe.output > 0
    if first is None or not (cell.packer is not None or mask):
        return MOST * cell.nbytes
    if first.decided:
        return (MOST + 1) * first.nbytes + cell.nbytes
    if mask:
        return MOST_OF_CODES * first.nbytes
    return (MOST_OF_CODES if (cell.bits or 0) < 8 else MOST) * cell.nbytes
