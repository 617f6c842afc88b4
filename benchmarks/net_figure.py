"""python -m benchmarks.net_figure TABLE.md FIGURE.svg: draws a table of benchmarks/nets.py for any page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

GRAY = "#808890"
COLORS = {
    "float": "#9aa5b1",
    "plain": "#d98f5c",
    "brevitas": "#c9b458",
    "torchao": "#b58ac9",
    "ours": "#4f9ed9",
    "ours, recompute_": "#2fb38a",
}
LABELS = {"float": "float net", "plain": "plain torch", "brevitas": "Brevitas", "ours": "ste_ops"}
LABELS["ours, recompute_"] = "ste_ops, recompute_"


def rows(table: str, batch: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each net and kind the milliseconds of a step and the MiB kept; eager, contiguous."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[1:3] == ["contiguous", "eager"] and cells[0].endswith(f", {batch}"):
            name = cells[0].rsplit(",", 1)[0]
            found.setdefault(name, {})[cells[3]] = float(cells[4]), float(cells[6])
    return found


def panel(axes: Any, nets: dict[str, dict[str, tuple[float, float]]], place: int, title: str, unit: str) -> None:
    """Bars of each net, as shares of the float net's; numbers beside them."""
    top, ticks = 0.0, []
    for name, kinds in nets.items():
        ticks.append((top - (len(kinds) - 1) / 2, name))
        for kind, color in COLORS.items():
            if kind in kinds:
                share = kinds[kind][place] / kinds["float"][place]
                axes.barh(top, min(share, 6), 0.86, color=color)
                number = kinds[kind][place]
                text = (
                    (f"{number:.0f}" if number >= 100 else f"{number:.3g}")
                    + f" {unit}"
                    + (f" ({share:.1f} x)" if share > 6 else "")
                )
                axes.text(min(share, 6) + 0.06, top, text, va="center", fontsize=7, color=GRAY)
                top -= 1
        top -= 0.8
    axes.axvline(1, color=GRAY, linewidth=0.8, linestyle=":")
    axes.set_yticks([tick for tick, _ in ticks], [name.replace(", ", ",\n") for _, name in ticks])
    axes.set_xlim(0, 7.2)
    axes.set_title(title, color=GRAY, fontsize=10)
    axes.tick_params(colors=GRAY, labelsize=8)
    for side in axes.spines.values():
        side.set_color(GRAY)
        side.set_linewidth(0.5)


def main(table: Path, figure: Path, batch: int = 64) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    nets = rows(table.read_text(), batch)
    drawing = Figure(figsize=(9, 0.26 * sum(len(kinds) + 1 for kinds in nets.values()) + 1), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    panel(left, nets, 1, f"kept for the backward, batch {batch}, float net = 1", "MiB")
    panel(right, nets, 0, "a training step, float net = 1", "ms")
    drawn = [kind for kind in COLORS if any(kind in kinds for kinds in nets.values())]
    legend = [Patch(color=COLORS[kind], label=LABELS.get(kind, kind)) for kind in drawn]
    drawing.legend(handles=legend, loc="outside lower center", ncols=6, frameon=False, labelcolor=GRAY, fontsize=8)
    drawing.savefig(figure, transparent=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
