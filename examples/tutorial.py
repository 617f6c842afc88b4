"""The PyTorch tutorial on data loading and gradients, from top to bottom, with the operators of ste_ops.

    python examples/tutorial.py                  # on the CPU; docs/tutorial.txt is what it prints
    python examples/tutorial.py --device cuda

tutorial_data.py and tutorial_gradients.py are the lesson: a section is a function that first says why. Seeds are fixed,
so each run prints the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from tutorial_data import datasets, imbalance, many_categories, samplers
from tutorial_gradients import checks, clipping, function, gradients
from tutorial_page import say

SECTIONS: dict[str, tuple[Callable[[torch.device], None], ...]] = {
    "Dataset, TensorDataset, Subset, DataLoader, IterableDataset": (datasets,),
    "SequentialSampler, RandomSampler, SubsetRandomSampler, BatchSampler, DistributedSampler": (samplers,),
    "WeightedRandomSampler, class weights": (imbalance, many_categories),
    ".grad and what makes it": (gradients,),
    "gradcheck, jacobian, hessian": (checks,),
    "autograd.Function: StraightThroughStep": (function,),
    "clip_grad_norm_, clip_grad_value_": (clipping,),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", help="where the operators compute; default: cpu")
    device = torch.device(parser.parse_args(arguments).device)
    for number, (title, parts) in enumerate(SECTIONS.items(), start=1):
        print(f"{number}. {title}")
        for part in parts:
            say(part.__doc__ or "")
            torch.manual_seed(0)
            part(device)
        print()


if __name__ == "__main__":
    main()
