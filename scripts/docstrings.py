"""For the documentation site: parameter lists of docstrings ("name  what it is") become lists of Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:, \w+)*(?:; )?) {2,}(?P<about>\S.*)")


def listed(text: str) -> str:
    """The text with every block of entries as a Markdown list; continuation lines are joined."""
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line.strip()) if not line.startswith("    ") else None
        if entry:
            out += [] if inside else [""]
            out.append(f"- **{entry['names']}**: {entry['about']}")
            inside = True
        elif inside and line.startswith("  "):
            out[-1] += " " + line.strip()
        else:
            out += ["", line] if inside and line else [line]
            inside = False
    return "\n".join(out)


class Fields(Extension):
    """Rewrites every docstring before it is shown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)
