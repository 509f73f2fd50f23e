"""The page of a report: self-contained, readable wide and narrow, in a real browser without a word on its console."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import look
from test_report import DENSE, FASTV, TASKS, ten_arms, write

from vlaprune import cli, report
from vlaprune.evaluation.recorder import Recorder
from vlaprune.records import EpisodeRecord, Header, StepRecord, read
from vlaprune.report import grids, notes, plots
from vlaprune.report import page as pages
from vlaprune.report.flips import flips, place_videos

VOID = {"meta", "br", "path", "use", "input"}


class Tags(HTMLParser):
    """Every opening tag with its attributes; complains about tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self._open = [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            expected = self._open.pop()
            while expected in ("li", "p") and tag != expected:
                expected = self._open.pop()
            assert tag == expected


def made(folder, comparison=None, **options):
    comparison = comparison or report.compare(report.find([folder]))
    file = folder / "out" / "report.html"
    return pages.write(pages.page(comparison, file, **options), file)


@pytest.fixture
def runs(tmp_path):
    write(tmp_path / "dense", DENSE)
    write(tmp_path / "fastv", FASTV, "fastv", kept=16, gflops=2.0, ms=16.0, layer=3, keep=0.25)
    write(tmp_path / "random", {"near": "000000", "far": "000000"}, "random", kept=8, gflops=1.0, ms=9.0, keep=0.125)
    return tmp_path


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Twenty arms of one protocol, many of them alike."""
    folder = tmp_path_factory.mktemp("crowd")
    tasks = {"near": 20, "far": 20}
    write(folder / "dense", {t: "1" * 18 + "00" for t in tasks}, tasks=tasks)
    for i in range(19):
        won = {"near": "1" * 18 + "00", "far": "0" * (i % 7) + "1" * (18 - i % 7) + "00"}
        write(folder / f"m{i}", won, f"method{i}", kept=60 - i % 3, gflops=4.5 - i % 4 / 9, tasks=tasks, keep=0.5)
    return made(folder)


def test_the_page_is_self_contained_and_whole(runs):
    text = made(runs).read_text()
    tags = Tags(text).tags
    for tag, attrs in tags:
        for key in ("src", "href", "data-link", "poster", "action"):
            assert attrs.get(key, "#").startswith(("#", "data:text/csv;base64,")), (tag, attrs)
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'<>]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {a[key].removeprefix("#") for _, a in tags for key in ("href", "aria-labelledby") if key in a}
    used = {names for names in used if not names.startswith("data:text/csv")}
    assert {one for names in used for one in names.split()} <= set(ids)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    svgs = [attrs for tag, attrs in tags if tag == "svg"]
    assert len(svgs) == 2 * 4 and all(a["role"] == "img" and a["aria-labelledby"] for a in svgs)
    assert "#0" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).replace("&#0", "")  # no fixed colour


def test_the_page_says_what_the_table_says(runs):
    text = made(runs).read_text()
    table = report.summarise(report.find([runs]))
    for shown in ("66.7 %", "8/12", "worse", "undecided", "60.0 %", "1.25 x", *table.attrs["notes"]):
        assert shown.replace("'", "&#39;") in text, shown
    flipped = text[text.index("What each method lost") : text.index('<form id="filters"')]
    said = " ".join(re.sub("<[^>]+>", " ", flipped).split())
    assert "Lost 2: near 3 (10 / 10 steps) , far 2 (10 / 10 steps) Gained 1: far 3 (10 / 10 steps)" in said


def test_what_is_drawn_and_printed_is_the_interval_of_the_verdict(tmp_path):
    """Under Holm an interval of 95 % would lie beyond the margin of a method that stays undecided."""
    ten_arms(tmp_path)
    row = report.summarise(report.find([tmp_path])).set_index("method").loc["random option=0"]
    left, right, alone = (f"{100 * row[key]:+.1f}" for key in ("held_low", "held_high", "difference_high"))
    assert right != alone and row.verdict == "undecided"
    text = made(tmp_path).read_text()
    assert f"random option=0: -13.8 points [{left}, {right}], undecided" in text
    assert f"{left} to {right}" in text and f"to {alone}" not in text
    assert "Intervals are at the level at which Holm judges each method" in text
    assert f"-13.8 [{left}, {right}]" in report.markdown(report.summarise(report.find([tmp_path])))


def test_the_interval_of_one_method_is_at_95_percent(tmp_path):
    ten_arms(tmp_path)
    two = report.find([tmp_path / "dense", tmp_path / "arm3"])
    row = report.summarise(two).set_index("method").loc["random"]
    left, right = (f"{100 * row[key]:+.1f}" for key in ("difference_low", "difference_high"))
    text = made(tmp_path, report.compare(two)).read_text()
    assert f"random: -13.8 points [{left}, {right}], worse" in text and "Intervals are at 95 %" in text
    assert f"-13.8 [{left}, {right}]" in report.markdown(report.summarise(two))


def test_what_comes_from_a_journal_is_text_not_markup(runs):
    write(runs / "odd", DENSE, "odd", keep="<script>alert(1)</script>$x$")
    text = made(runs).read_text()
    Tags(text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def limits(folder, **options):
    comparison = report.compare(report.find([folder]), **options)
    return {limit.claim: limit.reason for limit in notes.limits(comparison, report.tabulate(comparison))}


def test_what_the_report_does_not_claim_comes_from_the_runs(runs):
    said = limits(runs)
    assert any("Whether 1 of 2 methods are worse" in claim for claim in said)
    assert "Any speed" not in said and "That choosing tokens well matters" not in said
    assert said["Anything about tasks beside these 2"].endswith("rests on 2 of them.")
    write(runs / "late", FASTV, "late", provenance={"commit": "abc+", "hardware": {"device": "cuda"}})
    said = limits(runs)
    assert "hardware" in said["Any speed"] and "differ from their commit" in " ".join(said.values())
    write(runs / "odd", {"near": "1"}, "odd", tasks={"near": 2})
    said = limits(runs, partial=True, mixed=True)
    assert "odd*†" in said["A fair comparison of marked runs"]


@pytest.fixture
def films(runs):
    """A thousand bytes of film for every episode of two runs."""
    for run in ("dense", "random"):
        (runs / run / "videos").mkdir()
        for task, count in TASKS.items():
            for episode in range(count):
                (runs / run / "videos" / f"{task}-{episode:04d}.mp4").write_bytes(b"film" * 250)
    return runs


def test_films_of_flipped_episodes_are_in_the_page_while_there_is_room(films):
    found = flips(report.compare(report.find([films])))
    places, held = place_videos(found, films / "report.html", 10**9)
    # random lost nine: two films each; of fastv's flips near 3 and far 2 are dense's and here already, far 3 is new
    assert len(places) == len(held) == 2 * 9 + 1
    few, some = place_videos(found, films / "report.html", 5000)
    assert few.keys() == places.keys() and 0 < len(some) <= 3  # 1336 bytes each as base64
    linked = [v for v in few.values() if not v.embedded]
    assert all((films / v.link).is_file() for v in linked) and len(linked) + len(some) == len(few)
    text = made(films, videos=5000).read_text()
    assert "21 of 24 films have no room" in text and '["","../dense/videos/' in text
    assert "24 films are in this page" in made(films).read_text()


SCRIPT = """(async () => {
  const table = document.getElementById("table");
  const heads = [...table.tHead.rows[0].cells];
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const sorted = {};
  for (const word of ["success", "method", "difference"]) {
    const head = heads.find((h) => h.textContent.trim() === word), button = head.querySelector("button");
    button.focus();
    const focused = document.activeElement === button;
    button.click(); const up = names();
    button.click();
    sorted[word] = [up, names(), head.getAttribute("aria-sort"), focused];
  }
  const list = document.getElementById("list");
  const row = list.querySelector("details");
  if (row) { row.open = true; await new Promise((done) => setTimeout(done, 50)); }
  const light = (c) => c.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const painted = (text) => {  // any way in which a browser writes a colour, over the page's ground
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    for (const one of [getComputedStyle(document.body).backgroundColor, text]) {
      canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1);
    }
    return light([...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255));
  };
  const contrast = (cell) => {
    const both = [painted(getComputedStyle(cell).color), painted(getComputedStyle(cell.closest("td")).backgroundColor)];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
  const shown = (svg) => svg.getBoundingClientRect().width > 0;
  const boxes = (texts) => [...texts].map((t) => t.getBoundingClientRect()).filter((b) => b.width);
  const clash = (bs) => bs.flatMap((a, i) => bs.slice(i + 1).filter((b) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)).length;
  return {
    sorted,
    video: [...list.querySelectorAll("video")].map((v) => v.src.slice(0, 15)),
    made: [...list.querySelectorAll("code")].map((c) => c.textContent),
    count: document.getElementById("count").textContent,
    wide: document.documentElement.scrollWidth - innerWidth,
    captions: [...document.querySelectorAll("caption span")].filter((c) =>
      c.getBoundingClientRect().right > innerWidth).length,
    more: getComputedStyle(document.getElementById("more")).display === "none",
    hides: document.getElementById("more").hidden,
    contrast: Math.min(...[...document.querySelectorAll(".grid td[class] , .grid td[class] small")].map(contrast)),
    charts: [...document.querySelectorAll("svg")].filter(shown).map((s) => s.closest("div").className),
    clash: [...document.querySelectorAll("svg")].map((s) => clash(boxes(s.querySelectorAll(".name text")))),
    outside: [...document.querySelectorAll("svg")].filter(shown).map((s) =>
      boxes(s.querySelectorAll("text")).filter((b) => b.left < 0 || b.right > innerWidth).length),
    ground: getComputedStyle(document.body).backgroundColor,
  };
})()"""


@pytest.mark.parametrize(("width", "kind", "dark"), [(1400, "wide", False), (390, "narrow", True)])
def test_in_a_browser_twenty_arms_are_readable_and_sortable(crowd, width, kind, dark):
    seen, console = look(crowd, SCRIPT, width, dark=dark)
    assert console == []
    up, down, state, focused = seen["sorted"]["success"]
    assert focused and state == "descending" and up != down
    assert not seen["captions"] and seen["more"] == seen["hides"]
    assert seen["contrast"] >= 4.5  # of every number on its cell's colour (WCAG 2 AA)
    success = {
        name: row.rate for name, row in report.summarise(report.find([crowd.parents[1]])).set_index("method").iterrows()
    }
    assert [success[n] for n in up] == sorted(success.values())
    assert [success[n] for n in down] == sorted(success.values(), reverse=True)
    assert seen["sorted"]["method"][0][:4] == ["dense", "method0 keep=0.5", "method1 keep=0.5", "method2 keep=0.5"]
    assert seen["sorted"]["difference"][0][-1] == seen["sorted"]["difference"][1][-1] == "dense"  # empty cells last
    assert seen["wide"] <= 0  # the page itself never scrolls sideways
    assert set(seen["charts"]) == {kind} and sum(seen["clash"]) == sum(seen["outside"]) == 0
    assert seen["ground"] == ("rgb(20, 22, 25)" if dark else "rgb(253, 253, 251)")


def test_in_a_browser_films_get_their_data_when_opened(films):
    seen, console = look(made(films), SCRIPT)
    assert console == [] and seen["video"] == ["data:video/mp4;", "data:video/mp4;"]  # of dense and random
    seen, console = look(made(films, videos=0), SCRIPT)
    assert console == [] and [v[:7] for v in seen["video"]] == ["file://", "file://"]


def test_the_console_is_heard(tmp_path):
    (tmp_path / "bad.html").write_text("<!doctype html><body><script>undefinedThing()</script></body>")
    assert "undefinedThing is not defined" in look(tmp_path / "bad.html")[1][0]


ENDED = {"name": "ended"}


def test_any_journals_have_a_page(runs):
    """Other benches, depths and token counts, missing episodes, no milliseconds, nothing paired: all in one, marked."""
    write(runs / "elsewhere", {"third": "0101"}, "elsewhere", tasks={"third": 4}, bench="libero", ms=0)
    write(runs / "short", {"near": "1"}, "short", kept=0, tasks={"near": 2}, weights="def")
    deep = StepRecord((9,) * 5, (9,) * 5, 8, (8, 8, 2, 2, 2), 0, {"prompt": 2e11}, {})
    recorder = Recorder(runs / "deep", read(runs / "dense").header)
    recorder.write(EpisodeRecord("near", 0, True, 10, (deep,)))
    recorder.close()
    recorder = Recorder(runs / "ended", Header({**read(runs / "fastv").header.identity, "method": ENDED}, {}, TASKS))
    recorder.write(EpisodeRecord("near", 0, False, 10, (deep,)))
    recorder.stop(
        {
            "rule": "anytime",
            "alpha": 0.05,
            "baseline": "dense",
            "after": 1,
            "of": 12,
            "lost": 1,
            "gained": 0,
            "log_e": 0.0,
        }
        | {"verdict": "worse"}
    )
    recorder.close()
    comparison = report.compare(report.find([runs]), partial=True, mixed=True)
    file = made(runs, comparison)
    Tags(file.read_text())
    assert "tiny on toy, libero" in file.read_text() and "short*†" in file.read_text()
    assert "stopped: worse" in file.read_text() and "ended‡" in file.read_text()
    assert "end otherwise, not tested" in file.read_text()  # no test of a fixed number for what a rule ended
    assert "not judged" in file.read_text() and look(file, width=390)[1] == []


def test_the_command_writes_a_page(runs, monkeypatch, capsys):
    file = runs / "new" / "page.html"
    monkeypatch.setattr(sys, "argv", ["vlaprune-report", str(runs), "--output", str(runs / "t"), "--html", str(file)])
    cli.report()
    assert capsys.readouterr().out.splitlines()[-1] == str(file) and "</html>" in file.read_text()


def test_noise_is_shown_and_changes_what_is_not_claimed(runs):
    comparison = report.compare(report.find([runs]))
    again = write(runs / "again", {"near": "111110", "far": "111000"})
    comparison = comparison.with_noise([read(runs / "dense"), read(again)])
    text = made(runs, comparison).read_text()
    assert "25.0 %, 3.0 x noise" in text and "That fastv keep=0.25 differs from the baseline at all" in text
    assert "no repeat of the baseline" not in text


def test_the_front_holds_what_none_beats():
    rng = np.random.default_rng(8)
    for _ in range(20):
        gain, success = rng.integers(0, 8, (2, 12))
        best = plots.front(gain, success)
        beats = [[(gain[j] >= gain[i]) & (success[j] >= success[i]) for j in best] for i in range(12)]
        assert all(any(row) for row in beats)  # every point is matched or beaten by one of the front
        assert all(sum(beats[i]) == 1 for i in best)  # and none of the front by another
        assert list(gain[best]) == sorted(gain[best], reverse=True) and list(success[best]) == sorted(success[best])


def test_equal_layers_are_told_in_one_breath():
    chart = plots.tokens({"fastv": [128, 128, 32.4, 32], "one": [7]}, {"fastv": 128, "one": 7})
    assert chart.told == "fastv: 128 at layers 0 to 1, 32 at layers 2 to 3; one: 7 at layer 0"
    assert chart.title == "Visual tokens computed at each layer"


def test_one_run_alone_has_a_page(tmp_path):
    write(tmp_path / "fastv", FASTV, "fastv", ms=0)
    file = made(tmp_path)
    assert "without a baseline to compare with" in file.read_text()
    assert look(file)[1] == []


FILTERS = """(async () => {
  const form = document.getElementById("filters"), list = document.getElementById("list");
  const names = () => [...list.querySelectorAll(".what")].map((n) => n.textContent);
  const choose = (settings) => {
    for (const [key, value] of Object.entries(settings)) form.elements[key].value = value;
    form.dispatchEvent(new Event("input", { bubbles: true }));
    return names();
  };
  const all = { show: "all", arm: -1, task: -1, number: "" };
  const arms = [...form.elements.arm.options];
  const fastv = arms.find((o) => o.textContent.startsWith("fastv")).value;
  let saved = "";
  URL.createObjectURL = (blob) => { saved = blob; return "#"; };
  document.getElementById("download").click();
  return {
    otherwise: choose({ ...all, show: "otherwise", arm: fastv }),
    lost: choose({ ...all, show: "lost", arm: fastv }),
    gained: choose({ ...all, show: "gained", arm: fastv }),
    failed: choose({ ...all, show: "failed", arm: fastv, task: 0 }),
    number: choose({ ...all, number: "5" }),
    all: choose(all),
    marks: [...list.querySelector("summary").querySelectorAll(".dot")].map((d) => d.title),
    csv: await saved.text(),
  };
})()"""


def test_in_a_browser_every_episode_can_be_found_by_filters_and_taken_away_as_data(runs):
    seen, console = look(made(runs), FILTERS)
    assert console == []
    assert (seen["lost"], seen["gained"]) == (["near 3", "far 2"], ["far 3"])
    assert seen["otherwise"] == ["near 3", "far 2", "far 3"] and seen["failed"] == ["near 3"]
    assert seen["number"] == ["near 5", "far 5"] and len(seen["all"]) == 12
    assert seen["marks"] == ["dense: achieved", "fastv keep=0.25: achieved", "random keep=0.125: failed"]
    lines = seen["csv"].splitlines()
    assert lines[0] == "method,task,episode,seed,success,steps" and len(lines) == 1 + 3 * 12
    assert '"dense","near",0,"7",1,10' in lines and '"random keep=0.125","near",0,"7",0,10' in lines


def test_a_missing_film_names_the_command_that_makes_it(tmp_path):
    said = ["method=fastv", "method.keep=0.25", "output=old", "video=none", "episodes=6"]
    write(tmp_path / "dense", DENSE, provenance={"overrides": ["method=dense"]})
    write(tmp_path / "fastv", FASTV, "fastv", keep=0.25, provenance={"overrides": said})
    seen, _ = look(made(tmp_path), SCRIPT)
    folder = tmp_path / "fastv"
    start = f"vlaprune-eval method=fastv method.keep=0.25 episodes=6 output={folder} video=all 'only=[near:3]'"
    assert seen["made"][1] == start and seen["made"][0].startswith("vlaprune-eval method=dense ")


def test_one_bad_arm_does_not_squeeze_the_scale():
    assert plots.scale_start(np.array([-60.0, -4.0, -1.0, 0.0]), (-5.0, 0.0)) == -5
    assert plots.scale_start(np.array([-60.0, -58.0, -4.0, -1.0, 0.0, 1.0])) == -4
    assert (
        plots.scale_start(np.array([-20.0, -8.0, -4.0, 0.0])) == -8
        and plots.scale_start(np.array([-15.0, -8.0, -4.0, 0.0])) == -15
    )
    assert plots.scale_start(np.array([-60.0, -40.0, -25.0, -10.0])) == -60  # all far apart: nothing is left out
    assert plots.scale_start(np.array([-9.0, -4.0]), (-5.0, 0.0)) == -9 and plots.scale_start(np.array([3.0])) == 3


def test_a_method_has_one_colour_everywhere(runs):
    write(runs / "half", DENSE, "fastv", kept=32, gflops=3.0, keep=0.5)
    text = made(runs).read_text()
    rows = re.findall(r'<th scope="row" data-value="([^"]+)"><span class="dot (m\d+)"', text)
    colours = {}
    for name, colour in rows:
        colours.setdefault(name.split()[0], set()).add(colour)
    assert all(len(own) == 1 for own in colours.values()) and colours["dense"] == {"m0"}
    assert len({*map(min, colours.values())}) == 3


def test_rows_stand_by_effect(runs):
    order = re.findall(r'<th scope="row" data-value="([^"]+)">', made(runs).read_text())
    assert order[:3] == ["dense", "fastv keep=0.25", "random keep=0.125"]
    write(runs / "better", {"near": "111111", "far": "111111"}, "better", kept=8)
    order = re.findall(r'<th scope="row" data-value="([^"]+)">', made(runs).read_text())
    assert order[:4] == ["dense", "better", "fastv keep=0.25", "random keep=0.125"]


def test_method_against_method_is_paired_and_mirrored(runs):
    """random loses all of fastv's 8 of 12; dense is one episode above fastv."""
    comparison = report.compare(report.find([runs]))
    grid = {arm.label: [cell.text for cell in cells] for arm, cells in grids.versus(comparison)}
    assert list(grid) == ["dense", "fastv keep=0.25", "random keep=0.125"]
    assert grid["dense"] == ["", "+8.3", "+75.0"] and grid["fastv keep=0.25"] == ["-8.3", "", "+66.7"]
    strong = [cell.strong for _, cells in grids.versus(comparison) for cell in cells]
    assert strong == [False, False, True, False, False, True, True, True, False]  # McNemar, Holm over three pairs
    heat = {arm.label: cells for arm, cells in grids.heat(comparison, report.tabulate(comparison, by_task=True))}
    assert [c.text for c in heat["fastv keep=0.25"]] == ["83", "50"] and heat["fastv keep=0.25"][1].depth == 0
    assert heat["random keep=0.125"][0].hue == "bad" and heat["random keep=0.125"][0].depth == 70


def test_a_difference_that_chance_makes_is_not_framed(tmp_path):
    """Four lost, none gained: p = 0.125."""
    write(tmp_path / "dense", {"near": "1" * 6, "far": "1" * 6})
    write(tmp_path / "fastv", {"near": "0" * 4 + "11", "far": "1" * 6}, "fastv")
    comparison = report.compare(report.find([tmp_path]))
    assert not any(cell.strong for _, cells in grids.versus(comparison) for cell in cells)
