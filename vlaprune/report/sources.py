"""The sources of some runs: commands, commits, versions, hardware, weights."""

from __future__ import annotations

from collections.abc import Sequence

from vlaprune.records import Run


def sources(runs: Sequence[Run]) -> list[str]:
    """Lines that say what made some runs: commands, commits, versions, hardware, weights."""
    told = [header.provenance for r in runs for header in (r.headers or [r.header])]

    def each(key: str) -> list[str]:
        return sorted({str(t[key]) for t in told if t.get(key)})

    weights = {str(r.header.identity.get("weights")) for r in runs}
    lines = [f"command: `{command}`" for command in each("command")]
    lines += [f"commit: {', '.join(each('commit'))}"] if each("commit") else []
    for key in ("versions", "hardware"):
        said = (", ".join(f"{k} {v}" for k, v in t[key].items() if v is not None) for t in told if t.get(key))
        lines += [f"{key}: {one}" for one in dict.fromkeys(said)]
    return [*lines, f"weights: sha256 {', '.join(sorted(weights))}"]
