"""The energy ledger against SpikingJelly's counters on the same batch, against a count by hand, and against itself."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from evaluated import SMALL, alive, make_run
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

from statten.config import ModelConfig, dump_config, load_config
from statten.data import make_test_loader
from statten.errors import UserError
from statten.evaluation import evaluate
from statten.metrics.energy import Conventions, _costs, _inside, _total, check, check_file, ledger, ledger_at, operations
from statten.metrics.inference import evaluating
from statten.metrics.meter import SpikeMeter
from statten.metrics.spikes import SpikeTotals
from statten.models.operations import conv

aten = torch.ops.aten
SKIPPED = Conventions(padding="skipped", first_layer="once")
"""The two conventions in which SpikingJelly differs from the published formula: it counts no additions into padding, and the
first convolution as often as it runs, which is once for an image here."""


class Counted:
    """A model, one batch through it, our ledger of that batch and SpikingJelly's counts of the same forward pass."""

    def __init__(self, name: str, **fields):
        overrides = {**SMALL, "scale.neuron_backend": "torch", **{k.replace("__", "."): v for k, v in fields.items()}}
        config = load_config(name, overrides)
        self.model, self.config = alive(config).model, config.model
        self.x = next(iter(make_test_loader(config)))[0][:16]
        synops, macs = SynOpCounter(), MACCounter()
        with evaluating(self.model), SpikeMeter(self.model) as meter:
            self.model(self.x)
        # In inference mode, operators reach the counter under names that it has no rules for.
        with torch.no_grad(), DispatchCounterMode([synops, macs]):
            self.model.eval()(self.x)
        self.counts, self.synops, self.macs = meter.counts(), synops.get_counts(), macs.get_counts()
        self.ledger = ledger(self.config, self.config.timesteps, self.counts, 16, SKIPPED)

    def theirs(self, counts: dict, module: str, *ops) -> float:
        """SpikingJelly's count of some operators inside a module, per sample."""
        found = counts.get(f"STAttenTransformer.{module}", {})
        return sum(found.get(op, 0) for op in ops) / 16


MODULES = {
    "embed.conv0": "embed.stages.0.0", "embed.conv1": "embed.stages.1.0", "embed.conv2": "embed.stages.2.0",
    "embed.conv3": "embed.stages.3.0", "embed.rpe": "embed.rpe.0", "attn.qkv": "attn.qkv.0", "attn.proj": "attn.proj.0",
    "mlp.fc1": "mlp.fc1.0", "mlp.fc2": "mlp.fc2.0", "head": "head",
}  # fmt: skip


def module_of(layer: str) -> str | None:
    block, _, rest = layer.rpartition("attn.") if ".attn." in layer else layer.rpartition("mlp.")
    if layer in MODULES:
        return MODULES[layer]
    inner = MODULES.get(f"{'attn' if '.attn.' in layer else 'mlp'}.{rest}")
    return inner and block + inner


@pytest.mark.parametrize("name", ["digits", "digits_events"])
def test_every_row_is_what_spikingjelly_counts(name):
    case = Counted(name, model__attention_threshold=0.05)  # low, so that attention fires too
    events, total_ours, total_theirs = case.config.events, 0.0, 0.0
    for row in case.ledger["rows"]:
        module = module_of(row["layer"])
        linear = (aten.convolution.default, aten.addmm.default, aten.mm.default)
        if row["kind"] == "product":
            continue  # below: both products are one module's
        counts = case.macs if row["unit"] == "MACs" else case.synops
        theirs = case.theirs(counts, module, *linear)
        if events and row["layer"].endswith("attn.proj"):
            # Convention: where attention is masked its output is 0, 1 or 2. To SpikingJelly that is no spike train: it counts a
            # dense layer. We count a 2 as two additions.
            assert theirs == 0
            proj = next(op for op in operations(case.config) if op.layer == row["layer"])
            assert case.theirs(case.macs, module, *linear) == proj.flops * case.config.timesteps
            theirs = binary_parts(case)
        assert row["operations"] == pytest.approx(theirs, rel=1e-3), row["layer"]
        assert row["operations"] > 0
        total_ours, total_theirs = total_ours + row["operations"], total_theirs + theirs
    products = [row for row in case.ledger["rows"] if row["kind"] == "product"]
    theirs = case.theirs(case.synops, "blocks.0.attn.core", aten.bmm.default)
    assert sum(row["operations"] for row in products) == pytest.approx(theirs, rel=1e-3)
    total_ours += sum(row["operations"] for row in products)
    total_theirs += theirs
    written = case.ledger["total"]
    assert written["macs"] + written["sops"] == pytest.approx(total_ours, rel=1e-12)
    assert total_ours == pytest.approx(total_theirs, rel=1e-3)


