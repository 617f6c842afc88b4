"""Weighted draws from exact integer tables, and draws with a gradient."""

from ste_ops.sampling.alias import AliasTable
from ste_ops.sampling.bernoulli import bernoulli_ste
from ste_ops.sampling.categorical import categorical_ste
from ste_ops.sampling.multinomial import multinomial
from ste_ops.sampling.subset import subset_ste

__all__ = ["AliasTable", "bernoulli_ste", "categorical_ste", "multinomial", "subset_ste"]
