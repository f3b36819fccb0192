"""The GPU's kernels on the CPU: kernels.cu compiled by the C++ compiler, its threads run one after the other.

Everything is tested here that a GPU would run, but for the code that NVRTC makes of it.
"""

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from statten.machine import compiler
from statten.neurons.compiled import CompiledBackend
from statten.neurons.cupy_backend import CupyKernels, Variant, source

_BEFORE = """
#define __global__
#define __launch_bounds__(n)
struct Index { unsigned x; };
static Index blockIdx, threadIdx, blockDim{BLOCK};
extern "C" void here(unsigned block, unsigned thread) { blockIdx.x = block, threadIdx.x = thread; }
"""
BLOCK = 32
_C = {np.uint64: ctypes.c_uint64, np.int64: ctypes.c_int64, np.int32: ctypes.c_int32, np.float32: ctypes.c_float}
_folder = tempfile.TemporaryDirectory(prefix="statten-emulated-")


@functools.cache
def compiled(variant: Variant) -> ctypes.CDLL:
    """The library of a variant."""
    options = [option.replace("--std", "-std") for option in variant.options()]
    stem = Path(_folder.name) / hashlib.sha256(" ".join(options).encode()).hexdigest()
    stem.with_suffix(".cpp").write_text(_BEFORE.replace("BLOCK", str(BLOCK)) + source())
    command = [compiler(), *options, "-O1", "-w", "-fPIC", "-shared", str(stem) + ".cpp", "-o", str(stem) + ".so"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(stem) + ".so")


class Emulator:
    """Starts kernels as `cupy_backend.Launcher` does, and counts them."""

    def __init__(self):
        self.launches = 0

    def __call__(self, variant, name, threads, device, arguments):
        library = compiled(variant)
        kernel, values = getattr(library, name), [_C[type(value)](value.item()) for value in arguments]
        kernel.restype = None
        # The last block is whole, as on a GPU: its idle threads must do nothing.
        for block in range((threads + BLOCK - 1) // BLOCK):
            for thread in range(BLOCK):
                library.here(block, thread)
                kernel(*values)
        self.launches += 1


class EmulatedKernels(CupyKernels):
    """`CupyKernels` on the CPU."""

    name = "emulated"


class EmulatedBackend(CompiledBackend):
    """`cupy` without a GPU."""

    def __init__(self):
        self.emulator = Emulator()
        super().__init__(EmulatedKernels(self.emulator), ("cpu",))

    def check(self):
        """Runs where there is a C++ compiler."""