def binary_parts(case: Counted) -> float:
    """SpikingJelly's count of the projection fed with the two spike trains whose sum is its input."""
    kept, proj = [], case.model.blocks[0].attn.proj[0]
    handle = proj.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    with evaluating(case.model):
        case.model(case.x)
    handle.remove()
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        for least in (1, 2):
            proj((kept[0].clone() >= least).float())
    return counter.get_total() / 16


def test_sdsa_counts_its_sums_which_spikingjelly_has_no_rule_for():
    case = Counted("digits", model__attention="sdsa")
    seen = []
    case.model.blocks[0].attn.core.register_forward_pre_hook(lambda _m, args: seen.append(args))
    with evaluating(case.model):
        case.model(case.x)
    _, k, v, _ = seen[0]
    row = next(row for row in case.ledger["rows"] if row["kind"] == "product")
    assert row["operations"] == pytest.approx((k * v).sum().item() / 16, rel=1e-9)
    for row in case.ledger["rows"]:
        if row["kind"] != "product":
            counts = case.macs if row["unit"] == "MACs" else case.synops
            linear = (aten.convolution.default, aten.addmm.default, aten.mm.default)
            assert row["operations"] == pytest.approx(case.theirs(counts, module_of(row["layer"]), *linear), rel=1e-3)


