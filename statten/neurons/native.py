"""The neuron on the CPU: native.cpp, compiled once per machine by its own C++ compiler, and kept in a cache folder."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statten import machine
from statten.errors import UserError
from statten.files import cache_folders, locked, own_cache, private
from statten.neurons.compiled import ChannelMaths, CompiledBackend
from statten.neurons.dynamics import Dynamics, Frames, Unavailable

log = logging.getLogger("statten")

SOURCES = [Path(__file__).with_name(name) for name in ("native.cpp", "recurrence.h")]
# -ffast-math would break the exponential and NaN; these are the parts of it that vectorising needs.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# Torch's own OpenMP is in the process already and serves this library too.
OPENMP, WITHOUT_OPENMP = "-fopenmp", "-Wno-unknown-pragmas"
_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


class _Problem(ctypes.Structure):
    """Field for field `Problem` in native.cpp."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "grad", "out", "scale", "shift", "mean", "sums", "learnt", "count")],
        *[(name, ctypes.c_int64) for name in ("rows", "length", "x_step", "x_row", "channels", "run")],
        *[(name, ctypes.c_double) for name in ("inv_tau", "v_threshold", "v_reset", "alpha")],
        *[(name, ctypes.c_int32) for name in ("steps", "threads", "soft", "full", "replay")],
    ]


