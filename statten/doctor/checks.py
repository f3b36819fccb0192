"""What this machine has, what is missing and what to type: `statten doctor`.

A check is a function that returns one line about what it found, or raises `Missing` or `Broken` with a sentence and the
command that mends it. A check that fails in any other way is broken too, and never hides the others. Heavy imports happen
inside the checks, so that a torch that cannot be imported is a finding, not a traceback.
"""

import dataclasses
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

from statten.cluster.session import RAY_SOCKET, SOCKET_PATH
from statten.errors import first_line, in_shell
from statten.machine import compiler, usable_cores, usable_memory

State = Literal["ok", "missing", "broken"]
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found. `fix` says what to do about it; only a `required` one that is not ok makes a machine unfit."""

    name: str
    state: State
    detail: str
    fix: str = ""
    required: bool = True


class Broken(Exception):
    """Something is there and does not work."""

    state: State = "broken"

    def __init__(self, detail: str, fix: str):
        super().__init__(detail)
        self.detail, self.fix = detail, fix


class Missing(Broken):
    """Something is not there."""

    state: State = "missing"


# Python and packages.


def check_python() -> str:
    """The interpreter, against the range that the package asks for."""
    from packaging.specifiers import SpecifierSet

    wanted, version = metadata.metadata("statten")["Requires-Python"], platform.python_version()
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        raise Broken(f"{version}, but statten needs {wanted}", "install a newer Python, then type: make setup")
    return f"{version} at {sys.executable}"


def check_statten() -> str:
    """The installed package is the one that is imported."""
    import statten as package

    try:
        installed = metadata.version("statten")
    except metadata.PackageNotFoundError:
        raise Missing("imported from a folder, but not installed", "pip install -e .") from None
    if installed != package.__version__:
        raise Broken(f"{package.__version__} is imported, but {installed} is installed", "pip install -e .")
    return f"{installed} at {Path(package.__file__).parent}"


def check_versions() -> str:
    """Every dependency is installed in a version that pyproject.toml allows."""
    wanted = _requirements()
    wrong = out_of_range(wanted)
    if wrong:
        problems = [f"{name} {installed}" if installed else f"{name} is not installed" for name, installed in wrong.values()]
        fix = "make setup, or: pip install " + " ".join(f"'{requirement}'" for requirement in wrong)
        raise Broken(f"outside of what statten was tested with: {', '.join(problems)}", fix)
    return f"all {len(wanted)} dependencies are in range"


def out_of_range(requirements: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Requirement -> (name, installed version or None) of those that are not fulfilled."""
    from packaging.requirements import Requirement

    wrong: dict[str, tuple[str, str | None]] = {}
    for text in requirements:
        requirement = Requirement(text)
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong[text] = requirement.name, None
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong[text] = requirement.name, installed
    return wrong


def package_check(name: str) -> Callable[[], str]:
    """A check that a package is installed and can be imported."""

    def check() -> str:
        if importlib.util.find_spec(name) is None:
            raise Missing("not installed", reinstall(name))
        try:
            importlib.import_module(name)
        except Exception as error:
            detail = f"installed, but cannot be imported: {type(error).__name__}: {first_line(error)}"
            raise Broken(detail, reinstall(name)) from error
        return metadata.version(name)

    return check


def check_torch() -> str:
    """PyTorch computes."""
    version = package_check("torch")()
    import torch

    product = (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item()
    if product != 8:
        raise Broken(f"{version} computes wrongly: the sum of a product is {product}, not 8", reinstall("torch"))
    return f"{version}, built for " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only")


def check_torchvision() -> str:
    """torchvision was built for this torch: its own operators load."""
    version = package_check("torchvision")()
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    return version


def check_gpu() -> str:
    """NVIDIA GPUs that PyTorch can compute on."""
    import torch

    if not torch.cuda.is_available():
        if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):
            raise Missing("no NVIDIA GPU here; everything runs on the CPU", "to use a cluster's: --set scale.address=HOST:PORT")
        try:
            torch.cuda.init()
            reason = "it finds no device"
        except Exception as error:
            reason = first_line(error)
        raise Broken(f"an NVIDIA driver is here, but PyTorch cannot use it: {reason}", _driver(torch.version.cuda))
    names = []
    for index in range(torch.cuda.device_count()):
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} ({properties.total_memory / GIB:.0f} GiB)")
    return ", ".join(names) + f"; bf16: {'yes' if torch.cuda.is_bf16_supported() else 'no'}"


def check_cupy() -> str:
    """CuPy for the CUDA version of torch; it compiles and runs a kernel where there is a GPU."""
    import torch
    from packaging.requirements import Requirement

    if torch.version.cuda is None:
        raise Missing("of no use with a torch that is built for CPUs only", reinstall("torch"))
    wanted = _cupy_for(torch.version.cuda)
    if importlib.util.find_spec("cupy") is None:
        raise Missing(
            f"not installed; neurons on a GPU are faster with it (torch has CUDA {torch.version.cuda})",
            f"make setup CUDA=1, or: pip install '{wanted}'",
        )
    name = Requirement(wanted).name
    others = sorted({d.lower() for d in metadata.packages_distributions().get("cupy", [])} - {name})
    if others:
        raise Broken(
            f"{', '.join(others)} is not for torch's CUDA {torch.version.cuda}",
            f"pip uninstall -y {' '.join(others)} && pip install '{wanted}'",
        )
    import cupy

    if not torch.cuda.is_available():
        return f"{cupy.__version__}, without a GPU to use it on"
    total = int(cupy.ElementwiseKernel("int32 x", "int32 y", "y = 2 * x", "doctor")(cupy.arange(4, dtype="int32")).sum())
    if total != 12:
        raise Broken(
            f"{cupy.__version__} computes wrongly: a kernel's sum is {total}, not 12",
            f"pip install --force-reinstall '{wanted}'",
        )
    return str(cupy.__version__)


