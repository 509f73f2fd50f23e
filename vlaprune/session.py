"""One slot from call to call: its method, the keys and values it may reuse, and the record of each model call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy

import torch
from torch import Tensor

from vlaprune.call import Call, CallSetup
from vlaprune.errors import UserError
from vlaprune.meter import Clock, decoder_flops
from vlaprune.nn.backend import EAGER, Backend
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Cache
from vlaprune.pruner import ModelInfo, Pruner
from vlaprune.records import StepRecord
from vlaprune.selection import check_budget, verify
from vlaprune.trace import Layout, Trace

CONTAINERS = (list, dict, set, deque)  # of a method's attributes; tensors and the rest are replaced, not changed


class Session:
    """What one slot keeps from call to call and from episode to episode: the pruner, its cache and its history.

    A model opens a call with `begin`, which returns the hooks of its decoder. The policy closes it with `finish`.
    A pruner gets no access to the session.

    name     of the method, for messages; None for its class name
    backend  gives what runs the model's segments; a method's own parts run on it, too
    """

    def __init__(
        self,
        pruner: Pruner,
        info: ModelInfo,
        config: DecoderConfig,
        clock: Clock,
        name: str | None = None,
        backend: Callable[[], Backend] = lambda: EAGER,
    ) -> None:
        self.pruner = pruner
        self.name = name or type(pruner).__name__
        plan = pruner.plan(info)
        plan.check(info, self.name)
        self.setup = CallSetup(pruner, self.name, plan, info, config, clock, backend)
        self._store = Cache(config)
        self._layout: Layout | None = None
        self._call: Call | None = None
        self._finished = False
        self.reset(0)

    @property
    def trace(self) -> Trace:
        """What the latest call computed, read and kept."""
        return self._opened().trace

    @property
    def kv_bytes(self) -> int:
        """Memory that keys and values of the latest call and of reused tokens hold, in bytes."""
        return self._store.bytes + (self._call.kv_bytes if self._call is not None else 0)

    def reset(self, seed: int) -> None:
        """Starts a new episode: everything that earlier calls left is forgotten."""
        self.seed = seed
        self._step = 0
        self._elapsed = 0
        self._state: Tensor | None = None
        self.restart()

    def restart(self) -> None:
        """Resets the method where a new instruction comes within the episode.

        Calls and control steps are counted on, so that no random number of the episode is drawn twice.
        """
        self._executed = torch.empty(0, 0, dtype=torch.float64)
        self._forget()
        self.pruner.reset()

    def remember(self) -> Callable[[], None]:
        """What puts the method back to where it is now, for a call that fails and is made again."""
        before = {name: copy(v) if type(v) in CONTAINERS else v for name, v in vars(self.pruner).items()}

        def restore() -> None:
            vars(self.pruner).clear()
            vars(self.pruner).update(before)

        return restore

    def set_state(self, state: Tensor | None) -> None:
        """Takes the robot state [s] of the observation that the next call is about."""
        self._state = state

    def set_executed(self, actions: Tensor) -> None:
        """Takes the actions [n, action_dim] that the robot executes before the next call."""
        self._executed = actions
        self._elapsed += actions.shape[0]

    def _forget(self) -> None:
        self._store.clear()
        self._cached: Tensor | None = None

    def begin(self, layout: Layout, images: Sequence[Tensor], like: Tensor) -> Call:
        """Opens a model call.

        images  one [h, w, 3] uint8 image per view, as the vision tower sees it
        like    any tensor of the device and dtype computed in
        """
        if layout != self._layout:
            self._forget()  # the slots of an earlier prompt mean other tokens
        self._layout = layout
        if self._cached is None:
            self._cached = torch.zeros(layout.total, dtype=torch.bool, device=like.device)
        cache = self._store if self.setup.plan.reuses else None
        if cache is not None:
            cache.reserve(layout.length, like)
        trace = Trace(layout, images, self._step, self._state, self._executed, self._elapsed)
        self._call = Call(self.setup, trace, self.seed, like, cache, self._cached)
        self._finished = False
        return self._call

    def finish(self) -> StepRecord:
        """Closes the call: the method observes it, promises are verified, tokens and FLOPs are counted.

        Errors: UserError where the model bypassed the call's hooks, where a method named rows that are not there, or
        where it broke its own budget. These checks are made when the call is over, so that no call waits for them.
        """
        call = self._opened()
        if self._finished:
            raise UserError(
                f"{self.setup.info.name} opened no new call: predict must call Session.begin for every observation"
            )
        self._step += 1
        self._finished = True
        trace = call.trace
        layout = trace.layout
        flops = call.flops
        self._check_reached(call)
        with self.setup.clock.span("method"):
            self.pruner.observe(trace)
        assert self._cached is not None
        flops["method"] += trace.method_flops  # now that the method has looked at all it will look at
        others = layout.length - layout.total
        visual = tuple(rows - others for rows, _ in trace.counts)
        for promise in call.promises:
            verify(self.name, promise, self._cached)
            if promise.counts is trace.counts:  # the last pass of the prompt is what pruning is judged by
                check_budget(self.name, promise.layer, self.setup.plan.budget, layout, visual[promise.layer])
        if self.setup.plan.reuses:
            self._cached = self._cached.index_fill(0, call.alive, True)
        flops["prompt"] += decoder_flops(self.setup.config, trace.counts)
        return StepRecord(
            rows=tuple(rows for rows, _ in trace.counts),
            columns=tuple(columns for _, columns in trace.counts),
            total=layout.total,
            visual=visual,
            decoded=len(trace.passes),
            flops=flops,
            ms={},
            first_rows=tuple(rows for rows, _ in trace.first_counts),
        )

    def _check_reached(self, call: Call) -> None:
        """Raises UserError where the decoder did not run every layer, or did not ask at every planned layer."""
        model = self.setup.info
        layers = len(call.trace.counts)
        if layers != model.num_layers:
            raise UserError(
                f"{model.name} ran {layers} of its {model.num_layers} layers through the hooks of this call; pass the "
                "call that Session.begin returns to the decoder, or no pruning is possible and nothing is counted"
            )
        kept = call.trace.kept.get(0)
        expected = call.trace.layout.length - (0 if kept is None else call.trace.layout.total - kept.shape[0])
        if (rows := call.trace.counts[0][0]) != expected:
            raise UserError(
                f"{model.name} computed {rows} rows at layer 0, but its layout says {expected} (length "
                f"{call.trace.layout.length}); the layout must be that of the prompt"
            )
        missed = sorted(set(self.setup.plan.layers) - call.entered)
        if missed:
            raise UserError(
                f"{model.name} never asked before layers {missed}, where {self.name} prunes; the decoder must call "
                "`enter` before every planned layer"
            )

    def _opened(self) -> Call:
        if self._call is None:
            raise UserError(
                f"{self.setup.info.name} opened no call: predict must call Session.begin for every observation"
            )
        return self._call


@contextmanager
def prepares_pictures(sessions: Sequence[Session]) -> Iterator[None]:
    """Times the block in which a model prepares pictures, before it opens the calls of these sessions."""
    with sessions[0].setup.clock.span("pictures") if sessions else nullcontext():
        yield
