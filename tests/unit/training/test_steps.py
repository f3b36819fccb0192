"""What `fit` does step by step: rates, counters, checkpoints inside an epoch, leaving, going on, and what an epoch reports."""

import copy
import dataclasses
import math
import time

import pytest
import torch
from evaluated import TINY

from statten.config import load_config
from statten.data import make_loaders
from statten.metrics.accuracy import Accuracy
from statten.metrics.inference import half_type
from statten.storage.run import best_row
from statten.training.faults import Diverged, Preempted
from statten.training.loop import NoCallback, cost, fit, left_out, make_state, set_lr, stream, validate

SHORT = {
    **TINY, "model.num_heads": 2, "data.fraction": 0.1, "train.batch_size": 24, "train.epochs": 2, "train.warmup_epochs": 1,
    "train.warmup_lr": 1e-4, "train.lr": 0.01, "train.min_lr": 1e-5, "train.checkpoint_every_steps": 2, "scale.device": "cpu",
}  # fmt: skip
STEPS = 5


class Noted(NoCallback):
    """Everything that a callback hears, and whether it asks to leave."""

    def __init__(self, leave_after: float = math.inf):
        self.leave_after, self.rates, self.steps, self.inside, self.rows, self.left = leave_after, [], 0, [], [], None

    def step(self, state, steps):
        assert steps == STEPS
        self.steps += 1
        self.rates.append(state.optimizer.param_groups[0]["lr"])
        return self.steps >= self.leave_after

    def checkpoint(self, state):
        self.inside.append((state.epoch, state.step, list(state.sums), state.seconds))
        self.left = copy.deepcopy(state)

    def epoch(self, state):
        self.rows.append(dict(state.metrics))


@pytest.fixture(scope="module")
def config():
    return load_config("digits", SHORT)


@pytest.fixture(scope="module")
def straight(config):
    """Two epochs of five steps; with what the model said in training, and the labels."""
    state, loaders, noted, logits = make_state(config), make_loaders(config), Noted(), []
    state.model.register_forward_hook(lambda m, _i, out: logits.append(out.detach().clone()) if m.training else None)
    began = time.monotonic()
    best = fit(state, loaders, config, noted)
    noted.took = time.monotonic() - began
    labels = [y for epoch in range(2) for _, y in loaders.train.batches(epoch)]
    return state, noted, best, logits, labels


def test_rates_follow_the_schedule_step_by_step(config, straight):
    _, noted, *_ = straight
    assert noted.steps == 2 * STEPS and len(noted.rows) == 2
    wanted = make_state(config)
    for step, rate in enumerate(noted.rates):
        wanted.scheduler.step(step / STEPS)
        assert rate == pytest.approx(wanted.optimizer.param_groups[0]["lr"]), f"after {step} steps"
    assert noted.rates[0] == pytest.approx(1e-4) and len(set(noted.rates)) > STEPS
    assert [row["lr"] for row in noted.rows] == pytest.approx([noted.rates[4], noted.rates[9]])


@pytest.mark.parametrize(("update", "epochs"), [("step", 1.75), ("epoch", 1.0)])
def test_rates_change_with_every_step_or_every_epoch(update, epochs, config):
    ours, theirs = make_state(config), make_state(config)
    set_lr(ours, 1.75, config.train.model_copy(update={"lr_update": update}))
    theirs.scheduler.step(epochs)
    assert ours.optimizer.param_groups[0]["lr"] == theirs.optimizer.param_groups[0]["lr"]


