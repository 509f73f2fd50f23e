"""Tables from journals: success with intervals, paired comparison with dense, tokens, FLOPs, milliseconds. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlaprune import stats
from vlaprune.loggers import flat
from vlaprune.records import Header, Run, differences, read

MARGIN = {"libero": 0.02, "simpler": 0.05, "robosuite": 0.05}  # non-inferiority margins, as shares of episodes


def name(header: Header) -> str:
    """The method's short name: the module it is in."""
    return str(header.identity["method"]["_target_"]).split(".")[-2]


def label(header: Header, others: Sequence[Header] = ()) -> str:
    """The short name, the budget, and options in which runs of the same method differ: "fastv keep=0.25 layer=2"."""
    method, same = header.identity["method"], [o.identity["method"] for o in others if name(o) == name(header)]
    differ = [k for k in method if k not in ("_target_", "keep") and any(o.get(k) != method[k] for o in same)]
    return " ".join([name(header), *(f"{k}={method[k]}" for k in ("keep", *differ) if k in method)])


def find(paths: Iterable[Path]) -> list[Run]:
    """Every run in or below the given folders. ValueError for a folder without any."""
    runs = []
    for path in paths:
        folders = sorted({p.parent for p in path.glob("**/journal*.jsonl")}) if path.is_dir() else []
        if not folders:
            raise ValueError(f"{path} holds no run; give folders in which vlaprune-eval has written a journal.jsonl")
        runs += [read(folder) for folder in folders]
    return runs


def _context(run: Run) -> Mapping[str, Any]:
    """All of a run's identity but the method: what must be equal before two runs may be compared."""
    return {k: v for k, v in run.header.identity.items() if k != "method"}


def _bench(run: Run) -> str:
    return str(run.header.identity["bench"]["_target_"]).split(".")[-2]


def _check(runs: Sequence[Run], partial: bool) -> None:
    headers = [r.header for r in runs]
    labels = [label(h, headers) for h in headers]
    twice = {one for one in labels if labels.count(one) > 1}
    if twice:
        raise ValueError(f"{len(runs)} runs, but {sorted(twice)} comes more than once; name the folders to compare")
    for run in runs[1:]:
        if _context(run) != _context(runs[0]):
            other = Header(_context(run), {}, {})
            raise ValueError(
                f"{run.folder} and {runs[0].folder} differ in more than the method "
                f"({differences(Header(_context(runs[0]), {}, {}), other)}); make a table of each"
            )
    for run in runs:
        if run.missing and not partial:
            raise ValueError(
                f"run {run.folder} lacks {len(run.missing)} of {sum(run.header.tasks.values())} episodes; "
                "finish it, or pass --partial"
            )


def _row(run: Run, called: str, task: str | None, base: Run | None) -> dict[str, Any]:
    records = {k: r for k, r in run.episodes.items() if task in (None, k[0])}
    won, n = sum(r.success for r in records.values()), len(records)
    frame = pd.DataFrame([flat(r) for r in records.values()])
    weights = frame["calls"] / frame["calls"].sum()
    interval = stats.wilson(won, n)
    row: dict[str, Any] = {
        "method": called + ("*" if run.missing else ""),
        "task": task or "all",
        "success": won,
        "episodes": n,
        "rate": won / n,
        "low": interval.low,
        "high": interval.high,
        "kept": (frame["kept"] * weights).sum(),
        "visual": int(frame["visual"].iloc[0]),
        "gflops": (frame["gflops"] * weights).sum(),
        "ms": pd.to_numeric(frame["ms"], errors="coerce").mul(weights).sum(min_count=n),
        "ms_method": pd.to_numeric(frame["ms_method"], errors="coerce").mul(weights).sum(min_count=n),
    }
    if base is not None:
        both = [k for k in records if k in base.episodes]
        ours, theirs = ({k: r.episodes[k].success for k in both} for r in (run, base))
        row |= _against(stats.pair(theirs, ours), MARGIN.get(_bench(run), 0.05)) if both else {}
    return row


def _against(pairs: stats.Pairs, margin: float) -> dict[str, Any]:
    said = stats.verdict(pairs, margin)
    return {
        "paired": pairs.n,
        "lost": pairs.lost,
        "gained": pairs.gained,
        "difference": pairs.difference,
        "difference_low": said.interval.low,
        "difference_high": said.interval.high,
        "mcnemar_p": said.p,
        "verdict": said.decision,
        "more": said.more,
    }


