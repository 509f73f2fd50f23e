"""Makes model, pruners, benchmark and header from YAML and overrides. Only this package and cli.py use Hydra."""

from vlaprune.config.black_box import black_box, is_black_box
from vlaprune.config.build import build, control, load, model_node, ready, recorded_method, robot_of, robots, sinks
from vlaprune.config.check import check
from vlaprune.config.classes import make, takes
from vlaprune.config.compose import arguments, composed, config_path, options, plain, prepare
from vlaprune.config.delay import delay, delay_identity
from vlaprune.config.explain import explain, is_config_error
from vlaprune.config.names import typed, typed_words
from vlaprune.config.objects import with_objects
from vlaprune.config.provenance import black_box_header, header, identity, method_identity, provenance, tasks
from vlaprune.config.sweep import all_methods, arms, job, methods, pack_job, unpack_job

__all__ = [
    "all_methods",
    "arguments",
    "arms",
    "black_box",
    "black_box_header",
    "build",
    "check",
    "composed",
    "config_path",
    "control",
    "delay",
    "delay_identity",
    "explain",
    "header",
    "identity",
    "is_black_box",
    "is_config_error",
    "job",
    "load",
    "make",
    "method_identity",
    "methods",
    "model_node",
    "options",
    "pack_job",
    "plain",
    "prepare",
    "provenance",
    "ready",
    "recorded_method",
    "robot_of",
    "robots",
    "sinks",
    "takes",
    "tasks",
    "typed",
    "typed_words",
    "unpack_job",
    "with_objects",
]
