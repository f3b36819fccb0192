"""The neuron on NVIDIA GPUs: kernels.cu, compiled by NVRTC through CuPy for each number of timesteps and set of choices."""

import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statten.errors import first_line
from statten.files import locked, own_cache
from statten.neurons.compiled import CompiledBackend
from statten.neurons.dynamics import Dynamics, Frames, Unavailable, frames

BLOCK = 256
# Threads that fill a large GPU twice: beyond them, a kernel that sums lets each thread take several groups.
MOST_SUMMING_THREADS = 2 * 132 * 2048
_TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat"}


@dataclass(frozen=True, slots=True)
class Variant:
    """What a kernel is compiled for."""

    steps: int
    lanes: int
    """Neighbouring neurons of a thread."""
    storage: torch.dtype
    spikes: torch.dtype
    soft: bool = False
    full: bool = False
    learn: bool = False
    replay: bool = False
    affine: bool = False
    count: bool = False

    def options(self) -> tuple[str, ...]:
        """NVRTC's options."""
        choices = {name.upper(): int(getattr(self, name)) for name in ("soft", "full", "learn", "replay", "affine", "count")}
        values = {"STEPS": self.steps, "LANES": self.lanes, **choices}
        types = {"STORAGE": _TYPES[self.storage], "SPIKES": _TYPES[self.spikes]}
        return ("--std=c++17", *(f"-D{name}={value}" for name, value in {**values, **types}.items()))


PER_CHANNEL = Variant(1, 1, torch.float32, torch.float32)
"""The kernels that have a thread for a channel know nothing of a variant; they are in every one."""


@functools.cache
def source() -> str:
    """kernels.cu with recurrence.h in it: NVRTC then needs no search path."""
    here = Path(__file__).parent
    include = '#include "recurrence.h"\n'
    recurrence = (here / "recurrence.h").read_text().replace("#pragma once\n", "")
    return (here / "kernels.cu").read_text().replace(include, recurrence)


