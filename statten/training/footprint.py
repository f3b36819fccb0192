"""What a network is and costs, found without data: layers, shapes, parameters, operations, energy at a rate, memory."""

from typing import Any

import torch

from statten.config import Config, ModelConfig
from statten.metrics.energy import ledger_at, operations
from statten.metrics.spikes import watch
from statten.models import build_model
from statten.training.preflight import measure


def footprint(config: Config, rate: float) -> dict[str, Any]:
    """What the network of a config is.

    Args:
        config: fields at auto count with their defaults.
        rate: firing rate of every neuron, spikes per timestep; energies hold for it alone.

    Returns:
        rate, timesteps, layers [{layer, kind, reads (shape of a timestep's input, or its values), writes (values), parameters,
        flops (multiply-accumulates of a timestep if all inputs were dense), unit (MACs or SOPs), operations (of a sample, all
        timesteps), pj}], neurons {layer: shape}, parameters, flops, macs, sops, energy_uj, non_spiking_uj, batch_size,
        memory_bytes (of one training worker, as in Preflight), auto [field].
    """
    model, ledger = config.model, ledger_at(config.model, rate)
    shapes, (parameters, memory) = _shapes(model), measure(config)
    points = {op.layer: op for op in operations(model)}
    rows = []
    for row in ledger["rows"]:
        op = points[row["layer"]]
        own = [model.in_channels, model.image_size, model.image_size]
        rows.append({
            "layer": op.layer, "kind": op.kind, "reads": own if op.point is None else shapes.get(op.point, [op.inputs]),
            "writes": op.outputs, "parameters": op.weights, "flops": op.flops, "unit": row["unit"],
            "operations": row["operations"], "pj": row["pj"],
        })  # fmt: skip
    total = ledger["total"]
    return {
        "rate": rate, "timesteps": model.timesteps, "layers": rows, "neurons": shapes, "parameters": parameters,
        "flops": sum(op.flops for op in points.values()), "macs": total["macs"], "sops": total["sops"],
        "energy_uj": total["pj"] / 1e6, "non_spiking_uj": ledger["non_spiking"]["total"]["pj"] / 1e6,
        "batch_size": config.train.batch_size, "memory_bytes": memory, "auto": list(config.auto),
    }  # fmt: skip


def _shapes(config: ModelConfig) -> dict[str, list[int]]:
    """Shape of a timestep at every layer of neurons, and at the points that are derived from them."""
    found: dict[str, list[int]] = {}
    with torch.device("meta"):
        model = build_model(config, "torch").eval()
        frames = (config.timesteps,) if config.events else ()
        x = torch.empty(1, *frames, config.in_channels, config.image_size, config.image_size)

    def keep(name: str) -> Any:
        return lambda values: found.update({name: list(values.shape[2:])})

    for name, layer in model.spiking_layers().items():
        watch(layer, lambda _inputs, output: output, keep(name))
    for name, (module, values) in model.derived_inputs().items():
        watch(module, values, keep(name))
    with torch.no_grad():
        model(x)
    return found
