"""`ste-ops info | gradcheck | gallery | demo`, also as `python -m ste_ops`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ste_ops
from ste_ops import demo, gallery
from ste_ops._names import show_public_names
from ste_ops.testing import _suite


def _info(options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(ste_ops.build_info()))
        return
    for key, value in ste_ops.build_info().items():
        print(f"{key:17} {', '.join(value) if isinstance(value, list) else value}")


def main(arguments: Sequence[str] | None = None) -> None:
    called = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(prog=called if called == "ste-ops" else "python -m ste_ops")
    parser.add_argument("--version", action="version", version=f"ste_ops {ste_ops.__version__}")
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    info = commands.add_parser("info", help="what the compiled libraries were built with")
    info.add_argument("--json", action="store_true", help="one object")
    info.set_defaults(run=_info)
    _suite.add_parser(commands)
    gallery.add_parser(commands)
    demo.add_parser(commands)
    options = parser.parse_args(arguments)
    options.run(options)


show_public_names(__name__)

if __name__ == "__main__":
    main()
