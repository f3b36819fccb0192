"""What can be chosen by name: datasets, attention modes, backbones, neuron backends. An entry is one file, and one line here.

A line says where the entry stands, `module:NAME`, and that module is imported when the entry is first used: so the config takes
its choices from these names, and needs neither torch nor any data for it.
"""

import importlib
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Network:
    """A backbone: where it stands, and what a config must know of it."""

    place: str
    """Subclass of models.backbones.base.Backbone."""
    layout: str = "columns"
    """How its layers are laid out, a key of config.layouts.LAYOUTS."""
    fields: tuple[str, ...] = ()
    """Which of OPTIONAL_FIELDS it has."""
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values that it does not have, by field."""
    scale: float | None = None
    """Scale of its attention; None: 1/H of the token grid H x H, 1/H^2 for event clips. With clips it is divided by b."""
    event_scale: float | None = None
    """The same for event clips, where it is another."""
    event_mask: bool = False
    """Whether attention on event clips is pooled, and masked by the block's own input."""


OPTIONAL_FIELDS = ("pooling", "attention_scale", "early_mixer", "stem_stride", "stage_depths", "stage_dims", "neuron.head")
"""Fields of the model that some backbones have, and others do not."""
_STAGED = ("attention_scale", "early_mixer", "stem_stride", "stage_depths", "stage_dims")


class Networks(Registry[Any]):
    """Backbones by name: `networks[name]` is the class, `networks.line(name)` what a config must know of it."""

    def __init__(self, lines: Mapping[str, Network | str]):
        # A line that is a place alone says nothing of its fields: none is refused.
        self.lines = {
            name: line if isinstance(line, Network) else Network(line, fields=OPTIONAL_FIELDS) for name, line in lines.items()
        }
        super().__init__({name: line.place for name, line in self.lines.items()})

    def line(self, name: str) -> Network:
        """The line of a backbone."""
        return self.lines[name]


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
    "ssa": "statten.models.attention.spatial_temporal:SSACore",
})  # fmt: skip
"""`model.attention`: subclasses of models.attention.core.AttentionCore."""

BACKBONES: Networks = Networks({
    "sdt": Network(
        "statten.models.backbones.sdt:STAttenTransformer", fields=("pooling", "neuron.head"), lacks={"attention": ("ssa",)},
        event_mask=True,
    ),
    "spikformer": Network(
        "statten.models.backbones.spikformer:Spikformer", fields=("pooling", "attention_scale"),
        lacks={"attention": ("sdsa",)}, scale=0.125, event_scale=0.25,
    ),
    "maxformer": Network(
        "statten.models.backbones.hierarchical:MaxFormer", "pyramid", (*_STAGED, "neuron.head"),
        lacks={"attention": ("sdsa",)}, scale=0.125,
    ),
    "ms_qkformer": Network(
        "statten.models.backbones.hierarchical:MSQKFormer", "pyramid", (*_STAGED, "neuron.head"),
        lacks={"attention": ("sdsa",)}, scale=0.125,
    ),
    "qkformer": Network(
        "statten.models.backbones.hierarchical:QKFormer", "pyramid", _STAGED,
        lacks={"attention": ("sdsa",), "early_mixer": ("dwc",)}, scale=0.125,
    ),
    "sdt2": Network(
        "statten.models.backbones.meta:MetaSpikeFormer", layout="meta",
        fields=("attention_scale", "stage_depths", "stage_dims", "neuron.head"), lacks={"attention": ("sdsa",)}, scale=0.125,
    ),
})  # fmt: skip
"""`model.backbone`."""

NEURON_BACKENDS: Registry[Any] = Registry({
    "cupy": "statten.neurons.cupy_backend:BACKEND",
    "native": "statten.neurons.native:BACKEND",
    "torch": "statten.neurons.torch_backend:BACKEND",
})  # fmt: skip
"""`scale.neuron_backend`: objects of the form neurons.dynamics.Backend; `auto` takes the first that runs on a device."""
