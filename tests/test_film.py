"""Films: what is drawn is what the session did, and filming changes no number and takes bounded room."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from doubles import Bench, Reuser, Scripted, outcomes, play

from vlaprune.evaluation.film import Film, frame, shade, token_masks
from vlaprune.methods.fastv import FastV
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.pruner import Plan, Selection
from vlaprune.records import film_name
from vlaprune.testing import scenes
from vlaprune.trace import Layout, Trace, View

VIEWS = (View("left", 0, 2, 2), View("right", 4, 2, 3))
LAYOUT = Layout(14, range(1, 11), range(11, 13), range(13, 14), 13, VIEWS)


def trace(kept=None, reused=None, step=0):
    images = [torch.full((9, 8, 3), 200, dtype=torch.uint8), torch.full((8, 12, 3), 200, dtype=torch.uint8)]
    kept, reused = ({layer: torch.tensor(rows) for layer, rows in (d or {}).items()} for d in (kept, reused))
    return Trace(LAYOUT, images, step, kept=kept, reused=reused)


def frames(path):
    """A film as [n, h, w, 3]."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])


def test_fates_are_those_at_the_deepest_site():
    context, computed, reused = token_masks(trace({0: [0, 1, 2, 5], 3: [1, 5]}, {3: [1]}))  # position 1 is patch 0
    assert context == 3 and list(computed.nonzero()[0]) == [1, 5] and list(reused.nonzero()[0]) == [0]
    context, computed, reused = token_masks(trace())
    assert context is None and computed.all() and not reused.any()


@pytest.mark.parametrize(("make", "layer"), [(lambda: FastV(keep=0.25), 3), (Reuser, 0)])
def test_fates_agree_with_the_rows_that_were_computed(make, layer):
    policy = Policy(Toy(), make)
    for look in scenes(0, 0, 3):
        policy.act({0: look})
    context, computed, reused = token_masks(policy.trace(0))
    rows, columns = policy.trace(0).counts[-1]
    others = policy.trace(0).layout.length - 64
    assert context == layer and rows - others == computed.sum() and columns - rows == reused.sum()
    assert not (computed & reused).any() and reused.any() == (make is Reuser)


def test_reuse_that_a_deeper_site_leaves_alone_is_still_shown():
    def choose(context):
        if context.layer == 4 or not context.step:
            return Selection.all(context, {})
        return Selection(torch.arange(10, 64), torch.arange(10))

    policy = Policy(Toy(), lambda: Scripted(Plan((1, 4), reuses=True), choose))
    for look in scenes(0, 0, 2):
        policy.act({0: look})
    context, computed, reused = token_masks(policy.trace(0))
    assert context == 4 and computed.sum() == 54 and list(reused.nonzero()[0]) == list(range(10))


def test_each_patch_is_drawn_by_its_fate():
    computed, reused = np.zeros(10, bool), np.zeros(10, bool)
    computed[[4, 5]], reused[9] = True, True
    image = np.full((8, 12, 3), 200, np.uint8)
    drawn = shade(image, VIEWS[1], computed, reused)
    zoom = drawn.shape[0] // 8
    assert drawn.shape == (8 * zoom, 12 * zoom, 3)
    middles = drawn[2 * zoom :: 4 * zoom, 2 * zoom :: 4 * zoom]  # of the 2 x 3 patches
    assert (middles[0, 0] == 200).all() and (middles[0, 1] == 200).all()
    assert (middles[0, 2] == 50).all() and (middles[1, :2] == 50).all()
    assert middles[1, 2, 2] > middles[1, 2, 0] > 50
    assert (shade(image, VIEWS[1], ~reused & False, reused & False) == 50).all()
    untouched = shade(image, VIEWS[1], np.ones(10, bool), reused & False)
    assert (untouched == 200).all()


def test_pixels_that_belong_to_no_patch_stay_as_they_are():
    drawn = shade(np.full((9, 8, 3), 200, np.uint8), VIEWS[0], np.zeros(10, bool), np.zeros(10, bool))
    zoom = drawn.shape[0] // 9
    assert (drawn[8 * zoom :] == 200).all() and (drawn[: 8 * zoom] == 50).all()


def test_a_frame_has_even_sides_and_says_more_where_more_happened():
    one, two = frame(trace({0: [1]}), "here"), frame(trace({0: [1]}), "here", (220, 60, 50))
    assert one.shape[0] % 2 == one.shape[1] % 2 == 0 and one.dtype == np.uint8
    assert (two[0] == (220, 60, 50)).all() and not (one[0] == (220, 60, 50)).any()


