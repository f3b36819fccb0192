"""The shipped recipes hold the published values, their models have the published sizes, and every job file can run."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from evaluated import TINY

from statten.config import RECIPES, dump_config, get_field, load_config, recipe_names, with_overrides
from statten.data.transforms import sample_transform
from statten.errors import ConfigError, UserError
from statten.jobs.file import JobFile, enter, load_job
from statten.models import build_model
from statten.storage.run import Run
from statten.training.loop import make_state
from statten.training.worker import run_fit

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))

CIFAR = {
    "model": "image_size=32 in_channels=3 pooling=0011 depth=2 timesteps=4 block_size=2 events=False",
    "train": "batch_size=64 optimizer=adamw lr=3e-4 min_lr=1e-5 warmup_epochs=20 warmup_lr=1e-6 weight_decay=6e-2 "
             "precision=fp32 mixup=0.5 cutmix=0 mixup_switch_prob=0.5 mixup_prob=1",
    "data": "auto_augment=rand-m9-n1-mstd0.4-inc1 crop_scale=[1,1] crop_ratio=[1,1] interpolation=bicubic",
}  # fmt: skip
IMAGENET = {
    "model": "image_size=224 in_channels=3 pooling=1111 depth=8 timesteps=4 block_size=2 num_classes=1000 drop_path=0.2",
    "train": "optimizer=lamb lr=1e-3 warmup_epochs=20 warmup_lr=1e-5 weight_decay=1e-2 precision=amp mixup=0.2 cutmix=1",
    "data": "hflip=0.5 crop_pct=0.95 interpolation=bicubic",
}
EVENTS = {
    "model": "image_size=64 in_channels=2 pooling=0011 depth=2 embed_dim=256 events=True",
    "train": "batch_size=16 optimizer=adamw lr=1e-2 min_lr=3e-4 warmup_epochs=10 warmup_lr=1e-3 weight_decay=1e-4 "
             "precision=amp",
}  # fmt: skip
# The table of published recipes: what all of a family share, then what is a recipe's own; last, millions of parameters as
# published, which count `talking_heads` weights (heads x heads in each block) that never get a gradient and are not here.
MEAN = {
    10: "mean=[0.4914,0.4822,0.4465] std=[0.2470,0.2435,0.2616]",
    100: "mean=[0.5071,0.4867,0.4408] std=[0.2675,0.2565,0.2761]",
}
PUBLISHED = {
    "cifar10_2_256": (CIFAR, {"model": "embed_dim=256 num_classes=10", "data": f"name=cifar10 {MEAN[10]}"}, "2.567"),
    "cifar10_2_512": (CIFAR, {"model": "embed_dim=512 num_classes=10", "data": f"name=cifar10 {MEAN[10]}"}, "10.234"),
    "cifar100_2_256": (CIFAR, {"model": "embed_dim=256 num_classes=100", "data": f"name=cifar100 {MEAN[100]}"}, None),
    "cifar100_2_512": (CIFAR, {"model": "embed_dim=512 num_classes=100", "data": f"name=cifar100 {MEAN[100]}"}, "10.280"),
    "imagenet_8_512": (IMAGENET, {
        "model": "embed_dim=512", "train": "batch_size=48 min_lr=1.5e-5 mixup_prob=0.6",
        "data": "name=imagenet auto_augment=rand-m5-mstd0.5-inc1 crop_scale=[0.2,1]",
    }, "29.69"),
    "imagenet_8_768": (IMAGENET, {
        "model": "embed_dim=768", "train": "batch_size=64 eval_batch_size=16 min_lr=2e-5 mixup_prob=1",
        "data": "name=imagenet auto_augment=rand-m7-mstd0.5-inc1 crop_scale=[0.08,1] repeats=1",
    }, "66.34"),
    **{
        f"cifar10dvs_2_256_t{t}": (EVENTS, {
            "model": f"num_classes=10 timesteps={t} block_size={b} per_timestep_logits=True",
            "train": "loss=tet tet_mean=1 tet_lambda=1e-3", "data": "name=cifar10dvs interpolation=bilinear event_augment=none",
        }, "2.567") for t, b in ((10, 5), (16, 4))
    },
    **{
        f"ncaltech101_2_256_t{t}": (EVENTS, {
            "model": f"num_classes=101 timesteps={t} block_size={b} per_timestep_logits=False",
            "train": "loss=cross_entropy", "data": "name=ncaltech101 interpolation=nearest event_augment=roll_rotate_shear",
        }, "2.590") for t, b in ((10, 5), (16, 4))
    },
}  # fmt: skip
NETWORKS = {
    "spikformer_cifar10_4_384": 9_324_730 - 4 * 3 * 384,  # its biases of q, k and v do nothing, and are not here
    "spikformer_cifar100_4_384": 9_359_380 - 4 * 3 * 384,
    "spikformer_cifar10dvs_2_256": 2_566_666,
    "spikformer_imagenet_8_512": 29_689_384,
    "qkformer_cifar10_4_384": 6_706_234,
    "qkformer_cifar100_4_384": 6_740_884,
    "qkformer_cifar10dvs_2_256": 1_504_138,
    "qkformer_imagenet_10_384": 16_473_688,
    "maxformer_cifar10_4_384": 6_568_282,
    "maxformer_cifar100_4_384": 6_602_932,
    "maxformer_cifar10dvs_2_256": 1_455_626,
    "maxformer_imagenet_10_384": 16_237_240,
    "sdt2_imagenet_8_512": 55_350_248,
}
"""Recipes of the other backbones, with the parameters that building the published classes gives."""
ALL = {
    "model": "num_heads=8 mlp_ratio=4 attention=statten neuron=lif",
    "train": "epochs=200 cooldown_epochs=10 lr_update=epoch label_smoothing=0.1 seed=42 ema_decay=None clip_grad=None",
}


def test_all_ten_are_there():
    own = {"digits", "digits_events", "image_folder", "event_folder"}
    assert set(recipe_names()) == {*PUBLISHED, *NETWORKS, *own}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_published_values(name):
    config, (family, own, _) = load_config(name), PUBLISHED[name]
    for part in (ALL, family, own):
        for prefix, fields in part.items():
            for field in fields.split():
                key, _, wanted = field.partition("=")
                value = get_field(config, f"{prefix}.{key}")
                if isinstance(value, tuple):
                    assert list(value) == json.loads(wanted), field
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    assert value == float(wanted), field
                else:
                    assert str(value) == wanted, field


@pytest.mark.parametrize("name", [*PUBLISHED, *NETWORKS])
def test_a_recipe_says_what_to_expect_and_invents_nothing(name):
    header = "".join(re.findall(r"^#.*\n", (RECIPES / f"{name}.yaml").read_text(), flags=re.M))
    assert f"#   statten train {name} --set data.root=DIR" in header
    for line in ("Hardware", "Time", "Accuracy"):
        said = re.search(rf"^# {line}: ((?:.*\n#   )*.*)\n", header, flags=re.M)
        assert said, line
        numbers = re.findall(r"\d+(?:\.\d+)? (?:%|h|hours|minutes)", said[1])
        assert not numbers or "quoted" in said[1], "a number has a source"
        assert line != "Time" or said[1] == "unknown, not measured."
    assert "data.validation=test" in header, "what the published run was selected on"


@pytest.mark.parametrize(("name", "published"), [(name, millions) for name, (_, _, millions) in PUBLISHED.items() if millions])
def test_a_model_has_the_published_number_of_parameters(name, published):
    config = load_config(name).model
    with torch.device("meta"):
        ours = sum(p.numel() for p in build_model(config, "torch").parameters())
    unused = config.depth * config.num_heads**2
    digits = len(published.partition(".")[2])
    assert f"{(ours + unused) / 1e6:.{digits}f}" == published
    assert abs(ours / 1e6 - float(published)) < 1e-3 if digits == 3 else f"{ours / 1e6:.{digits}f}" == published


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_counts_the_parameters_of_a_published_network(name, typed):
    code, out, err = typed("train", name, "--dry-run", "--json", "--set", "scale.device=cpu")
    assert code == 0, err
    assert json.loads(out)["parameters"] == NETWORKS[name]


@pytest.mark.parametrize("name", [*PUBLISHED, *NETWORKS])
def test_a_recipe_transforms_samples_and_makes_its_optimizer(name):
    """On a model and samples made small: what the recipe's strings and numbers name exists in timm."""
    from PIL import Image

    small = {"model.image_size": 32, "model.num_heads": 1, "model.depth": 4, "model.embed_dim": 16}
    config = with_overrides(load_config(name), small)
    raw = torch.randint(0, 5, (config.model.timesteps, 2, 128, 128)) if config.model.events else Image.new("RGB", (40, 32))
    for train in (True, False):
        x = sample_transform(config, train)(raw)
        assert x.shape[-3:] == (config.model.in_channels, 32, 32) and x.dtype == torch.float32
    state = make_state(config)
    state.scheduler.step(0)
    assert state.optimizer.param_groups[0]["lr"] == config.train.warmup_lr
    state.scheduler.step(config.train.epochs)
    assert state.optimizer.param_groups[0]["lr"] == config.train.min_lr
    assert type(state.optimizer).__name__.lower() == config.train.optimizer


