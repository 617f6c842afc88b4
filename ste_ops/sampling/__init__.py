"""Weighted draws from exact integer tables, and draws with a gradient."""

from ste_ops.sampling.alias import AliasTable
from ste_ops.sampling.bernoulli import bernoulli_ste
from ste_ops.sampling.deferred import check_deferred_errors
from ste_ops.sampling.multinomial import multinomial

__all__ = ["AliasTable", "bernoulli_ste", "check_deferred_errors", "multinomial"]
