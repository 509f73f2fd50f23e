"""Tables for people: terminal, Markdown, CSV, LaTeX and the lines at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from vlaprune.errors import UserError
from vlaprune.records import UNPROVED, Run
from vlaprune.report.runs import compare
from vlaprune.report.tables import tabulate
from vlaprune.stats.markdown import TERMINAL, columns
from vlaprune.stats.markdown import table as lined


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `tabulate` as text for readers: percent, signs, verdicts in words."""
    rows = list(table.itertuples())

    def cells(say: Callable[[Any], str], needs: str) -> list[str]:
        return [say(r) if pd.notna(getattr(r, needs)) else "" for r in rows]

    out = pd.DataFrame({"method": table["method"]})
    if (table["task"] != "all").any():
        out["task"] = table["task"]
    out["success"] = [f"{r.success}/{r.episodes}" for r in rows]
    out["% [95 % interval]"] = [f"{100 * r.rate:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]" for r in rows]
    if table["average"].notna().any():
        out["mean of tasks"] = cells(lambda r: f"{100 * r.average:.1f}", "average")
    if table["lost"].notna().any():
        out["lost / gained"] = cells(lambda r: f"{r.lost:.0f} / {r.gained:.0f}", "lost")
        if table["times_noise"].notna().any():
            out["x noise"] = cells(lambda r: f"{r.times_noise:.1f}", "times_noise")
        out["difference [interval]"] = cells(_difference, "lost")
        if table["difference_clustered"].notna().any():
            out["s.e. over tasks"] = cells(lambda r: f"{100 * r.difference_clustered:.1f}", "difference_clustered")
        out["verdict"] = [_words(r) for r in rows]
        if table["criterion"].notna().any():
            out["against random"] = cells(_criterion, "criterion")
    if not table["proved"].all():
        out["pruning"] = ["" if r.proved else UNPROVED for r in rows]
    out["visual tokens"] = cells(lambda r: f"{r.kept:.1f} of {r.visual}", "kept")
    out["GFLOPs/call"] = cells(lambda r: f"{r.gflops:,.0f}" if r.gflops >= 100 else f"{r.gflops:.3g}", "gflops")
    if table["flops_cut"].notna().any():
        out["FLOPs cut"] = cells(lambda r: f"{100 * r.flops_cut:.1f}%", "flops_cut")
    if table["ms"].notna().any():
        about = "~" if table.attrs.get("shared") else ""
        out["ms/call"] = cells(lambda r: f"{about}{r.ms:.2f}", "ms")
        out["of it method"] = cells(lambda r: f"{about}{r.ms_method:.2f}", "ms_method")
        if table["speedup"].notna().any():
            out["speed-up"] = cells(lambda r: f"{about}{r.speedup:.2f}x{' ?' if r.impossible else ''}", "speedup")
    if table["ms_answer"].notna().any():
        out["ms/answer"] = cells(lambda r: f"{r.ms_answer:.2f}", "ms_answer")
    return out


def _difference(row: Any) -> str:
    low, high = 100 * row.held_low, 100 * row.held_high
    return f"{100 * row.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def _criterion(row: Any) -> str:
    return f"{100 * row.criterion:+.1f}, p {row.criterion_p:.2g}: {row.criterion_verdict}"


def _words(row: Any) -> str:
    if pd.isna(row.verdict):
        return "baseline"
    if row.verdict != "undecided" or not row.more < 1e6:
        return str(row.verdict)
    return f"undecided (about {row.more:.0f} more)"


# columns that a terminal shows by default -> their shorter names
SHORT = {"method": "method", "task": "task", "%": "%", "success": "success", "difference [interval]": "difference"}
SHORT |= {"verdict": "verdict", "FLOPs cut": "FLOPs", "speed-up": "speed"}