def test_a_one_block_model_by_hand():
    """D = 16, 2 heads, 4 x 4 tokens of an 8 x 8 image after one halving; T = 3, b = 2; every rate is set to a known number."""
    config = ModelConfig(
        embed_dim=16, num_heads=2, depth=1, mlp_ratio=2, pooling="0001", image_size=8, in_channels=1, num_classes=5, timesteps=3
    )
    rates = {
        "embed.0": 0.5, "embed.1": 0.25, "embed.2": 0.125, "embed.3": 0.5, "blocks.0.attn.in": 0.5, "blocks.0.attn.query": 0.25,
        "blocks.0.attn.mixed": 0.125, "blocks.0.mlp.fc1": 0.5, "blocks.0.mlp.fc2": 0.25, "head": 0.75,
    }  # fmt: skip
    shapes = {
        "embed.0": (2, 8, 8), "embed.1": (4, 8, 8), "embed.2": (8, 8, 8), "embed.3": (16, 4, 4), "head": (16,),
        "blocks.0.mlp.fc2": (32, 4, 4),
    }  # fmt: skip
    counts = {name: torch.full((3, *shapes.get(name, (16, 4, 4))), 8 * rate) for name, rate in rates.items()}
    counts["blocks.0.attn.pairs"] = torch.tensor([80.0, 160.0, 240.0])  # over 8 samples
    found = ledger(config, 3, counts, 8)
    by_hand = {  # rate * T * FLOPs of a timestep
        "embed.conv0": 3 * 64 * 9 * 1 * 2,
        "embed.conv1": 0.5 * 3 * 64 * 9 * 2 * 4,
        "embed.conv2": 0.25 * 3 * 64 * 9 * 4 * 8,
        "embed.conv3": 0.125 * 3 * 64 * 9 * 8 * 16,
        "embed.rpe": 0.5 * 3 * 16 * 9 * 16 * 16,
        "blocks.0.attn.qkv": 0.5 * 3 * 16 * 16 * 48,
        "blocks.0.attn.kv": (80 + 160 + 240) / 8,
        "blocks.0.attn.qkv_product": 0.25 * 3 * 16 * 16 * 8,
        "blocks.0.attn.proj": 0.125 * 3 * 16 * 16 * 16,
        "blocks.0.mlp.fc1": 0.5 * 3 * 16 * 16 * 32,
        "blocks.0.mlp.fc2": 0.25 * 3 * 16 * 32 * 16,
        "head": 0.75 * 3 * 16 * 5,
    }
    assert {row["layer"]: row["operations"] for row in found["rows"]} == pytest.approx(by_hand, rel=1e-12)
    macs = by_hand.pop("embed.conv0")
    assert found["total"]["pj"] == pytest.approx(4.6 * macs + 0.9 * sum(by_hand.values()), rel=1e-12)
    # Without padding: of 8 x 8 positions with 9 additions each, 22 x 22 lie inside, and 10 x 10 of 4 x 4.
    inside = {row["layer"]: row["inside"] for row in found["rows"]}
    assert inside["embed.conv1"] == pytest.approx(22 * 22 / (9 * 64)) and inside["embed.rpe"] == pytest.approx(100 / 144)
    once = ledger(config, 3, counts, 8, Conventions("once"))
    assert found["total"]["macs"] == 3 * once["total"]["macs"]
    # The same layers with numbers, once, and softmax attention's two products of N N D.
    dense = 2 * 64 * 9 + 8 * 64 * 9 + 32 * 64 * 9 + 128 * 64 * 9 + 256 * 16 * 9
    dense += 16 * 16 * 48 + 2 * 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 32 + 16 * 5
    assert found["non_spiking"]["total"]["macs"] == dense
    memory = ledger(config, 3, counts, 8, Conventions(memory_pj_per_byte=2.0))
    head = memory["rows"][-1]
    assert head["bytes"] == 4 * 80 + 2 + 4 * 5 and head["memory_pj"] == 2.0 * 3 * head["bytes"]
    assert memory["total"]["pj"] == pytest.approx(found["total"]["pj"] + memory["total"]["memory_pj"], rel=1e-12)


def test_a_ledger_is_recomputed_from_its_file_alone(tmp_path):
    report = evaluate(make_run(tmp_path / "run").path)
    path = Path(report["folder"]) / "energy.json"
    found = check_file(path)
    assert check_file(Path(report["folder"]) / "report.json") == found
    assert found["total"]["pj"] == pytest.approx(math.fsum(row["pj"] for row in found["rows"]))

    def changed(change) -> str:
        other = copy.deepcopy(found)
        change(other)
        with pytest.raises(UserError) as caught:
            check(json.loads(json.dumps(other)), "ledger.json")
        return str(caught.value)

    assert "embed.conv1: operations is written as" in changed(lambda d: d["rows"][1].update(rate=d["rows"][1]["rate"] * 1.01))
    assert "total: sops is written as" in changed(lambda d: d["rows"].pop(3))
    assert "total: pj is written as 1.0" in changed(lambda d: d["total"].update(pj=1.0))
    assert "embed.conv0: pj is written as" in changed(lambda d: d["conventions"].update(mac_pj=3.7))
    assert "head: rate must be between 0 and 1" in changed(lambda d: d["rows"][-1].update(rate=3.0))
    assert "is not an energy ledger" in changed(lambda d: d.pop("rows"))
    # What adds up, and is none all the same.
    nothing = {"macs": 0.0, "sops": 0.0, "pj": 0.0, "memory_pj": 0.0}

    def emptied(document):
        document.update(rows=[], total=nothing, non_spiking={"rows": [], "total": nothing})

    assert "rows must hold at least 1, but got []" in changed(emptied)
    assert "timesteps is written as 9, but the network has 4" in changed(lambda d: d.update(timesteps=9))
    assert "block_size is written as 1, but the network has 2" in changed(lambda d: d.update(block_size=1))
    words = changed(lambda d: d["conventions"].update(padding="ignored"))
    assert "conventions.padding must be one of 'counted' or 'skipped', but got 'ignored'" in words
    assert "conventions.colour is not known" in changed(lambda d: d["conventions"].update(colour="red"))
    assert "head: is there twice" in changed(lambda d: d["rows"].append(d["rows"][-1]))
    assert "head: flops is written as 1, but the network has 320" in changed(lambda d: d["rows"][-1].update(flops=1))
    assert "is not an energy ledger: model.backbone: must be one of" in changed(lambda d: d["model"].update(backbone="unet"))
    assert "is not an energy ledger: model.colour: no such field" in changed(lambda d: d["model"].update(colour="red"))
    for value in ("0.5", 10**400, -1, True, None, float("nan"), float("inf"), [], {}):
        for field in ("rate", "pj", "flops", "bytes"):
            words = changed(lambda d, f=field, v=value: d["rows"][-1].update({f: v}))
            assert f"is not an energy ledger: rows.{len(found['rows']) - 1}.{field} must be" in words, words

    document = json.loads((path.parent / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**document, "timesteps": 9}))
    with pytest.raises(UserError, match="timesteps is 9, but that of its energy ledger is 4"):
        check_file(tmp_path / "report.json")
    for text in ("[1]", '{"energy": 3}', "[" * 10**5, "{}"):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UserError, match=r"report.json: is not an energy ledger: "):
            check_file(tmp_path / "report.json")


