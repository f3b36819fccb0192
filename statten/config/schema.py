"""Every field of a run, with its help, its bounds and the rules between fields.

A part collects all of its mistakes and raises them as one `ConfigError`: rule, values, nearest valid choice.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from statten.config.model import ModelConfig
from statten.config.parts import Float, Int, Part, Place
from statten.errors import ConfigError, holds_secret, nearest, shown
from statten.registry import DATASETS, load

if TYPE_CHECKING:
    Dataset = str
else:  # what can be chosen is what is registered
    Dataset = Literal[tuple(DATASETS)]
DATASET_NAMES = tuple(DATASETS)
# Fields of DataConfig that do something for datasets that are read from files; of these, for images only, for clips only.
FILE_FIELDS = ("interpolation", "hflip")
IMAGE_FIELDS = (
    "auto_augment", "color_jitter", "crop_scale", "crop_ratio", "random_erasing", "random_erasing_mode", "crop_pct", "mean",
    "std",
)  # fmt: skip
EVENT_FIELDS = ("event_augment", "cutout", "regroup")
AUTO_FIELDS = (
    "data.mean", "data.std", "model.in_channels", "model.num_classes", "model.image_size", "model.pooling",
)  # fmt: skip
"""Fields that may say `auto`: what the folder of the dataset says, see data/auto.py."""
AUTO_AUGMENT = (
    r"^(rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?)$"
)
Optimizer = Literal["adamw", "adam", "sgd", "lamb", "lion", "rmsprop"]
Sampler = Literal["tpe", "random", "grid", "qmc", "gp", "cmaes", "nsga2", "nsga3"]
METRICS = {
    "val/top1": "max",
    "val/top5": "max",
    "val/loss": "min",
    "energy_uj": "min",
    "latency_ms": "min",
    "parameters": "min",
    "peak_memory_mib": "min",
    "seconds": "min",
}
"""What a sweep may look for by name, and which way is better; any other reported metric is written NAME:max or NAME:min."""
Scheduler = Literal["auto", "asha", "median", "hyperband", "front", "none"]


def _share_or_test(value: Any) -> Any:
    # One sentence for both branches of the union.
    if value == "test":
        return value
    try:
        share = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        share = 0.0
    if not 0 < share < 0.5:
        raise ValueError("must be a share above 0 and below 0.5, or test")
    return share


Validation = Annotated[float | Literal["test"], BeforeValidator(_share_or_test)]


def _count_or_range(value: Any) -> Any:
    # The same, for a number of workers or the least and the most.
    given = list(value) if isinstance(value, list | tuple) else [value]
    try:
        counts = [int(str(count)) for count in given]
    except ValueError:
        raise ValueError("must be a whole number, or two as [min, max]") from None
    if min(counts, default=1) < 1:
        raise ValueError("must be at least 1")
    if max(counts, default=1) > 4096:
        raise ValueError("must be at most 4096")
    if not isinstance(value, list | tuple):
        return counts[0]
    if len(counts) != 2 or counts[0] > counts[1]:
        raise ValueError("must be a whole number, or two as [min, max]")
    return tuple(counts)


Workers = Annotated[int | tuple[int, int], BeforeValidator(_count_or_range)]


class DataConfig(Part):
    """What is read, and how it is divided."""

    name: Dataset = "digits"
    """Dataset. Bundled: `digits` (1,797 handwritten digits, 8 x 8) and `digits_events` (the same as event-camera clips).
    Images: `cifar10`, `cifar100`, `imagenet` and `image_folder` (your own classes).
    Event clips: `cifar10dvs`, `ncaltech101`, `dvs128gesture` and `event_folder` (your own classes)."""
    root: Place | None = None
    """Folder of the dataset, on storage that all workers see; empty for bundled data only."""
    download: bool = False
    """Fetch what is missing into `root` before the run, where the dataset allows it."""
    validation: Validation = 0.1
    """Share of the training part that is cut off to select models, unless the folder has train/, val/ and test/; the test part
    is read by `evaluate` alone. `test` is the published protocol: nothing is cut off, models are selected on the test part."""
    fraction: Float = Field(1.0, gt=0, le=1)
    """Share of the training part that is used, stratified by class; validation and test are always whole."""
    split_seed: Int = Field(0, ge=0)
    """Seed of the train/validation/test split; the same seed gives the same split on every machine."""
    frames: Int | None = Field(None, ge=1)
    """Frames of an event clip; empty means as many as `model.timesteps`."""
    regroup: Literal["none", "sum", "subsample"] = "none"
    """event_folder: how clips of more than T frames become T: `sum` adds neighbouring frames up, `subsample` takes the middle
    one of each group, `none` refuses them. With it `model.timesteps` can be searched on one set of clips."""
    augment: bool = True
    """Whether training samples are augmented: the digits by random shifts (images also by small rotations and scalings),
    every other dataset as the fields below say. One draw for all frames of a clip."""
    repeats: Int = Field(1, ge=1, le=16)
    """Repeated augmentation: how often an epoch shows the same sample, each time augmented anew; its length stays."""
    shuffle_buffer: Int = Field(4096, ge=1)
    """Tar shards are read one after the other, in an order of the epoch, and shuffled within so many samples."""
    skip_corrupt: bool = False
    """Leave out files that cannot be read and count them; otherwise the first one ends the run, with its name."""
    workers: Int = Field(0, ge=0, le=64)
    """Loader processes per training worker; 0 reads in the training process."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Interpolation of every resize; event clips take nearest or bilinear."""
    hflip: Float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal flip."""
    auto_augment: str | None = Field(None, pattern=AUTO_AUGMENT)
    """Images: timm's policy, such as rand-m9-n1-mstd0.4-inc1 (RandAugment), original or v0 (AutoAugment); empty means none."""
    color_jitter: Float = Field(0.0, ge=0, le=1)
    """Images: largest relative change of brightness, contrast and saturation."""
    crop_scale: tuple[Float, Float] = (1.0, 1.0)
    """Images: smallest and largest share of the area that the random crop takes."""
    crop_ratio: tuple[Float, Float] = (1.0, 1.0)
    """Images: smallest and largest width over height of the random crop, before it is resized to a square."""
    random_erasing: Float = Field(0.0, ge=0, le=1)
    """Images: probability that a rectangle is erased, after normalisation."""
    random_erasing_mode: Literal["const", "rand", "pixel"] = "const"
    """Images: what is left in the erased rectangle: the mean colour, one random colour, or a random colour per pixel."""
    crop_pct: Float = Field(1.0, gt=0, le=1)
    """Images in evaluation: `model.image_size` over the length that the shorter side is resized to before the centre crop."""
    mean: tuple[Float, Float, Float] = (0.485, 0.456, 0.406)
    """Images: mean of red, green and blue, from 0 to 1, that is subtracted; the default is ImageNet's."""
    std: tuple[Float, Float, Float] = (0.229, 0.224, 0.225)
    """Images: standard deviation of red, green and blue that they are divided by; the default is ImageNet's."""
    event_augment: Literal["none", "roll_rotate_shear", "trivial"] = "none"
    """Event clips: `roll_rotate_shear` does one of the three (published for N-Caltech101); `trivial` one of five mild
    operations at a random strength (SNNAugmentWide)."""
    cutout: Int = Field(0, ge=0)
    """Event clips: side in pixels of a square that is emptied at a random place; 0 means none, published is 16."""

    @model_validator(mode="after")
    def _rules(self) -> "DataConfig":
        problems = []
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                rule = "two numbers with 0 < smallest <= largest" + (" <= 1" if name == "crop_scale" else "")
                problems.append(f"`{name}` must be {rule}, but got {shown([low, high])}")
        if min(self.std) <= 0:
            problems.append(f"`std` must be above 0, but got {shown(list(self.std))}")
        if self.color_jitter and self.auto_augment and "3a" not in self.auto_augment:
            problems.append(
                f"`color_jitter` has no effect beside `auto_augment`, which changes colours itself, but got "
                f"(color_jitter={self.color_jitter:g}, auto_augment={self.auto_augment}); set one of them to 0 or null"
            )
        if DATASETS[self.name].events and self.interpolation == "bicubic":
            problems.append(
                f"`interpolation` must be nearest or bilinear for {self.name}, which holds event clips, but got bicubic"
            )
        for field, kind in self._idle():
            value = getattr(self, field)
            value = list(value) if isinstance(value, tuple) else value
            problems.append(f"`{field}` has no effect on {self.name}, which {kind}, but got {shown(value)}; leave it out")
        if problems:
            raise ConfigError(problems)
        return self

    def _idle(self) -> Iterator[tuple[str, str]]:
        """Fields that are set but do nothing for this dataset, and why."""
        fields: tuple[str, ...]
        if DATASETS[self.name].bundled:
            fields, kind = (*FILE_FIELDS, *IMAGE_FIELDS, *EVENT_FIELDS), "is augmented in its own way (data.augment)"
        elif DATASETS[self.name].events:
            fields, kind = IMAGE_FIELDS, "holds event clips"
        else:
            fields, kind = EVENT_FIELDS, "holds images"
        for field in fields:
            if getattr(self, field) != type(self).model_fields[field].default:
                yield field, kind
        if self.regroup != "none" and "regroup" not in fields and self.name != "event_folder":
            yield "regroup", "has clips of every T that `statten data prepare` was asked for"


