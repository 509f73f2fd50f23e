"""The method contract: what a visual-token pruner may ask for, what it sees, what it answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.trace import Layout, QueryGroup, Trace


@dataclass(frozen=True)
class ModelInfo:
    """What a method may know about the model: its name and the sizes of its decoder.

    weights  what tells its weights from others, such as the digest of their file
    """

    name: str
    num_layers: int
    num_heads: int
    hidden_size: int
    head_dim: int
    weights: str = "none"


@dataclass(frozen=True)
class Budget:
    """How many tokens to keep: a fraction in (0, 1], written with a point, or a count >= 1, written without.

    1.0 keeps everything, 1 keeps one token. A fraction of a total is rounded half to even, as Python's round does
    (and with it the published FastV code); at least one token stays.
    """

    amount: float

    def __post_init__(self) -> None:
        """Raises UserError for an amount that is neither a fraction nor a count."""
        a = self.amount
        number = isinstance(a, (int, float)) and not isinstance(a, bool) and math.isfinite(a)
        if not number or a <= 0 or (isinstance(a, float) and a > 1):
            raise UserError(f"keep={a} is no budget; use a fraction in (0, 1] such as 0.25, or a count such as 64")

    def count(self, total: int) -> int:
        """Tokens kept of `total`. UserError for a count above it."""
        if isinstance(self.amount, int):
            if self.amount > total:
                raise UserError(f"keep={self.amount} asks for more than the {total} visual tokens there are")
            return self.amount
        return max(1, round(self.amount * total))


@dataclass(frozen=True)
class Plan:
    """Where a method acts and what it reads; asked for once, checked against the model, then fixed.

    layers  layers before which `select` is called; 0 is straight from the projector
    reads   layer -> query rows. Only these attention rows are ever computed outside the fused kernel,
            and their cost is charged to the method
    budget  layer -> visual tokens that go on computing whenever the method selects there; the observed number is
            held against it. A layer without an entry has a data-dependent count
    outputs  layers whose attention output `PruneContext.outputs` gives, from the next layer on
    second_pass  `Pruner.wants_second_pass` is asked, once a call
    reuses  the method names reused rows, so keys and values are kept from call to call
    vision_attention  it reads PruneContext.vision_attention, the attention inside the vision tower
    """

    layers: Sequence[int] = ()
    reads: Mapping[int, QueryGroup] = field(default_factory=dict)
    budget: Mapping[int, Budget] = field(default_factory=dict)
    reuses: bool = False
    vision_attention: bool = False
    outputs: frozenset[int] = frozenset()
    second_pass: bool = False

    def check(self, info: ModelInfo, method: str) -> None:
        """Raises UserError that names the first thing the model cannot give."""
        named = {"prunes before": self.layers, "reads": self.reads, "budgets": self.budget}
        for what, layers in {**named, "reads outputs of": sorted(self.outputs)}.items():
            wrong = [n for n in layers if not 0 <= n < info.num_layers]
            if wrong:
                raise UserError(
                    f"{method} {what} layers {wrong}, but {info.name} has layers "
                    f"0..{info.num_layers - 1}; lower the layer"
                )
        if list(self.layers) != sorted(set(self.layers)):
            raise UserError(f"{method} names layers {list(self.layers)}; they must be sorted and unique")


def run_plainly(function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls a function, as `PruneContext.run` does where no backend is at work."""
    return function(*inputs)