def terminal(table: pd.DataFrame, wide: bool = False, only: Sequence[str] = ()) -> str:
    """The table for a terminal: a title and plain columns, at most 80 characters a line.

    wide  every column, in lines of any length
    only  names of the columns to show

    UserError for a column that this table does not have.
    """
    shown = pretty(table)
    if not wide and not only:
        shown["%"] = [f"{100 * rate:.1f}" for rate in table["rate"]]
        if "verdict" in shown:
            shown["verdict"] = ["baseline" if pd.isna(v) else v for v in table["verdict"]]
        only = [c for c in SHORT if c in shown]
    if unknown := [c for c in only if c not in shown]:
        raise UserError(f"no column {', '.join(unknown)} here; choose from {', '.join(shown)}")
    kept = ["method", *(c for c in only if c != "method")] if only else list(shown)
    rows = [[str(cell) for cell in row] for row in shown[kept].itertuples(index=False)]
    heads = kept if wide else [SHORT.get(c, c) for c in kept]
    return f"{table.attrs['title']}\n\n{columns(heads, rows, None if wide else TERMINAL)}"


def below(table: pd.DataFrame) -> str:
    """The notes of a table, wrapped to a terminal's width."""
    return short_notes(table.attrs["notes"])


def short_notes(notes: Sequence[str]) -> str:
    """Notes wrapped to a terminal's width."""
    return "\n".join(fill(note, TERMINAL, subsequent_indent="  ") for note in notes)


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown, below its title."""
    shown = pretty(table)
    rows = [list(row) for row in shown.itertuples(index=False)]
    return f"**{table.attrs['title']}**\n\n{lined(list(shown.columns), rows)}"


def latex(table: pd.DataFrame) -> str:
    """The table as a LaTeX tabular with booktabs rules; title and notes are comments."""
    shown = pretty(table)
    rows = list(shown.itertuples(index=False))
    return latex_of(table.attrs["title"], list(shown.columns), rows, table.attrs.get("notes", []))


def latex_of(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Rows as a LaTeX tabular with booktabs rules; title and notes are comments."""
    special = {c: f"\\{c}" for c in "%_&#"} | {
        "¶": "\\P{}",
        "†": "\\textdagger{}",
        "‡": "\\textdaggerdbl{}",
        "§": "\\S{}",
    }

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(special.get(c, c) for c in cell) for cell in cells) + " \\\\"

    return "\n".join(
        [
            f"% {title}",
            *(f"% {note}" for note in notes),
            f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            "\\toprule",
            line(heads),
            "\\midrule",
            *map(line, rows),
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def write(table: pd.DataFrame, folder: Path, name: str = "table") -> list[Path]:
    """Writes NAME.csv (plain numbers), NAME.md (with notes and sources) and NAME.tex; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, md, tex = (folder / f"{name}.{ending}" for ending in ("csv", "md", "tex"))
    table.to_csv(csv, index=False)
    told = [f"- {line}" for key in ("notes", "sources") for line in table.attrs.get(key, [])]
    md.write_text("\n".join([markdown(table), "", *told, ""]))
    tex.write_text(latex(table))
    return [csv, md, tex]


def summary(run: Run) -> str:
    """A few lines at the end of a run: success, tokens, FLOPs, milliseconds and where the files are."""
    if not run.episodes:
        return f"no finished episode in {run.folder}"
    row = tabulate(compare([run], partial=True), timed=True).iloc[0]
    told = _costs(row) if row["proved"] else _answers(row)
    return (
        f"{row['method'].rstrip('*')}: success {row['success']}/{row['episodes']} = {row['rate']:.1%} "
        f"(95 % {row['low']:.1%} to {row['high']:.1%}), {told}\n{run.folder}/journal.jsonl"
    )


def _costs(row: Any) -> str:
    time = f", {row['ms']:.1f} ms" if row["ms"] == row["ms"] else ""
    gflops = f"{row['gflops']:{',.0f' if row['gflops'] >= 100 else '.3g'}} GFLOPs"
    return f"{row['kept']:.1f} of {row['visual']} visual tokens a layer, {gflops}{time} a call"


def _answers(row: Any) -> str:
    time = f"{row['ms_answer']:.1f} ms an answer, " if row["ms_answer"] == row["ms_answer"] else ""
    return f"{time}{UNPROVED}"
