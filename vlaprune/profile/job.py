"""The modes of vlaprune-profile, one function each."""

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
from vlaprune.profile.measured import Measured, Methods, check_backends, measure
from vlaprune.profile.page import Page, free_name
from vlaprune.profile.recording import Recording, origin, record, synthetic
from vlaprune.pruner import Calibrated, Pruner

PICTURE = 256  # side of the pictures that LIBERO renders, in px: models that resize pictures must do so here too


@dataclass(frozen=True)
class ProfileJob:
    """The inputs of a mode of vlaprune-profile.

    cfg      the settings of configs/profile.yaml
    load     builds the configured model, or another by its name in configs/model, with random weights
    methods  labels and constructors, one per arm of the command line
    every    labels and constructors of all methods at given budgets and, if asked, also as their files set them
    control  how the model drives the robot of the benchmark
    bench    benchmark on which observations are recorded, if their file does not exist
    world    identity of the benchmark, as in a journal
    make     builds a method from the configuration in a journal
    made     returns the provenance of this process on a device
    scratch  folder for temporary files of this process
    """

    cfg: Any
    load: Callable[[str | None], VLA]
    methods: Methods
    every: Callable[[Sequence[float], bool], Methods]
    control: Callable[[], Control]
    bench: Benchmark
    world: Mapping[str, Any]
    make: Callable[[Any], Pruner]
    made: Callable[[str], Mapping[str, Any]]
    scratch: Path

    @cached_property
    def model(self) -> VLA:
        """The configured model."""
        return self.load(None)

    @property
    def rules(self) -> micro.TimingConfig:
        """The settings that say how long to measure."""
        cfg = self.cfg
        return micro.TimingConfig(cfg.warmup, cfg.calls, cfg.seconds, cfg.block, cfg.seed)

    def observations(self) -> Recording:
        """The observations to replay: seeded noise, or a file, which a dense rollout makes if it does not exist."""
        cfg, model = self.cfg, self.model
        if cfg.observations == "noise":
            return noise(model, cfg.seed)
        path, made = Path(cfg.observations), origin(self.world, model, self.control())
        if not path.is_file():
            bench = self.bench
            try:
                self.control().output_interface(model.interface).check(bench.interface)
            except UserError as error:
                raise UserError(f"model {model.info.name} and bench {bench.name} do not fit: {error}") from None
            print(f"recording {cfg.record} dense episodes of every task of {bench.name} into {path}", flush=True)
            policy = Policy(model, Dense, control=self.control())
            record(policy, bench, cfg.record, cfg.seed, made).save(path)
        recording = Recording.load(path)
        has = set(recording.frames[0].observation.images)
        if not set(model.interface.cameras) <= has:
            raise UserError(
                f"{path} has cameras {sorted(has)}, {model.info.name} reads {sorted(model.interface.cameras)}; "
                "delete it to record anew, or name another file with observations="
            )
        recording.check(path, self.bench, cfg.record, cfg.seed, made)
        return replace(recording, execute=self.control().actions_per_call(model.chunk))

    def ready(self, methods: Methods, model: VLA, recording: Recording) -> Methods:
        """The methods, with a calibration from these frames if they need one."""
        return calibrate.ready(methods, model, recording, self.cfg.seed, self.scratch)

    def write(self, page: Page, otherwise: str, rows: Sequence[Mapping[str, Any]], device: str) -> list[Path]:
        """Writes the page and its numbers, under the configured name or else `otherwise`."""
        return page.write(Path(self.cfg.output), str(self.cfg.name or otherwise), rows, self.made(device))


def noise(model: VLA, seed: int) -> Recording:
    """Synthetic observations of the size a model reads."""
    return synthetic(model.interface, model.image if isinstance(model, HasImageSize) else PICTURE, seed=seed)


def speeds(setting: ProfileJob) -> list[Path]:
    """mode=speed: what every method saves against the fastest dense backend."""
    cfg, model = setting.cfg, setting.model
    check_backends(cfg.backends, model.device)  # before observations are recorded
    recording = setting.observations()
    methods = setting.ready(setting.methods, model, recording)
    with _bar("blocks", "block") as tell:
        found = measure(model, methods, recording, setting.rules, cfg.backends, tell)
    page = Page(f"{model.info.name}: what pruning saves, and what it costs")
    speed.fill(page, found.rows, found.refusal, found.here)
    page.text(*found.notes)
    return setting.write(page, f"{model.info.name}-{model.device.type}", found.rows, str(model.device))


def fidelities(setting: ProfileJob) -> list[Path]:
    """mode=fidelity: how far each method's actions are from dense ones, and whether that predicts lost success."""
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
    """mode=overhead: our decoder against transformers', and methods that keep everything against dense."""
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
    """mode=floors: the most that pruning can save for published models on known devices; nothing is run."""
    page = Page("The most that pruning can give")
    return setting.write(page, "floors", floors.fill(page, setting.cfg.keeps), "cpu")


def preparations(setting: ProfileJob) -> list[Path]:
    """mode=pictures: the time to prepare the benchmark's pictures for a call, in each way that models use."""
    page = Page("Preparing pictures")
    rows = pictures.fill(page, setting.bench.name, pictures.seen(setting.bench), setting.cfg.calls)
    return setting.write(page, "pictures", rows, "cpu")


def checks(setting: ProfileJob) -> list[Path]:
    """mode=check: every model and method in a few minutes, on this machine.

    The page is written again after every round of arms, so the results so far remain if it is stopped.
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
    """mode=calibrate: writes a calibration file for every method that needs one, from recorded dense frames."""
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
    """A progress bar; yields the function that reports the last step."""
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
