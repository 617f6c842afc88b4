"""Weighted draws from exact integer tables, and draws with a gradient."""

from ste_ops.sampling.alias import AliasTable
from ste_ops.sampling.bernoulli import bernoulli_ste

__all__ = [
    "AliasTable",
    "SumTree",
    "bernoulli_ste",
    "categorical_ste",
    "check_deferred_errors",
    "multinomial",
    "residual_resample",
    "stratified_resample",
    "subset_ste",
    "systematic_resample",
]
