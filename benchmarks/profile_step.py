"""Where the time of a training step goes: operations by their share, on the CPU or the GPU.

python benchmarks/profile_step.py [--model cifar10_2_512] [--precision fp32] [--device auto] [--rows 20]
"""

import argparse
from contextlib import nullcontext

import torch
from torch.profiler import ProfilerActivity, profile

from statten.bench import DTYPES, MODELS, our_model, pick, random_batch, sized


def main() -> None:
    """Profile three steps after three that warm up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10_2_512", choices=list(MODELS))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    device, dtype = pick(options.device), DTYPES[options.precision]
    config, batch = sized(options.model, device, options.batch)
    images, target = random_batch(config, batch, device)
    net = our_model(config, device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            loss = torch.nn.functional.cross_entropy(net(images).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(3):
            step()
    print(found.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=options.rows))


if __name__ == "__main__":
    main()
