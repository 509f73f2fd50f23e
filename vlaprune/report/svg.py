"""Turns drawings of matplotlib into inline SVG with the colours and fonts of the page and a description in words."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour that matplotlib paints with -> CSS variable of the page, so that charts follow its light or dark mode.
PAINT = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--good)",
    "#050505": "var(--bad)",
    "#060606": "var(--open)",
    "#070707": "var(--paper)",
    "#080808": "var(--accent)",
}
INK, MUTED, LINE, GOOD, BAD, OPEN, PAPER, ACCENT = PAINT
METHODS = [f"#0b00{i:02x}" for i in range(1, 13)]  # a colour for each method
PAINT |= {paint: f"var(--m{i})" for i, paint in enumerate(METHODS, 1)}
STYLE: Any = {  # settings of matplotlib
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
# verdict -> (marker, whether it is filled); the colour shows the method
LOOK = {
    "no worse": ("o", True),
    "worse": ("v", True),
    "undecided": ("o", False),
    "stopped: worse": ("v", False),
    "stopped: better": ("^", False),
    "not judged": ("X", False),
    "baseline": ("D", True),
}
WIDE, NARROW = 1000, 350  # pixels


@dataclass(frozen=True)
class Chart:
    """One chart in two widths, as SVG text; `told` describes it in words."""

    key: str
    title: str
    told: str
    wide: str
    narrow: str


def marker_style(verdict: Any, colour: int) -> tuple[str, str, str]:
    """Colour, marker and fill of an arm. Colour 0 and a missing verdict are those of the baseline."""
    marker, full = LOOK[verdict if isinstance(verdict, str) else "baseline"]
    paint = METHODS[(colour - 1) % len(METHODS)] if colour else INK
    return paint, marker, paint if full else PAPER


def short(text: str, width: int) -> str:
    """A label that fits beside a chart of that width; the full name is in the table and in the tooltip."""
    most = 34 if width > NARROW else 19
    return text if len(text) <= most else text[: most - 1] + "…"


def draw(
    key: str, title: str, told: str, paint: Callable[[Figure, int], Mapping[str, str]], height: Callable[[int], float]
) -> Chart:
    """Paints a chart at both widths. `paint` returns tooltips by the gid of what it painted."""
    made = []
    for width in (WIDE, NARROW):
        with mpl.rc_context(STYLE | {"svg.hashsalt": f"{key}{width}"}):
            figure = Figure(figsize=(width / 72, height(width) / 72), layout="constrained")
            tips = paint(figure, width)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        made.append(_inline(buffer.getvalue(), f"{key}-{width}", title, told, tips))
    return Chart(key, title, told, *made)


def _inline(svg: str, key: str, title: str, told: str, tips: Mapping[str, str]) -> str:
    """An SVG of matplotlib as an element of a page: unique ids, fonts and colours of the page, words, tooltips."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None, "matplotlib writes a viewBox"
    opening = (
        f'<svg role="img" aria-labelledby="{key}-title {key}-told" viewBox="0 0 {size[1]} {size[2]}" '
        f'width="{size[1]}" height="{size[2]}"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-told">{escape(told)}</desc>'
    )
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r'<g id="name[^"]*">', '<g class="name">', body)
    body = re.sub(r' id="(?!tip)([^"]+)"', rf' id="{key}-\1"', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{key}-", body).replace("xlink:href", "href")
    for gid, tip in tips.items():
        assert f'<g id="{gid}">' in body, f"{gid} has a tooltip and was not painted"
        body = body.replace(f'<g id="{gid}">', f'<g class="tip"><title>{escape(tip)}</title>')
    body = re.sub(r" ?font-family: [^;\"]+;?|font: ([\d.]+px) [^;\"]+;", r"font-size: \1;", body)
    body = body.replace("font-size: ;", "")
    for paint, ours in PAINT.items():
        body = body.replace(paint, ours)
    return opening + body.strip()


def frame(ax: Axes, grid: str) -> None:
    """Styles an axis: hairlines only, no box, no tick marks."""
    ax.spines["left"].set_visible(False)
    ax.tick_params(length=0)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, lw=0.6)  # type: ignore[arg-type]
    else:
        ax.spines["bottom"].set_visible(False)
