"""The config: every mistake is one sentence, all of them at once, and what is dumped loads back equal."""

import pytest
from pydantic import ValidationError

from statten.config import (
    RECIPES,
    Config,
    build_config,
    dump_config,
    field_paths,
    load_config,
    parse_yaml,
    recipe_names,
    with_overrides,
)
from statten.errors import ConfigError, UserError


def problems(tree, overrides=()):
    with pytest.raises(ConfigError) as caught:
        build_config(tree, overrides)
    return caught.value.problems


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_survive_a_round_trip(name, tmp_path):
    config = load_config(name)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert (RECIPES / f"{name}.yaml").read_text().startswith("# "), "a recipe opens with what it is and how to run it"


def test_every_field_has_a_docstring():
    for part in Config.model_fields.values():
        for name, field in part.annotation.model_fields.items():
            assert field.description, name


def test_numbers_in_exponent_form_are_numbers():
    assert build_config({}, ["train.lr=3e-4"]).train.lr == 3e-4
    assert parse_yaml("{a: 3e-4, b: 1E5, c: -2.5, d: .5, e: 10, f: 0011, g: yes, h: null}", "x") == {
        "a": 3e-4, "b": 1e5, "c": -2.5, "d": 0.5, "e": 10, "f": "0011", "g": "yes", "h": None,
    }  # fmt: skip


def test_pooling_keeps_its_leading_zeros():
    assert build_config({}, ["model.pooling=0011"]).model.pooling == "0011"


def test_overrides_win_and_reach_into_mappings():
    config = build_config({"model": {"neuron": {"mlp": "plif"}}}, ["model.neuron.head=plif", "model.depth=3"])
    assert (config.model.neuron_at("mlp"), config.model.neuron_at("head"), config.model.neuron_at("embed")) == (
        "plif",
        "plif",
        "lif",
    )
    assert config.model.depth == 3
    assert with_overrides(config, {"model.depth": 1}).model.depth == 1


def test_a_config_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        load_config("digits").model.depth = 3


