"""What every backbone of BACKBONES promises, on the smallest config of its layout: a new one is tested by its line alone."""

import pytest
import torch
from networks import NAMES, alive, samples, tiny
from torch import nn

from statten.evaluation.export import plain
from statten.metrics.energy import check, ledger, operations
from statten.metrics.inference import evaluating
from statten.metrics.meter import SpikeMeter
from statten.metrics.spikes import SpikeTotals
from statten.models import build_model, fold_batch_norm
from statten.models.factory import layer_names
from statten.neurons import LIF, packed_spikes
from statten.registry import BACKBONES

torch.set_num_threads(1)

VARIANTS = {
    "columns": [{}, {"events": True}],
    "pyramid": [
        {}, {"events": True}, {"stem_stride": 4, "depth": 5, "image_size": 32}, {"early_mixer": "qk_channel"},
        {"early_mixer": "identity", "stage_dims": (24, 40, 64), "stage_depths": (2, 1, 1)},
    ],
    "meta": [{}, {"events": True}],
}  # fmt: skip
"""By layout: what a backbone's fields may be beside the smallest config."""
CASES = [
    pytest.param(name, fields, id=" ".join([name, *map(str, fields.items())]))
    for name in NAMES
    for fields in VARIANTS[BACKBONES.line(name).layout]
]
every_backbone = pytest.mark.parametrize(("name", "fields"), CASES)


def fresh(config, backend="torch"):
    torch.manual_seed(3)
    return build_model(config, backend).train()


def step(model, x, packed=False):
    """Logits, gradients and buffers of a step of training."""
    torch.manual_seed(2)
    with packed_spikes(packed):
        logits = model(x)
    logits.square().sum().backward()
    return {"logits": logits, **{n: p.grad for n, p in model.named_parameters()}, **dict(model.named_buffers())}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@every_backbone
def test_one_timestep_a_block_is_spatial_attention(name, fields):
    if "ssa" in BACKBONES.line(name).lacks.get("attention", ()):
        pytest.skip("has no ssa")
    x = samples(tiny(name, **fields))
    found, wanted = (step(fresh(tiny(name, attention=mode, block_size=1, **fields)), x) for mode in ("statten", "ssa"))
    same(found, wanted)
    more = step(fresh(tiny(name, attention="statten", block_size=4, **fields)), x)
    assert not torch.equal(more["logits"], wanted["logits"]), "timesteps meet in a longer block"


@every_backbone
def test_a_batch_is_its_samples(name, fields):
    config = tiny(name, **fields)
    model, x = alive(config).double(), samples(config).double()
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert together.std(0).max() > 0, "samples differ"


@every_backbone
def test_every_parameter_learns(name, fields):
    model = fresh(tiny(name, **fields))
    step(model, samples(model.config))
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter
        assert value.grad.any() or value.ndim == 1, f"{parameter}: no gradient reaches it"


@every_backbone
def test_timesteps_and_block_size_own_no_weights(name, fields):
    model = alive(tiny(name, **fields))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for timesteps, block_size in [(1, 1), (3, 2), (6, 6)]:
        config = tiny(name, timesteps=timesteps, block_size=block_size, **fields)
        model.set_timesteps(timesteps, block_size)
        other = build_model(config, "torch").eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(model(samples(config)), other(samples(config)))
    same(model.state_dict(), weights)


@every_backbone
def test_spiking_layers_are_all_of_them_in_order(name, fields):
    config = tiny(name, **fields)
    model, order, rates = alive(config), [], []
    layers = model.spiking_layers()
    assert {id(layer) for layer in layers.values()} == {id(m) for m in model.modules() if isinstance(m, LIF)}
    assert list(layers) == layer_names(config)
    for layer, module in layers.items():
        module.register_forward_hook(lambda _m, _i, spikes, layer=layer: order.append(layer) or rates.append(spikes))
    with torch.no_grad():
        model(samples(config))
    assert order == list(layers)
    assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for spikes in rates)
    assert sum(bool(spikes.any()) for spikes in rates) > 0.8 * len(rates)


