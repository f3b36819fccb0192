"""What the metrics of an epoch are called where a person reads them: a label with its unit, and what it means."""

from statten.config import METRICS, Config

LABELS = {
    "val/top1": "validation top-1 (%)",
    "val/top5": "validation top-5 (%)",
    "val/loss": "validation loss",
    "train/loss": "training loss",
    "train/top1": "training top-1 (%)",
    "best/top1": "best validation top-1 so far (%)",
    "energy_uj": "energy per sample (µJ)",
    "latency_ms": "latency of one sample (ms)",
    "peak_memory_mib": "peak memory (MiB)",
    "samples_per_second": "training speed (samples/s)",
    "seconds": "time per epoch (s)",
    "lr": "learning rate",
    "corrupt": "unreadable samples",
}
MEANINGS = {
    "val/top1": "Share of validation samples whose class scores highest, in percent; models are selected by it.",
    "val/top5": "Share of validation samples whose class is among the five that score highest, in percent.",
    "val/loss": "Cross-entropy of the mean logits over the validation part, in nats.",
    "train/loss": "Mean of what is minimised over the epoch, augmentation and label smoothing included, in nats.",
    "train/top1": "Share of augmented training samples whose class scored highest when they were trained on, in percent.",
    "best/top1": "Highest validation top-1 of this and all earlier epochs, in percent.",
    "energy_uj": "Energy of one sample in microjoules: 4.6 pJ a multiply-accumulate, 0.9 pJ an accumulate.",
    "latency_ms": "Time of one sample on the device of the training, in milliseconds.",
    "parameters": "Trained parameters of the network.",
    "peak_memory_mib": "Largest memory of the GPU, in MiB.",
    "samples_per_second": "Training samples of all workers in a second, validation left out.",
    "seconds": "Time of training and validation of an epoch, in seconds.",
    "lr": "Largest learning rate of all groups of parameters, at the end of the epoch.",
    "steps": "Steps of the optimizer so far.",
    "corrupt": "Samples that could not be read in the epoch.",
}
RATE = "firing_rate/"
"""Before the name of a layer."""
_UNITS = {"uj": "µJ", "mj": "mJ", "ms": "ms", "mib": "MiB", "gib": "GiB", "bytes": "bytes"}


def label(metric: str) -> str:
    """A reported metric as an axis calls it, with its unit."""
    if metric in LABELS:
        return LABELS[metric]
    if metric.startswith(RATE):
        return f"firing rate of {metric.removeprefix(RATE)}"
    point, slash, kind = metric.rpartition("/")
    if slash and kind in ("top1", "loss"):
        return f"{LABELS[f'val/{kind}']}, {point}"
    words, _, unit = metric.rpartition("_")
    return f"{words} ({_UNITS[unit]})".replace("_", " ") if words and unit in _UNITS else metric.replace("_", " ")


def meaning(metric: str) -> str:
    """What a metric is, in a sentence; empty where nothing is known of it."""
    if metric.startswith(RATE):
        return f"Spikes per neuron and timestep of {metric.removeprefix(RATE)} over the validation part; 0 is a dead layer."
    return MEANINGS.get(metric, "")


def reported(config: Config) -> list[str]:
    """Names of what `fit` reports of an epoch beside its number: what a sweep may look for, or bound."""
    from statten.models import layer_names  # imports PyTorch, which those who only read labels do without

    names = [*METRICS, "steps", "train/loss", "train/top1", "lr", "samples_per_second"]
    return [*names, *["corrupt"] * config.data.skip_corrupt, *(f"firing_rate/{layer}" for layer in layer_names(config.model))]
