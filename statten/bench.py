"""Benchmarks: ours against a named peer, and against the floor that the machine sets, measured in the same run.

Cases of a comparison take turns, so that whatever else the machine does falls on all of them; medians are reported. A ratio
above 1 says that ours is better.
"""

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model.maxformer import MaxFormer
from spikingjelly.activation_based.model.qkformer import QKFormer
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from statten.config import Config, ModelConfig, build_config
from statten.data import make_loaders
from statten.data.folders import IMAGES, list_parts, unlisted
from statten.data.shards import shard
from statten.data.transforms import sample_transform
from statten.display import console
from statten.errors import UserError, nearest
from statten.files import check_writable, write_json
from statten.machine import environment, whole_cores
from statten.models import Backbone, build_model, fold_batch_norm
from statten.models.attention import statten as counts
from statten.neurons import LIF, NEURON_BACKENDS, packed_spikes
from statten.neurons.dynamics import Unavailable

# The published sizes that the benchmarks know: model, and batch on a GPU.
MODELS: dict[str, tuple[ModelConfig, int]] = {
    "cifar10_2_512": (ModelConfig(timesteps=4, block_size=2, depth=2, embed_dim=512), 64),
    "cifar10dvs_2_256_t16": (
        ModelConfig(timesteps=16, block_size=4, depth=2, embed_dim=256, image_size=64, in_channels=2, events=True),
        16,
    ),
    "imagenet_8_768": (
        ModelConfig(timesteps=4, block_size=2, depth=8, embed_dim=768, image_size=224, pooling="1111", num_classes=1000),
        64,
    ),
    "spikformer_cifar10_4_384": (ModelConfig(backbone="spikformer", depth=4, embed_dim=384, num_heads=12), 64),
    "maxformer_cifar10_4_384": (ModelConfig(backbone="maxformer", depth=4, embed_dim=384), 64),
    "qkformer_imagenet_10_384": (
        ModelConfig(backbone="qkformer", depth=10, embed_dim=384, num_heads=6, image_size=224, stem_stride=4, num_classes=1000),
        64,
    ),
}
CPU_BATCH = 8
PEERS = {"sdt": SpikeDrivenTransformer, "spikformer": Spikformer, "maxformer": MaxFormer, "qkformer": QKFormer}
"""SpikingJelly's network of a backbone; qkformer's is that for ImageNet."""
LAYOUTS = {"default layout": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    case: str
    metric: str
    ours: float
    peer: float
    ratio: float
    """Above 1 where ours is better."""


def seconds(cases: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each case; the cases take turns."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 2):
        for name, run in cases.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 2:  # the first ones compile, allocate and fill caches
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def bench_lif(device: torch.device, repeats: int, shape: tuple[int, ...] | None = None) -> Iterator[Row]:
    """Each neuron backend against SpikingJelly's LIFNode in a training pass, and against the bandwidth of a copy."""
    shape = shape or ((4, 16, 64, 32, 32) if device.type == "cpu" else (4, 64, 256, 32, 32))
    for precision, dtype in DTYPES.items():
        x = torch.randn(shape, device=device).to(dtype).requires_grad_()
        grad, out = torch.randn_like(x), torch.empty_like(x)
        layers: dict[str, nn.Module] = {"SpikingJelly": _peer_neuron()}
        layers |= {name: LIF(backend=name) for name in usable_backends(device)}

        def train(layer: nn.Module, x: Tensor = x, grad: Tensor = grad) -> None:
            layer(x).backward(grad)
            x.grad = None
            functional.reset_net(layer)

        def forward(layer: nn.Module, x: Tensor = x) -> None:
            with torch.no_grad():
                layer(x)

        cases: dict[str, Callable[[], object]] = {"copy": partial(out.copy_, x.detach())}
        for name, layer in layers.items():
            cases[f"{name} training"] = partial(train, layer)
            if name != "SpikingJelly":
                cases[f"{name} forward"] = partial(forward, layer)
        found = seconds(cases, device, repeats)
        peer, size = found["SpikingJelly training"], x.numel() * x.element_size()
        bandwidth = 2 * size / found["copy"]
        for name in list(layers)[1:]:
            case = f"{name} {precision} {list(shape)}"
            training, alone = found[f"{name} training"], found[f"{name} forward"]
            yield Row(case, "ms of a training pass, peer SpikingJelly LIFNode", 1e3 * training, 1e3 * peer, peer / training)
            # Forward reads x and writes spikes; backward reads x and the gradient and writes one.
            for metric, moved, took in (("forward", 2, alone), ("backward", 3, training - alone)):
                rate = moved * size / max(took, 1e-9)
                yield Row(case, f"GB/s of {metric} at floor bytes, peer a copy", rate / 1e9, bandwidth / 1e9, rate / bandwidth)


def bench_step(device: torch.device, repeats: int, model: str, batch: int | None = None) -> Iterator[Row]:
    """A training step (forward, backward, AdamW) of our model with the attention of its own against SpikingJelly's network.

    The peer takes part twice: in PyTorch's default layout, as it comes, and in channels-last, which is faster.
    """
    config, batch = sized(model, device, batch)
    images, target = random_batch(config, batch, device)
    flops = count_flops(config, batch)
    peers = {f"{peer_name(config)} {name}": _peer_model(config, device, layout) for name, layout in LAYOUTS.items()}
    model_of_ours = our_model(config, device)
    nets: dict[str, nn.Module] = {"statten": model_of_ours, **peers}
    inference: dict[str, nn.Module] = {**nets, "statten": fold_batch_norm(model_of_ours)}
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True) for name, net in nets.items()}
    inputs = {name: images.transpose(0, 1) if name in peers and config.events else images for name in nets}

    def step(name: str, dtype: torch.dtype) -> None:
        with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            loss = _loss(nets[name](inputs[name]), target)
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        functional.reset_net(nets[name])

    def infer(name: str) -> None:
        net = inference[name]
        training = net.training
        net.eval()
        with torch.inference_mode():
            net(inputs[name])
        functional.reset_net(net)
        net.train(training)

    cases: dict[str, Callable[[], object]] = {
        f"{name} {precision}": partial(step, name, dtype) for precision, dtype in DTYPES.items() for name in nets
    }
    cases |= {f"{name} inference": partial(infer, name) for name in nets}
    for precision, dtype in DTYPES.items():
        a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
        cases[f"product {precision}"] = partial(torch.mm, a, b)
        # On CPUs another library does the convolutions, and may be faster at the same product.
        cases[f"convolution {precision}"] = partial(nn.functional.conv2d, a[None, :, :, None], b[:, :, None, None])
    found = seconds(cases, device, repeats)
    for precision in DTYPES:
        case, ours = f"{model} batch {batch} {precision}", found[f"statten {precision}"]
        for peer in (f"{name} {other}" for other in dict.fromkeys((precision, "fp32")) for name in peers):
            yield Row(case, f"ms per training step, peer {peer}", 1e3 * ours, 1e3 * found[peer], found[peer] / ours)
        fastest = min(found[f"product {precision}"], found[f"convolution {precision}"])
        rate, best = flops / ours, 2 * 2048**3 / fastest
        yield Row(case, "GFLOP/s of the step, peer a matrix product of 2048 x 2048", rate / 1e9, best / 1e9, rate / best)
    for peer in peers:
        ours, theirs = found["statten inference"], found[f"{peer} inference"]
        metric = f"ms of inference with BatchNorm folded, peer {peer}"
        yield Row(f"{model} batch {batch} fp32", metric, 1e3 * ours, 1e3 * theirs, theirs / ours)