class TrainConfig(Part):
    """How the weights are found."""

    epochs: Int = Field(10, ge=1)
    """Epochs of the cosine schedule, warm-up included."""
    batch_size: Int = Field(64, ge=1)
    """Samples per worker and step; the learning rate is not scaled with the number of workers."""
    eval_batch_size: Int | None = Field(None, ge=1)
    """Samples per worker and step in validation and evaluation; empty means `batch_size`."""
    optimizer: Optimizer = "adamw"
    """Optimizer, made by timm; biases and normalisation weights are not decayed."""
    lr: Float = Field(3e-4, gt=0)
    """Peak learning rate."""
    min_lr: Float = Field(1e-5, ge=0)
    """Learning rate at the end of the cosine and during cool-down."""
    lr_update: Literal["step", "epoch"] = "step"
    """Whether the learning rate moves at every step or at every epoch (as in the published recipes)."""
    warmup_epochs: Int = Field(0, ge=0)
    """Epochs of linear warm-up."""
    warmup_lr: Float = Field(1e-6, ge=0)
    """Learning rate at the start of the warm-up."""
    cooldown_epochs: Int = Field(0, ge=0)
    """Further epochs at `min_lr` after the cosine."""
    weight_decay: Float = Field(0.06, ge=0)
    """Weight decay."""
    momentum: Float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and rmsprop; the others keep their own betas."""
    layer_decay: Float | None = Field(None, gt=0, le=1)
    """Learning rate of each block over that of the block after it; the classifier has the whole rate. Empty means 1."""
    clip_grad: Float | None = Field(None, gt=0)
    """Largest gradient, measured as `clip_mode` says; empty means no clipping."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """`norm`: of all gradients together; `value`: of every element; `agc`: of every unit over the norm of its weights,
    the classifier left out (adaptive gradient clipping)."""
    ema_decay: Float | None = Field(None, gt=0, lt=1)
    """Decay per step of a moving average of weights and statistics, less while it would average over more than the last ninth
    of the steps. With it, validation, `evaluate` and `promote` take the averaged weights (`evaluate --no-ema` takes the trained
    ones). Empty means no average."""
    loss: Literal["cross_entropy", "bce", "tet"] = "cross_entropy"
    """`cross_entropy`; `bce`: binary cross-entropy of every class; `tet`: temporal efficient training, the mean of
    per-timestep cross-entropies with a pull of logits towards `tet_mean`. All take mixed targets."""
    bce_target_thresh: Float | None = Field(None, ge=0, lt=1)
    """BCE: targets above it count as 1, the others as 0; empty takes targets as they are."""
    tet_mean: Float = 1.0
    """TET: the value logits are pulled to."""
    tet_lambda: Float = Field(1e-3, ge=0, le=1)
    """TET: weight of that pull."""
    label_smoothing: Float = Field(0.1, ge=0, lt=1)
    """Label smoothing of the training loss."""
    mixup: Float = Field(0.0, ge=0)
    """Alpha of mixup, whose share is drawn from Beta(alpha, alpha); 0 means none."""
    cutmix: Float = Field(0.0, ge=0)
    """Alpha of CutMix; 0 means none. Clips are cut alike in all frames."""
    eventmix: Float = Field(0.0, ge=0)
    """Alpha of EventMix, for event clips: regions of space and time come from another clip; 0 means none."""
    mixup_prob: Float = Field(1.0, ge=0, le=1)
    """Probability that a batch is mixed at all (with EventMix: a clip)."""
    mixup_switch_prob: Float = Field(0.5, ge=0, le=1)
    """Probability of CutMix where both mixup and CutMix are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether mixup and CutMix draw once per batch, per pair or per sample."""
    mixup_off_epoch: Int = Field(0, ge=0)
    """Finished epochs after which nothing is mixed any more; 0 means never. Cool-down epochs count too."""
    precision: Literal["fp32", "bf16", "fp16", "amp"] = "fp32"
    """Precision of convolutions and products; membrane, normalisation statistics and residual stream stay float32.
    `amp` is bf16 on a GPU that computes in it, fp16 on an older one and fp32 on a CPU."""
    seed: Int = Field(42, ge=0)
    """Seed of initial weights, batch order, augmentation and stochastic depth."""
    checkpoint_every_steps: Int | None = Field(None, ge=1)
    """Also write a checkpoint every so many steps inside an epoch; empty means at every epoch only."""
    keep_checkpoints: Int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk, besides the best one."""

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained: the cosine and the cool-down."""
        return self.epochs + self.cooldown_epochs

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup or self.cutmix or self.eventmix)

    @model_validator(mode="after")
    def _rules(self) -> "TrainConfig":
        problems = []
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            problems.append(
                f"`warmup_epochs` must be below `epochs`, but got (warmup_epochs={self.warmup_epochs}, "
                f"epochs={self.epochs}); the nearest is {self.epochs - 1}"
            )
        if self.min_lr > self.lr:
            problems.append(f"`min_lr` must be at most `lr`, but got (min_lr={self.min_lr:g}, lr={self.lr:g})")
        if self.warmup_epochs and self.warmup_lr > self.lr:
            problems.append(f"`warmup_lr` must be at most `lr`, but got (warmup_lr={self.warmup_lr:g}, lr={self.lr:g})")
        if self.optimizer == "sgd" and not self.momentum:
            problems.append("`momentum` must be above 0 for sgd, which is Nesterov's, but got 0; the field's default is 0.9")
        if self.clip_mode != "norm" and self.clip_grad is None:
            problems.append(f"`clip_mode` needs `clip_grad`, but got (clip_mode={self.clip_mode}, clip_grad=null)")
        if self.bce_target_thresh is not None and self.loss != "bce":
            problems.append(
                f"`bce_target_thresh` needs `loss=bce`, but got "
                f"(bce_target_thresh={self.bce_target_thresh:g}, loss={self.loss})"
            )
        if self.eventmix and (self.mixup or self.cutmix):
            problems.append(
                f"`eventmix` takes the place of `mixup` and `cutmix`, but got (eventmix={self.eventmix:g}, "
                f"mixup={self.mixup:g}, cutmix={self.cutmix:g}); set it or both others to 0"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            problems.append(
                f"`batch_size` must be even with `mixup` or `cutmix`, which mix pairs, but got {self.batch_size}; "
                f"the nearest is {self.batch_size + 1}"
            )
        if self.mixup_off_epoch and not self.mixes:
            problems.append(
                f"`mixup_off_epoch` needs `mixup`, `cutmix` or `eventmix`, but got (mixup_off_epoch={self.mixup_off_epoch}, "
                f"mixup=0, cutmix=0, eventmix=0)"
            )
        if problems:
            raise ConfigError(problems)
        return self


class ScaleConfig(Part):
    """Where it runs; the only part that changes between a laptop and a cluster."""

    workers: Workers = 1
    """Training workers (processes); on GPUs one worker has one GPU. `[min, max]` trains on as many as the cluster has room for,
    and follows it. A step has `max` x train.batch_size samples all the same: fewer workers do several batches each."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where one is usable."""
    gpus_per_worker: Float = Field(1.0, gt=0, le=1)
    """Share of a GPU that a trial of one worker holds: 0.25 trains four trials side by side on each GPU."""
    cpus_per_worker: Int | None = Field(None, ge=1, le=1024)
    """CPU cores of each worker; empty divides the machine's cores between the workers, and gives a trial of a sweep one."""
    placement: Literal["pack", "spread"] = "pack"
    """Which machines of a cluster the workers of a run take: as few as hold them, or as many as there are."""
    neuron_backend: str = "auto"
    """Implementation of the neurons; `auto` takes the fastest that can run here and logs which."""
    activation_checkpointing: bool = False
    """Keep only the input of each block and run the block again in the backward pass: less memory, about a third more time."""
    packed_spikes: bool = False
    """Keep spikes for the backward pass at one bit each: less memory, a little more time."""
    cuda_graphs: bool = False
    """Record a training step's kernels once and replay them: faster where the CPU cannot feed the GPU, as with small models."""
    max_failures: Int = Field(3, ge=0)
    """How often a run whose worker was lost is started again from its newest checkpoint; out of memory, a loss that is not
    finite and wrong input stop at once."""
    hang_seconds: Float | None = Field(1800.0, ge=1)
    """A worker that makes no step for so long is ended and counts as lost; empty never does. A validation counts as one."""
    storage_seconds: Float = Field(300.0, ge=0)
    """How long a run waits for storage that has gone away, before it stops; less than `hang_seconds`."""
    address: str | None = None
    """Address of a Ray cluster, or `auto` on one of its machines; empty means $RAY_ADDRESS, else Ray is started here."""

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that train, and the number of batches of `train.batch_size` in a step."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _rules(self) -> "ScaleConfig":
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ConfigError(
                f"`gpus_per_worker` must be 1 for several workers, for NCCL refuses two ranks on one GPU, but got "
                f"(gpus_per_worker={self.gpus_per_worker:g}, workers={self.workers}); use workers=1"
            )
        return self


