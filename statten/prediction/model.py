"""A trained model that is ready to use: opened from wherever it lies, with its transform, its classes and its answers.

B batch, T timesteps, b block size, C channels, S model.image_size, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from statten.config import Config, parse_overrides
from statten.data.transforms import evaluation_transform
from statten.errors import UserError
from statten.evaluation.targets import Target, open_target
from statten.metrics.energy import ledger
from statten.metrics.inference import autocast, evaluating
from statten.metrics.spikes import SpikeTotals
from statten.prediction.inputs import Sample, files_of, raw_sample
from statten.prediction.results import Prediction, Predictions
from statten.storage.run import RunFolder, locate, storage_folder

HERE = {"scale.device": "auto", "scale.neuron_backend": "auto"}
"""A model that was trained on a GPU may be used without one."""


class TrainedModel(nn.Module):
    """A network in evaluation mode with all that is needed to use it.

    Calling it gives the network's logits of tensors that `transform` made.
    """

    def __init__(self, target: Target):
        super().__init__()
        self.name = target.name
        """What it was opened from."""
        self.source: Path = target.source
        """Its checkpoint folder or file."""
        self.config: Config = target.config
        """The whole config."""
        self.classes: list[str] = target.classes()
        """Name of each class [K]."""
        self.network = target.model()
        """The network on its device."""
        self._transform = evaluation_transform(target.config)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of [B, C, S, S] or [B, T, C, S, S], as the network gives them."""
        return self.network(x)

    def transform(self, sample: Sample) -> Tensor:
        """What the network reads of one image or clip, exactly as in the run's validation: float32 [C, S, S] or [T, C, S, S].

        Args:
            sample: path of a file, a PIL image, or an array: an image [H, W] or [H, W, 3] of uint8 or of floats from 0 to 1, or
                a clip of event counts [T, 2, H, W]. A tensor is taken as transformed, and only checked.

        Raises:
            UserError: it cannot be read, or is not what the model takes.
        """
        return self._prepared(sample, _name(sample, 0))

    def predict(
        self, samples: Sample | Sequence[Sample], *, batch_size: int = 64, confidence: float | None = None
    ) -> Prediction | Predictions:
        """What the model says of one sample, or of several.

        Args:
            samples: one of what `transform` takes, or several in a list. An array or a tensor with one dimension more is
                several, and so is the path of a folder: all images, or clips, in it.
            batch_size: samples that run together.
            confidence: answer as soon as the largest probability reaches this, instead of after all T timesteps. It is looked
                at where a block of timesteps ends, for attention inside a block sees all of its timesteps.

        Returns:
            A `Prediction` of one sample, `Predictions` (a list of them) of several.

        Raises:
            UserError: a sample cannot be read, or is not what the model takes; or `confidence` is out of its range.
        """
        several = self._several(samples)
        if several is None:
            return self.predict_each([samples], batch_size=batch_size, confidence=confidence)[0]  # type: ignore[list-item]
        return self.predict_each(several, batch_size=batch_size, confidence=confidence)

    def predict_each(
        self, samples: Iterable[Sample], *, batch_size: int = 64, confidence: float | None = None,
        step: Callable[[int], object] = lambda samples: None,
    ) -> Predictions:  # fmt: skip
        """`predict` of several samples, which are read as they are needed; `step` hears how many samples each batch had."""
        if confidence is not None and not 0 < confidence <= 1:
            raise UserError(f"--confidence: must be above 0 and at most 1, but got {confidence:g}")
        if batch_size < 1:
            raise UserError(f"--batch-size: must be at least 1, but got {batch_size}")
        named, found = ((_name(sample, i), sample) for i, sample in enumerate(samples)), Predictions()
        for names, x in self._batches(named, batch_size):
            found += self._answers(names, x, confidence)
            step(len(names))
        return found

    def _several(self, samples: Any) -> Iterable[Sample] | None:
        """The samples, where they are more than one."""
        if isinstance(samples, str | Path):
            return files_of([samples], self.config.model) if Path(samples).expanduser().is_dir() else None
        if isinstance(samples, np.ndarray | Tensor):
            events = self.config.model.events
            several = samples.ndim > (4 if events else 3)
            if isinstance(samples, np.ndarray) and not events and samples.ndim == 3:
                several = samples.shape[-1] > 4  # grey images [N, H, W]: fewer are channels
            return list(samples) if several else None
        if not isinstance(samples, Iterable | Image.Image):
            raise UserError(f"samples: must be a file, an image, an array or a list of them, but got {type(samples).__name__}")
        return None if isinstance(samples, Image.Image) else samples

    def _batches(self, named: Iterator[tuple[str, Sample]], size: int) -> Iterator[tuple[list[str], Tensor]]:
        while batch := list(islice(named, size)):
            yield [name for name, _ in batch], torch.stack([self._prepared(sample, name) for name, sample in batch])

    def _prepared(self, sample: Sample, name: str) -> Tensor:
        m = self.config.model
        x = sample if isinstance(sample, Tensor) else self._transform(raw_sample(sample, self.config, name))
        wanted = [*([m.timesteps] if m.events else []), m.in_channels, m.image_size, m.image_size]
        if list(x.shape) != wanted or not x.is_floating_point():
            raise UserError(
                f"{name}: must be floating-point numbers {wanted} as the model reads them, but is {x.dtype} {list(x.shape)}"
            )
        return x

    def _answers(self, names: list[str], x: Tensor, confidence: float | None) -> Iterator[Prediction]:
        """Run a batch [B, ...] until every answer is sure enough."""
        network, m, device = self.network, self.config.model, next(self.network.parameters()).device
        x = x.to(device, next(self.network.parameters()).dtype)
        answers: list[Prediction | None] = [None] * len(names)
        waiting = torch.arange(len(names), device=device)
        try:
            for t in exits(m.timesteps, m.block_size) if confidence else [m.timesteps]:
                network.set_timesteps(t, min(m.block_size, t))
                spikes = SpikeTotals(network, device)
                with evaluating(network), spikes, autocast(self.config, device):
                    logits = network(x[waiting, :t] if m.events else x[waiting]).double()
                probabilities = (logits.mean(0) if logits.ndim == 3 else logits).softmax(1).cpu()
                inputs, samples = spikes.inputs()
                energy_uj = ledger(m, t, inputs, samples)["total"]["pj"] / 1e6
                sure = torch.ones(len(waiting), dtype=torch.bool)
                if confidence and t < m.timesteps:
                    sure = probabilities.amax(1) >= confidence
                for row in sure.nonzero()[:, 0].tolist():
                    i = int(waiting[row])
                    answers[i] = Prediction(names[i], self.classes, probabilities[row].numpy(), t, energy_uj)
                waiting = waiting[~sure.to(device)]
                if not len(waiting):
                    break
        finally:
            network.set_timesteps(m.timesteps, m.block_size)
        return iter([answer for answer in answers if answer is not None])

    def __repr__(self) -> str:
        m = self.config.model
        return (
            f"TrainedModel({self.name}: {m.backbone}, T={m.timesteps}, b={m.block_size}, depth={m.depth}, D={m.embed_dim}, "
            f"{len(self.classes)} classes)"
        )