def filming(folder, kind="all", megabytes=100.0, said=None, **kwargs):
    film = Film(folder, kind, 5.0, megabytes, (said if said is not None else []).append)
    try:
        return play(folder, watchers=[film], **kwargs)
    finally:
        film.close()


def test_filming_changes_no_number_and_shows_every_call(tmp_path):
    run = filming(tmp_path / "a", make=FastV, slots=2, execute=1)
    assert outcomes(run) == outcomes(play(tmp_path / "b", make=FastV, execute=1))
    assert sorted(p.name for p in (tmp_path / "a" / "videos").iterdir()) == sorted(
        film_name(*key).split("/")[1] for key in run.episodes
    )
    key, record = next(iter(run.episodes.items()))
    shown = frames(tmp_path / "a" / film_name(*key))
    assert len(shown) == len(record.calls) + 5  # and the end for a second
    assert shown[-1][0, :, 1].mean() > 120 > shown[0][0, :, 1].mean()  # a green frame around it


def test_only_lost_episodes_are_kept_if_failures_are_wanted(tmp_path):
    run = filming(tmp_path, "failures", bench=Bench(limit=3), execute=1)
    lost = {film_name(*key).split("/")[1] for key, record in run.episodes.items() if not record.success}
    assert lost and len(lost) < len(run.episodes)
    assert {p.name for p in (tmp_path / "videos").iterdir()} == lost
    assert all(r.success for r in filming(tmp_path / "won", "failures").episodes.values())
    assert not (tmp_path / "won" / "videos").exists()


def test_films_take_bounded_room_and_say_so_once(tmp_path):
    said = []
    run = filming(tmp_path, megabytes=0.05, said=said)
    films = list((tmp_path / "videos").glob("*.mp4"))
    assert len(run.episodes) == 6 and 0 < len(films) < 6
    assert sum(p.stat().st_size for p in films) < 0.05e6 + max(p.stat().st_size for p in films)
    assert len(said) == 1 and "video_megabytes=0.05" in said[0] and "no more films" in said[0]


def test_an_episode_that_raised_leaves_no_film(tmp_path):
    def trouble(task, episode, steps):
        if episode == 1 and steps:
            raise RuntimeError("gone")

    run = filming(tmp_path, bench=Bench(trouble), execute=1, slots=2)
    assert {p.name for p in (tmp_path / "videos").iterdir()} == {film_name(*k).split("/")[1] for k in run.episodes}


@pytest.mark.parametrize("left", [0, 30, 2000])
def test_a_film_that_a_full_disk_cut_short_is_not_kept(tmp_path, monkeypatch, left):
    """The encoder of a full disk ends without a word and leaves the beginning of a file."""

    class Short(Film):
        def _start(self, key, *size):
            writer = super()._start(key, *size)

            def cut():
                try:
                    while True:
                        writer.send((yield))
                finally:
                    writer.close()
                    path = self._paths(key)[0]
                    path.write_bytes(path.read_bytes()[:left])

            out = cut()
            next(out)
            return out

    said = []
    film = Short(tmp_path, "all", 5.0, 100.0, said.append)
    run = play(tmp_path, watchers=[film], say=said.append)
    film.close()
    assert len(run.episodes) == 6 and not list(tmp_path.glob("videos/**/*.mp4"))
    assert len(said) == 1 and "cannot be written" in said[0] and "MB are free" in said[0]


def test_an_encoder_that_fails_ends_filming_and_not_the_run(tmp_path):
    (tmp_path / "videos").write_text("in the way")
    said = []
    run = filming(tmp_path, said=said)
    assert len(run.episodes) == 6 and len(said) == 1 and "cannot be written" in said[0]


def test_a_film_is_a_plain_h264_that_browsers_play(tmp_path):
    run = filming(tmp_path, episodes=1)
    path = tmp_path / film_name(*next(iter(run.episodes)))
    probe = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    said = subprocess.run(probe, capture_output=True, text=True, check=False).stderr
    assert "Video: h264" in said and "yuv420p" in said
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before it is loaded


def test_names_of_films():
    assert film_name("Lift", 7) == "videos/lift-0007.mp4"
    assert film_name("Put the can/in its bin", 12345) == "videos/put-the-can-in-its-bin-12345.mp4"


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"video=some; use one of none, failures, all"):
        Film(tmp_path, "some", 1.0, 1.0, print)
