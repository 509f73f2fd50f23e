"""Films of episodes: what the policy saw at each model call, and what its method did with every patch.

A patch dropped at the deepest layer at which the method chose is dimmed, a reused one is tinted blue. The rest is as
the vision tower sees it, with a line around it.

A film watches from outside: it reads the trace of a call that is over, so a filmed run has the numbers of any other.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlaprune.errors import UserError, install_command
from vlaprune.records import EpisodeRecord, film_name
from vlaprune.trace import Trace, View

KINDS = ("none", "failures", "all")
SIDE = 256  # pixels of a camera's height in a film, roughly: images are enlarged by whole numbers
BLUE = (64, 144, 255)
GREEN = (60, 180, 75)
RED = (220, 60, 50)
YELLOW = (255, 200, 0)
GREY = (190, 190, 190)
BLACK = (18, 18, 20)
Key = tuple[str, int]


def token_masks(trace: Trace) -> tuple[int | None, np.ndarray, np.ndarray]:
    """The deepest layer at which the method chose (None for none) and, there, [V] bool computed, [V] bool reused."""
    computed = np.ones(trace.layout.total, bool)
    reused = np.zeros(trace.layout.total, bool)
    if not trace.kept:
        return None, computed, reused
    layer = max(trace.kept)
    computed[:] = False
    computed[trace.kept[layer].cpu().numpy()] = True
    if layer in trace.reused:
        reused[trace.reused[layer].cpu().numpy() - trace.layout.visual.start] = True
    return layer, computed, reused


def shade(image: np.ndarray, view: View, computed: np.ndarray, reused: np.ndarray) -> np.ndarray:
    """A camera's [h, w, 3] uint8 image, enlarged: dropped patches dimmed, reused ones tinted, the rest in a line."""
    camera = view.slice
    zoom = max(1, round(SIDE / image.shape[0]))
    out = image.repeat(zoom, 0).repeat(zoom, 1).astype(float)
    h, w = (zoom * (size // patches) for size, patches in zip(image.shape, (view.height, view.width), strict=False))

    def pixels(tokens: np.ndarray) -> np.ndarray:
        grid = tokens[camera].reshape(view.height, view.width).repeat(h, 0).repeat(w, 1)
        return np.pad(grid, ((0, out.shape[0] - grid.shape[0]), (0, out.shape[1] - grid.shape[1])))

    out[pixels(~computed & ~reused)] *= 0.25
    tinted = pixels(reused)
    kept = pixels(computed)
    out[tinted] = out[tinted] * 0.55 + np.array(BLUE) * 0.45
    inside = np.pad(kept, 1, mode="edge")
    inside = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    out[kept & ~inside] = YELLOW
    return out.round().astype(np.uint8)


def frame(trace: Trace, title: str, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """One picture [H, W, 3] uint8: the cameras side by side, a caption above and the counts of each below.

    colour  of a frame around it, at the end of an episode
    """
    from PIL import Image, ImageDraw, ImageFont

    layer, computed, reused = token_masks(trace)
    views = trace.layout.views
    shaded = [shade(i.cpu().numpy(), v, computed, reused) for v, i in zip(views, trace.images, strict=True)]
    width = max(sum(s.shape[1] + 8 for s in shaded) + 8, 400)
    high = max(s.shape[0] for s in shaded)
    canvas = Image.new("RGB", (width + width % 2, high + high % 2 + 76), BLACK)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    x = 8
    caption = (
        "nothing dropped" if layer is None else f"from layer {layer} on: {computed.sum()} of {computed.size} computed"
    )
    pen.text((8, 5), title, fill="white", font=font)
    pen.text((8, 25), caption + (f", {reused.sum()} reused" if reused.any() else ""), fill=GREY, font=font)
    for view, picture in zip(views, shaded, strict=True):
        canvas.paste(Image.fromarray(picture), (x, 48))
        tokens = list(view.tokens)
        pen.text((x, high + 53), f"{view.camera} {computed[tokens].sum()}/{len(tokens)}", fill=GREY, font=font)
        x += picture.shape[1] + 8
    if colour:
        pen.rectangle((0, 0, canvas.width - 1, canvas.height - 1), outline=colour, width=4)
    return np.asarray(canvas)


def is_complete(path: Path) -> bool:
    """Whether an mp4 file has all of its parts to the last byte: what an encoder on a full disk leaves has not."""
    kinds = set()
    at = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while at + 8 <= size:
                file.seek(at)
                length, kind = struct.unpack(">I4s", file.read(8))
                length = struct.unpack(">Q", file.read(8))[0] if length == 1 else length
                if length < 8:
                    return False
                kinds.add(kind)
                at += length
    except (OSError, struct.error):
        return False
    return at == size and {b"moov", b"mdat"} <= kinds


@dataclass
class Reel:
    """A film under way: its encoder, the calls shown and the latest of them."""

    writer: Generator[None, Any, None] | None = None
    calls: int = 0
    last: Trace | None = None


class Film:
    """Films the episodes of a rollout, one mp4 each below the run's `videos` folder.

    kind       `all`, or `failures`: films of successful episodes are deleted
    fps        model calls shown per second
    megabytes  size of the videos folder from which no further film is started; `say` is called once then
    shows      whether the film of an episode that ended so is to be kept; an earlier film of it stays if not

    Errors: UserError for an unknown kind, or where what it needs is not installed.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        fps: float,
        megabytes: float,
        say: Callable[[str], None],
        shows: Callable[[EpisodeRecord], bool] = lambda record: True,
    ) -> None:
        if kind not in KINDS[1:]:
            raise UserError(f"video={kind}; use one of {', '.join(KINDS)}")
        try:
            import imageio_ffmpeg
            import PIL  # noqa: F401
        except ImportError:
            raise UserError(f"video={kind} needs more packages; {install_command('video')}") from None
        self._encode = imageio_ffmpeg.write_frames
        self.folder = folder
        self.kind = kind
        self.fps = fps
        self.megabytes = megabytes
        self._say = say
        self._shows = shows
        self._rolling: dict[Key, Reel | None] = {}  # None for an episode under way that is not filmed
        self._over = False

    def on_call(self, task: str, episode: int, trace: Trace) -> None:
        """Adds the frame of a model call that is over."""
        key = task, episode
        if key not in self._rolling:
            self._rolling[key] = Reel() if self._room() else None
        reel = self._rolling[key]
        if reel is not None:
            self._put(key, reel, frame(trace, f"{task} {episode}, call {reel.calls}"))
            # without the attention rows, which may take as much memory as the model
            light = Trace(trace.layout, trace.images, trace.step, kept=dict(trace.kept), reused=dict(trace.reused))
            reel.calls += 1
            reel.last = light

    def on_episode(self, task: str, episode: int, record: EpisodeRecord | None) -> None:
        """Ends the film of an episode; without a record, the world raised, and what was filmed is thrown away."""
        key = task, episode
        reel = self._rolling.get(key)
        keep = record is not None and (self.kind == "all" or not record.success) and self._shows(record)
        if reel is not None and reel.last is not None and record is not None and keep:
            title = f"{task} {episode}: {record.ending}"
            last = frame(reel.last, title, GREEN if record.success else RED)
            for _ in range(max(1, round(self.fps))):
                self._put(key, reel, last)
        self._cut(key, keep)

    def close(self) -> None:
        """Throws away what is unfinished."""
        for key in list(self._rolling):
            self._cut(key, False)
        for folder in (self.folder / "videos" / ".partial", self.folder / "videos"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _paths(self, key: Key) -> tuple[Path, Path]:
        final = self.folder / film_name(*key)
        return final.parent / ".partial" / final.name, final

    def _room(self) -> bool:
        if self._over:
            return False
        held = sum(p.stat().st_size for p in (self.folder / "videos").glob("*.mp4")) / 1e6
        if held >= self.megabytes:
            self._stop(f"the films hold {held:.0f} MB (video_megabytes={self.megabytes:g})")
        return not self._over

    def _put(self, key: Key, reel: Reel, picture: np.ndarray) -> None:
        """Hands a frame to the encoder; one that fails ends filming, not the run."""
        if self._rolling[key] is None:
            return
        try:
            if reel.writer is None:
                reel.writer = self._start(key, picture.shape[1], picture.shape[0])
            reel.writer.send(np.ascontiguousarray(picture))
        except (OSError, StopIteration) as error:
            self._rolling[key] = None
            self._stop(f"the film of {key[0]} {key[1]} cannot be written ({str(error).splitlines()[0]})")

    def _start(self, key: Key, width: int, height: int) -> Generator[None, Any, None]:
        path, _ = self._paths(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = ["-crf", "23", "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart"]
        writer: Generator[None, Any, None] = self._encode(
            str(path),
            (width, height),
            fps=self.fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="quiet",  # what fails is told below, once
            output_params=options,
        )
        writer.send(None)
        return writer

    def _cut(self, key: Key, keep: bool) -> None:
        reel = self._rolling.pop(key, None)
        if reel is None or reel.writer is None:
            return
        with suppress(OSError):
            reel.writer.close()
        partial, final = self._paths(key)
        if keep and is_complete(partial):
            os.replace(partial, final)
            return
        partial.unlink(missing_ok=True)
        if keep:
            free = shutil.disk_usage(partial.parent).free / 1e6
            self._stop(f"the film of {key[0]} {key[1]} cannot be written ({free:.0f} MB are free)")

    def _stop(self, why: str) -> None:
        if not self._over:
            self._say(f"{why}; no more films in this run, everything else goes on")
        self._over = True
