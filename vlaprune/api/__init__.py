"""The Python interface: run episodes, read them back, compare them. `import vlaprune` offers these functions."""

from vlaprune.api.evaluation import evaluate
from vlaprune.api.tables import compare, load_runs

__all__ = ["compare", "evaluate", "load_runs"]