class NativeKernels(ChannelMaths):
    """The library's functions over tensors in the CPU's memory."""

    name = "native"

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
        problem = _problem(x, spikes_T, inv_tau, dynamics, affine, run)
        problem.count = None if count is None else count.data_ptr()
        _call("forward", problem, x.x, spikes_T)

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
        problem = _problem(x, grad_x_T, inv_tau, dynamics, affine, run)
        problem.steps, problem.grad = len(grad_T), grad_T.data_ptr()
        learnt = torch.zeros((), dtype=torch.float64) if learn else None
        sums = None if affine is None else torch.zeros(2, problem.channels, dtype=torch.float64)
        problem.learnt = None if learnt is None else learnt.data_ptr()
        problem.sums = None if sums is None else sums.data_ptr()
        _call("backward", problem, x.x, grad_T)
        return learnt, sums

    def takes(self, dtype: torch.dtype) -> bool:
        """As `Kernels.takes`."""
        return dtype in _NAMES

    def fuses(self, x_T: Tensor, run: int) -> bool:
        """As `Kernels.fuses`."""
        return True

    def moments(self, x_T: Tensor, run: int, channels: int) -> tuple[Tensor, Tensor]:
        """As `Kernels.moments`."""
        sums = torch.empty(2, channels, dtype=torch.float64)
        problem = _Problem(x=x_T.data_ptr(), sums=sums.data_ptr(), length=x_T.numel(), channels=channels, run=run)
        problem.threads = torch.get_num_threads()
        _call("moments", problem, x_T)
        return sums[0], sums[1]

    def norms(self, x_T: Tensor, run: int) -> bool:
        """As `Kernels.norms`: PyTorch's backward pass takes four times as long in channels-last as in the default layout."""
        return run == 1

    def gradients(self, grad_T: Tensor, x_T: Tensor, mean: Tensor, run: int) -> Tensor:
        """As `Kernels.gradients`."""
        mean = mean.double().contiguous()
        sums = torch.empty(2, len(mean), dtype=torch.float64)
        problem = _Problem(x=x_T.data_ptr(), grad=grad_T.data_ptr(), mean=mean.data_ptr(), sums=sums.data_ptr())
        problem.length, problem.channels, problem.run, problem.threads = x_T.numel(), len(mean), run, torch.get_num_threads()
        _call("gradients", problem, x_T)
        return sums

    def pack(self, spikes_N: Tensor) -> Tensor:
        """As `Kernels.pack`."""
        bits = torch.empty((len(spikes_N) + 7) // 8, dtype=torch.uint8)
        problem = _Problem(x=spikes_N.data_ptr(), out=bits.data_ptr(), length=len(spikes_N), threads=torch.get_num_threads())
        _call("pack", problem, spikes_N)
        return bits

    def unpack(self, bits: Tensor, spikes_N: Tensor) -> bool:
        """As `Kernels.unpack`."""
        problem = _Problem(x=bits.data_ptr(), out=spikes_N.data_ptr(), length=len(spikes_N), threads=torch.get_num_threads())
        _call("unpack", problem, spikes_N)
        return True

    def combine(self, grad_T: Tensor, x_T: Tensor, coefficients: Tensor, run: int, out_T: Tensor) -> None:
        """As `Kernels.combine`."""
        problem = _Problem(x=x_T.data_ptr(), grad=grad_T.data_ptr(), out=out_T.data_ptr(), length=x_T.numel(), run=run)
        problem.threads = torch.get_num_threads()
        keep = _set_channels(problem, coefficients)
        _call("combine", problem, x_T)
        del keep


def _problem(x: Frames, out: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, affine: Tensor | None, run: int) -> _Problem:
    problem = _Problem(x=x.x.data_ptr(), out=out.data_ptr())
    problem.rows, problem.length, problem.x_row, problem.replay = x.rows, x.length, x.row, len(x.x) == 1
    problem.x_step = 0 if problem.replay else x.step
    problem.steps, problem.threads = len(out), torch.get_num_threads()
    problem.inv_tau, problem.alpha = float(inv_tau), dynamics.alpha
    problem.v_threshold, problem.v_reset = dynamics.v_threshold, dynamics.rest
    problem.soft, problem.full = dynamics.v_reset is None, not dynamics.detach_reset
    problem.run = run
    if affine is not None:
        problem.keep = _set_channels(problem, affine)  # the tensor must outlive the call
    return problem


def _set_channels(problem: _Problem, values: Tensor) -> Tensor:
    values = values.double().contiguous()
    problem.scale, problem.shift, problem.mean = (row.data_ptr() for row in values)
    problem.channels = values.shape[1]
    return values


def _call(function: str, problem: _Problem, *tensors: Tensor) -> None:
    name = "_".join([function, *(_NAMES[tensor.dtype] for tensor in tensors)])
    getattr(library(), name)(ctypes.byref(problem))


@functools.cache
def library() -> Any:
    """The compiled library, from the cache or made now; raises Unavailable with the compiler's words."""
    try:
        compiler = machine.compiler()
    except LookupError as reason:
        raise Unavailable(str(reason)) from None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    # -march=native builds for this processor: machines that share a home directory must not share the file.
    key = "\n".join([*(path.read_text() for path in SOURCES), *FLAGS, compiler, version, _processor()])
    name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    target = next((path for folder in cache_folders() if _ours(path := folder / name)), None)
    if target is None:
        try:
            target = own_cache() / name
            with locked(target.with_suffix(".lock")):  # one worker compiles, the others on this machine wait for it
                if not _ours(target):
                    _build(compiler, target)
        except (OSError, UserError) as error:
            raise Unavailable(str(error)) from None
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unavailable(f"cannot load {target}: {error}; remove it, and it is made anew") from None


def _ours(path: Path) -> bool:
    """Whether a library is there that nobody else can have put there: loading runs what is in it."""
    return os.path.isfile(path) and not path.is_symlink() and private(path) and private(path.parent)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _build(compiler: str, target: Path) -> None:
    log.warning("compiling the neurons for this CPU, once, about 15 s")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        out, words = Path(folder) / target.name, ""
        for options in ([OPENMP, "-march=native"], [OPENMP], [WITHOUT_OPENMP]):
            done = subprocess.run([compiler, *FLAGS, *options, str(SOURCES[0]), "-o", str(out)], capture_output=True, text=True)
            if done.returncode == 0:
                out.chmod(0o755)  # whatever the umask
                os.replace(out, target)
                log.info("compiled %s in %.0f s", target, time.monotonic() - began)
                return
            words = words or done.stderr
    lines = [line.strip() for line in words.splitlines() if "error" in line.lower()] or words.splitlines()[-1:]
    raise Unavailable(f"{compiler} cannot compile {SOURCES[0].name}: {lines[0] if lines else 'it said nothing'}")


class NativeBackend(CompiledBackend):
    """C++ and OpenMP."""

    def __init__(self) -> None:
        super().__init__(NativeKernels(), ("cpu",))

    def check(self) -> None:
        """As `Backend.check`."""
        library()


BACKEND = NativeBackend()
