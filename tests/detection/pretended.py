"""A GPU that is not there: tensors in memory that say they lie on it, and behave so.

What is computed is computed by the processor. What would fail on a GPU fails: operands of which one
lies elsewhere, NumPy's look at what is not in memory, float64 where the device has none.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

TAKES_OTHERS = {"copy_", "index", "index_put_", "_index_put_impl_"}
"""Operations on a GPU's tensor that take others, or places, from memory."""


class Elsewhere(torch.Tensor):
    """A tensor on a device that is pretended."""

    @staticmethod
    def __new__(cls, real, device):
        self = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), dtype=real.dtype, layout=real.layout
        )
        if device.type == "mps" and real.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        self.held, self.place = real, device
        return self

    @property
    def device(self):
        return self.place

    def cpu(self):
        return self.to("cpu")

    def numpy(self, *_args, **_kwargs):
        raise TypeError(f"a tensor on {self.place} cannot become NumPy's")

    __array__ = numpy

    def __repr__(self):
        return f"Elsewhere({self.held}, {self.place})"

    def __reduce_ex__(self, protocol):
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        places = {one.place for one in operands if isinstance(one, cls)}
        in_memory = [one for one in operands if not isinstance(one, cls) and one.ndim]
        if name == "copy_" and not isinstance(args[0], cls):
            return args[0].copy_(args[1].held)
        is_free = name in TAKES_OTHERS and isinstance(args[0], cls)
        if len(places) > 1 or (in_memory and not is_free):
            shapes = [tuple(one.shape) for one in operands]
            raise RuntimeError(f"{name} of tensors of {shapes}, not all on one device")
        (place,) = places
        found = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        there = tree_map(lambda one: cls(one, place) if type(one) is torch.Tensor else one, found)
        return return_and_correct_aliasing(func, args, kwargs, there)


def _real(value):
    return value.held if isinstance(value, Elsewhere) else value


class _Away(torch.autograd.Function):
    @staticmethod
    def forward(_context, tensor, device):
        return Elsewhere(tensor.detach().clone(), device)

    @staticmethod
    def backward(_context, gradient):
        return gradient.held, None


class _Home(torch.autograd.Function):
    @staticmethod
    def forward(context, tensor):
        context.place = tensor.place
        return tensor.held.clone()

    @staticmethod
    def backward(context, gradient):
        return Elsewhere(gradient, context.place)


class _Moves(TorchFunctionMode):
    """Sends to the pretended device what is sent to it, or made there; and back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None)
        if func is torch.Tensor.to:
            tensor, *wishes = args
            if wishes and isinstance(wishes[0], torch.Tensor):
                wishes = [wishes[0].device, wishes[0].dtype]
            for wish in wishes:
                if isinstance(wish, str | torch.device):
                    device = wish
                if isinstance(wish, torch.dtype):
                    kwargs["dtype"] = wish
            kwargs.pop("non_blocking", None)
            kwargs = {name: value for name, value in kwargs.items() if value is not None}
            converted = func(tensor, **kwargs) if kwargs else tensor
            return converted if device is None else _moved(converted, torch.device(device))
        if device is None:
            return func(*args, **kwargs)
        return _moved(func(*args, **kwargs), torch.device(device))


def _moved(tensor, device):
    if device.type == "cpu":
        return _Home.apply(tensor) if isinstance(tensor, Elsewhere) else tensor
    return tensor if isinstance(tensor, Elsewhere) else _Away.apply(tensor, device)


@contextmanager
def pretended(monkeypatch):
    """Let there be a GPU by any name; mixed precision on it is the processor's."""
    autocast = torch.autocast

    def on_the_processor(_device, *how, **more):
        return autocast("cpu", *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", on_the_processor)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        with _Moves():
            yield