def bench_memory(device: torch.device, model: str, batch: int | None = None) -> Iterator[Row]:
    """What a step keeps for its backward pass, counted by saved-tensor hooks, and on a GPU its peak, against SpikingJelly."""
    config, batch = sized(model, device, batch)
    images, target = random_batch(config, batch, device)
    net, peer = our_model(config, device), peer_name(config)
    ways: dict[str, tuple[nn.Module, bool, bool]] = {
        peer: (_peer_model(config, device, torch.channels_last), False, False),
        "statten": (net, False, False),
        "statten with packed_spikes": (net, True, False),
        "statten with activation_checkpointing": (net, False, True),
    }
    for precision, dtype in DTYPES.items():
        kept, peaks = {}, {}
        for name, (model_of_it, packed, checkpointing) in ways.items():
            x = images.transpose(0, 1) if name == peer and config.events else images
            net.activation_checkpointing = checkpointing
            with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
                kept[name] = saved_bytes(model_of_it, x, packed) / 2**20
                if device.type == "cuda":
                    peaks[name] = peak_bytes(model_of_it, x, target, packed) / 2**20
        case = f"{model} batch {batch} {precision}"
        for metric, found in (("saved for backward", kept), ("at the peak of forward and backward", peaks)):
            theirs = found.pop(peer, 0.0)
            for name, ours in found.items():
                metric_of_it = f"MiB {metric}, peer {peer}"
                yield Row(f"{name}, {case}", metric_of_it, ours, theirs, theirs / ours)


