"""`python -m ste_ops info | gradcheck | gallery | demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import ste_ops
from ste_ops import demo, gallery
from ste_ops._names import show_public_names
from ste_ops.testing import _suite


def _info(_: argparse.Namespace) -> None:
    for key, value in ste_ops.build_info().items():
        print(f"{key:17} {', '.join(value) if isinstance(value, list) else value}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ste_ops")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    info = commands.add_parser("info", help="what the compiled libraries were built with")
    info.set_defaults(run=_info)
    _suite.add_parser(commands)
    gallery.add_parser(commands)
    demo.add_parser(commands)
    options = parser.parse_args(arguments)
    options.run(options)


show_public_names(__name__)

if __name__ == "__main__":
    main()
