"""Options of training: the moving average, layer-wise rates, clipping, every optimizer; and all of it resumed bit for bit."""

import dataclasses
import json

import pytest
import torch
from evaluated import TINY
from networks import NAMES, on_digits
from safetensors.torch import load_file

from statten.config import load_config
from statten.data import make_loaders
from statten.evaluation import evaluate
from statten.metrics.accuracy import Accuracy
from statten.metrics.labels import reported
from statten.storage.checkpoint import EMA, MODEL, load_newest, load_weights, save
from statten.storage.run import Run
from statten.training.loop import FUSED, NoCallback, fit, make_state, step_optimizer, validate
from statten.training.worker import run_fit

SHORT = {
    **TINY, "model.num_heads": 2, "model.timesteps": 2, "data.fraction": 0.1, "train.batch_size": 24, "train.epochs": 2,
}  # fmt: skip
CLIPS = {**SHORT, "model.image_size": 8, "model.pooling": "0001"}
EVERYTHING = {
    "images": ("digits", {
        **SHORT, "data.augment": True, "train.optimizer": "lamb", "train.mixup": 0.5, "train.cutmix": 1.0,
        "train.mixup_prob": 0.8, "train.mixup_off_epoch": 1, "train.ema_decay": 0.9, "train.layer_decay": 0.7,
        "train.clip_grad": 0.05, "train.clip_mode": "agc", "train.warmup_epochs": 1, "train.cooldown_epochs": 1,
        "train.lr_update": "epoch", "train.loss": "bce", "model.drop_path": 0.2,
    }),
    "clips": ("digits_events", {
        **CLIPS, "data.augment": True, "train.eventmix": 1.0, "train.ema_decay": 0.5, "train.loss": "tet",
        "model.per_timestep_logits": True, "train.clip_grad": 0.01, "train.clip_mode": "value", "train.precision": "amp",
    }),
    **{
        name: ("digits", {
            **SHORT, **on_digits(name), "data.fraction": 0.05, "train.batch_size": 12, "train.ema_decay": 0.9,
            "model.drop_path": 0.2,
        }) for name in NAMES if name != "sdt"
    },
}  # fmt: skip


class Killed(Exception):
    pass


class Checkpoints(NoCallback):
    """Writes a checkpoint at the end; or after some steps, and is killed then."""

    def __init__(self, folder, epochs, killed_after=None):
        self.folder, self.epochs, self.left, self.rows = folder, epochs, killed_after, []

    def checkpoint(self, state):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                save(state, self.folder)
                raise Killed

    def epoch(self, state):
        self.rows.append({k: v for k, v in state.metrics.items() if not k.startswith(("seconds", "samples_per", "time"))})
        if state.epoch == self.epochs:
            save(state, self.folder)


def contents(folder):
    newest = max(folder.glob("epoch-*"))
    tensors = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    return newest.name, tensors, json.loads((newest / "state.json").read_text())["optimizer"]


