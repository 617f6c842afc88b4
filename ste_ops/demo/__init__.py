"""`python -m ste_ops demo`: trains a binary network on imbalanced digits, natively and with the reference.

The packages it needs beyond torch are the extra `demo`; nothing here imports them before the demo runs.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ste_ops._names import show_public_names

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a binary network on imbalanced digits",
        description="Trains a binary network three times on handwritten digits of which every second class is rare: "
        "with the native operators, with their reference, and natively without the weighted sampler. Then folds, packs "
        "and saves it and a wider one, loads both in a new process, and compares them there with float networks.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files (default: scikit-learn's digits)")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("demo.png"), help="default: demo.png")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the network and the draws; default: 0")
    parser.add_argument(
        "--hidden",
        type=int,
        default=2048,
        help="units of the wider network; default: 2048",
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--json", action="store_true", help="one object in the place of the tables")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    _check(options)
    # Here, not above: these modules belong to the demo alone, and `python -m ste_ops info` should not wait for them.
    from ste_ops.demo import data, deploy, report, train

    dataset = data.mnist(options.data) if options.data else data.digits(options.seed)
    dataset = data.imbalance(dataset, seed=options.seed)
    show: Callable[[str], None] = (lambda _: None) if options.json else print
    show(data.describe(dataset))
    result = train.compare(dataset, epochs=options.epochs, seed=options.seed, device=options.device)
    show(report.table(dataset, result))
    report.plot(result, options.out)
    show(f"curves: {options.out}")
    deployed = deploy.deploy(dataset, result[0], options.hidden, options.epochs, options.seed, options.device)
    show(report.deployed(deployed, len(dataset.test_labels)))
    if options.json:
        print(report.as_json(result, deployed, options.out))


def _check(options: argparse.Namespace) -> None:
    for name in ("epochs", "hidden"):
        if getattr(options, name) < 1:
            raise SystemExit(f"ste_ops demo: --{name} must be at least 1, got {getattr(options, name)}")
    needed = ["matplotlib", "tqdm"] if options.data else list(PACKAGES)
    missing = [PACKAGES[module] for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"ste_ops demo: {', '.join(missing)} not installed; expected the packages of the extra 'demo'. "
            "To mend it: pip install 'ste_ops[demo]'"
        )


show_public_names(__name__)