@dataclass(frozen=True, eq=False)
class PruneContext:
    """What a method reads before decoder layer `layer`, which n of the V visual tokens are about to enter.

    It is about one observation and has no batch axis. Tensors are views; do not write to them.

    seed      a number made of the run's seed, the task and the episode: the only source of randomness
    visual    [n, d] hidden states
    alive     [n] indices of the rows, 0 .. V - 1, ascending
    text      [t, d] hidden states of the instruction
    task      [m, d] hidden states of everything after the visual tokens: proprioception, instruction, action slots
    reusable  [n] bool, tokens with keys and values of an earlier call of this episode at every layer from here on
    trace     everything this call has read so far
    second_pass  the decoder computes the prompt of this call for the second time
    run       `run(function, *inputs)` is `function(*inputs)` as the model runs its own parts: captured as a graph where
              they are. For many small steps, such as a greedy loop. The function is defined at module level, reads
              tensors and plain values, writes to none of them, and neither waits for the device nor gives sizes that
              depend on the data
    """

    layer: int
    seed: int
    visual: Tensor
    alive: Tensor
    text: Tensor
    task: Tensor
    reusable: Tensor
    trace: Trace
    second_pass: bool = False
    run: Callable[..., Any] = run_plainly

    def charge(self, rows: int, columns: int, depth: int) -> None:
        """Counts a matrix product of the method's own, see `Trace.charge`."""
        self.trace.charge(rows, columns, depth)

    @property
    def call_seed(self) -> int:
        """A number made of `seed` and the number of the call, for what is drawn anew at every call."""
        return self.seed * 100_003 + self.step

    @property
    def step(self) -> int:
        """Model calls since the episode began."""
        return self.trace.step

    @property
    def layout(self) -> Layout:
        """The positions of visual tokens, text and actions in the prompt."""
        return self.trace.layout

    @property
    def total(self) -> int:
        """V, the number of visual tokens before any was dropped."""
        return self.trace.layout.total

    @property
    def pixels(self) -> Tensor:
        """[n, p, p, 3] uint8, the image patch behind each row."""
        return self.trace.pixels[self.alive]

    @property
    def vision_attention(self) -> Tensor:
        """[n] attention that each row received in the vision tower, see Trace. Needs Plan.vision_attention."""
        if self.trace.vision_attention is None:
            raise UserError("the vision tower was not read: Plan.vision_attention is off, or the model cannot read it")
        return self.trace.vision_attention[self.alive]

    def attention(self, layer: int, rows: QueryGroup) -> Tensor:
        """[H, q, n] softmax weights on the rows at this layer, read at an earlier layer of this call."""
        weights = self.trace.visual(layer, rows)
        return weights if self.alive.shape[0] == self.total else weights[..., self.alive]

    def outputs(self, layer: int) -> Tensor:
        """[n, d] attention output of the rows at an earlier layer, after o_proj and before the residual sum.

        Needs `layer` in Plan.outputs. KeyError where it is not, or is not computed yet.
        """
        return self.trace.outputs_of(layer, self.alive)


@dataclass(frozen=True, eq=False)
class Selection:
    """The fate of every row of a PruneContext: kept, reused, or (if named in neither) dropped.

    keep    [k] rows computed from this layer on, any order
    reuse   [r] rows not computed from this layer on but still attended to, with an earlier call's keys and values
    values  [k, d] hidden states to put in place of the kept rows: merged tokens, straight-through gradients
    multiplicity  [k] how many tokens each kept row stands for (merged tokens, dropped duplicates): log(multiplicity) is
            added to the attention logits of its key from here on
    reads   attention rows wanted in this call only, at layers not yet run
    """

    keep: Tensor
    reuse: Tensor | None = None
    values: Tensor | None = None
    multiplicity: Tensor | None = None
    reads: Mapping[int, QueryGroup] = field(default_factory=dict)

    @classmethod
    def top(cls, score: Tensor, budget: Budget, of: int) -> Selection:
        """Keeps the rows with the highest scores [n]: `budget` of `of` tokens; ties go to the low index, NaN last."""
        return cls(top(score, min(budget.count(of), score.shape[0])))

    @classmethod
    def all(cls, context: PruneContext, reads: Mapping[int, QueryGroup]) -> Selection:
        """Keeps every row of the context, and reads `reads` in this call, too."""
        return cls(torch.arange(context.alive.shape[0], device=context.alive.device), reads=reads)


def ranking(score: Tensor) -> Tensor:
    """[..., n] indices, the highest of scores [..., n] first; ties in order of index, NaN last."""
    worst = float("-inf")
    return score.float().nan_to_num(worst, float("inf"), worst).sort(dim=-1, descending=True, stable=True).indices


def top(score: Tensor, count: int) -> Tensor:
    """[..., count] indices of the highest of scores [..., n], ascending; ties go to the low index, NaN sorts last."""
    return ranking(score)[..., :count].sort(-1).values


