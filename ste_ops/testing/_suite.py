"""`gradcheck_suite`, and the command `python -m ste_ops gradcheck`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ste_ops.testing._report import CHECKS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


@dataclass(frozen=True)
class Result:
    """One check of one operator: ``passed``, or not with the error, or None with the reason why it does not apply."""

    passed: bool | None
    compared: int = 0
    message: str = ""

    def __str__(self) -> str:
        return "-" if self.passed is None else "pass" if self.passed else "FAIL"


@dataclass(frozen=True)
class Row:
    """An operator with its arguments, and the result of each of `CHECKS`."""

    operator: str
    arguments: str
    results: dict[str, Result]

    @property
    def name(self) -> str:
        return f"{self.operator}({self.arguments})"


@dataclass(frozen=True)
class SuiteReport:
    """What `gradcheck_suite` found; ``str()`` of it is the table."""

    device: str
    dtypes: tuple[torch.dtype, ...]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def failures(self) -> list[tuple[Row, str]]:
        return [(row, check) for row in self.rows for check, result in row.results.items() if result.passed is False]

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        return "\n".join([*_table(self.rows), "", *_legend(self)])


def gradcheck_suite(
    device: str | torch.device = "cpu",
    operators: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    compile: bool | str = False,
    progress: Callable[[Row], None] | None = None,
) -> SuiteReport:
    """Runs the checks of `check_ste` and `check_gradients` over every operator with a gradient, on a device.

    Args:
        device: where the tensors lie.
        operators: their names, such as ``["sign", "lsq"]``; default all.
        dtypes: those of the checks ``forward``, ``derivative`` and ``nonfinite``. The others are in float64, because
            they take finite differences or compare with what does.
        compile: True, or the name of a ``torch.compile`` backend: runs the check ``compile`` too. With the default
            backend that takes minutes; ``"aot_eager"`` takes seconds and compiles no kernel.
        progress: called with each row as it is done.

    Returns:
        A `SuiteReport`. Nothing is raised for an operator that fails: see ``passed`` and ``failures``.

    Raises:
        ValueError: an unknown operator, or no dtype.
        RuntimeError: the device is not there, or has no kernels.

    Example:
        >>> import ste_ops
        >>> report = ste_ops.testing.gradcheck_suite("cpu", operators=["clip_gradient_value"])
        >>> report.passed
        True
        >>> {check: str(result) for check, result in report.rows[0].results.items()}["backward"]
        'pass'
    """
    from ste_ops.testing import _case, _operators  # not above: it imports the operators, which are not there yet then

    started = time.perf_counter()
    device = _present(torch.device(device))
    if not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"gradcheck_suite: dtypes must be some of {', '.join(_NAMES)}, got {list(dtypes)}")
    cases = list(_operators.cases())
    known = list(dict.fromkeys(case.operator for case in cases))
    unknown = [name for name in operators or () if name not in known]
    if unknown:
        raise ValueError(f"gradcheck_suite: operators must be some of {', '.join(known)}, got {', '.join(unknown)}")
    backend = compile if isinstance(compile, str) else "inductor"
    setting = _case.Setting(device, tuple(dtypes), backend)
    rows = []
    for case in cases:
        if operators is None or case.operator in operators:
            rows.append(Row(case.operator, case.arguments, _results(case, setting, bool(compile))))
            if progress:
                progress(rows[-1])
    return SuiteReport(str(device), tuple(dtypes), tuple(rows), time.perf_counter() - started)


def _present(device: torch.device) -> torch.device:
    from ste_ops._library import CUDA_LOADED, CUDA_REASON

    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"gradcheck_suite: device must be cpu or cuda, got {device}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise RuntimeError(f"gradcheck_suite: device {device} is not there: torch {torch.__version__} sees {count}")
        if not CUDA_LOADED:
            raise RuntimeError(f"gradcheck_suite: no CUDA kernel is loaded, because {CUDA_REASON}")
    return device


def _results(case: Any, setting: Any, compile: bool) -> dict[str, Result]:
    try:
        checker = case.make(setting)
        runs = checker.runs()
    except Exception as error:
        return dict.fromkeys(CHECKS, Result(False, 0, _short(f"{type(error).__name__}: {error}")))
    checker.leave_out(case.skip, compile)
    results = {}
    for check in CHECKS:
        if check not in checker.reasons:
            if check == "compile":
                torch.compiler.reset()  # rows share their code, and would run into the limit of recompilations
            try:
                checker.run(check, runs[check])
            except AssertionError as error:
                results[check] = Result(False, checker.checked[check], _short(str(error)))
                continue
        done = check not in checker.reasons
        results[check] = Result(done or None, checker.checked.get(check, 0), checker.reasons.get(check, ""))
    return results


def _short(message: str) -> str:
    """The first line, without who was called and what the caller of a single check could do."""
    first = message.splitlines()[0].split(" (skip=")[0]
    return first.removeprefix("check_ste: ").removeprefix("check_gradients: ")[:300]


# The table.

_TITLES = {check: check.replace("_", " ") for check in CHECKS} | {"gradgradcheck": "gradgrad", "nonfinite": "nan/inf"}


def _table(rows: Sequence[Row]) -> list[str]:
    width = max([len("operator"), *(len(row.name) for row in rows)])
    lines = [f"{'operator':{width}}  " + "  ".join(_TITLES.values())]
    for row in rows:
        cells = [f"{row.results[check]!s:{len(_TITLES[check])}}" for check in CHECKS]
        lines.append(f"{row.name:{width}}  {'  '.join(cells)}".rstrip())
    return lines


def _legend(report: SuiteReport) -> list[str]:
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in report.rows:
        for check, result in row.results.items():
            if result.passed is None:
                names = reasons.setdefault(_TITLES[check], {}).setdefault(result.message, [])
                if row.operator not in names:
                    names.append(row.operator)
    lines = [f"- {check}: {why}" + _of(names, report) for check, each in reasons.items() for why, names in each.items()]
    for row, check in report.failures:
        lines.append(f"FAIL {row.name} {_TITLES[check]}: {row.results[check].message}")
    done = [result for row in report.rows for result in row.results.values() if result.passed is not None]
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in report.dtypes)
    lines += ["", f"{report.device}; forward, derivative and nan/inf in {dtypes}; the others in float64"]
    lines.append(f"{len(report.rows)} rows, {len(done)} checks, {len(report.failures)} failed, {report.seconds:.1f} s")
    return lines


def _of(names: list[str], report: SuiteReport) -> str:
    everywhere = len(names) == len({row.operator for row in report.rows})
    return "" if everywhere else f" ({', '.join(names)})"


# The command.


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "gradcheck",
        help="check every operator's gradients on your device",
        description="Checks every operator's values against its reference and its gradients against finite "
        "differences of what they stand for. Exit status 1 if any check fails.",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    parser.add_argument("--op", nargs="+", metavar="NAME", help="operators, such as sign lsq; default: all")
    parser.add_argument("--dtype", nargs="+", choices=_NAMES, default=list(_NAMES), help="default: all four")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        default="",
        metavar="BACKEND",
        help="torch.compile too (minutes)",
    )
    parser.add_argument("--json", action="store_true", help="one object")
    parser.set_defaults(run=_run)


def _as_json(report: SuiteReport) -> str:
    rows = [
        {
            "operator": row.operator,
            "arguments": row.arguments,
            "results": {c: asdict(r) for c, r in row.results.items()},
        }
        for row in report.rows
    ]
    dtypes = [str(dtype).removeprefix("torch.") for dtype in report.dtypes]
    found = {"passed": report.passed, "device": report.device, "dtypes": dtypes, "seconds": report.seconds}
    return json.dumps({**found, "rows": rows})


def _run(options: argparse.Namespace) -> None:
    try:
        report = gradcheck_suite(
            options.device, options.op, [_NAMES[name] for name in options.dtype], options.compile or False
        )
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"ste_ops gradcheck: {error}".replace("gradcheck_suite: ", "")) from None
    print(_as_json(report) if options.json else report)
    if not report.passed:
        raise SystemExit(1)
