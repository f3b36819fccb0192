"""SpikingJelly's modules for event datasets, to compare with. Their package's own `__init__` imports torchaudio, which there is
only for torch up to 2.11, so the package is put there without running that."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

PACKAGE = "spikingjelly.datasets"


def peer(module: str) -> ModuleType:
    """A module of spikingjelly.datasets."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(Path(find_spec("spikingjelly").origin).parent / "datasets")]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{module}")