@pytest.fixture(scope="module")
def of_clips():
    """A ledger with rows of every kind: numbers, spikes, a stream of counts, products; conventions that all count."""
    config = ModelConfig(
        backbone="spikformer", events=True, embed_dim=16, num_heads=2, depth=1, mlp_ratio=2, pooling="0001", image_size=8,
        in_channels=2, num_classes=5, timesteps=3, block_size=1,
    )  # fmt: skip
    counts = {op.point: torch.tensor(100.0 + i) for i, op in enumerate(operations(config)) if op.point}
    return ledger(config, 3, counts, 8, Conventions("once", "skipped", 2.0))


def summed_up(document: dict) -> dict:
    """A copy in which every row's costs and every total follow from the rows again, as somebody would do who forges it."""
    document = copy.deepcopy(document)
    for part in (document, document["non_spiking"]):
        for row in part["rows"]:
            row.update(_costs(row, Conventions(**document["conventions"])))
        part["total"] = _total(part["rows"])
    return document


def refused(document: dict) -> str:
    with pytest.raises(UserError) as caught:
        check(json.loads(json.dumps(document)))
    return str(caught.value)


def test_a_ledger_without_one_of_its_rows_is_refused(of_clips):
    """However its totals are adjusted: the network says which rows there are."""
    assert check(of_clips) == check(summed_up(of_clips)) == of_clips
    layers = [row["layer"] for row in of_clips["rows"]]
    for layer in layers:
        for both in (False, True):
            forged = copy.deepcopy(of_clips)
            for part in (forged, *[forged["non_spiking"]] * both):
                part["rows"] = [row for row in part["rows"] if row["layer"] != layer]
            words = refused(summed_up(forged))
            assert f"ledger: {layer}: is missing, but the network has it" in words
            assert "is written as" not in words, "all that is left adds up"
    forged = copy.deepcopy(of_clips)
    forged["non_spiking"]["rows"].pop()
    assert refused(summed_up(forged)) == "ledger: non_spiking: head: is missing, but the network has it"
    forged = copy.deepcopy(of_clips)
    forged["rows"].append({**forged["rows"][1], "layer": "blocks.1.mlp.fc1"})
    assert refused(summed_up(forged)) == "ledger: blocks.1.mlp.fc1: is there, but the network has no such operation"