@pytest.mark.parametrize("kind", EVERYTHING)
def test_resuming_with_all_of_it_on_ends_in_the_same_bits(kind, tmp_path):
    recipe, options = EVERYTHING[kind]
    config = load_config(recipe, {**options, "train.checkpoint_every_steps": 1})
    epochs = config.train.total_epochs
    straight = Checkpoints(tmp_path / "straight", epochs)
    fit(make_state(config), make_loaders(config), config, straight)
    with pytest.raises(Killed):
        fit(make_state(config), make_loaders(config), config, Checkpoints(tmp_path / "killed", epochs, 5))
    state, resumed = make_state(config), Checkpoints(tmp_path / "killed", epochs)
    torch.manual_seed(12345)
    assert load_newest(state, tmp_path / "killed") is not None and (state.epoch, state.step) != (0, 0)
    began = state.epoch
    fit(state, make_loaders(config), config, resumed)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert len(contents(tmp_path / "straight")[1]) == 3, "model, average, optimizer"
    assert resumed.rows == straight.rows[began:]


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_fused_step_is_the_plain_one(optimizer):
    """The kernel takes weights, gradients and averages by address, so it is right only where all lie in memory alike."""
    config = load_config("digits", {**SHORT, "train.optimizer": optimizer, "train.clip_grad": 1.0, "train.weight_decay": 0.1})
    fused, plain = make_state(config), make_state(config)
    assert {group["fused"] for group in fused.optimizer.param_groups} == {True}
    for group in plain.optimizer.param_groups:
        group["fused"] = None
    for _, (x, y) in zip(range(3), make_loaders(config).train.batches(0), strict=False):
        torch.nn.functional.cross_entropy(fused.model(x), y).backward()
        for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        step_optimizer(fused, config.train)
        step_optimizer(plain, config.train)
        for ours, theirs in zip(fused.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert fused.model.embed.stages[1][0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lamb", "lion", "rmsprop"])
def test_every_optimizer_survives_a_checkpoint(optimizer, tmp_path):
    config = load_config("digits", {**SHORT, "train.optimizer": optimizer, "train.momentum": 0.8})
    first = make_state(config)
    batches = [batch for _, batch in zip(range(4), make_loaders(config).train.batches(0), strict=False)]
    for step, (x, y) in enumerate(batches):
        if step == 2:
            first.step = step
            save(first, tmp_path)
            second = make_state(config)
            load_newest(second, tmp_path)
        for state in (first, second) if step >= 2 else (first,):
            torch.nn.functional.cross_entropy(state.model(x), y).backward()
            step_optimizer(state, config.train)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(first.model.parameters(), make_state(config).model.parameters(), strict=True)
    )


def test_the_moving_average_is_its_formula_and_is_what_validation_and_evaluation_see(tmp_path):
    config = load_config("digits", {**SHORT, "train.ema_decay": 0.75})
    expected: dict[str, torch.Tensor] = {}

    class Follow(NoCallback):
        steps = 0

        def step(self, state, steps):
            decay, self.steps = min(0.75, self.steps / (self.steps + 9)), self.steps + 1
            for name, value in state.model.state_dict().items():
                if name not in expected or not value.is_floating_point():  # the average starts with the first step
                    expected[name] = value.double()
                else:
                    expected[name] = decay * expected[name] + (1 - decay) * value.double()

    state = make_state(config)
    loaders = make_loaders(config)
    fit(state, loaders, config, Follow())
    assert state.eval_model is state.ema.module
    for name, value in state.ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    averaged, trained = (validate(model, loaders.validation, config) for model in (state.eval_model, state.model))
    assert state.metrics["val/loss"] == averaged["val/loss"] != trained["val/loss"]


def test_evaluation_takes_the_average_unless_told_otherwise(tmp_path):
    run = Run.create(tmp_path / "averaged", load_config("digits", {**SHORT, "train.ema_decay": 0.9}))
    with run.writing() as attempt:
        run_fit(run, attempt, threads=1)
    files = {name: load_file(run.best_checkpoint() / name) for name in (MODEL, EMA)}
    assert any(not torch.equal(files[MODEL][name], files[EMA][name]) for name in files[MODEL])
    assert torch.equal(load_weights(run.best_checkpoint(), averaged=True)["head.weight"], files[EMA]["head.weight"])
    averaged, trained = evaluate(run.path), evaluate(run.path, ema=False)
    assert averaged["loss"] != trained["loss"]
    assert (averaged["weights"], trained["weights"]) == ("averaged (EMA)", "trained")

    plain = Run.create(tmp_path / "plain", load_config("digits", {**SHORT, "train.epochs": 1}))
    with plain.writing() as attempt:
        run_fit(plain, attempt, threads=1)
    assert not (plain.best_checkpoint() / EMA).exists()
    assert evaluate(plain.path)["weights"] == "trained"


def test_training_accuracy_under_mixing_is_that_of_the_labels_before_it():
    config = load_config("digits", {**SHORT, "train.epochs": 1, "train.mixup": 1.0})
    counted, add = [], Accuracy.add

    def noted(self, loss, logits, target):
        counted.append(target)
        add(self, loss, logits, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accuracy, "add", noted)
        loaders = make_loaders(config)
        fit(make_state(config), loaders, config)
    labels = [y for _, y in loaders.train.batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(labels, counted[: len(labels)], strict=True))


def test_layer_decay_gives_each_block_its_rate():
    options = {
        "model.depth": 3, "model.neuron": "plif", "train.layer_decay": 0.5, "train.lr": 0.08, "train.warmup_epochs": 1,
        "train.warmup_lr": 0.008,
    }  # fmt: skip
    config = load_config("digits", {**SHORT, **options})
    state = make_state(config)
    rate_of = {id(p): group for group in state.optimizer.param_groups for p in group["params"]}
    state.scheduler.step(1)
    for name, parameter in state.model.named_parameters():
        layer = 0 if name.startswith("embed") else int(name.split(".")[1]) + 1 if name.startswith("blocks") else 4
        group = rate_of[id(parameter)]
        at = 1e-5 + (0.08 - 1e-5) / 2  # half-way down the cosine of two epochs
        assert group["lr"] == pytest.approx(at * 0.5 ** (4 - layer)), name
        assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 else config.train.weight_decay), name
    state.scheduler.step(0)
    assert max(group["lr"] for group in state.optimizer.param_groups) == pytest.approx(0.008), "the warm-up is scaled too"


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_clip_modes_clip(mode):
    plain = {"train.optimizer": "sgd", "train.momentum": 1e-9, "train.weight_decay": 0.0, "train.lr": 1.0}
    config = load_config("digits", {**SHORT, **plain, "train.clip_grad": 0.01, "train.clip_mode": mode})
    moved = {}
    for name, clip in (("clipped", 0.01), ("free", None)):
        state = make_state(config)
        before = [p.detach().clone() for p in state.model.parameters()]
        x, y = next(make_loaders(config).train.batches(0))
        torch.nn.functional.cross_entropy(state.model(x), y).backward()
        step_optimizer(state, config.train.model_copy(update={"clip_grad": clip}))
        moved[name] = [b - a.detach() for a, b in zip(state.model.parameters(), before, strict=True)]
    weights = [p.detach() for p in make_state(config).model.parameters()]
    if mode == "norm":
        norms = {name: torch.stack([m.norm() for m in found]).norm().item() for name, found in moved.items()}
        assert norms["clipped"] == pytest.approx(0.01, rel=1e-3) and norms["free"] > 0.02
    elif mode == "value":
        assert (
            max(m.abs().max().item() for m in moved["clipped"]) <= 0.01 * (1 + 1e-4) < max(m.abs().max() for m in moved["free"])
        )
    else:
        for move, free, weight in zip(moved["clipped"][:-2], moved["free"][:-2], weights[:-2], strict=True):
            rows = [m.flatten(1) if m.ndim > 1 else m[None] for m in (move, free, weight)]
            limit = 0.01 * rows[2].norm(dim=1).clamp(min=1e-3)
            torch.testing.assert_close(rows[0].norm(dim=1), rows[1].norm(dim=1).minimum(limit), rtol=1e-2, atol=1e-6)
        for move, free in zip(moved["clipped"][-2:], moved["free"][-2:], strict=True):
            torch.testing.assert_close(move, free), "the classifier is left out"


def test_amp_is_float32_on_a_cpu():
    runs = {}
    for precision in ("fp32", "amp"):
        config = load_config("digits", {**SHORT, "train.epochs": 1, "train.precision": precision})
        state = make_state(config)
        assert not state.scaler.is_enabled()
        runs[precision] = fit(state, make_loaders(config), config)["val/loss"]
    assert runs["fp32"] == runs["amp"]


def test_a_state_without_an_average_is_judged_by_its_model():
    state = make_state(load_config("digits", SHORT))
    assert state.eval_model is state.model and dataclasses.replace(state).ema is None


def test_fit_reports_what_it_says_that_it_reports():
    """A sweep is refused objectives that are not in this list, so it must be the whole row."""
    config = load_config("digits", {**TINY, "train.epochs": 1, "data.skip_corrupt": True, "search.objectives": ["latency_ms"]})
    state = make_state(config)
    fit(state, make_loaders(config), config, NoCallback())
    assert {*state.metrics, "peak_memory_mib"} == {"epoch", "time", *reported(config)}  # memory is measured on a GPU
