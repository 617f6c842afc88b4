"""Weighted draws from exact integer tables, and draws with a gradient."""

from ste_ops.functional.sampling.alias import AliasTable
from ste_ops.functional.sampling.bernoulli import bernoulli_ste
from ste_ops.functional.sampling.categorical import categorical_ste
from ste_ops.functional.sampling.deferred import check_deferred_errors
from ste_ops.functional.sampling.multinomial import multinomial
from ste_ops.functional.sampling.resample import residual_resample, stratified_resample, systematic_resample
from ste_ops.functional.sampling.subset import subset_ste
from ste_ops.functional.sampling.sum_tree import SumTree

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
