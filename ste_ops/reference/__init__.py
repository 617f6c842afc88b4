"""The pure-Python reference of every operator: slow, obvious, and what decides NaN, zeros, bounds and ties.

The same names and signatures as `ste_ops`, in plain torch operations.
"""

from ste_ops.reference.binarize import heaviside, sign
from ste_ops.reference.sampling import AliasTable, bernoulli_ste, multinomial

__all__ = ["AliasTable", "bernoulli_ste", "heaviside", "multinomial", "sign"]