@every_backbone
def test_the_ledger_has_every_convolution_with_its_cost(name, fields):
    config = tiny(name, **fields)
    model, x = alive(config), samples(config)
    rows = [op for op in operations(config) if op.kind not in ("product", "gate")]
    folded, seen = fold_batch_norm(model), []
    for module in folded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _i, out: seen.append((m, out)))
    with torch.no_grad():
        folded(x)
    assert len(seen) == len(rows), [op.layer for op in rows]
    for op, (module, out) in zip(rows, seen, strict=True):
        outputs = out[0].numel() if isinstance(module, nn.Conv2d) else out.shape[-1]
        found = (op.flops, op.weights, op.outputs)
        assert found == (module.weight[0].numel() * outputs, module.weight.numel(), outputs), op.layer


@every_backbone
def test_the_ledger_is_recomputed_and_totals_are_those_of_the_meter(name, fields):
    config = tiny(name, timesteps=3, **fields)
    model, x = alive(config), samples(config)
    most: dict[str, float] = {}
    for point, (module, values) in model.derived_inputs().items():
        module.register_forward_hook(
            lambda _m, inputs, output, point=point, values=values: most.update({point: values(inputs, output).max().item()})
        )
    with evaluating(model), SpikeMeter(model) as meter:
        model(x)
    with evaluating(model), SpikeTotals(model, "cpu") as totals:
        model(x)
    counts, (inputs, number) = meter.counts(), totals.inputs()
    points = {op.point for op in operations(config) if op.point}
    assert points <= set(counts) and points <= set(inputs)
    assert {point: inputs[point].item() for point in points} == {point: counts[point].double().sum().item() for point in points}
    assert all(most[op.point] <= op.levels for op in operations(config) if op.point in most)
    document = ledger(config, 3, counts, number)
    check(document)
    assert document["total"]["pj"] == pytest.approx(ledger(config, 3, inputs, number)["total"]["pj"], rel=1e-12)
    assert 0 < document["total"]["pj"] < document["non_spiking"]["total"]["pj"] * 10


@every_backbone
@pytest.mark.parametrize("way", ["activation_checkpointing", "packed_spikes"])
def test_what_keeps_less_gives_the_same_step(name, fields, way):
    config = tiny(name, drop_path=0.2, **fields)
    x = samples(config, batch=8)
    wanted, model = step(fresh(config, "auto"), x), fresh(config, "auto")
    model.activation_checkpointing = way == "activation_checkpointing"
    same(step(model, x, way == "packed_spikes"), wanted)


@every_backbone
def test_folding_leaves_the_results(name, fields):
    config = tiny(name, **fields)
    model, x = alive(config).double(), samples(config).double()
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


@every_backbone
def test_native_neurons_give_the_same_step(name, fields):
    config = tiny(name, **fields)
    x = samples(config).double()
    wanted, found = (step(fresh(config, backend).double(), x) for backend in ("torch", "native"))
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@every_backbone
def test_mixed_precision_keeps_streams_and_statistics_in_float32(name, fields):
    model, streams = fresh(tiny(name, **fields), "auto"), []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, output: streams.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(samples(model.config))
    logits.float().square().sum().backward()
    assert streams == [torch.float32] * model.config.depth
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in model.buffers())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_backbone
def test_learned_time_constants_and_logits_of_each_timestep(name, fields):
    config = tiny(name, neuron="plif", per_timestep_logits=True, **fields)
    model = fresh(config)
    found = step(model, samples(config))
    assert found["logits"].shape == (4, 4, 5)
    learned = [name for name in found if name.endswith(".w")]
    assert len(learned) == len(model.spiking_layers())


@every_backbone
def test_a_frame_counts_for_all_timesteps_in_the_statistics(name, fields):
    """An image is computed once in front of the first neuron: the buffers are those of a clip of equal frames."""
    if fields.get("events"):
        pytest.skip("a clip is not repeated")
    config = tiny(name, **fields)
    model, frames = fresh(config).double(), fresh(config).double()
    x = samples(config).double()
    model(x)
    frames.logits(x.expand(config.timesteps, *x.shape))
    for (key, found), wanted in zip(model.named_buffers(), frames.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported(name):
    model = plain(alive(tiny(name, timesteps=2)))
    x = samples(model.config, batch=3)
    with torch.no_grad():
        program = torch.export.export(model, (x,)).module()
        assert torch.equal(program(x), model(x))
