"""The GPU's kernels compile for the A100 (sm_80), the H100 and H200 (sm_90) and the B200 (sm_100), and spill no register.

NVRTC is part of PyTorch's CUDA wheels and needs no GPU.
"""

import ctypes
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from statten.neurons.cupy_backend import Variant, most_lanes, source

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TYPES = [(F32, F32), (F16, F16), (BF16, BF16), (F32, F16), (F32, BF16)]
KERNELS = {
    "lif_forward", "lif_backward", "norm_affine", "norm_coefficients", "norm_combine", "spikes_pack", "spikes_unpack",
}  # fmt: skip
CHOICES = ("soft", "full", "learn", "replay", "affine", "count")


def find_nvrtc():
    nvidia = find_spec("nvidia")
    folders = [Path(p) for p in nvidia.submodule_search_locations] if nvidia else []
    found = sorted(path for folder in folders for path in folder.rglob("libnvrtc.so*"))
    return ctypes.CDLL(str(found[0])) if found else None


NVRTC = find_nvrtc()


def compile_for(architecture: int, variant: Variant) -> dict[str, dict[str, int]]:
    """Registers, stack and spills of each kernel; AssertionError with the compiler's words."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [o.encode() for o in (*variant.options(), f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v")]
    NVRTC.nvrtcCreateProgram(ctypes.byref(program), source().encode(), b"kernels.cu", 0, None, None)
    try:
        failed = NVRTC.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        NVRTC.nvrtcGetProgramLog(program, log)
    finally:
        NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    words = log.value.decode()
    assert not failed, f"sm_{architecture} {variant}: {words[:2000]}"
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        words,
        re.DOTALL,
    )
    assert {name for name, *_ in found} == KERNELS, words
    return {name: {"stack": int(s), "spills": int(a) + int(b), "registers": int(r)} for name, s, a, b, r in found}


def variant(steps: int, storage: torch.dtype, spikes: torch.dtype, **choices: bool) -> Variant:
    summing = bool(choices.get("learn") or choices.get("affine"))
    return Variant(steps, most_lanes(steps, storage, spikes, summing), storage, spikes, **choices)


def check(variants: list[Variant], architecture: int) -> None:
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the interpreter
        for made, kernels in zip(variants, pool.map(lambda v: compile_for(architecture, v), variants), strict=True):
            for name, use in kernels.items():
                print(f"sm_{architecture} {name:13} {use['registers']:3} registers  {made}")
                assert use["spills"] == 0 and use["stack"] == 0, f"sm_{architecture} {name} of {made}: {use}"


pytestmark = pytest.mark.skipif(NVRTC is None, reason="this PyTorch has no NVRTC")


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_choice(architecture):
    every = itertools.product((False, True), repeat=len(CHOICES))
    types = itertools.cycle(TYPES)
    check([variant(4, *next(types), **dict(zip(CHOICES, flags, strict=True))) for flags in every], architecture)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("names", ["", "affine", "affine learn full count"])
def test_every_range_of_timesteps_and_type(architecture, names):
    steps = (1, 2, 3, 4, 5, 8, 10, 12, 16, 17, 24, 32, 33, 48, 64)
    check([variant(T, *types, **dict.fromkeys(names.split(), True)) for T in steps for types in TYPES], architecture)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_fewer_lanes_for_sizes_that_are_no_multiple(architecture):
    check([Variant(4, lanes, *types) for lanes in (1, 2, 4) for types in TYPES], architecture)
