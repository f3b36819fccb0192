"""Spikes that wait for the backward pass at one bit each.

Convolutions save their input. Between `packed_spikes` they save the spikes among them as bits: 1/16 of the memory in a half
type, 1/32 in float32, for two more passes over the spikes.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statten.neurons.dynamics import Backend

# Below this, a tensor is not worth the two calls.
SMALLEST = 1 << 14


@dataclass(frozen=True, slots=True)
class _Packed:
    bits: Tensor
    backend: Backend
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Marked:
    """The memory of living spikes, by address: a view of spikes has it too, and other tensors cannot have it."""

    def __init__(self) -> None:
        self.backends: dict[int, Backend] = {}
        self.bits: dict[int, Tensor] = {}

    def add(self, spikes: Tensor, backend: Backend) -> None:
        address = spikes.untyped_storage().data_ptr()
        self.backends[address] = backend
        weakref.finalize(spikes, self.forget, address)

    def forget(self, address: int) -> None:
        self.backends.pop(address, None)
        self.bits.pop(address, None)

    def pack(self, tensor: Tensor) -> Any:
        address = tensor.untyped_storage().data_ptr()
        backend = self.backends.get(address)
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        if backend is None or tensor.numel() < SMALLEST or not whole:
            return tensor
        if address not in self.bits:  # a second layer that saves the same spikes shares the bits
            self.bits[address] = backend.pack(tensor.as_strided((tensor.numel(),), (1,)))
        return _Packed(self.bits[address], backend, tensor.shape, tensor.stride(), tensor.dtype)


_marked: _Marked | None = None


def mark(spikes: Tensor, backend: Backend) -> Tensor:
    """Say that a tensor holds nothing but 0 and 1."""
    if _marked is not None:
        _marked.add(spikes, backend)
    return spikes


def is_marked(tensor: Tensor) -> Backend | None:
    """The backend that made these spikes, if packing is on and they are spikes."""
    return None if _marked is None else _marked.backends.get(tensor.untyped_storage().data_ptr())


def _unpack(saved: Any) -> Tensor:
    if not isinstance(saved, _Packed):
        return saved
    flat = saved.backend.unpack(saved.bits, saved.shape.numel(), saved.dtype)
    return flat.as_strided(saved.shape, saved.strides)


@contextmanager
def packed_spikes(on: bool = True, seen: Callable[[Tensor], object] | None = None) -> Iterator[None]:
    """Save spikes for the backward pass as bits; around the forward pass.

    Args:
        on: False does nothing.
        seen: is called with what is saved in the end, tensor by tensor.
    """
    global _marked
    if not on:
        yield
        return
    before, _marked = _marked, _Marked()
    pack = _marked.pack

    def save(tensor: Tensor) -> Any:
        saved = pack(tensor)
        if seen is not None:
            seen(saved.bits if isinstance(saved, _Packed) else saved)
        return saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(save, _unpack):
            yield
    finally:
        _marked = before
