"""What the modes of vlaprune-profile do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlaprune.benchmark import Benchmark
from vlaprune.control import Control
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.nn.block import DecoderConfig
from vlaprune.policy import VLA, HasImageSize, Policy, card_of
from vlaprune.profile import calibrate, check, floors, micro, overhead, pictures, speed
from vlaprune.profile.measured import Measured, Methods, measure
from vlaprune.profile.page import Page, free_name
from vlaprune.profile.recording import Recording, record, synthetic
from vlaprune.pruner import Calibrated, Pruner

PICTURE = 256  # side of the pictures that LIBERO renders, in px: models that resize must be seen resizing


@dataclass(frozen=True)
class ProfileJob:
    """What a mode works with.

    cfg      the settings of configs/profile.yaml
    load     builds the configured model, or another by its name in configs/model, with random weights
    methods  labels and constructors, one per arm of the command line
    every    the same for all methods at some budgets, and, where asked, as their papers set them
    control  how the model drives the robot of the benchmark
    bench    where observations are recorded, if they are not there yet
    make     a method from the configuration that a journal holds
    made     provenance of this process on a device
    scratch  folder for files that only this process needs
    """

    cfg: Any
    load: Callable[[str | None], VLA]
    methods: Methods
    every: Callable[[Sequence[float], bool], Methods]
    control: Callable[[], Control]
    bench: Benchmark
    make: Callable[[Any], Pruner]
    made: Callable[[str], Mapping[str, Any]]
    scratch: Path

    @cached_property
    def model(self) -> VLA:
        """The configured model."""
        return self.load(None)

    @property
    def rules(self) -> micro.TimingConfig:
        """How long to measure."""
        cfg = self.cfg
        return micro.TimingConfig(cfg.warmup, cfg.calls, cfg.seconds, cfg.block, cfg.seed)

    def observations(self) -> Recording:
        """What is replayed: seeded noise, or a file, made by a dense rollout where it is not there yet."""
        cfg, model = self.cfg, self.model
        if cfg.observations == "noise":
            return noise(model, cfg.seed)
        path = Path(cfg.observations)
        if not path.is_file():
            bench = self.bench
            try:
                model.interface.check(bench.interface)
            except UserError as error:
                raise UserError(f"model {model.info.name} and bench {bench.name} do not fit: {error}") from None
            print(f"recording {cfg.record} dense episodes of every task of {bench.name} into {path}", flush=True)
            policy = Policy(model, Dense, control=self.control())
            record(policy, bench, cfg.record, cfg.seed).save(path)
        recording = Recording.load(path)
        has = set(recording.frames[0].observation.images)
        if not set(model.interface.cameras) <= has:
            raise UserError(
                f"{path} has cameras {sorted(has)}, {model.info.name} reads {sorted(model.interface.cameras)}; "
                "delete it to record anew, or name another file with observations="
            )
        recording.check(path, self.bench, cfg.record, cfg.seed)
        return replace(recording, execute=self.control().actions_per_call(model.chunk))

    def ready(self, methods: Methods, model: VLA, recording: Recording) -> Methods:
        """The methods, with a calibration from these frames where they need one."""
        return calibrate.ready(methods, model, recording, self.cfg.seed, self.scratch)

    def write(self, page: Page, otherwise: str, rows: Sequence[Mapping[str, Any]], device: str) -> list[Path]:
        """The page and its numbers, under the asked name or this one."""
        return page.write(Path(self.cfg.output), str(self.cfg.name or otherwise), rows, self.made(device))


def noise(model: VLA, seed: int) -> Recording:
    """Synthetic observations of the size a model reads."""
    return synthetic(model.interface, model.image if isinstance(model, HasImageSize) else PICTURE, seed=seed)


def speeds(setting: ProfileJob) -> list[Path]:
    """What every method saves against the fastest dense."""
    cfg, model, recording = setting.cfg, setting.model, setting.observations()
    methods = setting.ready(setting.methods, model, recording)
    with _bar("blocks", "block") as tell:
        found = measure(model, methods, recording, setting.rules, cfg.backends, tell)
    page = Page(f"{model.info.name}: what pruning saves, and what it costs")
    speed.fill(page, found.rows, found.refusal, found.here)
    page.text(*found.notes)
    return setting.write(page, f"{model.info.name}-{model.device.type}", found.rows, str(model.device))


def fidelities(setting: ProfileJob) -> list[Path]:
    """How far each method's actions stray from dense ones, and whether that foretold its loss of success."""
    from vlaprune import report
    from vlaprune.profile import gate, hindsight

    cfg, model, recording = setting.cfg, setting.model, setting.observations()
    methods, ran, base = list(setting.methods), {}, None
    if cfg.runs:
        runs = report.find([Path(folder) for folder in cfg.runs])
        base = next((r for r in runs if report.name(r.header) == "dense"), None)
        if base is None:
            raise UserError(f"runs={list(cfg.runs)} hold no dense run; a loss needs one")
        found = gate.arms(runs, base, setting.make, card_of(model).get("sha256", "none"))
        methods = [(label, calibrate.of_run(make, run.folder)) for label, make, run in found]
        ran = {label: run for label, _, run in found}
    methods = list(setting.ready(methods, model, recording))
    reseed = gate.draws_noise(model, recording, cfg.seed)
    with _bar("arms", "arm", len(methods) + 1 + reseed) as tell:
        judged = gate.judge(model, recording, methods, cfg.seed, reseed, tell)
    if base is not None:
        gate.losses(judged, ran, base)
    page = Page(f"{model.info.name}: fidelity of pruned actions on recorded observations")
    gate.fill(page, judged, gate.correlations(judged))
    extra: list[dict[str, Any]] = []
    if cfg.hindsight.count is not None:
        arms = {a.label: a.replay for a in judged if a.label not in (micro.AGAIN, gate.RESEEDED)}
        with _bar("hindsight", "frame", 2 * cfg.hindsight.frames) as tell:
            extra = hindsight.fill(page, model, recording, arms, judged[0].replay, cfg.hindsight, cfg.seed, tell)
    page.text(
        f"- observations: {len(recording.frames)} calls of {len(recording.episodes)} dense episodes of "
        f"{recording.card['bench']}, replayed in order; nothing is stepped",
        f"- the rank correlation is over arms with at least {gate.LEAST} episodes; where many arms lose little, the "
        "order of their losses is noise",
    )
    return setting.write(page, "fidelity", [*gate.rows(judged), *extra], str(model.device))


