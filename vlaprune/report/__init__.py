"""Tables and a page from journals: which runs may stand together, what they show, what they do not. No torch."""

from vlaprune.report.runs import Arm, Comparison, compare, find, label, name
from vlaprune.report.tables import summarise, tabulate
from vlaprune.report.text import below, latex, markdown, pretty, summary, terminal, write

__all__ = [
    "Arm",
    "Comparison",
    "below",
    "compare",
    "find",
    "label",
    "latex",
    "markdown",
    "name",
    "pretty",
    "summarise",
    "summary",
    "tabulate",
    "terminal",
    "write",
]
