"""What made some runs, and whether they had their machines to themselves."""

from __future__ import annotations

from collections.abc import Sequence

from vlaprune.records import Run


def sources(runs: Sequence[Run]) -> list[str]:
    """What made some runs, a line each: commands, commits, versions, hardware, weights."""
    told = [r.header.provenance for r in runs]

    def each(key: str) -> list[str]:
        return sorted({str(t[key]) for t in told if t.get(key)})

    weights = {str(r.header.identity.get("weights")) for r in runs}
    lines = [f"command: `{command}`" for command in each("command")]
    lines += [f"commit: {', '.join(each('commit'))}"] if each("commit") else []
    for key in ("versions", "hardware"):
        lines += [
            f"{key}: {', '.join(f'{k} {v}' for k, v in found.items() if v is not None)}"
            for found in [t[key] for t in told if t.get(key)][:1]
        ]
    return [*lines, f"weights: sha256 {', '.join(sorted(weights))}"]


def shared(runs: Sequence[Run]) -> str:
    """Why milliseconds of these runs do not compare, empty where nothing speaks against it."""
    commands = [str(r.header.provenance.get("command", "")) for r in runs]
    if any("launcher=joblib" in c or "launcher=submitit_local" in c for c in commands):
        return "the runs shared their machine (several processes side by side)"
    if any("video=all" in c or "video=failures" in c for c in commands):
        return "a run was filmed (the encoder ran beside the policy)"
    if any(len(list(r.folder.glob("journal*.jsonl"))) > 1 for r in runs):
        return "a run was made by several processes (shards)"
    if len({str(r.header.provenance.get("hardware")) for r in runs}) > 1:
        return "the runs were made on different hardware"
    return ""