def overheads(setting: ProfileJob) -> list[Path]:
    """What the instrument costs: our decoder against transformers', methods that keep everything against dense."""
    cfg, model, recording = setting.cfg, setting.model, setting.observations()
    page = Page("What the instrument costs")
    decoder = DecoderConfig(
        num_kv_heads=cfg.decoder.num_heads,
        head_dim=cfg.decoder.hidden_size // cfg.decoder.num_heads,
        **cfg.decoder,
    )
    rows = overhead.decoders(page, decoder, cfg.lengths, cfg.rounds)
    every = setting.ready(setting.every([1.0], True), model, recording)
    with _bar("blocks", "block") as tell:
        rows += overhead.methods(page, model, every, recording, setting.rules, tell)
    return setting.write(page, "overhead", rows, str(model.device))


def ceilings(setting: ProfileJob) -> list[Path]:
    """The most that pruning can give the published models on known devices; nothing is run."""
    page = Page("The most that pruning can give")
    return setting.write(page, "floors", floors.fill(page, setting.cfg.keeps), "cpu")


def preparations(setting: ProfileJob) -> list[Path]:
    """What preparing the pictures of the benchmark costs a call, in each way that models name."""
    page = Page("Preparing pictures")
    rows = pictures.fill(page, setting.bench.name, pictures.seen(setting.bench), setting.cfg.calls)
    return setting.write(page, "pictures", rows, "cpu")


def checks(setting: ProfileJob) -> list[Path]:
    """Every model and method in a few minutes, on the machine at hand.

    The page is written again after every round of arms: whoever stops it keeps what is there.
    """
    cfg, found = setting.cfg, dict[str, Measured]()
    written: list[Path] = []
    name_of_page: str | None = None
    for number, (name, share) in enumerate(check.shares(cfg.models, cfg.minutes)):
        print(f"{name}, {number + 1} of {len(check.models(cfg.models))}", flush=True)
        model = setting.load(name)
        device = str(model.device)
        if name_of_page is None:
            label = "-".join(("check", check.where(device), *(cfg.models or ())))
            name_of_page = free_name(Path(cfg.output), str(cfg.name or label))
        recording = noise(model, cfg.seed)
        every = setting.ready(setting.every(cfg.keeps[-1:], False), model, recording)

        def save(own: Measured, name: str = name, device: str = device, page: str = name_of_page) -> None:
            found[name] = own
            written[:] = setting.write(check.page_of(found), page, check.rows_of(found), device)

        save(check.one(model, every, recording, share, cfg, save))
        del model
        check.free()
    return written


def calibrations(setting: ProfileJob) -> list[Path]:
    """A calibration file for every method that needs one, from the recorded dense frames."""
    cfg, model, recording = setting.cfg, setting.model, setting.observations()
    out = []
    for label, make in setting.methods:
        method = make()
        if not isinstance(method, Calibrated):
            raise UserError(f"method {label} has nothing to calibrate; use method=ties")
        probe = calibrate.probed(method.probe(), model, recording, cfg.seed, len(recording.frames))
        out.append(Path(cfg.output) / f"{cfg.name or model.info.name + '-' + label.replace(' ', '-')}.json")
        probe.save(out[-1])
    return out


@contextmanager
def _bar(what: str, unit: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar; gives the function that says what was done last."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, total=total) as bar:

        def tell(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield tell


MODES: Mapping[str, Callable[[ProfileJob], list[Path]]] = {
    "speed": speeds,
    "fidelity": fidelities,
    "overhead": overheads,
    "floors": ceilings,
    "pictures": preparations,
    "check": checks,
    "calibrate": calibrations,
}
