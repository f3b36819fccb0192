"""Which implementation of the neurons runs: by its name, or the fastest that can run on a device.

A backend is one file with an object of `dynamics.Backend`'s form and one line of `statten.registry`; the conformance tests hold
every entry to the equations, which stand in `torch_backend`.
"""

import functools
import logging

import torch

from statten.errors import UserError, nearest
from statten.neurons.dynamics import Backend, Unavailable
from statten.registry import NEURON_BACKENDS

log = logging.getLogger("statten")


@functools.cache
def select_backend(name: str, device: str) -> Backend:
    """The backend that a name means on a type of device, said once in the log.

    Raises:
        UserError: there is no such backend, or it cannot run here.
    """
    if name not in ("auto", *NEURON_BACKENDS):
        raise UserError(f"scale.neuron_backend: {name!r} is no backend; {nearest(name, ['auto', *NEURON_BACKENDS])}")
    reasons = []
    for backend in NEURON_BACKENDS.values():
        if name not in ("auto", backend.name):
            continue
        if backend.devices and device not in backend.devices:
            if name == backend.name:
                raise UserError(f"scale.neuron_backend: {name} runs on {' and '.join(backend.devices)}, not on {device}")
            continue
        try:
            backend.check()
        except Unavailable as reason:
            if name == backend.name:
                raise UserError(f"scale.neuron_backend: {name} cannot run here: {reason}") from None
            reasons.append(f"{backend.name}: {reason}")
            continue
        if device != "meta":
            why = "; not " + "; not ".join(reasons) if reasons else ""
            log.info("neuron backend: %s (%s%s)", backend.name, "automatic choice" if name == "auto" else "as asked", why)
        return backend
    raise AssertionError("the torch backend takes every device")


def check_backend(name: str, device: str) -> None:
    """Raise UserError when a backend cannot run on a type of device; compile it if it is not yet compiled.

    Where only other machines have a GPU, they say themselves whether its kernels run there.
    """
    backend = NEURON_BACKENDS.get(name)
    if device == "cuda" and not torch.cuda.is_available() and (backend is None or "cuda" in (backend.devices or ("cuda",))):
        return
    select_backend(name, device)