def most_lanes(steps: int, storage: torch.dtype, spikes: torch.dtype, summing: bool = False) -> int:
    """Neurons of a thread: 16 bytes of the smaller type, while the membranes of all timesteps (and sums) fit its registers."""
    registers = 8 if steps <= 4 else 4 if steps <= 16 else 2 if steps <= 32 else 1
    return min(16 // min(storage.itemsize, spikes.itemsize), max(1, registers // 2) if summing else registers)


def fitting_lanes(most: int, *lengths: int) -> int:
    """The largest power of two up to `most` that divides all lengths, offsets and strides."""
    while any(length % most for length in lengths):
        most //= 2
    return most


class _Stream(NamedTuple):
    """What a CuPy function wants to know of a stream."""

    ptr: int


class Launcher:
    """Compiles a variant once per device, and starts its kernels on PyTorch's current stream."""

    def __init__(self) -> None:
        self.kernels: dict[tuple[int, Variant, str], Any] = {}
        """What was loaded: CuPy's functions by device, variant and name. Asking a module for one costs more than a launch."""

    def __call__(self, variant: Variant, name: str, threads: int, device: torch.device, arguments: list[Any]) -> None:
        """Run a kernel; the arguments are numpy scalars, addresses among them."""
        with torch.cuda.device(device):
            kernel = self.kernels.get((device.index, variant, name)) or self._load(device, variant, name)
            # CuPy's own current stream is not PyTorch's, and would race with it on side streams and in graph captures.
            stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
            kernel(((threads + BLOCK - 1) // BLOCK,), (BLOCK,), tuple(arguments), 0, stream)

    def _load(self, device: torch.device, variant: Variant, name: str) -> Any:
        import cupy

        module = cupy.RawModule(code=source(), options=variant.options())  # CuPy keeps what it compiled and loaded before
        with locked(own_cache() / "cupy.lock"):  # one worker compiles, the others on this machine read CuPy's cache
            try:
                module.compile()
            except cupy.cuda.compiler.CompileException as error:
                raise RuntimeError(f"NVRTC cannot compile the neurons for {variant}: {error}") from None
        self.kernels[(device.index, variant, name)] = kernel = module.get_function(name).kernel
        return kernel


class CupyKernels:
    """The kernels over tensors on a GPU.

    Args:
        launch: starts a kernel; the tests have one that runs the same source on the CPU.
    """

    name = "cupy"

    def __init__(self, launch: Any = None):
        self.launch = launch or Launcher()

    def forward(
        self,
        x: Frames,
        spikes_T: Tensor,
        inv_tau: Tensor | float,
        dynamics: Dynamics,
        affine: Tensor | None,
        run: int,
        count: Tensor | None,
    ) -> None:
        """As `Kernels.forward`."""
        plan = _plan_of(x, spikes_T, inv_tau, dynamics, affine, count is not None)
        device, tau = x.x.device, _learned(inv_tau)
        channels = affine.float().contiguous() if affine is not None else None
        counts = torch.empty(plan.threads, dtype=torch.int32, device=device) if count is not None else None
        addresses = map(_address, (x.x, spikes_T, channels, counts, tau))
        self.launch(plan.variant, "lif_forward", plan.threads, device, [*addresses, *plan.numbers])
        if count is not None and counts is not None:
            count += counts.sum(dtype=torch.int64)

    def backward(
        self,
        x: Frames,
        grad_T: Tensor,
        grad_x_T: Tensor,
        inv_tau: Tensor | float,
        dynamics: Dynamics,
        affine: Tensor | None,
        run: int,
        learn: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """As `Kernels.backward`."""
        plan = _plan_of(x, grad_T, inv_tau, dynamics, affine)
        variant, threads, device, tau = plan.variant, plan.threads, x.x.device, _learned(inv_tau)
        channels = affine.float().contiguous() if affine is not None else None
        sums = torch.empty(2, threads * variant.lanes, dtype=torch.float32, device=device) if affine is not None else None
        learnt = torch.empty(threads, dtype=torch.float32, device=device) if variant.learn else None
        addresses = map(_address, (x.x, grad_T, grad_x_T, channels, sums, learnt, tau))
        self.launch(variant, "lif_backward", threads, device, [*addresses, *plan.numbers])
        total = sums.view(2, -1, affine.shape[1]).sum(1) if sums is not None and affine is not None else None
        return learnt.sum() if learn and learnt is not None else None, total

    def takes(self, dtype: torch.dtype) -> bool:
        """As `Kernels.takes`."""
        return dtype in _TYPES

    def fuses(self, x_T: Tensor, run: int) -> bool:
        """As `Kernels.fuses`: channels-last."""
        return run == 1

    def moments(self, x_T: Tensor, run: int, channels: int) -> tuple[Tensor, Tensor]:
        """As `Kernels.moments`."""
        # Not torch.batch_norm_stats: its inverse deviation is 0 for a channel without variance, which never fires.
        x = x_T.flatten(0, 1)
        # On a CPU, where the tests run this, statistics of half-precision values are float32 if running ones are there.
        mean, var = torch.empty(2, channels) if x.is_cpu else (None, None)
        mean, var = torch.batch_norm_update_stats(x, mean, var, 0.0)
        return mean, var

    def affine(self, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As `Kernels.affine`."""
        channels = mean.shape[0]
        affine, inv_std = torch.empty(3, channels, device=mean.device), torch.empty(channels, device=mean.device)
        inputs = [values.detach().float().contiguous() for values in (mean, var, weight, bias)]
        numbers = (np.int32(channels), np.float32(eps))
        self.launch(PER_CHANNEL, "norm_affine", channels, mean.device, [*map(_address, (*inputs, affine, inv_std)), *numbers])
        return affine, inv_std

    def coefficients(self, sums: Tensor, affine: Tensor, inv_std: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """As `Kernels.coefficients`."""
        channels = affine.shape[1]
        coefficients, grads = torch.empty_like(affine), torch.empty_like(sums)
        addresses = map(_address, (sums, affine, inv_std, coefficients, grads))
        numbers = (np.int32(channels), np.float32(values))
        self.launch(PER_CHANNEL, "norm_coefficients", channels, affine.device, [*addresses, *numbers])
        return coefficients, grads

    def norms(self, x_T: Tensor, run: int) -> bool:
        """As `Kernels.norms`: PyTorch's own is as good."""
        return False

    def gradients(self, grad_T: Tensor, x_T: Tensor, mean: Tensor, run: int) -> Tensor:
        """As `Kernels.gradients`."""
        raise AssertionError("BatchNorm alone is PyTorch's on a GPU")

    def pack(self, spikes_N: Tensor) -> Tensor | None:
        """As `Kernels.pack`."""
        bits = torch.empty((len(spikes_N) + 7) // 8, dtype=torch.uint8, device=spikes_N.device)
        return bits if self._bits("spikes_pack", spikes_N, spikes_N, bits) else None

    def unpack(self, bits: Tensor, spikes_N: Tensor) -> bool:
        """As `Kernels.unpack`."""
        return self._bits("spikes_unpack", spikes_N, bits, spikes_N)

    def _bits(self, kernel: str, spikes_N: Tensor, source: Tensor, target: Tensor) -> bool:
        if len(spikes_N) % 8 or _misalignment(spikes_N) % 8:
            return False
        variant, count = Variant(1, 8, spikes_N.dtype, spikes_N.dtype), len(spikes_N) // 8
        self.launch(variant, kernel, count, spikes_N.device, [_address(source), _address(target), np.int64(count)])
        return True

    def combine(self, grad_T: Tensor, x_T: Tensor, coefficients: Tensor, run: int, out_T: Tensor) -> None:
        """As `Kernels.combine`."""
        if out_T is not grad_T:
            out_T.copy_(grad_T)  # the kernel works in place: with a third address it spills registers
        channels = coefficients.float().contiguous()
        lanes = fitting_lanes(most_lanes(1, x_T.dtype, x_T.dtype), channels.shape[1], _misalignment(out_T, x_T))
        variant = Variant(1, lanes, x_T.dtype, x_T.dtype)
        groups = grad_T.numel() // lanes
        arguments = [*map(_address, (out_T, x_T, channels)), np.int64(groups), np.int32(channels.shape[1])]
        self.launch(variant, "norm_combine", groups, x_T.device, arguments)


def _misalignment(*tensors: Tensor) -> int:
    """Values by which the worst of some tensors misses a 16-byte boundary, as something that lanes must divide."""
    return min(((t.data_ptr() // t.element_size()) & 7 or 8 for t in tensors), default=8)


def _learned(inv_tau: Tensor | float) -> Tensor | None:
    # By address: its value is on the device, and asking for it would make the host wait.
    return inv_tau.detach().float() if isinstance(inv_tau, Tensor) else None


class _Plan(NamedTuple):
    """A launch of a neuron's kernel but for its addresses."""

    variant: Variant
    threads: int
    numbers: tuple[Any, ...]
    """By-value numpy scalars: a CuPy array of one value would cost a copy that the host waits for."""


def _plan_of(
    x: Frames, spikes_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, affine: Tensor | None, count: bool = False
) -> _Plan:
    learn = isinstance(inv_tau, Tensor)
    return _plan(
        spikes_T.shape[0], x.rows * x.length, x.length, x.step, x.row, x.x.shape[0] == 1, _misalignment(x.x, spikes_T),
        x.x.dtype, spikes_T.dtype, 0.0 if learn else inv_tau, learn, dynamics, 0 if affine is None else affine.shape[1], count,
    )  # fmt: skip


@functools.lru_cache(4096)  # every layer asks at every step, and always the same
def _plan(
    steps: int, neurons: int, length: int, step: int, row: int, replay: bool, misalignment: int, storage: torch.dtype,
    spikes: torch.dtype, inv_tau: float, learn: bool, dynamics: Dynamics, channels: int, count: bool,
) -> _Plan:  # fmt: skip
    lengths = [length, row, 0 if replay else step, misalignment, channels]
    lanes = fitting_lanes(most_lanes(steps, storage, spikes, learn or channels > 0), *lengths)
    soft, full = dynamics.v_reset is None, not dynamics.detach_reset
    variant = Variant(steps, lanes, storage, spikes, soft, full, learn, replay, channels > 0, count)
    groups = threads = neurons // lanes
    if learn or count or channels:
        threads = min(groups, MOST_SUMMING_THREADS)
    if channels:  # a thread's groups must have the same channels
        per_pixel = channels // lanes
        threads = max(1, threads // per_pixel) * per_pixel
    sizes = map(np.int64, (groups, threads, length // lanes, step, row))
    constants = map(np.float32, (inv_tau, dynamics.v_threshold, dynamics.rest, dynamics.alpha))
    return _Plan(variant, threads, (*sizes, np.int32(channels), *constants))


def _address(tensor: Tensor | None) -> Any:
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def keep_compiled_kernels() -> None:
    """Let CuPy keep what it compiles beside our own libraries, which belong to this machine, unless $CUPY_CACHE_DIR is set."""
    if "CUPY_CACHE_DIR" in os.environ:
        return
    os.environ["CUPY_CACHE_DIR"] = folder = str(own_cache() / "cupy")
    if "cupy" in sys.modules:  # which has read the variable when another package, such as SpikingJelly, imported it
        from cupy.cuda import _compiler_cache, compiler

        compiler._set_kernel_cache_backend(_compiler_cache.DiskKernelCacheBackend(folder))


class CupyBackend(CompiledBackend):
    """CUDA kernels through CuPy."""

    def __init__(self) -> None:
        super().__init__(CupyKernels(), ("cuda",))

    def check(self) -> None:
        """As `Backend.check`."""
        if importlib.util.find_spec("cupy") is None:
            raise Unavailable("CuPy is not installed; type: make setup CUDA=1, or: pip install 'statten[cuda]'")
        if not torch.cuda.is_available():
            raise Unavailable("there is no GPU that PyTorch can use; type: statten doctor")
        try:
            keep_compiled_kernels()
            x = torch.zeros(1, 8, device="cuda")
            self.kernels.forward(frames(x), torch.empty_like(x), 0.5, Dynamics(), None, 1, None)
        except Exception as error:
            raise Unavailable(f"a kernel does not run: {first_line(error)}") from None


BACKEND = CupyBackend()