def test_an_epoch_reports_what_its_steps_were(config, straight):
    state, noted, best, logits, labels = straight
    for epoch, row in enumerate(noted.rows):
        said, true = (torch.cat(values[epoch * STEPS : (epoch + 1) * STEPS]) for values in (logits, labels))
        losses = [torch.nn.functional.cross_entropy(logits[i], labels[i], label_smoothing=config.train.label_smoothing).item()
                  for i in range(epoch * STEPS, (epoch + 1) * STEPS)]  # fmt: skip
        assert (row["epoch"], row["steps"]) == (epoch + 1, (epoch + 1) * STEPS) and len(true) == STEPS * 24
        assert row["train/loss"] == pytest.approx(sum(losses) / STEPS, rel=1e-5)
        assert row["train/top1"] == pytest.approx(100 * (said.argmax(1) == true).double().mean().item(), abs=2.0)
        assert row["parameters"] == sum(p.numel() for p in state.model.parameters())
        assert row["samples_per_second"] * row["seconds"] == pytest.approx(STEPS * 24, rel=0.9)
    assert 0 < sum(row["seconds"] for row in noted.rows) <= noted.took
    assert best == state.best == best_row(noted.rows) and state.metrics == noted.rows[-1]
    assert (state.epoch, state.step, state.sums, state.seconds) == (2, 0, None, 0.0)
    validated = validate(state.eval_model, make_loaders(config).validation, config, "test/")
    assert {name: row[name] for name in ("val/loss", "val/top1", "val/top5", "energy_uj")} == {
        "val/loss": validated["test/loss"], "val/top1": validated["test/top1"], "val/top5": validated["test/top5"],
        "energy_uj": validated["energy_uj"],
    }  # fmt: skip


def test_checkpoints_inside_an_epoch_hold_its_sums(straight):
    noted = straight[1]
    assert [(epoch, step) for epoch, step, _, _ in noted.inside] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    for epoch, step, sums, seconds in noted.inside:
        assert sums[3] == step * 24 and 0 <= sums[1] <= sums[2] <= sums[3]
        assert 0 < seconds <= noted.rows[epoch]["seconds"]
    assert noted.inside[0][3] < noted.inside[1][3]


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_whoever_is_asked_to_go_goes_on_as_if_nothing_had_happened(steps, config, straight):
    noted = Noted(leave_after=steps)
    epoch, inside = divmod(steps, STEPS)
    said = rf"asked to go after step {inside} of epoch {epoch + 1}, and a checkpoint is written"
    with pytest.raises(Preempted, match=said):
        fit(make_state(config), make_loaders(config), config, noted)
    assert noted.inside[-1][:2] == (epoch, inside) and noted.steps == steps and len(noted.rows) == epoch
    left, more = noted.left, Noted()
    seconds = left.seconds
    assert seconds > 0
    fit(left, make_loaders(config), config, more)
    assert more.steps == 2 * STEPS - steps
    rows = [*noted.rows, *more.rows]
    assert rows[epoch]["seconds"] > seconds, "the time before counts"
    timed = ("seconds", "samples_per_second", "time")
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows] == [
        {k: v for k, v in row.items() if k not in timed} for row in straight[1].rows
    ]
    assert rows[epoch]["samples_per_second"] == pytest.approx(STEPS * 24 / rows[epoch]["seconds"], rel=0.9)


def test_after_the_last_step_of_an_epoch_it_is_finished_first(config):
    noted = Noted(leave_after=STEPS)
    with pytest.raises(Preempted, match="after step 1 of epoch 2"):
        fit(make_state(config), make_loaders(config), config, noted)
    assert len(noted.rows) == 1 and noted.inside[-1][:2] == (1, 1)


def test_a_run_that_is_done_takes_no_step(config, straight):
    state = dataclasses.replace(straight[0])
    noted = Noted()
    assert fit(state, make_loaders(config), config, noted) == state.best and noted.steps == 0
    assert fit(state, make_loaders(config), config) == state.best, "and nobody need hear of it"


def test_without_checkpoints_inside_an_epoch_there_are_none():
    config, noted = (
        load_config("digits", {**SHORT, "train.epochs": 1, "train.warmup_epochs": 0, "train.checkpoint_every_steps": None}),
        Noted(),
    )
    fit(make_state(config), make_loaders(config), config, noted)
    assert noted.inside == [] and len(noted.rows) == 1


def test_a_loss_that_is_not_finite_ends_it():
    config = load_config("digits", {**SHORT, "train.optimizer": "sgd", "train.lr": 1e30, "train.warmup_epochs": 0})
    state, noted = make_state(config), Noted()
    with pytest.raises(
        Diverged, match=r"the loss is not finite after epoch 1 \(train .*, validation .*\); try a smaller train.lr"
    ):
        fit(state, make_loaders(config), config, noted)
    assert noted.rows == [] and state.epoch == 0


