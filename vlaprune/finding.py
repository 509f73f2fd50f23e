"""What a check of vlaprune-doctor answers. Standard library only, so that a benchmark can answer it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of vlaprune-doctor.

    about  what was looked at
    said   what was found and, where it is wrong, after a semicolon what to do about it
    ok     whether nothing is wrong
    """

    about: str
    said: str
    ok: bool = True

    def line(self, needed: bool) -> str:
        """Begins with `ok`, `PROBLEM`, or `missing` for a problem that the chosen configuration does not meet."""
        mark = "ok" if self.ok else "PROBLEM" if needed else "missing"
        return f"  {mark:8}{self.about}: {self.said}"
