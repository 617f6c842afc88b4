"""Which names of a module are shown: `dir()` and completion offer what is for users, not what a module imports."""

from __future__ import annotations

import sys
from types import ModuleType


def public_names(module: ModuleType) -> list[str]:
    """`__all__` where there is one, else what the module itself defines, without what begins with an underscore."""
    listed = module.__dict__.get("__all__")
    if listed is not None:
        return sorted(listed)
    defined = {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    return sorted(name for name in defined if not name.startswith("_"))


def show_public_names(name: str) -> None:
    """Gives a module, and each of its modules that is loaded, a `__dir__` of its public names, unless it has one."""
    for loaded, module in list(sys.modules.items()):
        if f"{loaded}.".startswith(f"{name}.") and "__dir__" not in vars(module):
            vars(module)["__dir__"] = lambda module=module: public_names(module)
