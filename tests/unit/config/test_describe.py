"""What can be set is told: fields in words, what set each value, and which field a wrong name means."""

import json

import pytest
from gratings import write_gratings

from statten.config import build_config, field_at, field_paths, load_config, recipe_names
from statten.config.describe import describe_fields, settings
from statten.config.paths import SYNONYMS, fields_meant
from statten.errors import ConfigError, UserError
from statten.space.loading import make_space


def test_synonyms_name_fields_and_mean_one_thing():
    words = [word for names in SYNONYMS.values() for word in names.split()]
    ends = {path.rpartition(".")[2] for path in field_paths()}
    assert len(words) == len(set(words)) and not ends & set(words)
    assert words == [word.lower() for word in words] and set(SYNONYMS) <= set(field_paths())


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr", "train.lr"),
        ("model.lr", "train.lr"),
        ("epochs", "train.epochs"),
        ("layers", "model.depth"),
        ("train.num-layers", "model.depth"),
        ("learning_rate", "train.lr"),
        ("model.embed_dims", "model.embed_dim"),
        ("mdoel.depth", "model.depth"),
        ("train.epohcs", "train.epochs"),
        ("workers", "data.workers or scale.workers"),
    ],
)
def test_a_wrong_name_is_answered_with_the_field_it_means(wrong, meant):
    sentence = f"did you mean {meant}?"
    assert " or ".join(fields_meant(wrong)) == meant
    with pytest.raises(ConfigError, match=f"--set {wrong}: no such field; {sentence}".replace("?", r"\?")):
        load_config("digits", {wrong: 1})
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        make_space({wrong: {"int": [1, 2]}}, load_config("digits"))
    tree = {wrong: 1} if "." not in wrong else {wrong.split(".")[0]: {wrong.split(".")[1]: 1}}
    with pytest.raises(ConfigError) as caught:
        build_config(tree)
    assert sentence in str(caught.value) or wrong.startswith("mdoel")


def test_a_name_that_means_nothing_is_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"model\.foo: no such field; list them with: statten fields model\."):
        load_config("digits", {"model.foo": 1})
    with pytest.raises(ConfigError, match="no such part; choose from data, model"):
        build_config({"zzz": {}})


def test_every_field_is_told_in_words():
    every = describe_fields()
    assert [one.field for one in every] == field_paths()
    assert all(one.values and one.default and one.meaning and "`" not in one.meaning for one in every)
    assert [one.field for one in describe_fields("*.lr")] == ["train.lr"]
    assert [one.field for one in describe_fields("layers")] == ["model.depth"]
    assert "train.ema_decay" in [one.field for one in describe_fields("moving average")]
    assert describe_fields("num_classes")[0].values.endswith("or auto")
    with pytest.raises(UserError, match="no field is called so"):
        describe_fields("zzzzzz")


def test_what_set_a_field_is_told():
    found = {one.field: one for one in settings("image_folder", ["train.epochs=3", "model.neuron.mlp=plif"])}
    assert list(found) == field_paths()
    told = {
        path: found[path].origin for path in ("train.epochs", "train.lr", "train.seed", "model.num_classes", "model.neuron")
    }
    assert told == {
        "train.epochs": "--set", "train.lr": "recipe", "train.seed": "default", "model.num_classes": "auto",
        "model.neuron": "--set",
    }  # fmt: skip
    assert found["model.num_classes"].value == "auto" and not found["train.seed"].differs and found["train.lr"].differs
    for name in recipe_names():
        assert all(field_at(one.field) is not None for one in settings(name))


def test_the_commands_show_it(tmp_path, typed):
    root = write_gratings(tmp_path / "photos", images=40)
    code, out, _ = typed("config", "image_folder", "--data", root, "--lr", "0.5", "--json")
    rows = {row["field"]: row for row in json.loads(out)}
    assert code == 0 and rows["model.num_classes"] == {
        "field": "model.num_classes",
        "value": 4,
        "from": "auto",
        "differs": True,
    }
    assert rows["train.lr"]["value"] == 0.5 and rows["data.root"]["from"] == "--set"
    code, out, _ = typed("config", "image_folder", "--changed")
    assert code == 0 and "model.num_classes" in out and "train.seed" not in out and "image_folder" in out
    code, out, _ = typed("fields", "lr", "--json")
    assert code == 0 and json.loads(out)[0] | {"meaning": ""} == {
        "field": "train.lr", "values": "number above 0", "default": "0.0003", "meaning": "",
    }  # fmt: skip
    code, out, _ = typed("fields", "train.lr")
    assert code == 0 and out.startswith("train.lr\n    number above 0; default: 0.0003\n    Peak learning rate.\n")
    code, out, _ = typed("recipes", "digits")
    assert code == 0 and out.startswith("# The 1,797") and "epochs: 12" in out
    code, out, _ = typed("recipes", "--json")
    assert code == 0 and set(json.loads(out)) == set(recipe_names())
