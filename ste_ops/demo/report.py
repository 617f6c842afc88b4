"""The table and the curves of the demo's three runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

from ste_ops._names import show_public_names
from ste_ops.demo.data import RARE, Digits
from ste_ops.demo.deploy import Deployed
from ste_ops.demo.nets import KINDS
from ste_ops.demo.train import Run


def table(dataset: Digits, runs: list[Run]) -> str:
    native, reference, _ = runs
    rare = "rare (" + " ".join(map(str, RARE)) + ")"
    lines = ["", f"{'test accuracy':28}{'all classes':>14}{rare:>20}{'rare among draws':>19}"]
    for run in runs:
        lines.append(
            f"{run.name:28}{run.accuracy[-1]:14.1%}{run.rare_accuracy[-1]:20.1%}{run.rare_drawn / run.drawn:19.1%}"
        )
    lines += ["", f"{'weighted sampler':28}{'native':>14}{'reference':>20}{'ratio':>19}"]
    rows: list[tuple[str, float, float, str]] = [
        ("time a step (median), ms", 1e3 * median(native.seconds), 1e3 * median(reference.seconds), "14.2f")
    ]
    names = ("saved for backward, bytes", "  by sign")
    rows += [(*row, "14,") for row in zip(names, native.saved_bytes(), reference.saved_bytes(), strict=True)]
    for name, ours, theirs, style in rows:
        lines.append(f"{name:28}{ours:{style}}{'':6}{theirs:{style}}{ours / theirs:19.2f}")
    gap = max(abs(a - b) for a, b in zip(native.losses, reference.losses, strict=True))
    lines += ["", f"training loss, native and reference: {gap:.2g} apart at most"]
    return "\n".join(lines)


def deployed(nets: list[Deployed], images: int) -> str:
    """File, accuracy and speed of the float, the quantized and the packed nets, size by size."""
    lines = ["", f"{'loaded in a new process':28}" + "".join(f"{name:>13}" for name in KINDS) + f"{'packed/float':>14}"]
    for net in nets:
        lines.append(f"{net.hidden} hidden units, {net.epochs} epoch{'' if net.epochs == 1 else 's'}")
        microseconds = {kind: 1e6 * seconds for kind, seconds in net.seconds.items()}
        rows: list[tuple[str, Mapping[str, float], str]] = [
            ("file, bytes", net.bytes, ","),
            ("test accuracy", net.accuracy, ".1%"),
            ("time an image (median), us", microseconds, ",.0f"),
        ]
        for name, values, style in rows:
            ratio = "" if values is net.accuracy else f"{values['packed'] / values['float']:14.2f}"
            lines.append(f"  {name:26}" + "".join(f"{values[kind]:13{style}}" for kind in KINDS) + ratio)
    slower = [str(net.hidden) for net in nets if net.seconds["packed"] > net.seconds["float"]]
    if slower:
        lines.append(f"Packed is slower at {' and '.join(slower)} hidden units, where calls take longer than products.")
    changed = " and ".join(str(net.changed) for net in nets)
    lines += [
        "",
        "float: trained alike, with hardtanh in the place of sign",
        "quantized: takes the signs of its float weights in each call",
        "packed: has outputs equal to the last bit to those before it was saved, and to those of quantized",
        f"norms folded, which changed {changed} of {images} answers; files of torch.save; one image a call, one thread",
    ]
    return "\n".join(lines)


def as_json(runs: list[Run], nets: list[Deployed], out: Path) -> str:
    """What the two tables say, epoch by epoch, as one object."""
    trained = [
        {
            "name": run.name,
            "loss": run.losses,
            "accuracy": run.accuracy,
            "rare_accuracy": run.rare_accuracy,
            "rare_among_draws": run.rare_drawn / run.drawn,
            "seconds_a_step": median(run.seconds),
        }
        for run in runs
    ]
    return json.dumps({"runs": trained, "loaded_in_a_new_process": [asdict(net) for net in nets], "curves": str(out)})


# Told apart by width, dashes and markers, so that they can be read without colour.
STYLES = [
    {"color": "#9ecae1", "linewidth": 6.0},
    {"color": "black", "linewidth": 1.5, "linestyle": (0, (4, 3))},
    {"color": "#d95f02", "linewidth": 1.5, "marker": "o", "markerfacecolor": "white"},
]


def plot(runs: list[Run], out: Path) -> None:
    """Loss and accuracies over the epochs, side by side, one legend below them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    titles = ("Training loss", "Test accuracy, all classes", "Test accuracy, rare classes")
    for axes, title, curve in zip(panels, titles, ("losses", "accuracy", "rare_accuracy"), strict=True):
        for run, style in zip(runs, STYLES, strict=True):
            values = getattr(run, curve)
            axes.plot(range(1, len(values) + 1), values, label=run.name, **style)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if curve == "losses":
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


show_public_names(__name__)
