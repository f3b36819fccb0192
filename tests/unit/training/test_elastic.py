"""`scale.workers: [min, max]`: with any number of workers a step has the same samples and the same gradients.

And what several ranks have of their own, and what in common: real processes, joined by gloo.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from evaluated import TINY
from networks import NAMES, on_digits

from statten.config import load_config
from statten.data import make_loaders
from statten.data.mixing import make_mixer
from statten.errors import UserError
from statten.training.loop import NoCallback, fit, make_state, step_optimizer, stream
from statten.training.losses import make_loss
from statten.training.preflight import memory_bytes, preflight

SHORT = {
    **TINY, "model.num_heads": 2, "train.epochs": 1, "train.warmup_epochs": 0, "train.batch_size": 64, "scale.device": "cpu",
    "data.augment": True,
}  # fmt: skip


def test_fields_and_their_mistakes():
    scale = load_config("digits", {"scale.workers": [2, 4]}).scale
    assert (scale.min_workers, scale.max_workers) == (2, 4)
    fixed = load_config("digits", {"scale.workers": 3}).scale
    assert (fixed.workers, fixed.min_workers, fixed.max_workers) == (3, 3, 3)
    for value, rule in (
        ([4, 2], r"\[min, max\]"),
        ([1], r"\[min, max\]"),
        (0, "at least 1"),
        ([1, 5000], "at most 4096"),
        ("a", "whole"),
    ):
        with pytest.raises(UserError, match=f"scale.workers: must be .*{rule}"):
            load_config("digits", {"scale.workers": value})


def test_graphs_are_not_recorded_for_workers_that_may_have_several_shares():
    fields = {**SHORT, "scale.device": "cuda", "scale.cuda_graphs": True, "scale.neuron_backend": "cupy"}
    with pytest.raises(UserError, match=r"cannot record the steps of elastic workers, but scale.workers is \[1, 2\]") as caught:
        preflight(load_config("digits", {**fields, "scale.workers": [1, 2]}), {"CPU": 2.0, "GPU": 2.0})
    assert len(caught.value.problems) == 1, "cupy is asked for on the machines that have the GPUs"
    assert preflight(load_config("digits", fields), {"CPU": 2.0, "GPU": 2.0}).device == "cuda"
    native = load_config("digits", {**SHORT, "scale.device": "cuda", "scale.neuron_backend": "native"})
    with pytest.raises(UserError, match="native runs on cpu, not on cuda"):
        preflight(native, {"CPU": 2.0, "GPU": 2.0})


def test_a_worker_with_several_shares_does_not_record_graphs():
    config = load_config("digits", {**SHORT, "scale.cuda_graphs": True, "train.batch_size": 400})
    with pytest.raises(UserError, match="cannot record steps of 2 batches on one worker; set it to false"):
        fit(make_state(config), make_loaders(config, 0, 1, 2), config)


def test_half_precision_keeps_half_of_what_the_backward_pass_needs():
    def size(precision, device):
        return memory_bytes(load_config("cifar10_2_256", {"train.precision": precision}), device)

    whole = size("fp32", "cuda")
    assert size("fp32", "cpu") == size("amp", "cpu") == whole
    assert 0.45 < size("bf16", "cpu") / whole < 0.6
    assert size("bf16", "cuda") == size("fp16", "cuda") == size("amp", "cuda") == size("bf16", "cpu")


def test_the_preflight_asks_for_the_least_and_plans_for_the_most():
    config = load_config("digits", {**SHORT, "scale.workers": [2, 4], "scale.cpus_per_worker": 1})
    plan = preflight(config, {"CPU": 2.0})
    assert (plan.world_size, plan.min_workers) == (4, 2) and plan.steps_per_epoch == make_loaders(
        config, 0, 4
    ).train.steps_per_epoch
    with pytest.raises(
        UserError, match=r"2 workers of 1 cores need 2 cores, but there are 1; the most is scale.workers\[0\]=1"
    ):
        preflight(config, {"CPU": 1.0})


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_reads_the_same_whatever_the_number_of_ranks(world_size):
    config = load_config("digits", SHORT)
    full = [make_loaders(config, rank, 4).train for rank in range(4)]
    ranks = [make_loaders(config, rank, world_size, 4) for rank in range(world_size)]
    shares = sorted((share for loaders in ranks for share in loaders.shares), key=lambda share: share.rank)
    assert [share.rank for share in shares] == [0, 1, 2, 3]
    validated = [index for loaders in ranks for index in loaders.validation.indices]
    assert sorted(validated) == sorted(make_loaders(config).validation.indices)
    for share, alone in zip(shares, full, strict=True):
        assert share.steps_per_epoch == alone.steps_per_epoch > 2
        # Begun in mid-epoch, as after another number of ranks left it there.
        for (x, y), (x_alone, y_alone) in zip(share.batches(1, start_step=2), list(alone.batches(1))[2:], strict=True):
            assert torch.equal(x, x_alone) and torch.equal(y, y_alone)


@pytest.mark.parametrize("backbone", NAMES)
def test_one_rank_with_two_shares_takes_the_step_of_two_ranks(backbone):
    fields = (
        {"train.batch_size": 400}
        if backbone == "sdt"
        else {**on_digits(backbone), "data.fraction": 0.1, "train.batch_size": 50}
    )
    config = load_config("digits", {**SHORT, **fields, "train.optimizer": "sgd"})
    loaders = make_loaders(config, 0, 1, 2)
    assert loaders.train.steps_per_epoch == 1 and len(loaders.shares) == 2
    ours, theirs = make_state(config), make_state(config)
    fit(ours, loaders, config)

    theirs.model.train()
    theirs.scheduler.step(0.0)
    gradients: dict[str, list[torch.Tensor]] = {}
    for rank in range(2):
        ((x, y),) = make_loaders(config, rank, 2).train.batches(0)
        torch.manual_seed(stream(config.train.seed, 0, 0, rank))
        theirs.model.zero_grad()
        make_loss(config.train)(theirs.model(x), y).backward()
        for name, parameter in theirs.model.named_parameters():
            gradients.setdefault(name, []).append(parameter.grad.clone())
    for name, parameter in theirs.model.named_parameters():
        # In the layout of the weight, as autograd gives gradients: fused optimizers read both in the order of memory.
        parameter.grad = torch.empty_like(parameter).copy_(torch.stack(gradients[name]).mean(0))
    step_optimizer(theirs, config.train)
    start = make_state(config).model.state_dict()
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, start[name]) for name, value in theirs.model.named_parameters()), "and it moved"
    assert ours.metrics["samples_per_second"] > 0 and ours.best["epoch"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Several ranks.

RANKS = {**SHORT, "data.fraction": 0.1, "train.batch_size": 16, "train.epochs": 2, "train.checkpoint_every_steps": 1,
         "train.ema_decay": 0.5, "train.mixup": 1.0}  # fmt: skip


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """BatchNorm's running means and variances."""
    found = {name: value.clone() for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    assert found
    return found


class Noted(NoCallback):
    """What a rank has after each step, and what is there when a checkpoint is written, in mid-epoch or at its end."""

    def __init__(self):
        self.inputs, self.seeds, self.own, self.kept = [], [], [], []

    def step(self, state, steps):
        self.own.append([statistics(state.model), statistics(state.ema.module)])
        return False

    def checkpoint(self, state):
        self.kept.append([statistics(state.model), statistics(state.ema.module)])

    epoch = checkpoint


def _ranks_that_train(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    config, noted = load_config("digits", RANKS), Noted()
    state = make_state(config)

    def note(model, inputs):
        if model.training:
            noted.inputs.append(inputs[0].clone())
            noted.seeds.append(torch.initial_seed())

    state.model.register_forward_pre_hook(note)
    fit(state, make_loaders(config, rank, world_size), config, noted)
    torch.save(vars(noted), f"{folder}/rank-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What three ranks noted of the same training."""
    folder = tmp_path_factory.mktemp("ranks")
    method = "spawn" if torch.cuda.is_available() else "fork"  # autograd that has met a GPU does not work in a fork
    mp.start_processes(_ranks_that_train, (3, str(folder)), nprocs=3, start_method=method)
    return [torch.load(folder / f"rank-{rank}") for rank in range(3)]


@pytest.mark.parametrize(("which", "name"), [(0, "the model"), (1, "the moving average")])
def test_statistics_that_are_kept_are_the_average_over_ranks(which, name, ranks):
    assert len(ranks[0]["kept"]) == len(ranks[0]["own"]) == 4, "two epochs of two steps, each with a checkpoint"
    for step in range(4):
        own = [noted["own"][step][which] for noted in ranks]
        for key in own[0]:
            assert not torch.allclose(own[0][key], own[1][key]), f"{key}: the ranks saw the same, and nothing is tested"
            mean = torch.stack([found[key] for found in own]).mean(0)
            for rank, noted in enumerate(ranks):
                kept = noted["kept"][step][which][key]
                alone = ", but those of rank 0" if torch.equal(kept, own[0][key]) else ""
                said = f"{key} of {name} on rank {rank} is not the average over ranks after step {step + 1}{alone}"
                torch.testing.assert_close(kept, mean, rtol=1e-5, atol=1e-7, msg=said)
    # The means of the first layer, whose input no other layer normalised, are those of one process that sees all samples.
    alone = make_state(load_config("digits", RANKS)).model.train()
    alone(torch.cat([noted["inputs"][0] for noted in ranks]))
    first, mean = next(iter(statistics(alone).items()))
    torch.testing.assert_close(ranks[0]["kept"][0][which][first], mean, rtol=1e-5, atol=1e-7)


def test_every_rank_and_step_has_random_numbers_of_its_own(ranks):
    config = load_config("digits", RANKS)
    seeds = [seed for noted in ranks for seed in noted["seeds"]]
    assert len(set(seeds)) == len(seeds) == 12, "ranks (or steps) draw the same random numbers"
    mix = make_mixer(config)
    for rank, noted in enumerate(ranks):
        batches = [(e, s, batch) for e in range(2) for s, batch in enumerate(make_loaders(config, rank, 3).train.batches(e))]
        for (epoch, step, (x, y)), seen in zip(batches, noted["inputs"], strict=True):
            mixed = [mix(x.clone(), y, key=(config.train.seed, epoch, step, of))[0] for of in range(3)]
            same = [of for of in range(3) if torch.equal(mixed[of], seen)]
            assert same == [rank], f"rank {rank} mixed its batch by the draw of rank {same} in step {step} of epoch {epoch}"