class SearchConfig(Part):
    """How a sweep looks for the best trial."""

    trials: Int | None = Field(None, ge=1)
    """Number of trials; empty means 16, and with sampler grid every configuration."""
    objectives: list[str] = Field(default_factory=lambda: ["val/top1"], min_length=1, max_length=4)
    """Reported metrics that rank trials, at the epoch of the best val/top1: one, or several for a Pareto front. energy_uj is
    the energy of one sample in microjoules, latency_ms the time of one sample alone; others as NAME:max or NAME:min."""
    constraints: list[str] = Field(default_factory=list)
    """Bounds that a trial must keep to be the best or on the front, such as `energy_uj <= 500` or `val/top1 >= 90`."""
    sampler: Sampler = "tpe"
    """How points are chosen: `tpe` (multivariate, grouped), `random`, `grid` (every configuration once), `qmc` (Sobol), `gp`
    (Gaussian process), `cmaes` (numbers without conditions only), `nsga2` or `nsga3` (for several objectives)."""
    startup_trials: Int = Field(6, ge=1)
    """Random trials before tpe, gp and cmaes model the space; size of a population of nsga2 and nsga3."""
    seed: Int = Field(0, ge=0, lt=2**32)
    """Seed of the sampler."""
    scheduler: Scheduler = "auto"
    """How poor trials are stopped: `asha` (asynchronous successive halving), `median`, `hyperband` (successive halving from
    several first rungs), all by the first objective; `front` when even its best case cannot enter the Pareto front; `none`;
    `auto` takes asha for one objective and front for several."""
    grace_epochs: Int = Field(1, ge=1)
    """Epochs that every trial may train before it can be stopped."""
    reduction_factor: Int = Field(3, ge=2)
    """At each rung the best 1/reduction_factor go on."""
    firing_range: tuple[Float, Float] | None = (1e-5, 0.999)
    """A trial with a layer whose firing rate is outside in two epochs running, after the grace epochs and 100 steps, is
    stopped: the layer is dead or saturated. Empty turns it off."""
    inherit: Literal["none", "timesteps"] = "none"
    """`timesteps`: a trial that differs from a finished one in timesteps and block size alone starts from its weights."""
    short_first: bool = False
    """Train a new architecture at its fewest timesteps first, and only those that are not stopped at the proposed ones."""
    repeats: Int = Field(1, ge=1, le=100)
    """Seeds under which the finalists are trained when the trials are done; 1 leaves it out."""
    finalists: Int = Field(3, ge=2)
    """Best trials that are repeated."""
    max_hours: Float | None = Field(None, gt=0)
    """Hours after which the sweep ends; what then trains is stopped at its next epoch. Continued sweeps go on counting."""
    max_epochs: Int | None = Field(None, ge=1)
    """Epochs of training over all trials after which the sweep ends."""
    storage: Place | None = None
    """Database of the study, such as postgresql://user@host/name or sqlite:///file; empty means a journal in its folder."""
    max_concurrent: Int | None = Field(None, ge=1)
    """Trials that run side by side; empty means as many as the machine holds."""

    @model_validator(mode="after")
    def _rules(self) -> "SearchConfig":
        problems = []
        for text in self.objectives:
            try:
                objective(text)
            except ConfigError as error:
                problems += error.problems
        if len({text.partition(":")[0] for text in self.objectives}) < len(self.objectives):
            problems.append(f"`objectives` must differ, but got {', '.join(self.objectives)}")
        for text in self.constraints:
            try:
                constraint(text)
            except ConfigError as error:
                problems += error.problems
        if self.scheduler == "front" and len(self.objectives) == 1:
            problems.append("`scheduler=front` needs several objectives, but got one; use scheduler=asha")
        if self.firing_range and not 0 <= self.firing_range[0] < self.firing_range[1] <= 1:
            problems.append(f"`firing_range` must be [low, high] between 0 and 1, but got {list(self.firing_range)}")
        if self.storage and (problem := _database(self.storage)):
            problems.append(problem)
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def directions(self) -> dict[str, str]:
        """The objectives: metric to max or min."""
        return dict(objective(text) for text in self.objectives)

    @property
    def metric(self) -> str:
        """The first objective, by which trials are stopped early."""
        return next(iter(self.directions))

    @property
    def metrics(self) -> set[str]:
        """Every metric that an objective or a constraint names."""
        return {*self.directions, *(constraint(text)[0] for text in self.constraints)}

    @property
    def stopping(self) -> str:
        """The scheduler in force."""
        return self.scheduler if self.scheduler != "auto" else "asha" if len(self.objectives) == 1 else "front"


