"""The chart of a study of audits, and its page."""

from __future__ import annotations

from matplotlib.figure import Figure

from vlaprune.report.audits import Study, needs, notes, summary
from vlaprune.report.html import template
from vlaprune.report.svg import ACCENT, INK, MUTED, Chart, draw, frame, short
from vlaprune.stats.rates import wilson

MARKS = {
    "uniform": ("s", "a grid"),
    "shuffled": ("d", "score shuffled"),
    "other": ("^", "score of another episode"),
    "bottom": ("v", "worst by the score"),
}  # control -> its marker and its name in the legend


def chart(found: Study) -> Chart:
    """Success of every method, with its interval, beside that of its controls."""

    def paint(figure: Figure, width: int) -> dict[str, str]:
        ax = figure.add_subplot()
        tips: dict[str, str] = {}
        for y, one in enumerate(found.audits):
            lines = {line.name: line for line in one.lines}
            own, drawn = lines["own"], lines["random"]
            interval = wilson(round(own.rate * one.episodes), one.episodes)
            ax.plot([100 * interval.low, 100 * interval.high], [y, y], color=ACCENT, lw=2, alpha=0.6)
            ax.plot(100 * own.rate, y, "o", color=ACCENT, ms=9, gid=f"tip-own{y}", label="" if y else "the method")
            ax.plot(100 * drawn.rate, y, "x", color=INK, ms=9, mew=2, gid=f"tip-random{y}", label="" if y else "random")
            dense = 100 * lines["dense"].rate
            ax.plot(
                [dense] * 2, [y - 0.35, y + 0.35], color=INK, lw=1.2, gid=f"tip-dense{y}", label="" if y else "dense"
            )
            for name, (marker, _) in MARKS.items():
                if name in lines:
                    ax.plot(
                        100 * lines[name].rate, y, marker, color=MUTED, mfc="none", ms=8, mew=1.4, gid=f"tip-{name}{y}"
                    )
            drawn_too = ("own", "random", "dense", *MARKS)
            tips |= {f"tip-{n}{y}": f"{one.method}, {n}: {100 * lines[n].rate:.1f} %" for n in drawn_too if n in lines}
        used = {line.name for one in found.audits for line in one.lines}
        for marker, words in [mark for name, mark in MARKS.items() if name in used]:
            ax.plot([], [], marker, color=MUTED, mfc="none", ms=8, mew=1.4, label=words)
        ax.set_ylim(len(found.audits) - 0.4, -0.6)
        ax.set_yticks(range(len(found.audits)), [short(one.method, width) for one in found.audits])
        ax.set_xlabel("success, %")
        figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=4 if width > 500 else 2)
        frame(ax, "x")
        return tips

    told = "; ".join(
        f"{one.method} {100 * one.line('own').rate:.1f} %, random {100 * one.line('random').rate:.1f} %, {one.verdict}"
        for one in found.audits
    )
    title = "Every method beside other choices of as many tokens"
    return draw("audits", title, told, paint, lambda width: 130 + 34 * len(found.audits))


def html(found: Study) -> str:
    """One self-contained page: the chart, the table, what the benchmark needs, sources."""
    heads, body = summary(found)
    return template("audit.html").render(
        title=found.title,
        charts=[chart(found)],
        heads=heads,
        body=body,
        needs=needs(found),
        notes=notes(found),
        made=found.sources,
    )