def _cupy_for(cuda: str) -> str:
    """The requirement of CuPy for a CUDA version such as "13.0"."""
    name = f"cupy-cuda{cuda.partition('.')[0]}x"
    extras = [r.partition(";")[0].strip() for r in metadata.requires("statten") or [] if r.startswith(name)]
    return extras[0] if extras else name


def _driver(cuda: str | None) -> str:
    if cuda is None:
        return reinstall("torch")
    return f"type nvidia-smi: it must work and show a CUDA version of at least {cuda}; otherwise install a newer driver"


def _requirements() -> list[str]:
    """The package's dependencies, without extras."""
    return [r for r in metadata.requires("statten") or [] if "extra ==" not in r]


def reinstall(name: str) -> str:
    """What to type for a package; nothing for a check that is not one."""
    from packaging.requirements import Requirement

    wanted = [r for r in _requirements() if Requirement(r).name == name]
    return f"make setup, or: pip install --force-reinstall '{wanted[0]}'" if wanted else ""


# The machine.


def check_compiler() -> str:
    """The C++ compiler that native neurons will take."""
    try:
        path = compiler()
    except LookupError as reason:
        if os.environ.get("CXX"):
            raise Broken(f"{reason}; native neurons need it", "unset CXX, or set it to a C++ compiler") from None
        raise Missing("no C++ compiler; only native neurons need one", "apt-get install g++") from None
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    return f"{shown.stdout.splitlines()[0]} at {path}"


def check_cpu() -> str:
    """CPU cores that this process may use."""
    return f"{usable_cores():g} cores of {os.cpu_count()}"


def check_memory() -> str:
    """Memory that this process may use."""
    total = usable_memory()
    if total < 3 * GIB:
        raise Broken(f"{total / GIB:.1f} GiB; torch and Ray need 3", "give the machine or the container more memory")
    return f"{total / GIB:.1f} GiB"


def check_instructions() -> str:
    """Vector instructions of the CPU, and whether bf16 is among them."""
    import torch

    flags = {word for line in _read(Path("/proc/cpuinfo")).splitlines()
             if line.lower().startswith(("flags", "features")) for word in line.partition(":")[2].split()}  # fmt: skip
    found = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16") if flag in flags]
    shown = f"{', '.join(found) or platform.machine()}; torch uses {torch.backends.cpu.get_cpu_capability()}"
    if flags and not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        raise Missing(f"{shown}; no bf16, which works on this CPU but is slow", "on this CPU keep train.precision=fp32")
    return shown


def check_storage(folder: Path) -> str:
    """The folder of all runs can be written, or made."""
    elsewhere = "name another with --storage or $STATTEN_STORAGE"
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not there.is_dir():
        raise Broken(f"{folder} cannot be a folder: {there} is a file", elsewhere)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise Broken(f"{there} cannot be written: {error.strerror}", f"chmod u+w {in_shell(there)}, or {elsewhere}") from error
    free = shutil.disk_usage(there).free
    if free < GIB:
        raise Broken(f"{folder} has {free / GIB:.1f} GiB free; checkpoints need more", f"free some, or {elsewhere}")
    return f"{folder}{'' if folder.exists() else ' (will be made)'}, {free / GIB:,.0f} GiB free"


def check_ray_folder(folder: Path) -> str:
    """Ray's temporary folder can be written, is not full, and has a short path."""
    elsewhere = "export RAY_TMPDIR=/some/short/path"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Broken(f"{folder} cannot be written: {error.strerror}", f"make it, or {elsewhere}") from error
    if len(str(folder / RAY_SOCKET)) > SOCKET_PATH:
        raise Broken(f"{folder} is too long a path for Ray's sockets", elsewhere)
    disk = shutil.disk_usage(folder)
    if disk.free < 0.05 * disk.total:
        raise Broken(f"{folder} is over 95 % full, where Ray stops storing objects", f"free some, or {elsewhere}")
    return f"{folder}, {disk.free / GIB:,.0f} GiB free"


def check_shared_memory() -> str:
    """Shared memory, where Ray and loader processes exchange data; Docker gives 64 MiB unless told."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "no /dev/shm on this system; none is needed"
    free = shutil.disk_usage(folder).free
    if free < GIB:
        detail = f"/dev/shm has {free / 2**20:.0f} MiB free; Ray's objects go to disk, and loader processes may die"
        raise Broken(detail, "start the container with --shm-size=4g")
    return f"/dev/shm, {free / GIB:.1f} GiB free"


def _read(path: Path) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
