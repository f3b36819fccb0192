"""`scale.workers: [min, max]`: with any number of workers a step has the same samples and the same gradients."""

import pytest
import torch
from evaluated import TINY

from statten.config import load_config
from statten.data import make_loaders
from statten.errors import UserError
from statten.training.loop import fit, make_state, step_optimizer, stream
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


def test_half_precision_keeps_half_of_what_the_backward_pass_needs():
    sizes = {
        precision: memory_bytes(load_config("cifar10_2_256", {"train.precision": precision})) for precision in ("fp32", "bf16")
    }
    assert 0.45 < sizes["bf16"] / sizes["fp32"] < 0.6


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


def test_one_rank_with_two_shares_takes_the_step_of_two_ranks():
    config = load_config("digits", {**SHORT, "train.batch_size": 400, "train.optimizer": "sgd"})
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
        parameter.grad = torch.stack(gradients[name]).mean(0)
    step_optimizer(theirs, config.train)
    start = make_state(config).model.state_dict()
    for name, value in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, start[name]) for name, value in theirs.model.named_parameters()), "and it moved"
    assert ours.metrics["samples_per_second"] > 0 and ours.best["epoch"] == 1