def test_the_average_is_updated_by_the_number_of_all_steps():
    config = load_config("digits", {**SHORT, "train.ema_decay": 0.9})
    state, seen = make_state(config), []
    state.ema.update = lambda model, step: seen.append(step)
    fit(state, make_loaders(config), config)
    assert seen == list(range(1, 2 * STEPS + 1))


@pytest.mark.parametrize(
    ("fields", "scaled"),
    [
        ({}, False),
        ({"train.precision": "bf16"}, False),
        ({"train.precision": "amp"}, False),
        ({"train.precision": "fp16"}, True),
    ],
)
def test_a_state_is_made_as_the_config_says(fields, scaled):
    config = load_config("digits", {**SHORT, **fields, "train.ema_decay": 0.9, "scale.activation_checkpointing": True})
    state = make_state(config)
    assert state.scaler.is_enabled() is scaled and state.ema.decay == 0.9 and state.model.activation_checkpointing is True
    assert state.model.embed.stages[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert make_state(load_config("digits", SHORT)).ema is None
    group = state.optimizer.param_groups[0]
    assert group["lr"] == 1e-4, "of the warm-up"
    assert {group["weight_decay"] for group in state.optimizer.param_groups} == {0.0, config.train.weight_decay}
    same, other = (make_state(load_config("digits", {**SHORT, "train.seed": seed})) for seed in (config.train.seed, 99))
    weights = [s.model.head.weight for s in (state, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("capable", "half"), [(True, torch.bfloat16), (False, torch.float16)])
def test_amp_on_a_gpu_is_bf16_where_the_gpu_computes_in_it(monkeypatch, capable, half):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capable or including_emulation)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    amp, bf16, fp16 = (load_config("digits", {**SHORT, "train.precision": name}) for name in ("amp", "bf16", "fp16"))
    assert half_type(amp, gpu) == half and half_type(amp, cpu) is None
    for device in (gpu, cpu):
        assert half_type(bf16, device) == torch.bfloat16
    assert half_type(fp16, gpu) == torch.float16 and half_type(fp16, cpu) is None


def test_every_key_has_a_stream_of_its_own():
    keys = [(seed, epoch, step, rank) for seed in (0, 1) for epoch in range(3) for step in range(4) for rank in range(3)]
    assert len({stream(*key) for key in keys}) == len(keys) and all(0 <= stream(*key) < 2**64 for key in keys)
    assert stream(0, 0, 0, 0) == 15793235383387715774, "that of ever: runs go on with it"


def test_what_is_reported_beside_accuracy():
    config = load_config("digits", {**SHORT, "data.skip_corrupt": True, "search.objectives": ["latency_ms"]})
    state, loaders = make_state(config), make_loaders(config)
    found = cost(state, config)
    assert found.keys() == {"parameters", "latency_ms"} and found["latency_ms"] > 0
    state.model.head.weight.requires_grad = False
    assert cost(state, load_config("digits", SHORT)) == {"parameters": found["parameters"] - state.model.head.weight.numel()}
    loaders.train.corrupt[3] = "damaged"
    loaders.validation.corrupt[5] = "damaged"
    assert left_out(loaders, config, torch.device("cpu")) == {"corrupt": 2}
    assert left_out(loaders, load_config("digits", SHORT), torch.device("cpu")) == {}


def test_validation_is_of_the_mean_over_timesteps_and_leaves_the_model_as_it_was():
    fields = {**SHORT, "model.timesteps": 2, "model.per_timestep_logits": True, "train.loss": "tet"}
    config = load_config("digits", fields)
    state, loaders = make_state(config), make_loaders(config)
    state.model.train()
    found = validate(state.model, loaders.validation, config)
    assert state.model.training and all(p.grad is None for p in state.model.parameters())
    totals = Accuracy("cpu")
    state.model.eval()
    with torch.no_grad():
        for x, y in loaders.validation:
            logits = state.model(x).mean(0)
            totals.add(torch.nn.functional.cross_entropy(logits, y), logits, y)
    assert {name: found[f"val/{name}"] for name in ("loss", "top1", "top5")} == pytest.approx(
        {name: totals.reduced()[name] for name in ("loss", "top1", "top5")}, rel=1e-5
    )
