"""Wrong input gets one plain sentence and exit code 2, and leaves nothing behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from formats import write_images

from statten.config import load_config
from statten.machine import whole_cores
from statten.search.supernet import planned
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.run import Run
from statten.storage.supernet import Supernet

CORES = whole_cores()

# (arguments, what the sentence must hold). {runs} is the storage; it holds a run `taken`, a sweep `swept` and a file `file`.
CASES = [
    # keys and values
    ("train digits --set model.embed_dims=64", "model.embed_dims: no such field; did you mean model.embed_dim?"),
    ("train digits --set mdoel.depth=2", "mdoel.depth: no such field; did you mean model.depth?"),
    ("train digits --set model.depth=two", "model.depth: must be a whole number, but got 'two'"),
    ("train digits --set model.depth=0", "model.depth: must be at least 1, but got 0"),
    ("train digits --set model.depth=true", "model.depth: must be a number, but got true"),
    ("train digits --set train.lr=-1", "train.lr: must be above 0, but got -1"),
    ("train digits --set model.depth", "--set takes PATH=VALUE such as model.depth=4, but got 'model.depth'"),
    ("train digits --set model.attention=softmax", "model.attention: must be one of 'statten', 'sdsa' or 'ssa', but got 'soft"),
    ("train digits --set train.optimizer=adamv", "'adamv'; did you mean adam?"),
    ("evaluate {runs}/taken --set train.lr=0.1", "--set train.lr: decides nothing of an evaluation"),
    ("tune digits --space {runs}/file --epoch-count 3", "No such option: --epoch-count"),
    ("train digits --set layers=2", "--set layers: no such field; did you mean model.depth?"),
    ("train {runs}/flat.yaml", "flat.yaml: lr: no such part; did you mean train.lr?"),
    ("tune digits --space {runs}/flat.yaml", "flat.yaml: lr: no such field; did you mean train.lr?"),
    ("recipes digitz", "no recipe is called 'digitz'; did you mean digits?"),
    ("model digits --rate 2", "Invalid value for '--rate'"),
    ("model image_folder --data {runs}/none", "data.root: no such folder"),
    ("fields zzzzz", "'zzzzz': no field is called so, and none speaks of it; list them with: statten fields"),
    ("config digits --lr 1 --set train.lr=2", "--lr: is train.lr, but got (--lr 1.0, --set train.lr=2)"),
    # short forms, and what a folder says
    ("train digits --epochs 3 --set train.epochs=4", "--epochs: is train.epochs, but got (--epochs 3, --set train.epochs=4)"),
    ("tune digits --space {runs}/good.yaml --trials 3 --set search.trials=4", "--trials: is search.trials, but got"),
    ("train digits --epochs 0", "train.epochs: must be at least 1, but got 0"),
    ("train digits --epochs two", "Invalid value for '--epochs'"),
    ("train digits --workers two", "scale.workers: must be a whole number, or two as [min, max], but got 'two'"),
    ("train digits --data {runs}", "--data: has no effect on digits, which comes with the package"),
    ("train image_folder", "data.root: must name the folder of image_folder; set data.root=DIR"),
    ("train image_folder --data {runs}/none", "data.root: no such folder"),
    ("train image_folder --data {runs}/empty", "empty: holds no class folders"),
    ("train digits --set model.num_classes=auto", "model.num_classes: auto is read from a folder, but digits comes with the"),
    ("train digits --set model.depth=auto", "model.depth: must be a whole number, but got 'auto'"),
    ("train event_folder --data {runs}/empty --set data.mean=auto", "data.mean: has no effect on event_folder"),
    ("train image_folder --set data.regroup=sum", "`regroup` has no effect on image_folder, which holds images"),
    ("train cifar10dvs_2_256_t10 --set data.regroup=sum", "`regroup` has no effect on cifar10dvs, which has clips of every T"),
    # rules between fields
    ("train digits --set model.block_size=8", "`block_size` must be at most `timesteps`, but got (block_size=8, timesteps=4)"),
    ("train digits --set model.embed_dim=100", "`embed_dim` must be a multiple of 8, but got 100; the nearest is 96"),
    ("train digits --set model.num_heads=7", "`embed_dim` must be divisible by `num_heads`"),
    ("train digits --set model.pooling=1111", "`image_size` must be at least 16 for pooling '1111' (4 halvings), but got 8"),
    ("train digits_events --set data.frames=7", "`data.frames` must equal `model.timesteps`, but got (data.frames=7"),
    ("train digits --set train.loss=tet", "`train.loss=tet` and `model.per_timestep_logits=true` go together"),
    ("train digits --set train.warmup_epochs=50", "`warmup_epochs` must be below `epochs`"),
    ("train digits --set train.min_lr=1", "`min_lr` must be at most `lr`"),
    ("train digits --set data.hflip=0.5", "`hflip` has no effect on digits"),
    ("train digits --set train.mixup=0.5 --set train.batch_size=31", "`batch_size` must be even with `mixup` or `cutmix`"),
    ("train digits --set train.eventmix=1", "`train.eventmix` needs `model.events=true`"),
    ("train digits --set train.optimizer=sgd --set train.momentum=0", "`momentum` must be above 0 for sgd"),
    ("train digits --set train.clip_mode=agc", "`clip_mode` needs `clip_grad`"),
    # data and machine
    ("train digits --set model.in_channels=3", "model.in_channels"),
    ("train digits --set model.num_classes=5", "model.num_classes"),
    ("train digits --set model.events=true", "model.events"),
    ("train digits --set train.batch_size=5000", "train.batch_size"),
    ("train digits --set train.precision=fp16 --set scale.device=cpu", "fp16 needs a GPU, but the device is cpu"),
    (f"train digits --set scale.workers={CORES + 1} --set scale.device=cpu", f"the most is scale.workers={CORES}"),
    ("train digits --set scale.neuron_backend=cuppy", "scale.neuron_backend"),
    ("train digits --set scale.address=127.0.0.1:1", "scale.address: cannot reach the Ray cluster at 127.0.0.1:1"),
    ("train digits --set scale.address=nowhere", "scale.address: "),
    # datasets
    ("train digits --set data.name=cifar11", "data.name: must be one of"),
    (
        "train digits --set model.in_channels=3 --set data.name=cifar10",
        "data.root: must name the folder of cifar10; set data.root=DIR",
    ),
    (
        "train digits --set model.in_channels=3 --set data.name=imagenet --set data.root={runs}/none",
        "data.root: no such folder",
    ),
    ("train digits --set data.validation=0.6", "data.validation: must be a share above 0 and below 0.5, or test, but got 0.6"),
    ("data check cifar10 --root {runs}/empty", "holds no cifar10; put cifar-10-python.tar.gz"),
    ("data check image_folder --root {runs}/empty", "holds no class folders"),
    ("data prepare dvs128gesture --root {runs}/none --timesteps 4", "--root: no such folder"),
    ("data shard imagenet --root {runs}/empty", "--output: must name the folder of the new shards"),
    ("data check image_folder --root {runs}/unclear", "is not clear, for train/ may be the train part or a class beside cat/"),
    (
        "train digits --set model.in_channels=3 --set data.name=image_folder --set data.root={runs}/twice",
        "may both be the val part",
    ),
    ("data check image_folder --root {runs}/untested", "holds Training/ but no val/ or test/"),
    ("data shard image_folder --root {runs}/unclear --output {runs}/new", "is not clear, for train/ may be the train part"),
    ("data check", "Missing argument 'NAME'"),
    # files and names
    ("train digitz", "no recipe or file is called 'digitz'; did you mean digits?"),
    ("train {runs}/none.yaml", "none.yaml: no such file"),
    ("train {runs}/file", "must hold a mapping"),
    ("train {runs}/taken", "taken: cannot be read"),
    ("train digits --name taken", "taken: exists already; choose another --name, or continue it with: statten resume taken"),
    ("train digits --name a/b", "--name: must be letters, digits"),
    ("train digits --storage {runs}/file", "--storage: must be a folder"),
    ("evaluate nothing", "nothing: no such run or sweep in"),
    ("evaluate {runs}/file", "is neither a run, a sweep nor a checkpoint folder"),
    ("evaluate taken", "taken: holds no checkpoint yet"),
    ("evaluate {runs}/file.pth.tar", "file.pth.tar: not a checkpoint that can be read safely"),
    ("evaluate {runs}/lfs.pth.tar", "read safely: it is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    ("anytime {runs}/html.pth", "html.pth: not a checkpoint that can be read safely: it is an HTML page"),
    ("grid {runs}/empty.pt", "empty.pt: not a checkpoint that can be read safely: it is an empty file"),
    (
        "export {runs}/cut.pth.tar --output {runs}/out",
        "cut.pth.tar: not a checkpoint that can be read safely: it is a zip archive",
    ),
    ("anytime taken", "taken: holds no checkpoint yet"),
    ("predict taken {runs}/file", "taken: holds no checkpoint yet"),
    ("predict takn {runs}/file", "takn: no such run or sweep in"),
    ("predict taken", "Missing argument 'FILES'"),
    ("predict taken {runs}/file --json --csv", "--csv: stdout takes one document, but --json is given too"),
    ("grid taken --part train", "--part: must be validation or test, but got 'train'"),
    ("compare taken", "compare: takes two or more targets, but got 1"),
    ("export taken --output {runs}/out --format nir", "taken: holds no checkpoint yet"),
    ("resume {runs}/empty", "is not a run folder, for it holds no run.json"),
    ("best taken", "is not a sweep folder, for it holds no sweep.json"),
    ("best swept", "swept: no trial is finished yet"),
    ("promote taken --trial 3", "--trial: "),
    ("promote swept --trial 3", "--trial: "),
    # jobs
    ("run {runs}/none.yaml", "none.yaml: no such file"),
    ("run {runs}/file", "file: must hold a mapping of command, recipe"),
    ("run {runs}/job.yaml", "job.yaml: model.dept: no such field; did you mean model.depth?"),
    ("run {runs}/old.yaml", "runtime.packages: needs numpy>=99, but"),
    ("run {runs}/evaluates.yaml", "taken: holds no checkpoint yet"),
    ("run {runs}/evaluates.yaml --dry-run", "--dry-run: "),
    # spaces and commands
    ("tune digits --space nowhere", "--space: no such file: nowhere"),
    ("tune digits --space {runs}/empty.yaml", "empty.yaml: names no field to search"),
    ("tune digits --space {runs}/typo.yaml", "typo.yaml: model.dept: no such field; did you mean model.depth?"),
    ("tune digits --space {runs}/auto.yaml", "auto.yaml: model.image_size: auto has no place in a space; give values"),
    ("tune digits --space {runs}/clash.yaml", "write model.block_size: {{divisors_of: model.timesteps}}"),
    ("tune digits --space {runs}/good.yaml --trials 0", "search.trials: must be at least 1, but got 0"),
    ("tune digits --space {runs}/good.yaml --set search.sampler=tpo", "did you mean tpe?"),
    ("tune digits --space {runs}/good.yaml --set search.objectives=[val/topp1]", "did you mean val/top1?"),
    ("tune digits --space {runs}/good.yaml --set search.objectives=[firing_rate/heat:min]", "did you mean firing_rate/head?"),
    ("tune digits --space {runs}/good.yaml --set search.storage=postgresql://a:b@c/d", "must not hold a password"),
    (
        "tune digits --space {runs}/good.yaml --set search.sampler=cmaes",
        "search.sampler: cmaes must have at least two dimensions",
    ),
    ("tune digits --space {runs}/good.yaml --space {runs}/typo.yaml", "typo.yaml: model.dept: no such field"),
    ("tune digits --space {runs}/good.yaml --name swept", "swept: exists already"),
    ("tune digits", "Missing option '--space'"),
    ("supernet digits --space {runs}/rate.yaml", "train.lr: cannot be cut out of one network's weights"),
    ("supernet digits --space {runs}/heads.yaml", "`embed_dim` must be a multiple of 8, but got 100"),
    ("supernet qkformer_digits.yaml --space {runs}/good.yaml", "no such file"),
    ("supernet digits --space {runs}/good.yaml --points 0", "Invalid value for '--points'"),
    ("supernet digits --space {runs}/good.yaml --name taken", "taken: exists already"),
    ("supernet digits --space {runs}/good.yaml --name taken --resume", "is not a supernet folder, for it holds no supernet.js"),
    ("supernet digits --space {runs}/good.yaml --name netted --resume --epochs 3", "differs in train.epochs; choose another"),
    (
        "supernet digits --space {runs}/wider.yaml --name netted --resume",
        "differs in model.embed_dim, the search space;",
    ),
    ("train digits --name netted --resume", "is not a run folder, for it holds no run.json; it is a supernet: see its points"),
    (
        "evaluate netted",
        "it is a supernet: see its points with statten show netted, train one with statten promote netted --tr",
    ),
    ("report netted", "is not a sweep folder, for it holds no sweep.json; it is a supernet"),
    ("promote netted --trial 0", "netted: the supernet is not trained yet; go on with: statten resume netted"),
    ("promote netted --front", "netted: the supernet is not trained yet; go on with: statten resume netted"),
    ("promote netted --grid", "--grid: a supernet's points have a (timesteps, block size) of their own"),
    ("promote netted --front --trial 1", "--front: takes every point of the front, and --trial takes one"),
    ("run {runs}/net.yaml", "`space` must be given for command supernet"),
    ("resume edited", "space.yaml: was changed since the supernet began with it"),
    ("train digits --frobnicate", "No such option: --frobnicate"),
    ("frobnicate", "No such command 'frobnicate'"),
    ("extend swept --trials 1 --set train.lr=0.1", "--set train.lr: must stay as it is, for further trials are compared"),
    ("extend swept --trials 1 --set search.max_hour=2", "search.max_hour: no such field; did you mean search.max_hours?"),
    ("extend swept --trials 0", "Invalid value for '--trials'"),
    # files, paths and URLs that nothing can read
    ("train {runs}/template.yaml", "template.yaml: not valid YAML: a key must be text, but got a mapping; a template's"),
    ("tune digits --space {runs}/template.yaml", "template.yaml: not valid YAML: a key must be text"),
    ("run {runs}/template.yaml", "template.yaml: not valid YAML: a key must be text"),
    ("train digits --set train.lr={{{{LR}}}}", "--set train.lr: not valid YAML: a key must be text"),
    ("train {runs}/deep.yaml", "deep.yaml: not valid YAML: at most 100,000 values, nested at most 20 deep, are read"),
    (f"train {'a' * 300}", "is no path: a name has at most 255 bytes"),
    (f"evaluate {'a' * 300}", "is no path: a name has at most 255 bytes"),
    (f"train digits --storage {'a' * 300}", "is no path: a name has at most 255 bytes"),
    (f"tune digits --space {'a' * 300}", "is no path: a name has at most 255 bytes"),
    (f"run {'a' * 300}", "is no path: a name has at most 255 bytes"),
    (f"data check digits --root {'a' * 300}", "is no path: a name has at most 255 bytes"),
    ("train digits --storage abfs://c@a.dfs.core.windows.net/p?client_secret=S", "credentials have no place in a URI"),
    ("train digits --set search.storage=postgresql://u@h/db?password=S", "`storage` must not hold a password"),
    ("tune digits --space {runs}/wide.yaml", "train.seed: divisors_of must name a number up to 1,000,000,000"),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    config = load_config("digits")
    Run.create(runs / "taken", config)
    Sweep.create(runs / "swept", config, make_space({"model.depth": {"int": [1, 2]}}, config)).study()
    whole, space, watched, points = planned(config, make_space({"model.depth": {"int": [1, 2]}}, config))
    for name in ("netted", "edited"):
        Supernet.begin(runs / name, whole, space, watched, points, {})
    (runs / "edited" / "space.yaml").write_text("model.depth: {int: [1, 3]}\n")
    (runs / "rate.yaml").write_text("train.lr: {float: [0.001, 0.01]}\nmodel.depth: {int: [1, 2]}\n")
    (runs / "heads.yaml").write_text("model.embed_dim: {int: [64, 128], step: 36}\n")
    (runs / "wider.yaml").write_text("model.embed_dim: {choices: [64, 256]}\n")
    (runs / "net.yaml").write_text("command: supernet\nrecipe: digits\n")
    (runs / "empty").mkdir()
    (runs / "file").write_text("just text\n")
    (runs / "file.pth.tar").write_text("just text\n")
    (runs / "lfs.pth.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (runs / "html.pth").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (runs / "empty.pt").touch()
    (runs / "cut.pth.tar").write_bytes(b"PK\x03\x04" + bytes(300))
    (runs / "empty.yaml").write_text("{}\n")
    (runs / "flat.yaml").write_text("lr: {constant: 0.1}\n")
    (runs / "auto.yaml").write_text("model.image_size: {choices: [8, auto]}\n")
    (runs / "typo.yaml").write_text("model.dept: {int: [1, 2]}\n")
    (runs / "clash.yaml").write_text("model.timesteps: {choices: [2, 4]}\nmodel.block_size: {choices: [2, 4]}\n")
    (runs / "job.yaml").write_text("command: train\nrecipe: digits\noverrides: {model.dept: 2}\n")
    (runs / "old.yaml").write_text("command: train\nrecipe: digits\nruntime: {packages: ['numpy>=99']}\n")
    (runs / "evaluates.yaml").write_text("command: evaluate\ntarget: taken\n")
    (runs / "template.yaml").write_text("train:\n  epochs: {{ EPOCHS }}\n")
    (runs / "deep.yaml").write_text("model: " + "[" * 30_000)
    (runs / "wide.yaml").write_text("data.split_seed: {constant: 10000000000000}\ntrain.seed: {divisors_of: data.split_seed}\n")
    (runs / "good.yaml").write_text("model.depth: {int: [1, 2]}\n")
    write_images(runs / "unclear", {"train": 1, "": 1}, ["cat"])
    write_images(runs / "twice", {"train": 1, "val": 1, "Valid": 1}, ["cat"])
    write_images(runs / "untested", {"Training": 1}, ["cat"])
    return runs


@pytest.mark.parametrize(("arguments", "sentence"), CASES, ids=[arguments for arguments, _ in CASES])
def test_one_sentence_and_exit_code_2(arguments, sentence, storage, typed):
    before = sorted(storage.rglob("*"))
    arguments = arguments.replace("{runs}", str(storage)).split()
    if "--storage" not in arguments and arguments[0] not in ("frobnicate", "data", "recipes", "fields", "config", "model"):
        arguments += ["--storage", str(storage)]
    code, out, err = typed(*arguments)
    assert code == 2, (out, err)
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("statten: "), err
    assert sentence.replace("{{", "{").replace("}}", "}") in lines[0]
    assert not re.search(r"Traceback|Error\(|<class", err)
    assert sorted(storage.rglob("*")) == before, "nothing is written"


def test_all_mistakes_of_a_file_are_said_in_a_real_process(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("model: {embed_dims: 64, depth: 0}\ntrain: {lr: fast}\ndata: {name: digitz}\n")
    command = [sys.executable, "-m", "statten.cli", "train", str(path), "--storage", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 4, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_a_plan_and_starts_nothing(tmp_path, typed):
    code, out, _ = typed("train", "digits", "--dry-run", "--json", "--storage", tmp_path / "runs")
    assert code == 0
    plan = json.loads(out)
    assert plan["parameters"] > 10_000 and plan["world_size"] == 1 and plan["memory_bytes"] > 0
    assert plan["config"] == load_config("digits").model_dump(mode="json")
    assert not Path(tmp_path / "runs").exists()
