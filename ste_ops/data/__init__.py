"""Samplers for `torch.utils.data.DataLoader`, and the weights that balance a labelled set."""

from ste_ops.data.labels import class_weights
from ste_ops.data.weighted import WeightedRandomSampler

__all__ = ["WeightedRandomSampler", "class_weights"]