def summarise(
    runs: Sequence[Run], baseline: str = "dense", by_task: bool = False, partial: bool = False
) -> pd.DataFrame:
    """One row per run (and per task), the baseline first.

    Columns: success and episodes, rate with its 95 % Wilson interval; pooled over the model calls kept (visual tokens
    computed, mean over layers) of visual, gflops, ms; against the baseline on the same episodes lost, gained,
    difference with Tango's interval, McNemar p, verdict; flops_cut, speedup. ValueError where the runs cannot stand in
    one table.
    """
    runs = [r for r in runs if r.episodes or not partial]
    if not runs:
        raise ValueError("none of these runs has a finished episode")
    _check(runs, partial)
    called = {id(r): label(r.header, [o.header for o in runs]) for r in runs}
    base = next((r for r in runs if baseline in (name(r.header), called[id(r)])), None)
    order = sorted(runs, key=lambda r: (r is not base, called[id(r)]))
    tasks = [None, *order[0].header.tasks] if by_task else [None]
    rows = [
        _row(r, called[id(r)], t, base if r is not base else None)
        for t in tasks
        for r in order
        if t is None or any(k[0] == t for k in r.episodes)
    ]
    table = pd.DataFrame(rows)
    if base is not None:
        dense = table[table["method"].str.rstrip("*") == called[id(base)]].set_index("task")
        table["flops_cut"] = 1 - table["gflops"] / table["task"].map(dense["gflops"])
        table["speedup"] = table["task"].map(dense["ms"]) / table["ms"]
    table.attrs["sources"] = sources(runs)
    table.attrs["title"] = f"{str(runs[0].header.identity['model']['_target_']).split('.')[-2]} on {_bench(runs[0])}"
    return table


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """The same for people: percent, signs, verdicts in words."""
    out = pd.DataFrame({"method": table["method"]})
    if (table["task"] != "all").any():
        out["task"] = table["task"]
    out["success"] = [f"{r.success}/{r.episodes}" for r in table.itertuples()]
    out["% [95 % interval]"] = [
        f"{r.rate:.1%} [{r.low:.1%}, {r.high:.1%}]".replace("%", "") for r in table.itertuples()
    ]
    if "lost" in table:
        told = table["lost"].notna()
        out["lost / gained"] = [
            f"{r.lost:.0f} / {r.gained:.0f}" if t else "" for r, t in zip(table.itertuples(), told, strict=True)
        ]
        out["verdict"] = [_words(r) if t else "baseline" for r, t in zip(table.itertuples(), told, strict=True)]
    out["visual tokens"] = [f"{r.kept:.1f} of {r.visual}" for r in table.itertuples()]
    out["GFLOPs/call"] = [f"{v:.3g}" for v in table["gflops"]]
    if "flops_cut" in table:
        out["FLOPs cut"] = [f"{v:.1%}" for v in table["flops_cut"]]
    if "ms" in table and table["ms"].notna().any():
        out["ms/call"] = [f"{v:.2f}" if pd.notna(v) else "" for v in table["ms"]]
        out["of it method"] = [f"{v:.2f}" if pd.notna(v) else "" for v in table["ms_method"]]
        if "speedup" in table:
            out["speed-up"] = [f"{v:.2f}x" if pd.notna(v) else "" for v in table["speedup"]]
    return out


def _words(row: Any) -> str:
    if row.verdict != "undecided" or not row.more < 1e6:
        return str(row.verdict)
    return f"undecided (about {row.more:.0f} more)"


def markdown(table: pd.DataFrame) -> str:
    """A title and a Markdown table."""
    shown = pretty(table)
    widths = [max(len(c), *(len(v) for v in shown[c])) for c in shown]
    lines = [
        " | ".join(v.ljust(w) for v, w in zip(cells, widths, strict=True))
        for cells in (shown.columns, ["-" * w for w in widths], *shown.itertuples(index=False))
    ]
    return f"**{table.attrs['title']}**\n\n" + "\n".join(f"| {line} |" for line in lines)


def latex(table: pd.DataFrame) -> str:
    """The same as a LaTeX tabular with booktabs rules."""

    def clean(text: str) -> str:
        return text.replace("%", "\\%").replace("_", "\\_")

    shown = pretty(table)
    rows = [" & ".join(clean(v) for v in cells) + " \\\\" for cells in shown.itertuples(index=False)]
    head = " & ".join(clean(c) for c in shown.columns) + " \\\\"
    return "\n".join(
        [
            f"% {table.attrs['title']}",
            f"\\begin{{tabular}}{{l{'r' * (len(shown.columns) - 1)}}}",
            "\\toprule",
            head,
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


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


def write(table: pd.DataFrame, folder: Path, name: str = "table") -> list[Path]:
    """Writes NAME.csv (plain numbers), NAME.md (with what made the runs) and NAME.tex; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, md, tex = (folder / f"{name}.{ending}" for ending in ("csv", "md", "tex"))
    table.to_csv(csv, index=False)
    md.write_text("\n".join([markdown(table), "", *(f"- {line}" for line in table.attrs.get("sources", [])), ""]))
    tex.write_text(latex(table))
    return [csv, md, tex]


def summary(run: Run) -> str:
    """A few lines at the end of a run: success, tokens, FLOPs, milliseconds and where the files are."""
    if not run.episodes:
        return f"no finished episode in {run.folder}"
    row = _row(run, label(run.header), None, None)
    time = f", {row['ms']:.1f} ms" if row["ms"] == row["ms"] else ""
    return (
        f"{row['method']}: success {row['success']}/{row['episodes']} = {row['rate']:.1%} "
        f"(95 % {row['low']:.1%} to {row['high']:.1%}), {row['kept']:.1f} of {row['visual']} visual tokens a layer, "
        f"{row['gflops']:.3g} GFLOPs{time} a call\n{run.folder}/journal.jsonl"
    )