def bench_attention(device: torch.device, repeats: int, model: str, batch: int | None = None) -> Iterator[Row]:
    """`statten` attention, K^T V first, against Q K^T first, forward and backward, for each block size that divides T."""
    config, batch = sized(model, device, batch)
    T, D, side, heads = config.timesteps, config.embed_dim, config.tokens_per_side, config.num_heads
    q, k, v = ((torch.rand(T, batch, D, side, side, device=device) < 0.2).float().requires_grad_() for _ in range(3))
    for block in (b for b in range(1, T + 1) if T % b == 0):

        def run(attend: Callable[..., Tensor], block: int = block) -> None:
            attend(q, k, v, heads, block).sum().backward()
            q.grad = k.grad = v.grad = None

        found = seconds({"ours": partial(run, counts), "peer": partial(run, _scores_first)}, device, repeats)
        ours, theirs = found["ours"], found["peer"]
        case = f"{model} batch {batch} block {block}"
        yield Row(case, "ms forward + backward, peer (Q K^T) V", 1e3 * ours, 1e3 * theirs, theirs / ours)


def bench_data(
    repeats: int, batch: int | None = None, images: int = 512, workers: int | None = None, listed: int = 200
) -> Iterator[Row]:
    """Reading, decoding and augmenting JPEG files: our loaders against torchvision's ImageFolder and PyTorch's DataLoader.

    Both have the same files, the same transform, the same number of processes, and read whole shuffled epochs. Files are
    synthetic, of ImageNet's usual size, and in the memory of the operating system. Then the time to list class folders.
    """
    batch, workers = batch or 32, workers or min(16, whole_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folders, shards = Path(temporary) / "folders", Path(temporary) / "shards"
        _write_photos(folders, images)
        shard("image_folder", folders, shards, per_shard=max(1, images // 16))
        configs = {"class folders": _photo_config(folders, batch, workers), "tar shards": _photo_config(shards, batch, workers)}
        ours = {name: make_loaders(config).train for name, config in configs.items()}
        transform = sample_transform(configs["class folders"], train=True)
        peer: DataLoader = DataLoader(
            ImageFolder(folders / "train", transform), batch, shuffle=True, num_workers=workers, drop_last=True,
            persistent_workers=True,
        )  # fmt: skip
        epochs = count()
        cases: dict[str, Callable[[], object]] = {"torchvision": lambda: deque(peer, maxlen=0)}
        for name, loader in ours.items():
            cases[name] = lambda loader=loader: deque(loader.batches(next(epochs)), maxlen=0)  # type: ignore[misc]
        found = seconds(cases, torch.device("cpu"), repeats)
        assert all(loader.samples_per_epoch == len(peer) * batch for loader in ours.values())
        read, theirs = len(peer) * batch, found.pop("torchvision")
        for name, took in found.items():
            metric = f"images/s with {workers} loader processes, peer torchvision ImageFolder + DataLoader"
            yield Row(f"{name}, {images} JPEG files, batch {batch}", metric, read / took, read / theirs, theirs / took)
        yield from _bench_listing(Path(temporary) / "listed", repeats, files=listed)


def _bench_listing(root: Path, repeats: int, classes: int = 100, files: int = 200) -> Iterator[Row]:
    for name in range(classes):
        (root / f"n{name:08d}").mkdir(parents=True)
        for i in range(files):
            (root / f"n{name:08d}" / f"n{name:08d}_{i}.JPEG").touch()

    def ours() -> None:
        unlisted()
        list_parts(root, IMAGES, "image")

    found = seconds({"ours": ours, "peer": lambda: ImageFolder(root)}, torch.device("cpu"), repeats)
    metric = "ms to list, peer torchvision ImageFolder"
    yield Row(
        f"{classes * files} files in {classes} classes", metric, 1e3 * found["ours"], 1e3 * found["peer"],
        found["peer"] / found["ours"],
    )  # fmt: skip


def _write_photos(root: Path, images: int, classes: int = 8) -> None:
    """Random JPEG files of about 500 x 375 pixels and 100 kB."""
    rng = np.random.default_rng(0)
    for i in range(images):
        folder = root / "train" / f"class{i % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:05d}.jpg", quality=88)
        if i < classes:
            (root / "val" / folder.name).mkdir(parents=True)
            Image.fromarray(noisy).save(root / "val" / folder.name / "0.jpg")


def _photo_config(root: Path, batch: int, workers: int) -> Config:
    # Nothing is cut off for validation, so that both sides read the same files.
    data = {"name": "image_folder", "root": str(root), "workers": workers, "validation": "test"}
    data |= {"crop_scale": [0.08, 1.0], "crop_ratio": [0.75, 1.333], "hflip": 0.5, "interpolation": "bicubic"}
    model = {"image_size": 224, "pooling": "1111", "num_classes": 8}
    return build_config({"data": data, "model": model, "train": {"batch_size": batch}, "scale": {"device": "cpu"}})


def _scores_first(q: Tensor, k: Tensor, v: Tensor, heads: int, block: int) -> Tensor:
    T, B, D, H, W = q.shape
    # [blocks, B, heads, b N, d]
    q, k, v = (
        x.view(T // block, block, B, heads, D // heads, H * W).permute(0, 2, 3, 1, 5, 4).flatten(3, 4) for x in (q, k, v)
    )
    o = (q @ k.transpose(-1, -2)) @ v
    return o.unflatten(3, (block, H * W)).permute(0, 3, 1, 2, 5, 4).reshape(T, B, D, H, W)


def usable_backends(device: torch.device) -> list[str]:
    """The neuron backends that run on a device."""
    found = []
    for name, backend in NEURON_BACKENDS.items():
        if backend.devices and device.type not in backend.devices:
            continue
        try:
            backend.check()
        except Unavailable:
            continue
        found.append(name)
    return found


def saved_bytes(net: nn.Module, x: Tensor, packed: bool = False) -> int:
    """Bytes of the distinct memory that a forward pass saves for its backward pass, weights left out.

    Args:
        net: the network.
        x: its input.
        packed: save spikes as bits.
    """
    sizes: dict[tuple[int, int], int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[(storage.data_ptr(), storage.nbytes())] = storage.nbytes()
        alive.append(tensor)  # or its memory would be given out again, and counted once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), packed_spikes(packed, keep):
        out = net(x)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    del out
    functional.reset_net(net)
    return sum(size for (address, _), size in sizes.items() if address not in weights)


def peak_bytes(net: nn.Module, x: Tensor, target: Tensor, packed: bool = False) -> int:
    """Bytes that are allocated on the GPU at the worst moment of a forward and backward pass, beyond what was before."""
    for _ in range(2):  # the first one makes gradients and libraries' workspaces
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        with packed_spikes(packed):
            loss = _loss(net(x), target)
        loss.backward()
        functional.reset_net(net)
    return torch.cuda.max_memory_allocated(x.device) - before


def count_flops(config: ModelConfig, batch: int) -> float:
    """Floating point operations of a training step's convolutions and products: three times those of the forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build_model(_published(config), "torch")
        size = (config.in_channels, config.image_size, config.image_size)
        images = torch.empty(batch, *((config.timesteps,) if config.events else ()), *size)
    with FlopCounterMode(display=False) as counter:
        net(images)
    return 3.0 * counter.get_total_flops()


def sized(name: str, device: torch.device, batch: int | None) -> tuple[ModelConfig, int]:
    """A model of MODELS and its batch: as asked, or the published one on a GPU and a small one on a CPU."""
    if name not in MODELS:
        raise UserError(f"--model: {name!r} is no benchmark's model; {nearest(name, list(MODELS))}")
    config, gpu_batch = MODELS[name]
    return config, batch or (gpu_batch if device.type == "cuda" else CPU_BATCH)


def random_batch(config: ModelConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] or clips [B, T, C, H, W] of noise, and labels [B]."""
    time_axis = (config.timesteps,) if config.events else ()
    size = (batch, *time_axis, config.in_channels, config.image_size, config.image_size)
    torch.manual_seed(0)
    return torch.randn(size, device=device), torch.randint(config.num_classes, (batch,), device=device)


def our_model(config: ModelConfig, device: torch.device) -> Backbone:
    """Our model with the attention of its backbone, which is SpikingJelly's architecture, ready to train."""
    from statten.training.preflight import to_device

    return to_device(build_model(_published(config)), device).train()


def _published(config: ModelConfig) -> ModelConfig:
    """The same with the backbone's own attention."""
    return config.model_copy(update={"attention": "sdsa" if config.backbone == "sdt" else "ssa"})


def peer_name(config: ModelConfig) -> str:
    """What SpikingJelly's network of the same shape is called."""
    return f"SpikingJelly {PEERS[config.backbone].__name__}"


def _peer_model(config: ModelConfig, device: torch.device, layout: torch.memory_format) -> nn.Module:
    c, kind = config, PEERS[config.backbone]
    shape: dict[str, Any] = {"depths": c.depth, "num_heads": c.num_heads}
    if kind is SpikeDrivenTransformer:
        shape["pooling_stat"] = c.pooling
    elif kind is Spikformer:
        shape |= {"img_size_h": c.image_size, "img_size_w": c.image_size, "patch_size": 2 ** c.pooling.count("1")}
    else:
        shape["depths"] = tuple(stage.blocks for stage in c.stages)
        if kind is QKFormer:
            shape["num_heads"] = (c.num_heads,) * 3
        else:
            del shape["num_heads"]  # 8, or D/64 for ImageNet
            shape["cifar"] = c.stem == 1
    net = kind(
        T=c.timesteps, in_channels=c.in_channels, num_classes=c.num_classes, embed_dims=c.embed_dim, mlp_ratio=c.mlp_ratio,
        **shape,
    )  # fmt: skip
    return net.to(device, memory_format=layout).train()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K]; SpikingJelly's Spikformer gives [T, B, K]."""
    return nn.functional.cross_entropy((logits.mean(0) if logits.ndim == 3 else logits).float(), target)


def _peer_neuron() -> nn.Module:
    """SpikingJelly's, which takes its Triton kernels by itself where the tensors are on a GPU."""
    return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.Sigmoid(4.0), detach_reset=True, step_mode="m")


def documents(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects {case, metric, ours, peer, ratio}."""
    return [{key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(row).items()} for row in rows]


BENCHMARKS: dict[str, Callable[..., Iterator[Row]]] = {
    "lif": lambda device, repeats, model, batch: bench_lif(device, repeats),
    "step": bench_step,
    "memory": lambda device, repeats, model, batch: bench_memory(device, model, batch),
    "attention": bench_attention,
    "data": lambda device, repeats, model, batch: bench_data(repeats, batch),
}


def pick(device: str) -> torch.device:
    """The device that a name means; raises UserError."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: {device!r} is no device; {nearest(device, ['auto', 'cpu', 'cuda'])}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda needs a GPU that PyTorch can use; see: statten doctor")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")


def run_benchmark(
    what: str, device: torch.device, repeats: int, model: str, batch: int | None = None, output: Path | None = None
) -> list[Row]:
    """Run a benchmark, show its rows as they come, and write them to `output` with the hardware named."""
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {output.parent}")
    if output is not None:
        check_writable(output.parent, "name another --output")
        if output.is_dir():
            raise UserError(f"--output: must be a file, but {output} is a folder")
    rows = []
    with console.status(f"measuring {what}: the cases take turns, {repeats} each"):
        for row in BENCHMARKS[what](device, repeats, model, batch):
            console.print(f"{row.ratio:7.2f}x  {row.ours:10,.2f} {row.peer:10,.2f}  {row.case}: {row.metric}")
            rows.append(row)
    if output is not None:
        machine = environment()
        hardware = {key: machine[key] for key in ("processor", "cpus", "gpus", "cuda", "python", "versions", "commit")}
        document = {"benchmark": what, "device": device.type, "threads": torch.get_num_threads(), "repeats": repeats}
        write_json(output, {**document, "hardware": hardware, "results": documents(rows)})
    return rows
