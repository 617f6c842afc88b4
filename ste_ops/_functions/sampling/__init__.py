"""Functions and fake kernels of the sampling family; importing it registers them."""

from ste_ops._functions.sampling import (
    alias,
    bernoulli,
    categorical,
    deferred,
    inverse_cdf,
    multinomial,
    resample,
    rows,
    subset,
    sum_tree,
)

__all__ = [
    "alias",
    "bernoulli",
    "categorical",
    "deferred",
    "inverse_cdf",
    "multinomial",
    "resample",
    "rows",
    "subset",
    "sum_tree",
]
