"""Functions and fake kernels of the quantizers."""
