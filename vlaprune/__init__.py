"""vlaprune: an evaluation harness for visual-token pruning in vision-language-action policies.

From Python: `evaluate` runs episodes, `load_runs` gives recorded episodes as a DataFrame, `compare` gives the table of
verdicts. From a shell: the command `vlaprune`. A method needs `vlaprune.pruner` and `vlaprune.trace`.

Importing the package imports nothing else; the three functions are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlaprune.api import compare, evaluate, load_runs

__version__ = "0.1.0"
__all__ = ["compare", "evaluate", "load_runs"]


def __getattr__(name: str) -> Any:
    """Imports the functions of `__all__` when they are asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'vlaprune' has no attribute {name!r}; it has {', '.join(__all__)}")
    from vlaprune import api

    return {"compare": api.compare, "evaluate": api.evaluate, "load_runs": api.load_runs}[name]


def __dir__() -> list[str]:
    """What completion in a notebook offers."""
    return sorted([*__all__, "__version__"])