class LogConfig(Part):
    """Where metrics go beside the run's folder and TensorBoard, which need nothing set; needs the extra statten[log]."""

    mlflow: Place | None = None
    """Tracking URI of MLflow, such as http://host:5000 or sqlite:///mlflow.db; empty sends nothing."""
    wandb: Literal["none", "offline", "online"] = "none"
    """Weights & Biases: `online` needs a login; `offline` keeps the run in its folder, for `wandb sync`."""
    project: str = Field("statten", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Project of W&B, and experiment of MLflow for runs that come from no sweep; else the sweep is experiment and group."""

    @model_validator(mode="after")
    def _rules(self) -> "LogConfig":
        if self.mlflow and holds_secret(self.mlflow):
            raise ConfigError(
                "`mlflow` must not hold a password, for config.yaml goes into every run's folder; MLflow finds it in "
                "$MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD, or $MLFLOW_TRACKING_TOKEN"
            )
        return self


def _database(url: str) -> str | None:
    """What is wrong with the URL of a study's database, if anything; a sentence shows no more of it than its scheme."""
    if not re.match(r"(sqlite|postgresql|mysql)(\+\w+)?://", url):
        scheme = shown(url.partition(":")[0])
        return f"`storage` must be empty or start with sqlite://, postgresql:// or mysql://, but starts with {scheme}"
    if holds_secret(url):
        return (
            "`storage` must not hold a password, for config.yaml goes into every trial's folder; the database's own client "
            "finds it in $PGPASSWORD or ~/.pgpass, and MySQL's where ?read_default_file=~/.my.cnf says so"
        )
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        return f"`storage` must be a URL such as postgresql://user@host/name or sqlite:///file, but is none: {error}"
    return None


def objective(text: str) -> tuple[str, str]:
    """`val/top1` or `firing_rate/head:min` as metric and direction; raises ConfigError."""
    name, colon, direction = text.partition(":")
    if colon and direction not in ("max", "min"):
        raise ConfigError(f"`objectives` must be NAME, NAME:max or NAME:min, but got {text!r}")
    if not colon and name not in METRICS:
        known = nearest(name, METRICS)
        raise ConfigError(f"`objectives`: {name!r} has no direction of its own: write {name}:max or {name}:min; {known}")
    return name, direction or METRICS[name]


def constraint(text: str) -> tuple[str, str, float]:
    """`energy_uj <= 500` as metric, relation and bound; raises ConfigError."""
    match = re.fullmatch(r"\s*([\w/.]+)\s*(<=|>=)\s*([-+.\de]+)\s*", text)
    try:
        return (match[1], match[2], float(match[3]))  # type: ignore[index]
    except (TypeError, ValueError):
        raise ConfigError(f"`constraints` must be METRIC <= NUMBER or METRIC >= NUMBER, but got {text!r}") from None


class Config(Part):
    """A whole run: its data, network, training, scale and search. Frozen; `load_config` makes one of a recipe or a file.

    Example:
        >>> from statten import load_config
        >>> config = load_config("digits").replace({"model.depth": 1, "train.epochs": 2})
        >>> config.model.depth, config.train.epochs
        (1, 2)
    """

    data: DataConfig = DataConfig()
    """What is read."""
    model: ModelConfig = ModelConfig()
    """The network."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    scale: ScaleConfig = ScaleConfig()
    """Where it runs."""
    search: SearchConfig = SearchConfig()
    """How a sweep looks for the best."""
    log: LogConfig = LogConfig()
    """Where metrics go besides."""

    _auto: tuple[str, ...] = PrivateAttr(())

    @property
    def auto(self) -> tuple[str, ...]:
        """Fields that say `auto`: they hold their default until `statten.data.auto.resolved` has asked the dataset's folder."""
        return self._auto

    def replace(self, changes: Iterable[str] | Mapping[str, Any]) -> "Config":
        """A copy with some fields replaced, and every rule checked again.

        Args:
            changes: `{"model.depth": 4, ...}`, or `["model.depth=4", ...]` as after --set.

        Raises:
            ConfigError: with one sentence for each mistake.
        """
        # By its place, for loading.py builds on this module.
        return load("statten.config.loading:with_overrides")(self, changes)

    @model_validator(mode="after")
    def _rules(self) -> "Config":
        problems = []
        if self.data.frames is not None and self.data.frames != self.model.timesteps:
            problems.append(
                f"`data.frames` must equal `model.timesteps`, but got (data.frames={self.data.frames}, "
                f"model.timesteps={self.model.timesteps}); leave data.frames empty to follow the model"
            )
        if (self.train.loss == "tet") != self.model.per_timestep_logits:
            problems.append(
                f"`train.loss=tet` and `model.per_timestep_logits=true` go together, but got "
                f"(train.loss={self.train.loss}, model.per_timestep_logits={str(self.model.per_timestep_logits).lower()})"
            )
        if self.train.eventmix and not self.model.events:
            problems.append(
                f"`train.eventmix` needs `model.events=true`, but got (train.eventmix={self.train.eventmix:g}, "
                f"model.events=false); use train.mixup or train.cutmix for images"
            )
        if problems:
            raise ConfigError(problems)
        return self