def test_a_ledger_of_another_network_is_refused(of_clips):
    """Rows that add up, under a backbone, timesteps, sizes or conventions that are not theirs."""
    for field, value in {
        "backbone": "sdt", "timesteps": 4, "depth": 2, "embed_dim": 32, "image_size": 16, "num_classes": 6, "mlp_ratio": 3.0,
    }.items():  # fmt: skip
        assert "the network has" in refused({**of_clips, "model": {**of_clips["model"], "depth": 1, field: value}}), field
    for timesteps in (1, 2, 4):
        forged = copy.deepcopy(of_clips)
        forged["timesteps"] = timesteps
        for row in [*forged["rows"], *forged["non_spiking"]["rows"]]:
            row["timesteps"] = timesteps if row["timesteps"] == 3 else row["timesteps"]
        assert f"timesteps is written as {timesteps}, but the network has 3" in refused(summed_up(forged))
    unknown = refused({**of_clips, "model": {**of_clips["model"], "backbone": "unet"}})
    assert unknown.startswith("ledger: is not an energy ledger: model.backbone: must be one of")
    images = {**of_clips, "model": {**of_clips["model"], "events": False}}
    assert "embed.conv0: timesteps is written as 3, but the network has 1" in refused(images), "the first layer counts once"
    for field, value in (("kind", "linear"), ("unit", "MACs"), ("bytes", 1), ("levels", 9), ("flops", 7)):
        for part in (of_clips, of_clips["non_spiking"]):
            for place, row in enumerate(part["rows"]):
                if field in row and row[field] != value:
                    forged = copy.deepcopy(of_clips)
                    (forged if part is of_clips else forged["non_spiking"])["rows"][place][field] = value
                    assert f"{row['layer']}: {field} is written as" in refused(summed_up(forged))
    # What a row of numbers, or without padding, cannot have.
    for place, field, value in ((0, "rate", 0.5), (0, "inside", 0.5), (-1, "inside", 0.5)):
        forged = copy.deepcopy(of_clips)
        forged["rows"][place][field] = value
        assert f"{field} is written as 0.5, but the network has 1.0" in refused(summed_up(forged))


