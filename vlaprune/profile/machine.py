"""The state of the machine during a measurement: other users, clocks, energy and memory.

A value that the machine cannot report is None, with the reason beside it; never 0.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event, Thread
from types import ModuleType

import torch

CLOCKS_MAY_MOVE = 0.05  # largest relative change of the clock between two neighbouring blocks
PAIRS_MAY_MOVE = 0.1  # share of neighbouring blocks whose clocks may change; a median over blocks is robust to fewer
SAMPLE = 0.02  # seconds between two readings of the clock
WINDOW = 2.0  # seconds; NVML's energy counter is refreshed every 20 to 100 ms


class Nvml:
    """NVIDIA's management library for the device computed on, or `reason` why it cannot be asked."""

    def __init__(self, device: torch.device) -> None:
        self.reason: str | None = None
        self._nvml: ModuleType | None = None
        if device.type != "cuda":
            self.reason = "no NVML: not an NVIDIA device"
            return
        try:
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
        except Exception as error:  # ImportError, or an error of NVML
            self.reason = f"no NVML: {type(error).__name__} {error}"

    def energy(self) -> float | None:
        """The joules that the board has used since the driver was loaded; None if not known."""
        if self._nvml is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except Exception as error:
            self.reason = f"no energy counter: {type(error).__name__} {error}"
            return None

    def clock(self) -> float | None:
        """The current clock of the multiprocessors in MHz; None if not known."""
        if self._nvml is None:
            return None
        return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def processes(self) -> int | None:
        """The number of processes that compute on the board, this one included; None if not known."""
        if self._nvml is None:
            return None
        try:
            return len(self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        except Exception as error:  # not on every board or driver
            self.reason = f"no list of processes: {type(error).__name__} {error}"
            return None


@dataclass
class Watch:
    """Watches the machine during a measurement and says why its times cannot be trusted.

    On a GPU another process or moving clocks forbid a speed-up (`refusal`). On a CPU, which is rarely exclusive, a load
    beyond our own threads is noted beside the table (`shared`).
    """

    device: torch.device
    nvml: Nvml
    clocks: list[float] = field(default_factory=list)
    most: int = 0
    load: float = 0.0

    def __post_init__(self) -> None:
        """Notes the memory in use before anything is measured."""
        self._alone = held(self.device)

    def others(self) -> tuple[float, float]:
        """MB allocated and reserved now by all that was made since this watch: the arms before the next one."""
        allocated, reserved = held(self.device)
        return allocated - self._alone[0], reserved - self._alone[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Reads the clock repeatedly while its `with` block keeps the device busy; keeps the highest reading.

        A reading afterwards says nothing, because an idle device lowers its clock at once.
        """
        if self.device.type != "cuda" or self.nvml.clock() is None:
            yield
            return
        over, seen = Event(), []

        def sample() -> None:
            while not over.wait(SAMPLE):
                seen.append(self.nvml.clock() or 0.0)

        thread = Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.clocks += [max(seen)] if seen else []

    def check(self) -> None:
        """Notes other processes and the load, between two blocks."""
        processes = self.nvml.processes()
        self.most = max(self.most, processes or 0)
        self.load = max(self.load, os.getloadavg()[0])

    @property
    def refusal(self) -> str | None:
        """Why no speed-up may be printed; None if one may."""
        if self.most > 1:
            return f"{self.most} processes on the GPU"
        moved = [(a, b) for a, b in pairwise(self.clocks) if max(a, b) > (1 + CLOCKS_MAY_MOVE) * min(a, b)]
        if len(moved) > PAIRS_MAY_MOVE * len(self.clocks):
            a, b = moved[0]
            return f"clocks moved from {a:.0f} to {b:.0f} MHz between neighbouring blocks"
        return None

    @property
    def shared(self) -> str | None:
        """The note for a CPU on which others computed too; None if nobody did."""
        if self.device.type == "cpu" and self.load > torch.get_num_threads() + 0.5:
            return f"shared machine: load {self.load:.1f} for {torch.get_num_threads()} of our threads"
        return None

    @property
    def unknown(self) -> str | None:
        """The reason why something on a GPU could not be observed; None if all could."""
        return self.nvml.reason if self.device.type == "cuda" else None


def idle_power(nvml: Nvml, seconds: float = WINDOW) -> float | None:
    """The watts of the board when nothing runs; None if not known. Takes `seconds`."""
    before = nvml.energy()
    if before is None:
        return None
    start = time.perf_counter()
    time.sleep(seconds)
    after = nvml.energy()
    return None if after is None else (after - before) / (time.perf_counter() - start)


def peak_memory(device: torch.device) -> tuple[float, float | None]:
    """Peak MB allocated and reserved since the last reset; on a CPU the peak of the whole process, and None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, torch.cuda.max_memory_reserved(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, None


def held(device: torch.device) -> tuple[float, float]:
    """MB of tensors on a GPU now, and MB that torch holds once it handed back what is unused; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0, 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device) / 1e6, torch.cuda.memory_reserved(device) / 1e6


def forget_peak(device: torch.device) -> None:
    """Resets the peak of memory, if the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def bytes_held(thing: object, depth: int = 4) -> int:
    """Bytes that the tensors in an object's attributes, down to `depth`, keep from being freed: a method's memory.

    Tensors that share memory, and one that has two names, count once.
    """
    return sum({memory.data_ptr(): memory.nbytes() for memory in _memories(thing, depth)}.values())


def _memories(thing: object, depth: int) -> Iterator[torch.UntypedStorage]:
    if isinstance(thing, torch.Tensor):
        yield thing.untyped_storage()
    elif depth:
        for part in _parts(thing):
            yield from _memories(part, depth - 1)


def _parts(thing: object) -> Iterable[object]:
    """The elements of a container, or the attributes of an object."""
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return thing
    return vars(thing).values() if hasattr(thing, "__dict__") and not isinstance(thing, type) else ()
