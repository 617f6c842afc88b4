"""References of the sampling family: Python integers, equal to the native draws seed for seed."""

from ste_ops.reference.sampling.alias import AliasTable
from ste_ops.reference.sampling.bernoulli import bernoulli_ste
from ste_ops.reference.sampling.categorical import categorical_ste
from ste_ops.reference.sampling.multinomial import multinomial
from ste_ops.reference.sampling.resample import residual_resample, stratified_resample, systematic_resample
from ste_ops.reference.sampling.subset import subset_ste
from ste_ops.reference.sampling.sum_tree import SumTree

__all__ = [
    "AliasTable",
    "SumTree",
    "bernoulli_ste",
    "categorical_ste",
    "multinomial",
    "residual_resample",
    "stratified_resample",
    "subset_ste",
    "systematic_resample",
]
