"""What can be chosen by name: datasets, attention modes, backbones, neuron backends. An entry is one file, and one line here.

A line says where the entry stands, `module:NAME`, and that module is imported when the entry is first used: so the config takes
its choices from these names, and needs neither torch nor any data for it.
"""

import importlib
from collections import UserDict
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def load(place: str) -> Any:
    """What stands at `module:NAME`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class Registry(UserDict[str, T]):
    """Entries by name, each given as the place where it stands, and imported when it is first asked for."""

    def __getitem__(self, name: str) -> T:
        entry = super().__getitem__(name)
        if isinstance(entry, str):
            entry = self.data[name] = load(entry)
        return entry


@dataclass(frozen=True)
class Dataset:
    """A dataset: what a config must know of it, and the function that opens it."""

    place: str
    """Function (config) -> data.dataset.Source; raises UserError where `data.root` does not hold the dataset."""
    channels: int
    """Channels C of a sample."""
    events: bool = False
    """Whether samples are event clips [T, C, H, W] and not images [C, H, W]."""
    bundled: bool = False
    """Whether it needs no `data.root`."""
    transform: str = "statten.data.transforms:file_transform"
    """Function (config) -> what makes an RGB image, or a clip of event counts, what the model reads in validation."""

    def open(self, config: Any) -> Any:
        """Open it for a config."""
        return load(self.place)(config)


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "statten.data.digits:open_digits", channels=1, bundled=True, transform="statten.data.digits:DigitTransform"
    ),
    "digits_events": Dataset("statten.data.digits_events:open_digits_events", channels=2, events=True, bundled=True),
    "cifar10": Dataset("statten.data.images:open_cifar", channels=3),
    "cifar100": Dataset("statten.data.images:open_cifar", channels=3),
    "imagenet": Dataset("statten.data.images:open_images", channels=3),
    "image_folder": Dataset("statten.data.images:open_images", channels=3),
    "cifar10dvs": Dataset("statten.data.events:open_frames", channels=2, events=True),
    "ncaltech101": Dataset("statten.data.events:open_frames", channels=2, events=True),
    "dvs128gesture": Dataset("statten.data.events:open_frames", channels=2, events=True),
    "event_folder": Dataset("statten.data.events:open_event_folder", channels=2, events=True),
}
"""`data.name`."""

ATTENTION: Registry[Any] = Registry({
    "statten": "statten.models.attention.spatial_temporal:STAttenCore",
    "sdsa": "statten.models.attention.sdsa:SDSACore",
})  # fmt: skip
"""`model.attention`: subclasses of models.attention.core.AttentionCore."""

BACKBONES: Registry[Any] = Registry({
    "sdt": "statten.models.backbones.sdt:STAttenTransformer",
})  # fmt: skip
"""`model.backbone`: subclasses of models.backbones.base.Backbone."""

NEURON_BACKENDS: Registry[Any] = Registry({
    "cupy": "statten.neurons.cupy_backend:BACKEND",
    "native": "statten.neurons.native:BACKEND",
    "torch": "statten.neurons.torch_backend:BACKEND",
})  # fmt: skip
"""`scale.neuron_backend`: objects of the form neurons.dynamics.Backend; `auto` takes the first that runs on a device."""
