"""An accelerator that is not there: tensors of the CPU that call themselves another device.

Under `Pretended`, every operator must find its tensors on one device, as on a real accelerator. What makes the host
wait for the device (reading a number, counts that depend on data, copies back) and what is copied to it is noted with
the function of this package that did it.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import vlaprune
from vlaprune.meter import Clock

NAME = "pretended"


class _Module(_DummyBackendModule):
    """What torch asks a device module, `torch.pretended`."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


if not hasattr(torch, NAME):
    _setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME)
ROOT = Path(vlaprune.__file__).parent
COUNTS = ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")
PRODUCTS = (
    "matmul",
    "linear",
    "mm",
    "mv",
    "addmm",
    "bmm",
    "dot",
    "conv2d",
    "convolution",
)  # CUDA has none of whole numbers
NUMBERS = ("item", "_local_scalar_dense", "is_nonzero", "equal")


class OnDevice(Tensor):
    """A tensor of the CPU, `inner`, that says it is on the device."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the device outside of Pretended")


def where():
    """The innermost function of the package that is running: file and name."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if ROOT in path.parents:
            return f"{path.relative_to(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Functions(TorchFunctionMode):
    """What torch does before it asks a mode: tensors from lists, and lists from tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class Pretended(TorchDispatchMode):
    """Runs operators on the inner tensors. waits, uploads: how often, by place; errors name the operator."""

    def __init__(self):
        super().__init__()
        self.waits, self.uploads, self.operators, self.depth = Counter(), Counter(), Counter(), 0
        self._functions = _Functions()

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, spec = pytree.tree_flatten((args, kwargs))
        leaves = [x for x in flat if isinstance(x, Tensor)]
        there = [x for x in leaves if isinstance(x, OnDevice)]
        name = func._schema.name.removeprefix("aten::")
        to = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)), None)
        to = DEVICE if to is not None and to.type == NAME else to  # without its number
        if name in ("_to_copy", "copy_", "to"):
            self._copies(args, to, there, leaves)
        elif there:
            here = [x for x in leaves if not isinstance(x, OnDevice) and x.ndim]
            assert not here, f"{func} mixes the device with the CPU ({[tuple(x.shape) for x in here]}) in {where()}"
            whole = name in PRODUCTS and not there[0].is_floating_point()
            assert not whole, f"{func} of whole numbers, which CUDA has not, in {where()}"
            if self._waits(name, args, kwargs):
                self.waits[where()] += 1
        if there or to == DEVICE:
            self.operators[name] += 1
        args_, kwargs_ = pytree.tree_unflatten([self._inside(x) for x in flat], spec)
        out = func(*args_, **kwargs_)
        wrapped = to == DEVICE if to is not None else bool(there) and not (name == "copy_" and args[0] not in there)
        if name == "copy_":
            return args[0]
        known = {id(x.inner): x for x in there}
        return (
            pytree.tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else OnDevice(t), out)
            if wrapped
            else out
        )

    @staticmethod
    def _inside(value):
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value.inner if isinstance(value, OnDevice) else value

    def _copies(self, args, to, there, leaves):
        """Notes copies between host and device."""
        if to is None and len(leaves) == 2:  # copy_
            to = DEVICE if isinstance(leaves[0], OnDevice) else torch.device("cpu")
            source = isinstance(leaves[1], OnDevice)
        else:
            source = bool(there)
        if to is not None and to != DEVICE and source:
            self.waits[where()] += 1
        if to == DEVICE and not source:
            self.uploads[where()] += 1

    @staticmethod
    def _waits(name, args, kwargs):
        if name in COUNTS or name in NUMBERS:
            return True
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None and any(isinstance(a, Tensor) for a in args)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            fills = name != "index" and args[2].numel() == 1
            return bool(masks) and not fills
        return False


def moved(model):
    """The model with its weights and buffers on the pretended device."""
    modules = [m for m in vars(model).values() if isinstance(m, nn.Module)]
    modules = [model] if isinstance(model, nn.Module) else modules
    with torch.inference_mode():
        for module in (m for top in modules for m in top.modules()):
            for name, weight in module._parameters.items():
                if weight is not None and not isinstance(weight, OnDevice):
                    module._parameters[name] = OnDevice(weight.data)
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, OnDevice):
                    module._buffers[name] = OnDevice(buffer)
    if "device" in vars(model):
        model.device = DEVICE
    return model


assert not Clock(str(DEVICE)).cuda  # time is read on the host here