def test_all_mistakes_are_reported_at_once():
    found = problems(
        {"model": {"embed_dims": 64, "depth": "two", "block_size": 8, "timesteps": 4}, "trian": {}, "train": {"epochs": 0}},
        ["train.lrr=1"],
    )
    assert found == [
        "--set train.lrr: no such field; did you mean train.lr?",
        "trian: no such part; did you mean train?",
        "model.depth: must be a whole number, but got 'two'",
        "model.embed_dims: no such field; did you mean model.embed_dim?",
        "model: `block_size` must be at most `timesteps`, but got (block_size=8, timesteps=4); the nearest is 4",
        "train.epochs: must be at least 1, but got 0",
    ]


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"model": {"depth": True}}, "model.depth: must be a number, but got true"),
        ({"model": {"depth": 1.5}}, "model.depth: must be a whole number, but got 1.5"),
        ({"train": {"lr": float("nan")}}, "train.lr: must be a finite number, but got .nan"),
        ({"train": {"lr": -1}}, "train.lr: must be above 0, but got -1"),
        ({"model": {"attention": "statn"}}, "model.attention: must be one of 'statten', 'sdsa' or 'ssa', but got 'statn'; "
                                            "did you mean statten?"),
        ({"model": {"pooling": "012"}}, "model.pooling: must be four digits 0 or 1 such as \"0011\", but got '012'"),
        ({"model": {"embed_dim": 60}}, "model: `embed_dim` must be a multiple of 8, but got 60; the nearest is 64"),
        ({"model": {"embed_dim": 64, "num_heads": 7}}, "model: `embed_dim` must be divisible by `num_heads`, but got "
                                                       "(embed_dim=64, num_heads=7); the nearest num_heads is 8"),
        ({"model": {"image_size": 8, "pooling": "1111"}}, "model: `image_size` must be at least 16 for pooling '1111' "
                                                          "(4 halvings), but got 8"),
        ({"model": {"neuron": {"mpl": "plif"}}}, "model.neuron.mpl: no such field; did you mean mlp?"),
        ({"model": {"neuron": "relu"}}, "model.neuron: must be lif, plif or a mapping of embed, attention, mlp, head to "
                                        "them, but got 'relu'"),
        ({"train": {"warmup_epochs": 10}}, "train: `warmup_epochs` must be below `epochs`, but got (warmup_epochs=10, "
                                           "epochs=10); the nearest is 9"),
        ({"data": {"frames": 7}}, "`data.frames` must equal `model.timesteps`, but got (data.frames=7, model.timesteps=4); "
                                  "leave data.frames empty to follow the model"),
        ({"data": {"name": "cifar10", "auto_augment": "rand-m9-x"}}, "data.auto_augment: must be a policy of timm such as "
                                                                     "rand-m9-n1-mstd0.4-inc1, original or v0, but got"),
        ({"data": {"name": "cifar10", "auto_augment": "rand-m9", "color_jitter": 0.5}}, "`color_jitter` has no effect beside "
                                                                                        "`auto_augment`"),
        ({"data": {"name": "cifar10", "crop_scale": [0.9, 0.2]}}, "data: `crop_scale` must be two numbers with 0 < smallest <= "
                                                                  "largest <= 1, but got [0.9, 0.2]"),
        ({"data": {"name": "cifar10", "crop_ratio": [0, 1]}}, "`crop_ratio` must be two numbers with 0 < smallest <= largest"),
        ({"data": {"name": "cifar10", "crop_scale": [0.5]}}, "data.crop_scale.1: must be given, but got [0.5]"),
        ({"data": {"name": "cifar10", "crop_scale": 0.5}}, "data.crop_scale: must be a list of numbers, but got 0.5"),
        ({"data": {"name": "cifar10", "mean": [1, 2, 3, 4]}}, "data.mean: must be 3 numbers, but got [1, 2, 3, 4]"),
        ({"data": {"name": "cifar10", "std": [0, 1, 1]}}, "data: `std` must be above 0, but got [0.0, 1.0, 1.0]"),
        ({"data": {"name": "cifar10", "cutout": 16}}, "data: `cutout` has no effect on cifar10, which holds images, but got "
                                                      "16; leave it out"),
        ({"data": {"name": "ncaltech101", "crop_pct": 0.9}}, "`crop_pct` has no effect on ncaltech101, which holds event"),
        ({"data": {"name": "ncaltech101", "interpolation": "bicubic"}}, "`interpolation` must be nearest or bilinear"),
        ({"data": {"interpolation": "nearest"}}, "`interpolation` has no effect on digits, which is augmented in its own way "
                                                 "(data.augment), but got 'nearest'; leave it out"),
        ({"train": {"warmup_epochs": 2, "warmup_lr": 1}}, "train: `warmup_lr` must be at most `lr`, but got (warmup_lr=1, "
                                                          "lr=0.0003)"),
        ({"train": {"clip_mode": "agc"}}, "`clip_mode` needs `clip_grad`, but got (clip_mode=agc, clip_grad=null)"),
        ({"train": {"optimizer": "sgd", "momentum": 0}}, "`momentum` must be above 0 for sgd, which is Nesterov's, but got 0"),
        ({"train": {"bce_target_thresh": 0.2}}, "`bce_target_thresh` needs `loss=bce`, but got (bce_target_thresh=0.2, "
                                                "loss=cross_entropy)"),
        ({"train": {"mixup": 1, "eventmix": 1}}, "`eventmix` takes the place of `mixup` and `cutmix`"),
        ({"train": {"mixup": 1, "batch_size": 7}}, "`batch_size` must be even with `mixup` or `cutmix`, which mix pairs, but "
                                                   "got 7; the nearest is 8"),
        ({"model": {"depth (blocks)": 2}}, "model.depth (blocks): no such field"),
        ({"model": {"NeuronMap": 1}}, "model.NeuronMap: no such field"),
        ({"model": {"neuron": {"mlp[0]": "lif"}}}, "model.neuron.mlp[0]: no such field"),
        ({"bogus": None}, "bogus: no such part"),
        ({"train": {"epochs": "9" * 30}}, "train.epochs: must fit into 64 bits, but got '999"),
        ({"train": {"epochs": "yes"}}, "train.epochs: must be a whole number, but got 'yes'"),
        ({"data": {"validation": 10**310}}, "data.validation: must be a share above 0 and below 0.5, or test"),
        ({"data": {"root": "a" * 300}}, "is no path: a name has at most 255 bytes"),
        ({"data": {"root": "a\0b"}}, "is no path: a name has at most 255 bytes"),
        ({"scale": {"gpus_per_worker": True}}, "scale.gpus_per_worker: must be a number, but got true"),
        ({"search": {"max_hours": True}}, "search.max_hours: must be a number, but got true"),
        ({"search": {"firing_range": [False, True]}}, "search.firing_range.0: must be a number, but got false"),
        ({"search": {"seed": 2**40}}, "search.seed: must be below 4.29497e+09, but got 1099511627776"),
        ({"search": {"storage": "postgresql://host:port/name"}}, "`storage` must be a URL such as postgresql://user@host/name"),
        ({"train": {"mixup_off_epoch": 5}}, "`mixup_off_epoch` needs `mixup`, `cutmix` or `eventmix`"),
        ({"train": {"eventmix": 1}}, "`train.eventmix` needs `model.events=true`, but got (train.eventmix=1, "),
        ({"train": {"ema_decay": 1}}, "train.ema_decay: must be below 1, but got 1"),
        ({"model": 3}, "model: must be a mapping of fields, but got 3"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tree, sentence):
    found = problems(tree)
    assert any(sentence in problem for problem in found), found
    assert all("\n" not in problem for problem in found)


