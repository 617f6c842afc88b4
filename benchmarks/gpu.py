"""A GPU's own measure of every operator: python -m benchmarks.gpu --part float32 --out FILE [--device cpu --quick]

In one run: what the device copies and reads a second, and against that the bytes that each operator must move; beside
it plain torch and torch.compile. Parts: a dtype's element-wise operators, `clip` over parameter lists, `draws`.
benchmarks/gpu_report.py makes tables and a picture of the rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

import ste_ops
from benchmarks import clip
from benchmarks.measure import medians
from benchmarks.straight_through import CASES, Case, saved_storages

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
DTYPES |= {"float64": torch.float64}
# A scale a channel has so many.
CHANNELS = 1024
MOST_OF_MULTINOMIAL = 2**24


@dataclass(frozen=True)
class Point:
    """Times in microseconds, None where there is nothing to compare with; `note` says why, or what it costs more.

    `fraction` is of the bandwidth `of`, "copy" or "read", from `bytes`, which must move: what is read and written once.
    """

    part: str
    work: str
    dtype: str
    size: int
    ours_us: float | None
    eager_us: float | None = None
    compiled_us: float | None = None
    bytes: int = 0
    of: str = ""
    fraction: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Scope:
    device: str
    quick: bool

    @property
    def sizes(self) -> list[int]:
        return [2**12, 2**14] if self.quick else [2**k for k in range(10, 29, 2)]

    @property
    def largest(self) -> int:
        return 2**16 if self.quick else 2**28

    def medians(self, *functions: Callable[[], object]) -> list[float]:
        # Plain torch sorts every four weights for sr_ste, which at the largest size takes seconds.
        rounds = 3 if self.quick else 11
        return [seconds * 1e6 for seconds in medians(functions, rounds, self.device, budget=0.5)]


Rows = Iterator[Point]


def bandwidth(scope: Scope, dtype: torch.dtype, kind: str) -> Point:
    """`clone()` reads and writes every byte, `sum()` reads it."""
    x = torch.ones(scope.largest, dtype=dtype, device=scope.device)
    (us,) = scope.medians(x.clone if kind == "copy" else x.sum)
    moved = x.nbytes * (2 if kind == "copy" else 1)
    return Point("bandwidth", kind, _name(dtype), x.numel(), us, bytes=moved, of=kind, fraction=1.0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _against(point: Point, us: float, moved: int) -> dict[str, Any]:
    """Of the bytes a microsecond that `point` has measured."""
    assert point.ours_us is not None
    return {"bytes": moved, "of": point.of, "fraction": moved / us / (point.bytes / point.ours_us)}


# Element-wise operators.


def elementwise(scope: Scope, dtype: torch.dtype) -> Rows:
    copy = bandwidth(scope, dtype, "copy")
    yield copy
    for size in scope.sizes:
        x = torch.randn(size, device=scope.device).to(dtype)
        (us,) = scope.medians(x.clone)
        yield Point("elementwise", "clone()", _name(dtype), size, us, **_against(copy, us, 2 * x.nbytes))
    for case in CASES:
        torch._dynamo.reset()
        # Compiled once for all sizes.
        compiled = [torch.compile(_in_dtype(f), dynamic=True) for f in (case.forward, case.backward)]
        for size in scope.sizes:
            yield from _of_case(scope, case, compiled, dtype, size, copy)


def _in_dtype(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same arithmetic with results in the dtype of x, as an operator gives them."""

    def run(x: Tensor, *rest: Tensor) -> Any:
        out = function(x, *rest)
        return (out[0].to(x.dtype), *out[1:]) if isinstance(out, tuple) else out.to(x.dtype)

    return run


