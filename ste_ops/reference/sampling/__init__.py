"""References of the sampling family: Python integers, equal to the native draws seed for seed."""

from ste_ops.reference.sampling.alias import AliasTable
from ste_ops.reference.sampling.bernoulli import bernoulli_ste
from ste_ops.reference.sampling.categorical import categorical_ste
from ste_ops.reference.sampling.multinomial import multinomial
from ste_ops.reference.sampling.subset import subset_ste

__all__ = ["AliasTable", "bernoulli_ste", "categorical_ste", "multinomial", "subset_ste"]
