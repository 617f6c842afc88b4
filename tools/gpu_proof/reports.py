"""What compute-sanitizer has to say, read from its output."""

from __future__ import annotations

import re

OURS = re.compile(r"ste_ops::(?:(?:<unnamed>|\(anonymous namespace\)|_GLOBAL__N__\w+)::)?(\w+)")


def summaries(output: str) -> list[str]:
    return re.findall(r"^========= (?:ERROR|RACECHECK) SUMMARY: (.*)", output, re.M)


def kernels(output: str) -> list[str | None]:
    """Of each report the kernel of ste_ops, None where it is another's. The host's frames do not count: they say who
    launched it."""
    reports: list[list[str]] = []
    host = False
    for line in re.findall(r"^=========( .*)", output, re.M):
        headline = not line.startswith("  ")
        host = not headline and (host or "host backtrace" in line or "Host Frame" in line)
        if headline:
            reports.append([line])
        elif not host:
            reports[-1:] = [[*reports[-1], line]] if reports else []
    # What has no more lines is a summary.
    found = [OURS.search("\n".join(report)) for report in reports if len(report) > 1]
    return [match[1] if match else None for match in found]