def test_a_ledger_that_names_no_network_is_checked_against_its_run(tmp_path):
    """Versions before wrote none into it; where its run is not known either, a missing row would not be seen."""
    config = load_config("digits", SMALL)
    changed = {"model.timesteps": 3, "model.block_size": 1, "data.root": "/elsewhere"}
    folder = tmp_path / "run" / "evaluations" / "e"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    for fields in (changed, {}):
        model = config.model.model_copy(
            update={name.partition(".")[2]: value for name, value in fields.items() if "model" in name}
        )
        document = ledger_at(model, 0.2)
        assert document.pop("model")["timesteps"] == model.timesteps
        report = {"changed": fields, "energy": document, **{k: document[k] for k in ("timesteps", "block_size", "samples")}}
        for name, content in (("energy.json", document), ("report.json", report)):
            (folder / name).write_text(json.dumps(content))
        assert check_file(folder / "energy.json") == check_file(folder / "report.json") == document
    (folder / "report.json").unlink()
    assert check_file(folder / "energy.json") == document, "nothing was changed, as far as is known"
    forged = copy.deepcopy(document)
    del forged["rows"][3], forged["non_spiking"]["rows"][3]
    (folder / "energy.json").write_text(json.dumps(summed_up(forged)))
    with pytest.raises(UserError, match=r"energy\.json: embed.conv3: is missing, but the network has it"):
        check_file(folder / "energy.json")
    unknown = r"energy\.json: does not say which network it is of, so a row that is missing would not be seen; evaluate again"
    (tmp_path / "run" / "other" / "e").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "run", tmp_path / "run" / "other" / "e"):
        (place / "energy.json").write_text(json.dumps(document))
        with pytest.raises(UserError, match=unknown):
            check_file(place / "energy.json")
    (folder / "energy.json").write_text(json.dumps(document))
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match=unknown):
        check_file(folder / "energy.json")
    (tmp_path / "report.json").write_text(json.dumps({"energy": {**document, "timesteps": "4"}}))
    with pytest.raises(UserError, match=r"/report\.json: is not an energy ledger: timesteps must be a whole number"):
        check_file(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(UserError, match=r"/report\.json: is not an energy ledger: it must be a JSON object"):
        check_file(tmp_path / "report.json")
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        check_file(tmp_path / "none.json")


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 1), (7, 4)])
@pytest.mark.parametrize("side", [4, 5, 8, 9])
def test_additions_inside_the_map_are_those_of_every_window(kernel, stride, side):
    op = conv("x", "p", 3, 4, side, kernel, stride)
    counts = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)
    windows = torch.nn.functional.unfold(counts, kernel, padding=kernel // 2, stride=stride)
    everywhere = counts.mean() * 2 * op.flops / 4  # for one of the four output channels, as rate * flops counts them
    assert _inside(counts, op) == pytest.approx((windows.sum() / everywhere).item(), rel=1e-12)
    assert _inside(counts * 0, op) == 1.0


def test_a_network_whose_neurons_all_fire_at_a_rate():
    config = load_config("digits_events", SMALL).model
    found = ledger_at(config, 0.2, Conventions(first_layer="once"))
    assert found["samples"] == 1 and found["timesteps"] == config.timesteps and found["block_size"] == config.block_size
    rates = {row["layer"]: row["rate"] for row in found["rows"]}
    for op in operations(config):
        together = op.point is not None and op.point.endswith(".pairs")
        assert rates[op.layer] == pytest.approx(1.0 if op.point is None else 0.04 if together else 0.2, rel=1e-12), op.layer
    assert all(row["timesteps"] == config.timesteps for row in found["rows"]), "the first layer reads another frame each time"
    images = ledger_at(load_config("digits", SMALL).model, 0.25, Conventions(first_layer="once"))
    assert [row["timesteps"] == 1 for row in images["rows"]] == [True] + [False] * (len(images["rows"]) - 1)
    passes = [document["non_spiking"]["rows"][0]["timesteps"] for document in (found, images)]
    assert passes == [config.timesteps, 1], "a clip frame by frame, an image once"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("digits", {}),
        ("digits_events", {"timesteps": 3}),
        ("digits", {"attention": "sdsa"}),
        ("digits_events", {"attention": "sdsa"}),
    ],
)
def test_totals_of_validation_give_the_energy_of_the_whole_meter(name, fields):
    config = load_config(name, {**SMALL, **{f"model.{k}": v for k, v in fields.items()}, "train.eval_batch_size": 150})
    model = alive(config).model
    with evaluating(model), SpikeMeter(model) as meter:
        for x, _ in make_test_loader(config):  # 150, 150 and 59
            model(x)
    with evaluating(model), SpikeTotals(model, "cpu") as totals:
        for x, _ in make_test_loader(config):
            model(x)
    inputs, samples = totals.inputs()
    counts = meter.counts()
    assert samples == 359 and all(
        inputs[op.point] == counts[op.point].double().sum() for op in operations(config.model) if op.point
    )
    assert sum(inputs.values()) > 0
    found, wanted = (ledger(config.model, config.model.timesteps, c, samples)["total"]["pj"] for c in (inputs, counts))
    assert found == pytest.approx(wanted, rel=1e-12)
    assert totals.reduced()["embed.0"] == pytest.approx(counts["embed.0"].double().mean().item() / samples, rel=1e-12)
    assert all(core.pairs is None for core in model.attention_cores().values())


@pytest.mark.parametrize("name", ["digits", "digits_events"])
def test_pairs_are_those_of_the_same_token_and_head(name):
    config = load_config(name, {**SMALL, "model.timesteps": 3})
    model, kept = alive(config).model, []
    model.blocks[0].attn.core.register_forward_hook(lambda _m, inputs, _o: kept.append(inputs[1:3]))
    with evaluating(model), SpikeMeter(model) as meter:
        model(next(iter(make_test_loader(config)))[0])
    k, v = (x.unflatten(2, (config.model.num_heads, -1)).flatten(-2).double() for x in kept[0])  # [T, B, h, d, N]
    assert torch.equal(torch.einsum("tbhin,tbhjn->t", k, v), meter.counts()["blocks.0.attn.pairs"])