def test_files_that_cannot_be_read(tmp_path):
    for name, content, sentence in [
        ("missing.yaml", None, "no such file"),
        ("list.yaml", "- 1\n", "must hold a mapping"),
        ("twice.yaml", "model: {depth: 1, depth: 2}\n", "key 'depth' is given twice"),
        ("broken.yaml", "model: {depth: [\n", "not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("utf16.yaml", "model: {depth: 1}\n".encode("utf-16"), "it is no text in UTF-8"),
        ("large.yaml", b"#" * (1 << 20) + b"\n", "more than 1 MiB"),
        ("deep.yaml", "model: " + "[" * 30_000 + "]" * 30_000, "nested at most 20 deep"),
        ("deeper.yaml", "a: " + "[" * 100_000, "nested at most 20 deep"),
        ("wide.yaml", "a: [" + "1," * 200_000 + "]", "at most 100,000 values"),
        (
            "laughs.yaml",
            "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9 if i else 1}]\n" for i in range(12)),
            "at most 100,000 values",
        ),
        ("itself.yaml", "model: &a {depth: *a}\n", "'a' holds itself"),
        ("nowhere.yaml", "model: *a\n", "undefined alias"),
        ("template.yaml", "train:\n  epochs: {{ EPOCHS }}\n", "a key must be text, but got a mapping; a template's"),
        ("list_key.yaml", "model: {? [1] : 2}\n", "a key must be text, but got a sequence"),
        ("number_key.yaml", "model: {1: 2}\n", "a key must be text, but got '1'"),
        ("tagged.yaml", "train: {epochs: !!int abc}\n", "the tag !!int has no place here; leave it out (line 1)"),
        ("truth.yaml", "data: {augment: !!bool xyz}\n", "the tag !!bool has no place here"),
        ("date.yaml", "train: {lr: !!timestamp 2020-99-99}\n", "the tag !!timestamp has no place here"),
        ("object.yaml", "train: !!python/object/apply:os.system [true]\n", "has no place here"),
        ("digits.yaml", "train: {epochs: " + "1" * 5000 + "}\n", "a whole number must fit into 64 bits"),
        ("huge.yaml", "train: {epochs: 9223372036854775808}\n", "a whole number must fit into 64 bits"),
        ("infinite.yaml", "train: {lr: 1e400}\n", "must be a finite number, but got .inf"),
        ("tab.yaml", "model:\n\tdepth: 1\n", "not valid YAML"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert sentence in caught.value.problems[0] and name in caught.value.problems[0]
    with pytest.raises(ConfigError, match="did you mean digits"):
        load_config("digit")
    for name in ("a" * 300, "a\0b.yaml"):
        with pytest.raises(UserError, match="is no path"):
            load_config(name)


def test_what_a_file_may_hold(tmp_path, monkeypatch):
    """A byte order mark, an empty part, an alias, a home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "data: {name: cifar10, root: ~/images}\nmodel:\ntrain: &t {epochs: &e 3, warmup_epochs: 1, seed: *e}\n"
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    config = load_config("~/c.yaml", ["search.storage=sqlite:///~/study.db"])
    assert (config.data.root, config.train.seed) == (f"{tmp_path}/images", 3)
    assert config.search.storage == f"sqlite:///{tmp_path}/study.db" and config.model == Config().model


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h/db", "postgresql://u:p/hunter2@h/db", "postgresql://u:p?hunter2@h/db",
        "postgresql://u@h/db?password=hunter2", "postgresql://u@h/db?%70assword=hunter2", "postgresql://h/db?sslpassword=hunter2",
        "mysql+pymysql://u@h/db?passwd=hunter2", "mysql://u@h/db?charset=utf8&PWD=hunter2", "mysql://u@h/db;password=hunter2", "postgres://u:hunter2@h/db",
        "u:hunter2@h/db",
    ],
)  # fmt: skip
def test_a_database_password_is_refused_and_not_shown(url):
    found = problems({"search": {"storage": url}})
    assert "`storage` must" in found[0] and "hunter2" not in found[0]


@pytest.mark.parametrize(
    "url", ["postgresql://u@h:5432/db?passfile=/x&sslkey=/y", "mysql://u@h/db?ssl_key=/x", "sqlite:///a@b:c.db"]
)
def test_a_database_without_a_password_is_taken(url):
    assert build_config({"search": {"storage": url}}).search.storage == url


def test_paths_of_fields_are_dotted():
    assert "model.block_size" in field_paths() and "train.lr" in field_paths()


@pytest.mark.parametrize(
    "policy", ["rand", "rand-m9-n1-mstd0.4-inc1", "rand-m5-p0.5-mmax9-tweights", "rand-t3a", "rand-t3aw", "v0", "v0r",
               "original", "originalr-mstd0.5", "3a"]
)  # fmt: skip
def test_policies_that_the_config_takes_are_those_that_timm_takes(policy):
    from timm.data import create_transform

    assert build_config({"data": {"name": "cifar10"}}, {"data.auto_augment": policy}).data.auto_augment == policy
    create_transform(32, is_training=True, auto_augment=policy)
