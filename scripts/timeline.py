"""Draws docs/pictures/delay.svg: which action runs at which control step in each mode, from the timeline that runs use.

python scripts/timeline.py            # writes docs/pictures/delay.svg
"""

from __future__ import annotations

from pathlib import Path

from vlaprune.delay import Mode, Timeline

LATE, EXECUTE, CHUNK, CALLS, STEPS = 2, 4, 8, 4, 14
CELL, ROW, LEFT, TOP = 46, 84, 118, 34
COLOURS = ("#4c78a8", "#b5651d", "#54875a", "#8a5a9e")
MODES: tuple[tuple[Mode, str], ...] = (
    ("wait", "the world waits"),
    ("hold", "the robot holds"),
    ("overlap", "late actions dropped"),
    ("stale", "nothing dropped"),
)


def drawn() -> str:
    """The picture as SVG."""
    width, height = LEFT + STEPS * CELL + 12, TOP + len(MODES) * ROW + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f"<title>Which action runs at which control step, for a delay of {LATE} steps, {EXECUTE} actions a call and "
        f"chunks of {CHUNK}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 18, "control step", "#555555", "start"),
        *(text(LEFT + (i + 0.5) * CELL, TOP - 2, str(i), "#555555") for i in range(STEPS)),
    ]
    for row, (mode, told) in enumerate(MODES):
        parts += lane(mode, told, TOP + row * ROW + 8)
    said = "c.i: action i of chunk c; a line runs from the look of a call to the arrival of its chunk"
    return "\n".join([*parts, text(LEFT, height - 8, said, "#555555", "start"), "</svg>"]) + "\n"


def lane(mode: Mode, told: str, y: int) -> list[str]:
    """One mode: its name, a box for each step, a line for each call under way."""
    timeline, out = (
        Timeline(mode),
        [text(8, y + 18, mode, "#111111", "start", 15), text(8, y + 36, told, "#555555", "start", 9)],
    )
    for call in range(CALLS):
        seen = len(timeline.steps)
        timeline.call(LATE, EXECUTE, CHUNK)
        late = 0 if mode == "wait" else LATE
        if late and seen + late <= STEPS:
            a, b = (LEFT + at * CELL for at in (seen, seen + late))
            out.append(f'<path d="M{a} {y + 52}H{b - 5}" stroke="{COLOURS[call]}" stroke-width="3"/>')
            out.append(f'<path d="M{b - 8} {y + 47}L{b} {y + 52}L{b - 8} {y + 57}Z" fill="{COLOURS[call]}"/>')
        if seen < STEPS:
            out.append(f'<circle cx="{LEFT + seen * CELL}" cy="{y + 52}" r="4" fill="{COLOURS[call]}"/>')
    for at, step in enumerate(timeline.steps[:STEPS]):
        x = LEFT + at * CELL
        fill = COLOURS[step.rows[0][0]] if step.rows else "#eeeeee"
        out.append(f'<rect x="{x + 1.5}" y="{y}" width="{CELL - 3}" height="36" rx="4" fill="{fill}"/>')
        name, ink = (f"{step.rows[0][0]}.{step.rows[0][1]}", "#ffffff") if step.rows else ("hold", "#777777")
        out.append(text(x + CELL / 2, y + 23, name, ink))
    return out


def text(x: float, y: float, said: str, colour: str, anchor: str = "middle", size: int = 12) -> str:
    """One line of words."""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{said}</text>'


if __name__ == "__main__":
    Path(__file__).resolve().parents[1].joinpath("docs", "pictures", "delay.svg").write_text(drawn(), encoding="utf-8")
