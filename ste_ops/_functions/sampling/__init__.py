"""Functions and fake kernels of the sampling family; importing it registers them."""

from ste_ops._functions.sampling import alias, bernoulli, categorical, multinomial, subset

__all__ = ["alias", "bernoulli", "categorical", "multinomial", "subset"]