def exits(timesteps: int, block_size: int) -> list[int]:
    """Timesteps after which the answer is final that a network of T gives so far: where a block ends, and T.

    Neurons and blocks know nothing of later timesteps, so a network of so many gives the same; inside a block it would not,
    for attention sees all of the block.
    """
    return [*range(block_size, timesteps, block_size), timesteps]


def _name(sample: Sample, index: int) -> str:
    return str(sample) if isinstance(sample, str | Path) else f"sample {index}"


def load_model(
    target: str | Path | RunFolder, overrides: Iterable[str] | Mapping[str, Any] = (), *, data: str | None = None,
    ema: bool = True, storage: str | Path | None = None,
) -> TrainedModel:  # fmt: skip
    """Open trained weights as a model that is ready to use.

    Args:
        target: name or folder of a run (its best epoch) or of a sweep (its best trial), a checkpoint folder, a folder that
            `statten export` wrote, or a published `.pth.tar`; or a `Run` or `Sweep`.
        overrides: fields to change, such as model.timesteps, which owns no weights, or scale.device.
        data: of a published file, the name of the dataset that it was trained on, where it does not say so.
        ema: take the moving average of the weights where there is one.
        storage: folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs.

    Returns:
        A module in evaluation mode, with `transform`, `classes`, `predict` and `config`.

    Raises:
        UserError: there is no such target, or it cannot be read.

    Example:
        >>> import numpy, statten
        >>> model = statten.load_model("first")
        >>> model.classes[:3]
        ['0', '1', '2']
        >>> answer = model.predict(numpy.zeros((8, 8)))
        >>> answer.name in model.classes, answer.timesteps
        (True, 4)
    """
    path = target.path if isinstance(target, RunFolder) else locate(target, storage_folder(storage))
    return TrainedModel(open_target(path, {**HERE, **parse_overrides(overrides)}, data, ema))
