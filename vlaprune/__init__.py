"""vlaprune: a benchmark harness for visual-token pruning in vision-language-action policies.

A method needs `from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection` and
`from vlaprune.trace import Rows`; nothing heavy is imported here, so that the command line answers at once.
"""

__version__ = "0.1.0"
