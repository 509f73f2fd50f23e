"""From YAML and overrides to model, pruners, benchmark and journal header. Only this package and cli.py use Hydra."""

from vlaprune.config.black_box import black_box, opaque
from vlaprune.config.build import build, control, load, model_node, ready, recorded_method, robots, sinks
from vlaprune.config.check import check
from vlaprune.config.classes import make
from vlaprune.config.compose import composed, config_path, options, plain, prepare
from vlaprune.config.delay import delay, delay_identity
from vlaprune.config.explain import composing, explained
from vlaprune.config.objects import standing_in
from vlaprune.config.provenance import black_box_header, header, provenance, tasks
from vlaprune.config.sweep import arguments, arms, every, handed, job, methods, taken

__all__ = [
    "arguments",
    "arms",
    "black_box",
    "black_box_header",
    "build",
    "check",
    "composed",
    "composing",
    "config_path",
    "control",
    "delay",
    "delay_identity",
    "every",
    "explained",
    "handed",
    "header",
    "job",
    "load",
    "make",
    "methods",
    "model_node",
    "opaque",
    "options",
    "plain",
    "prepare",
    "provenance",
    "ready",
    "recorded_method",
    "robots",
    "sinks",
    "standing_in",
    "taken",
    "tasks",
]
