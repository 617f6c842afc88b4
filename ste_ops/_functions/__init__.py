"""The autograd.Function classes and fake kernels behind the public functions."""