class Pruner(ABC):
    """A way to compute fewer visual tokens.

    Write `plan` and `select`. Override `reset` and `observe` if the method remembers, `wants_second_pass` if it looks
    twice. These five serve pruning once, at a layer, in stages, reuse across calls, feedback and training; a pruner
    that is trained is a `Learned`. One instance serves one sequence at a time and keeps all its state in itself:
    never on the model, never in module globals. Several instances may share parameters.
    """

    @abstractmethod
    def plan(self, info: ModelInfo) -> Plan:
        """Where the method acts and what it reads. Called once, when the policy is built."""

    @abstractmethod
    def select(self, context: PruneContext) -> Selection | None:
        """Selects what goes on. Called at every planned layer of every call; None leaves the tokens as they are."""

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether the decoder computes the prompt of this call once more, from the same embeddings.

        Asked only where `Plan.second_pass` says so, once a call, when all layers are computed: `context` has the final
        rows, and as its layer the number of layers. In the second pass `select` is asked at every planned layer again,
        with `context.second_pass`. What a layer reads there replaces what it read in the first pass. Both passes are
        charged and timed; the budget of the plan is held against the second.
        """
        return False

    def reset(self) -> None:  # noqa: B027 - most methods remember nothing
        """Forgets everything, because a new episode begins."""

    def observe(self, trace: Trace) -> None:  # noqa: B027
        """Called when a model call is over, actions included. Keep what the next call needs."""


class PrunerWrapper(Pruner):
    """Forwards everything to another pruner; override what is to differ."""

    def __init__(self, inner: Pruner) -> None:
        self.inner = inner

    def plan(self, info: ModelInfo) -> Plan:
        """The inner pruner's plan."""
        return self.inner.plan(info)

    def select(self, context: PruneContext) -> Selection | None:
        """The inner pruner's selection."""
        return self.inner.select(context)

    def wants_second_pass(self, context: PruneContext) -> bool:
        """Whether the inner pruner wants a second pass."""
        return self.inner.wants_second_pass(context)

    def reset(self) -> None:
        """Resets the inner pruner."""
        self.inner.reset()

    def observe(self, trace: Trace) -> None:
        """Lets the inner pruner observe the model call."""
        self.inner.observe(trace)


class Scored(Pruner):
    """A method that ranks tokens by one number each, which an audit may turn round, shuffle or take from elsewhere."""

    @abstractmethod
    def score(self, context: PruneContext) -> Tensor | None:
        """The numbers [n] by which `select` ranks the rows of a context: the highest go on. None if it ranks nothing.

        Asked after `select`, in the same context; it changes nothing.
        """


class Learned(nn.Module, Pruner):
    """A method that is trained together with a policy (`vlaprune-train`); starts in evaluation mode.

    noise_scale  what its noise is multiplied by in training, from 1 down to 0; the trainer sets it before each step
    """

    noise_scale: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def save(self, path: Path, policy: str) -> None:
        """Writes its parameters where its option `weights` can load them; to be written by a method that has some.

        policy  identifier of the weights they were trained with, which the card is to name as `policy`
        """
        raise NotImplementedError(f"{type(self).__name__} has parameters and no `save`")

    def check_policy(self, card: Mapping[str, object], info: ModelInfo, path: str) -> None:
        """UserError where the card of parameters names other weights of the policy than the model's."""
        if card.get("policy", info.weights) != info.weights:  # the first files of a method do not name it
            raise UserError(
                f"{path} was trained together with a policy of weights {card['policy']}, this one has {info.weights}; "
                "set model.weights to those"
            )


class Probe(Pruner):
    """Keeps every token and measures, call by call, what a `Calibrated` method must know. `reset` forgets nothing."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Model calls measured so far."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes the measurements to a file, whole or not at all. UserError where they are too few."""


class Calibrated(Pruner):
    """A method that prunes by measurements of the model in its world, made beforehand and kept in a file.

    `vlaprune-eval` and `vlaprune-profile` make the file where the method has none. Without a file, `plan` raises
    UserError.

    calibration  the file, or a name that the method knows; None for none yet
    """

    calibration: str | None

    @abstractmethod
    def probe(self) -> Probe:
        """The probe that makes the file: it is run over dense calls, then asked to `save`."""
