"""Run a model without its weights, to count what it costs: seconds and a few megabytes for any size.

The weights lie on PyTorch's meta device, where a tensor has a shape and no values. Integers have values all the same, because
models look at them: which tokens are images, where padding ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Built = TypeVar("Built", bound=nn.Module)

_aten = torch.ops.aten
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor)
_WITH_VALUES = (torch.bool, torch.uint8, torch.int32, torch.int64)


# whose results, where they are floats, are weights while a model is built
_FACTORIES = (_aten.empty, _aten.zeros, _aten.ones, _aten.full, _aten.rand, _aten.randn, _aten.normal)


def build_weightless(build: Callable[[], Built]) -> Built:
    """What ``build`` makes, with parameters on the meta device that never were anywhere else."""
    with _Building():
        module = build()
    moved: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.is_meta:  # made of given numbers
                moved.setdefault(id(parameter), nn.Parameter(parameter.to("meta"), parameter.requires_grad))
                setattr(part, name, moved[id(parameter)])
    return module


class _Building(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket in _FACTORIES and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point:
            kwargs["device"] = torch.device("meta")
        return _run(func, args, kwargs)


@contextmanager
def weightless() -> Iterator[Cost]:
    """While the block runs, what ``build_weightless`` made can be run; yields what it costs."""
    original = F.scaled_dot_product_attention
    # the meta device would keep the matrix of all pairs of tokens, which no real device does
    F.scaled_dot_product_attention = _fused_attention
    try:
        with Cost() as cost:
            yield cost
    finally:
        F.scaled_dot_product_attention = original


class Cost(TorchDispatchMode):
    """Lets floats without values meet integers with values, and counts.

    Attributes:
        flops: of matrix products and convolutions; a multiplication and an addition are two.
        live, peak: bytes, now and at the most, of tensors without values that were made in the block; not of weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = _run(func, args, kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}  # of which a result may be a view
        for tensor in _tensors(result):
            if tensor.is_meta and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_reference: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation on tensors with and without values.

    Its results have values if all its tensors have, or if they are integers: those that come of floats without values are 0.
    """
    tensors = _tensors([args, kwargs])
    if func in _INDEXING:
        args = (args[0], _as_integers(args[1]), *args[2:])
    if any(tensor.is_meta for tensor in tensors):
        args, kwargs = _mapped(_without_values, args), _mapped(_without_values, kwargs)
        if "device" in kwargs:  # a model that sends features to where its token ids are
            kwargs["device"] = torch.device("meta")
        return _mapped(_with_values, func(*args, **kwargs))
    if kwargs.get("device") is not None and _result_type(func, tensors, kwargs) in _WITH_VALUES:
        kwargs["device"] = torch.device("cpu")
    return func(*args, **kwargs)


def _tensors(value: Any) -> list[torch.Tensor]:
    """Those in a tensor, or in lists, tuples and values of dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with ``function`` of its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    return type(value)(_mapped(function, part) for part in value) if type(value) in (list, tuple) else value


def _as_integers(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """A mask as index says by its values how much it picks; as integers it says so by its shape."""
    result: list[torch.Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8) and not index.is_meta
        result += index.nonzero().unbind(1) if masks and index is not None else [index]
    return result


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta or tensor.ndim == 0:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _with_values(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_meta or tensor.dtype not in _WITH_VALUES:
        return tensor
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)  # it takes no memory, however large


def _result_type(func: Any, tensors: Sequence[torch.Tensor], kwargs: dict[str, Any]) -> torch.dtype:
    """Of a factory function, or of a copy, that is sent to some device."""
    dtype: torch.dtype | None = kwargs.get("dtype")
    if dtype is not None:
        return dtype
    if tensors:
        return tensors[0].dtype
    return torch.int64 if func.overloadpacket is _aten.arange else torch.get_default_dtype()


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_settings: Any,
    **_more: Any,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` in shapes and arithmetic; masks and scales change neither."""
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    result: torch.Tensor = _aten._scaled_dot_product_efficient_attention(query, key, value, None, torch.is_grad_enabled())[0]
    return result
