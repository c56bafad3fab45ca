"""The explorables of the series, one module for each notebook, one public function for each explorable.

Every public function takes the values of its controls as keywords, all optional, and returns a `lemmse.ui.Explorable`::

    le.ui.explorables.inverse_problems.inverse_problems(sigma=0.1)

Modules load on first access, since they may read image sets.
"""

import importlib
import pkgutil
from types import ModuleType

__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"there is no explorable module {name!r}; there are {', '.join(__all__) or 'none'}")


def __dir__() -> list[str]:
    return __all__
