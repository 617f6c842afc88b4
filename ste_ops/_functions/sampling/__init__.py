"""Functions and fake kernels of the sampling family; importing it registers them."""

from ste_ops._functions.sampling import alias, bernoulli, deferred, inverse_cdf, multinomial

__all__ = ["alias", "bernoulli", "deferred", "inverse_cdf", "multinomial"]
