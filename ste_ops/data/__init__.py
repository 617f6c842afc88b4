"""Samplers for `torch.utils.data.DataLoader`, and the weights that balance a labelled set."""

from ste_ops.data.balanced import ClassBalancedBatchSampler, MPerClassBatchSampler
from ste_ops.data.distributed import DistributedWeightedSampler
from ste_ops.data.labels import class_weights
from ste_ops.data.weighted import WeightedBatchSampler, WeightedRandomSampler

__all__ = [
    "ClassBalancedBatchSampler",
    "DistributedWeightedSampler",
    "MPerClassBatchSampler",
    "WeightedBatchSampler",
    "WeightedRandomSampler",
    "class_weights",
]
