"""`python -m ste_ops gallery`: every operator's forward and gradient in one picture.

The curves come out of the operators themselves, the gradients through autograd, with an incoming gradient of 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ste_ops
from ste_ops import surrogate
from ste_ops._names import show_public_names
from ste_ops.surrogate.base import native_surrogates

COLUMNS = 5
POINTS = 801

# Told apart by width, dashes and markers, so that they can be read without colour.
FORWARD: dict[str, Any] = {"color": "0.15", "linewidth": 2.6, "solid_joinstyle": "miter"}
GRADIENT: dict[str, Any] = {"color": "#fd8d3c", "linewidth": 1.4, "linestyle": (0, (4, 2))}
PARAMETER: dict[str, Any] = {"color": "#1f78b4", "linewidth": 1.6, "linestyle": (0, (0.8, 1.3))}
FAINT: dict[str, Any] = {"color": "0.75", "linewidth": 1.0}
DOTS: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 2.2}


@dataclass(frozen=True)
class Panel:
    """One small multiple: curves as (x, y, style), and words as (x, y, text)."""

    title: str
    curves: list[tuple[Tensor, Tensor, dict[str, Any]]]
    words: list[tuple[float, float, str]] = field(default_factory=list)
    axis: str = "x"


@dataclass(frozen=True)
class Group:
    title: str
    panels: list[Panel]
    low: float = -2.2
    high: float = 2.2


def _line(low: float = -2.05, high: float = 2.05) -> Tensor:
    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def _both(fn: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = fn(x)
    return out.detach(), torch.autograd.grad(out, x, torch.ones_like(out) if grad is None else grad)[0]


def _panel(
    title: str, fn: Callable[[Tensor], Tensor], x: Tensor | None = None, axis: str = "x", **words: tuple[float, float]
) -> Panel:
    x = _line() if x is None else x
    out, gradient = _both(fn, x)
    labels = [(*place, text.replace("_", " ")) for text, place in words.items()]
    return Panel(title, [(x, out, FORWARD), (x, gradient, GRADIENT)], labels, axis)


def groups() -> Iterator[Group]:
    yield Group("Steps, with the gradient of Clip(1), and draws", [*_binarizers()])
    yield Group("Surrogates: what stands in for the gradient of a step (grey)", [*_surrogates()], low=-0.5, high=2.3)
    yield Group("Rounding: the gradient passes", [*_rounding()])
    yield Group(
        "Quantizers: the gradient passes in their range; learned scales have one of their own", [*_quantizers()]
    )
    yield Group("Weights and tokens, scaled by a statistic of themselves", [*_statistics()])
    yield Group("Sparsity, and clipping of the gradient inside the graph", [*_graph()])


def _binarizers() -> Iterator[Panel]:
    yield _panel("heaviside(x)", lambda x: ste_ops.heaviside(x), forward=(1.12, 1.2), gradient=(-0.98, 1.2))
    yield _panel("sign(x)", lambda x: ste_ops.sign(x))
    yield _panel("ternary(x, threshold=0.5)", lambda x: ste_ops.ternary(x, threshold=0.5))
    p = torch.linspace(0, 1, 161, dtype=torch.float64)
    draws, gradient = _both(lambda p: ste_ops.bernoulli_ste(p, generator=_seed()), p)
    yield Panel(
        "bernoulli_ste(p)",
        [(p, gradient, GRADIENT), (p, draws, {**DOTS, "color": "black"})],
        [(0.05, 1.25, "gradient"), (0.05, -0.5, "draws of 0 and 1")],
        axis="p",
    )
    yield _drawn_panel("categorical_ste(x)", lambda x: ste_ops.categorical_ste(x, generator=_seed()))
    yield _drawn_panel("subset_ste(x, 2)", lambda x: ste_ops.subset_ste(x, 2, generator=_seed()))


def _drawn_panel(title: str, draw: Callable[[Tensor], Tensor]) -> Panel:
    """The first of three logits, the others being 0."""
    x, others = torch.linspace(-2, 2, 161, dtype=torch.float64), torch.zeros(161, 2, dtype=torch.float64)
    draws, gradient = _both(lambda x: draw(torch.cat([x[:, None], others], -1))[:, 0], x)
    words = [(-1.95, 0.45, "gradient"), (-1.95, -0.6, "draws of 0 and 1")]
    return Panel(title, [(x, gradient, GRADIENT), (x, draws, {**DOTS, "color": "black"})], words, "x beside 0, 0")


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _number(value: float) -> str:
    return f"{value:g}"


def _surrogates() -> Iterator[Panel]:
    x = _line()
    for cls in native_surrogates():
        one = cls()
        name = cls.__name__
        values = ", ".join(_number(getattr(one, each.name)) for each in fields(one))
        out, gradient = _both(partial(ste_ops.heaviside, surrogate=one), x)
        peak = float(gradient.max())
        words = [(0.5, 1.75, f"{_number(round(peak, 2))} at 0")] if peak > 2.2 else []
        yield Panel(f"{name}({values})", [(x, out, FAINT), (x, gradient, GRADIENT)], words)
    out, gradient = _both(lambda x: ste_ops.heaviside(x, surrogate.Custom(lambda x: torch.cos(x).clamp(min=0))), x)
    yield Panel("Custom(any function)", [(x, out, FAINT), (x, gradient, GRADIENT)], [(-0.45, 1.3, "cos(x)")])


def _rounding() -> Iterator[Panel]:
    for name in ("round", "floor", "ceil", "trunc"):
        yield _panel(f"{name}(x)", getattr(ste_ops, name))
    x = torch.linspace(-2, 2, 241, dtype=torch.float64)
    draws, gradient = _both(lambda x: ste_ops.stochastic_round(x, generator=_seed()), x)
    yield Panel("stochastic_round(x)", [(x, gradient, GRADIENT), (x, draws, {**DOTS, "color": "black"})])


def _quantizers() -> Iterator[Panel]:
    x = _line()
    yield _panel("clamp(x, -1, 1)", lambda x: ste_ops.clamp(x, -1.0, 1.0))
    yield _panel("fake_quantize(x, 0.4, 0, -3, 3)", lambda x: ste_ops.fake_quantize(x, 0.4, 0, -3, 3))
    # A scale for each element, so that each has its own gradient.
    scale = torch.full_like(x, 0.6).requires_grad_()
    z = x.clone().requires_grad_()
    out = ste_ops.lsq(z, scale, -2, 2, axis=0, grad_scale=1.0)
    of_x, of_scale = torch.autograd.grad(out, (z, scale), torch.ones_like(out))
    curves = [(x, out.detach(), FORWARD), (x, of_x, GRADIENT), (x, of_scale, PARAMETER)]
    yield Panel("lsq(x, 0.6, -2, 2)", curves, [(-0.2, 1.7, "of scale")])
    offset = torch.full_like(x, -0.5).requires_grad_()
    out = ste_ops.lsq_plus(z, scale, offset, 0, 3, axis=0, grad_scale=1.0)
    of_x, of_scale, of_offset = torch.autograd.grad(out, (z, scale, offset), torch.ones_like(out))
    curves = [
        (x, out.detach(), FORWARD),
        (x, of_x, GRADIENT),
        (x, of_scale, PARAMETER),
        (x, of_offset, {**PARAMETER, "linestyle": "-."}),
    ]
    yield Panel("lsq_plus(x, 0.6, -0.5, 0, 3)", curves, [(-1.9, -1.2, "of scale; of offset (-.)")])
    alpha = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    of_alpha = torch.stack([torch.autograd.grad(ste_ops.pact(one, alpha, 2), alpha)[0] for one in x])
    out, of_x = _both(lambda x: ste_ops.pact(x, alpha.detach(), 2), x)
    curves = [(x, out, FORWARD), (x, of_x, GRADIENT), (x, of_alpha, PARAMETER)]
    yield Panel("pact(x, 1.2, bits=2)", curves, [(0.95, -0.55, "of alpha")])
    yield _panel("dorefa_activation(x, 2)", lambda x: ste_ops.dorefa_activation(x, 2))


def _statistics() -> Iterator[Panel]:
    yield _panel("dorefa_weight(w, 2)", lambda w: ste_ops.dorefa_weight(w, 2), axis="w")
    yield _panel("xnor_weight(w)", ste_ops.xnor_weight, axis="w")
    yield _panel("magnitude_aware_sign(w)", ste_ops.magnitude_aware_sign, axis="w")
    yield _panel("bitnet_weight(w)", ste_ops.bitnet_weight, axis="w")
    yield _panel("bitnet_activation(x, bits=3)", lambda x: ste_ops.bitnet_activation(x, 3))


def _graph() -> Iterator[Panel]:
    w = (torch.rand(400, generator=_seed(), dtype=torch.float64) * 4 - 2).sort().values
    shuffle = torch.randperm(400, generator=_seed())
    out, gradient = _both(lambda w: ste_ops.sr_ste(w, 2, 4, decay=0.4), w[shuffle])
    curves = [
        (w[shuffle], gradient, {**DOTS, "color": GRADIENT["color"], "marker": "x"}),
        (w[shuffle], out, {**DOTS, "color": "black"}),
    ]
    yield Panel("sr_ste(w, 2, 4, decay=0.4)", curves, [(-1.95, 1.25, "gradient"), (0.3, -0.75, "forward")], axis="w")
    x = _line()
    _, clipped = _both(lambda x: ste_ops.clip_gradient_value(x, 1.0), torch.zeros_like(x), x)
    yield Panel("clip_gradient_value(x, 1)", [(x, clipped, GRADIENT)], [], axis="incoming gradient")
    rows = x.view(-1, 1)
    _, clipped = _both(lambda x: ste_ops.clip_gradient_norm(x, 1.0, dim=1), torch.zeros_like(rows), rows)
    yield Panel("clip_gradient_norm(x, 1, dim=1)", [(x, clipped.flatten(), GRADIENT)], [], axis="incoming gradient")


# Inches. The layout is fixed, so that every panel has the same size and stands in its column.
WIDTH, CELL, HEIGHT = 9.6, 1.86, 1.08
LEFT, TITLE, GAP, LABEL, TOP = 0.28, 0.36, 0.42, 0.1, 0.34


def picture() -> Any:
    """The figure, of all groups."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    table = list(groups())
    rows = [-(-len(group.panels) // COLUMNS) for group in table]
    height = TOP + sum(TITLE + count * (HEIGHT + GAP) for count in rows) + LABEL
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    names = {"forward": FORWARD, "gradient of x": GRADIENT, "gradient of the learned parameter": PARAMETER}
    lines = [Line2D([], [], label=name, **style) for name, style in names.items()]
    corner = (1 - 0.1 / WIDTH, 1 - 0.02 / height)
    figure.legend(handles=lines, loc="upper right", bbox_to_anchor=corner, ncols=3, frameon=False, fontsize=9)
    top = TOP
    for group, count in zip(table, rows, strict=True):
        place = (0.1 / WIDTH, 1 - (top + 0.02) / height)
        figure.text(*place, group.title, fontsize=9.5, fontweight="bold", ha="left", va="top")
        top += TITLE
        for k, panel in enumerate(group.panels):
            left, low = LEFT + k % COLUMNS * CELL, top + (k // COLUMNS) * (HEIGHT + GAP) + HEIGHT
            box = (left / WIDTH, 1 - low / height, (CELL - 0.24) / WIDTH, HEIGHT / height)
            _draw_panel(figure.add_axes(box), panel, group)
        top += count * (HEIGHT + GAP)
    return figure


def _draw_panel(axes: Any, panel: Panel, group: Group) -> None:
    axes.axhline(0, color="0.85", linewidth=0.6)
    for x, y, style in panel.curves:
        axes.plot(x.numpy(), y.numpy(), **style)
    for *place, text in panel.words:
        axes.text(*place, text, fontsize=7.5)
    axes.set_title(panel.title, fontsize=8, pad=3)
    wide = panel.axis != "p"
    axes.set_xlim(*((-2.05, 2.05) if wide else (-0.03, 1.03)))
    axes.set_xticks([-2, -1, 0, 1, 2] if wide else [0, 0.5, 1])
    axes.set_ylim(group.low, group.high)
    axes.set_yticks([tick for tick in (-2, -1, 0, 1, 2) if tick > group.low])
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    if panel.axis != "x":
        axes.set_xlabel(panel.axis, fontsize=7, labelpad=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# The command.


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "gallery",
        help="draw every operator and its gradient",
        description="Draws every operator's forward and gradient, as the operators compute them, in one picture.",
    )
    parser.add_argument("--out", type=Path, metavar="PNG", default=Path("gallery.png"), help="default: gallery.png")
    parser.add_argument("--json", action="store_true", help="one object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit(
            "ste_ops gallery: matplotlib not installed; expected the package of the extra 'gallery'. "
            "To mend it: pip install 'ste_ops[gallery]'"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture().savefig(options.out, dpi=140)
    print(json.dumps({"gallery": str(options.out)}) if options.json else f"gallery: {options.out}")


show_public_names(__name__)