# ---------------------------------------------------------------------------------------------------------------------


def test_every_published_recipe_has_its_job():
    assert {path.stem for path in JOBS} >= {*PUBLISHED, "digits"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_shipped_job_is_sound(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    job, text = load_job(path), path.read_text()
    assert text.startswith("# ") and f"statten run jobs/{path.name}" in text
    if path.stem in PUBLISHED:
        assert job.recipe == path.stem and "edit:" in text
        plain = load_config(path.stem)
        config = load_config(path.stem, job.all_overrides)
        changed = config.model_copy(update={"scale": plain.scale, "data": config.data.model_copy(update={"root": None})})
        assert dump_config(changed) == dump_config(plain), "a job changes where it runs, not what"
        extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cuda"]
        assert job.runtime.packages == [requirement.partition(";")[0].strip() for requirement in extra]
    else:
        enter(job)


def test_a_job_is_the_command_line_that_it_holds(tmp_path, monkeypatch, typed):
    path = tmp_path / "job.yaml"
    path.write_text(
        "command: train\nrecipe: digits\nname: n-1\n"
        f"storage: {tmp_path}/runs\noverrides: {{model.pooling: '0011', train.lr: 1e-3, data.frames: null}}\n"
        "resources: {cpus_per_worker: 1, device: cpu}\nruntime: {packages: ['numpy>=2'], environment: {STATTEN_JOB: yes}}\n"
    )
    words = "--set model.pooling=0011 --set train.lr=0.001 --set scale.cpus_per_worker=1 --set scale.device=cpu"
    monkeypatch.setenv("STATTEN_JOB", "no")
    ours = typed("run", path, "--dry-run", "--json")
    theirs = typed("train", "digits", *words.split(), "--dry-run", "--json")
    assert ours == theirs and ours[0] == 0 and json.loads(ours[1])["config"]["model"]["pooling"] == "0011"
    more = typed("run", path, "--set", "model.depth=1", "--dry-run", "--json")
    assert json.loads(more[1])["config"]["model"]["depth"] == 1
    assert load_job(path).arguments()[-4:] == ["--name", "n-1", "--storage", f"{tmp_path}/runs"]


def test_a_job_merges_several_spaces(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("command: tune\nrecipe: digits\nspace: [a.yaml, b.yaml]\n")
    assert load_job(path).arguments() == ["tune", "digits", "--space", "a.yaml", "--space", "b.yaml"]
    path.write_text("command: tune\nrecipe: digits\nspace: 3\n")
    with pytest.raises(ConfigError, match="space: must be a list, but got 3"):
        load_job(path)


def test_a_job_evaluates_a_run(tmp_path, typed):
    made = Run.create(tmp_path / "made", load_config("digits", {**TINY, "train.epochs": 1, "data.fraction": 0.1}))
    with made.writing() as attempt:
        run_fit(made, attempt, threads=1)
    path = tmp_path / "job.yaml"
    path.write_text(f"command: evaluate\ntarget: made\nstorage: {tmp_path}\noverrides: {{model.timesteps: 2}}\n")
    code, out, _ = typed("run", path, "--json")
    assert code == 0 and json.loads(out)["timesteps"] == 2 and json.loads(out)["samples"] == 359
    code, out, err = typed("run", path, "--dry-run")
    assert (code, out) == (2, "") and "which has no plan to print" in err


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("command: trian\nrecipe: digits\n", ["command: must be one of 'train', 'tune', 'supernet', 'promote' or 'evaluate', "
                                              "but got 'trian'; did you mean train?"]),
        ("recipe: digits\n", ["command: must be given, but got {recipe: digits}"]),
        ("command: train\n", ["`recipe` must be given for command train"]),
        ("command: tune\nrecipe: digits\n", ["`space` must be given for command tune"]),
        ("command: evaluate\ntarget: x\ntrials: 3\n", ["`trials` has no place in a job with command evaluate, but got 3; "
                                                       "leave it out"]),
        ("command: promote\ntarget: x\nfrom: y\n", ["`from` has no place in a job with command promote, but got y; leave it"]),
        ("command: promote\ntarget: x\nfrnt: true\n", ["frnt: no such field; did you mean front?"]),
        ("command: promote\ntarget: x\nfront: true\ntrial: 0\n", ["`front` takes every trial of the front as it is"]),
        ("command: train\nrecipe: digits\ntrial: 0\n", ["`trial` has no place in a job with command train, but got 0"]),
        ("command: train\nrecipe: digitz\n", ["no recipe or file is called 'digitz'; did you mean digits?"]),
        ("command: train\nrecipes: digits\nrecipe: digits\n", ["recipes: no such field; did you mean recipe?"]),
        ("command: train\nrecipe: digits\noverrides: {model.dept: 1, train.lr: -1}\n",
         ["model.dept: no such field; did you mean model.depth?", "digits: train.lr: must be above 0, but got -1"]),
        ("command: train\nrecipe: digits\noverrides: [1]\n", ["overrides: must be a mapping, but got [1]"]),
        ("command: train\nrecipe: digits\nresources: {gpu: 1}\n", ["resources.gpu: no such field of the config's part scale"]),
        ("command: train\nrecipe: digits\nresources: {workers: 0}\n", ["digits: scale.workers: must be at least 1, but got 0"]),
        ("command: train\nrecipe: digits\nresources: {workers: 1}\noverrides: {scale.workers: 2}\n",
         ["resources.workers and overrides.scale.workers are the same field; leave one of them out"]),
        ("command: train\nrecipe: digits\nruntime: {pakages: []}\n",
         ["runtime.pakages: no such field; did you mean packages?"]),
        ("command: train\nrecipe: digits\nruntime: {environment: {A: 1}}\n",
         ["runtime.environment.A: must be text, but got 1"]),
        ("command: train\nrecipe: digits\nruntime: {packages: ['!!']}\n", ["`packages` must be requirements such as numpy>=2"]),
        ("- 1\n", ["must hold a mapping of command, recipe, target, space, trials, points, from, trial, front, grid, large, "
         "name, storage, overrides, resources"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_job_is_a_sentence(text, sentences, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert len(caught.value.problems) == len(sentences)
    for problem, sentence in zip(caught.value.problems, sentences, strict=True):
        assert problem.startswith(f"{path}: ") and sentence in problem and "\n" not in problem


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("command: tune\nrecipe: digits\nspace: [a, b]\nfrom: old\ntrials: 3\n",
         "tune digits --from old --trials 3 --space a --space b"),
        ("command: promote\ntarget: s\ntrial: 0\ngrid: true\nname: n\n", "promote s --trial 0 --grid --name n"),
        ("command: promote\ntarget: s\nfront: true\n", "promote s --front"),
        ("command: evaluate\ntarget: s\nlarge: true\nstorage: r\n", "evaluate s --large --storage r"),
        ("command: evaluate\ntarget: s\nlarge: false\n", "evaluate s"),
    ],
)  # fmt: skip
def test_a_job_is_a_command_line(text, line, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert " ".join(load_job(path).arguments()) == line


def test_a_package_that_is_missing_or_too_old_is_named():
    job = JobFile(command="train", recipe="digits", runtime={"packages": ["numpy>=99", "no-such-package-of-ours"]})
    with pytest.raises(UserError) as caught:
        enter(job)
    assert re.search(r"needs numpy>=99, but [\d.]+ is installed; type: pip install", caught.value.problems[0])
    assert "needs no-such-package-of-ours, but it is not installed" in caught.value.problems[1]