def _of_case(scope: Scope, case: Case, compiled: list[Any], dtype: torch.dtype, size: int, copy: Point) -> Rows:
    rows = min(CHANNELS, size)
    x = torch.randn(rows, size // rows, device=scope.device).to(dtype).requires_grad_()
    grad, extra = torch.randn_like(x), case.extra(scope.device)
    detached, plain_extra = x.detach(), [e.detach() for e in extra]
    inputs = [x, *(e for e in extra if e.requires_grad)]
    try:
        ours, plain = case.ours(x, *extra), case.plain(x, *extra)
    except (RuntimeError, ValueError) as error:
        note = f"not at this size: {str(error).splitlines()[0]}"
        yield Point("elementwise", f"{case.name}, forward", _name(dtype), size, None, note=note)
        return
    saved = saved_storages(lambda: case.ours(x, *extra))
    beside_x = sum(n for place, n in saved.items() if place != x.untyped_storage().data_ptr())

    def point(direction: str, us: list[float], moved: int) -> Point:
        work = f"{case.name}, {direction}"
        compiled_us = us[2] if len(us) == 3 else None
        note = "" if compiled_us else "torch.compile failed"
        return Point(
            "elementwise",
            work,
            _name(dtype),
            size,
            us[0],
            us[1],
            compiled_us,
            note=note,
            **_against(copy, us[0], moved),
        )

    forward = [lambda: case.ours(x, *extra), lambda: case.plain(x, *extra)]
    yield point(
        "forward",
        scope.medians(*forward, *_runs(lambda: compiled[0](detached, *plain_extra))),
        2 * x.nbytes + beside_x,
    )
    backward = [
        lambda: torch.autograd.grad(ours, inputs, grad, retain_graph=True),
        lambda: torch.autograd.grad(plain, inputs, grad, retain_graph=True),
    ]
    yield point(
        "backward",
        # Without autograd, which compiled code would have around it too: in its favour where tensors are small.
        scope.medians(*backward, *_runs(lambda: compiled[1](detached, grad, *plain_extra))),
        2 * x.nbytes + sum(saved.values()),
    )


def _runs(function: Callable[[], object]) -> list[Callable[[], object]]:
    """Nothing where the compiler fails, which is not ours to mend."""
    try:
        function()
    except Exception as error:
        print(f"torch.compile failed: {str(error).splitlines()[:1]}")
        return []
    return [function]


# Clipping.


def clipping(scope: Scope) -> Rows:
    never = clip.NEVER
    lists = {
        "8 x 1024^2": [(64, 64) if scope.quick else (1024, 1024)] * 8,
        "1000 x 256": [(256,)] * 1000,
        "a ResNet-50": list(clip.resnet_50()),
        "a 12-layer transformer": list(clip.transformer_12(64, 500, 64) if scope.quick else clip.transformer_12()),
    }
    for dtype in (torch.float32, torch.bfloat16):
        read, copy = (bandwidth(scope, dtype, kind) for kind in ("read", "copy"))
        yield from (read, copy)
        for name, shapes in lists.items():
            parameters = [torch.empty(shape, dtype=dtype, device=scope.device, requires_grad=True) for shape in shapes]
            for p in parameters:
                p.grad = torch.randn_like(p)
            size, moved = sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
            calls = {
                "nothing to clip": lambda f, p=parameters: f(p, never),
                "clipping": lambda f, p=parameters: f(p, clip._shrinking(p)),
            }
            for what, call in calls.items():
                ours, eager = scope.medians(
                    lambda call=call: call(ste_ops.clip_grad_norm_), lambda call=call: call(torch_clip_grad_norm_)
                )
                # With nothing to clip every byte is read; else it is read again and written.
                reads = _against(read, ours, moved) if what == "nothing to clip" else _against(copy, ours, 3 * moved)
                yield Point("clip", f"clip_grad_norm_, {name}, {what}", _name(dtype), size, ours, eager, **reads)


# Draws.


def draws(scope: Scope) -> Rows:
    for n in (10**3, 10**4) if scope.quick else (10**4, 10**5, 10**6, 10**7, 10**8):
        weights = torch.rand(n, device=scope.device) + 1e-3
        table = ste_ops.AliasTable(weights)
        many = min(4 * n, 4 * 10**6)
        work: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            f"{many} draws from a built table": (
                lambda table=table, k=many: table.sample(k),  # type: ignore[misc]
                lambda w=weights, k=many: torch.multinomial(w, k, replacement=True),  # type: ignore[misc]
            ),
            f"a table and {many} draws": (
                lambda w=weights, k=many: ste_ops.multinomial(w, k, replacement=True),  # type: ignore[misc]
                lambda w=weights, k=many: torch.multinomial(w, k, replacement=True),  # type: ignore[misc]
            ),
            "10 draws without a table": (
                lambda w=weights: ste_ops.multinomial(w, 10, replacement=True),  # type: ignore[misc]
                lambda w=weights: torch.multinomial(w, 10, replacement=True),  # type: ignore[misc]
            ),
            f"{n // 10} draws without replacement": (
                lambda w=weights, k=n // 10: ste_ops.multinomial(w, k),  # type: ignore[misc]
                lambda w=weights, k=n // 10: torch.multinomial(w, k),  # type: ignore[misc]
            ),
        }
        fits = n <= MOST_OF_MULTINOMIAL
        for what, (ours, theirs) in work.items():
            us = scope.medians(ours, theirs) if fits else [*scope.medians(ours), None]
            note = "" if fits else "torch.multinomial takes at most 2^24 categories"
            yield Point("draws", what, "float32", n, us[0], us[1], note=note)


def rows(part: str, scope: Scope) -> Rows:
    if part in DTYPES:
        return elementwise(scope, DTYPES[part])
    return clipping(scope) if part == "clip" else draws(scope)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", required=True, choices=[*DTYPES, "clip", "draws"])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that every row runs")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after each row")
    options = parser.parse_args(given)
    torch.manual_seed(0)
    done = []
    for point in rows(options.part, Scope(options.device, options.quick)):
        done.append(asdict(point))
        fraction = "" if point.fraction is None else f", {point.fraction:.0%} of {point.of}"
        print(
            f"{point.dtype} {point.work} {point.size}: {point.ours_us or 0:.1f} us{fraction} {point.note}", flush=True
        )
        if options.out:
            options.out.write_text(json.dumps({"rows": done}))


if __name__ == "__main__":
    main()
