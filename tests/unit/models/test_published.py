"""Files that were taken for checkpoints say in one sentence what they are, and nothing in them is run."""

import argparse
import gzip
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from statten.errors import UserError
from statten.models.backbones.weights import plain_names
from statten.models.published import load_published, read_published, translate
from statten.storage.checkpoint import load_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "reference_checkpoint.pth.tar"
CONTENT = GOLDEN.read_bytes()
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class Foreign:
    """What a pickle makes by running `os.system`."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def _zip(path: Path, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


class _Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x


# What writes the file, and what the sentence must hold.
NO_CHECKPOINTS = {
    "html": (lambda p: p.write_text("\n<!DOCTYPE html><html>404"), "it is an HTML page"),
    "lfs": (lambda p: p.write_text(LFS), "Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    "annex": (lambda p: p.write_text("/annex/objects/SHA256E-s3--ab.pth\n"), "it is a git-annex pointer"),
    "empty": (lambda p: p.write_bytes(b""), "it is an empty file"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "it is zeros"),
    "half": (lambda p: p.write_bytes(CONTENT[: len(CONTENT) // 2]), "half a file"),
    "head": (lambda p: p.write_bytes(CONTENT[:30]), "half a file"),
    "json": (lambda p: p.write_text('{"message": "Not found"}'), 'it is text: \'{"message": "Not found"}\''),
    "zip": (lambda p: _zip(p, **{"a.txt": "x"}), "it is a zip archive of a.txt"),
    "npz": (lambda p: np.savez(p.open("wb"), a=np.ones(3)), "it is NumPy arrays"),
    "npy": (lambda p: np.save(p.open("wb"), np.ones(3)), "it is a NumPy array"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(CONTENT)), "it is a gzip archive"),
    "torchscript": (lambda p: torch.jit.script(_Twice()).save(p), "it is a TorchScript program"),
    "safetensors": (lambda p: save_file({"a": torch.ones(2)}, p), "it is a safetensors file"),
    "foreign": (lambda p: torch.save({"state_dict": {}, "args": Foreign()}, p), "it holds posix.system"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Foreign())), "can be read safely"),
    "noise": (lambda p: p.write_bytes(bytes(range(255, 0, -1)) * 9), "it is damaged or cut off"),
    "weights alone": (
        lambda p: torch.save({"head.weight": torch.ones(1)}, p),
        "state_dict and args, .*, but holds head.weight",
    ),
    "tensor": (lambda p: torch.save(torch.ones(1), p), "but is a Tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_says_what_it_is(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, sentence = NO_CHECKPOINTS[what]
    path = tmp_path / "model.pth.tar"
    make(path)
    with pytest.raises(UserError, match=sentence) as caught:
        read_published(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ") and "weights_only" not in problem and "\n" not in problem and len(problem) < 300
    assert not (tmp_path / "ran").exists()
    if what != "safetensors":
        with pytest.raises(UserError, match="not a safetensors file that can be read"):
            load_weights(path)


def test_a_damaged_safetensors_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(200)}, path)
    whole = path.read_bytes()
    for content in (
        whole[:-1],
        whole[:40],
        whole[:5],
        b"\xff" * 100,
        whole[:8] + b"[" + whole[9:],
        whole.replace(b"F32", b"F99"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a safetensors file that can be read"):
            load_weights(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_left_out(prefix, tmp_path):
    saved = torch.load(GOLDEN, weights_only=False)
    path = tmp_path / "model.pth.tar"
    torch.save({**saved, "state_dict": {prefix + name: value for name, value in saved["state_dict"].items()}}, path)
    wanted, found = load_published(GOLDEN).state_dict(), load_published(path).state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    ours = {f"{prefix}{name}": value for name, value in wanted.items()}
    save_file(ours, tmp_path / "ours.safetensors")
    assert load_weights(tmp_path / "ours.safetensors").keys() == wanted.keys()


def test_names_that_wrappers_changed_inside_and_names_that_meet():
    one, two = torch.ones(1), torch.zeros(1)
    names = plain_names(
        {"block.0._orig_mod.w": one, "_fsdp_wrapped_module.head.w": two, "my_orig_mod.w": one, "module.module.x": two}
    )
    assert [*names] == ["block.0.w", "head.w", "my_orig_mod.w", "x"]
    with pytest.raises(UserError, match=r"weights: _orig_mod\.a and a are the same weight"):
        plain_names({"a": one, "_orig_mod.a": two})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"state_dict": {"block.99999999.attn.q_conv.weight": torch.ones(1)}},
            r"block\.99999999 is there, but block\.0 is missing",
        ),
        ({"state_dict": {"block.99999999999999999999.x": torch.ones(1)}}, "no place for block.9999"),
        ({"state_dict": {"a": torch.eye(3).to_sparse()}}, "a: not a tensor of finite numbers"),
        ({"state_dict": {"a": torch.ones(1, dtype=torch.complex64)}}, "a: not a tensor of finite numbers"),
        ({"state_dict": {"a": torch.ones(1).expand(1 << 40)}}, "a: not a tensor of finite numbers"),
        ({"state_dict_ema": torch.ones(3)}, "must be a mapping of names to tensors, but are a Tensor"),
        ({"TET": torch.ones(3)}, "TET: must be a plain value"),
        ({"layer": [torch.ones(1)]}, "layer: must be a plain value"),
        ({"layer": 10**12}, "model.depth"),
    ],
)
def test_odd_content_is_one_sentence(changes, sentence, tmp_path):
    saved = torch.load(GOLDEN, weights_only=False)
    arguments = {**vars(saved["args"]), **{k: v for k, v in changes.items() if not k.startswith("state_dict")}}
    path = tmp_path / "model.pth.tar"
    torch.save({**saved, **changes, "args": argparse.Namespace(**arguments)}, path)
    with pytest.raises(UserError, match=sentence):
        translate(read_published(path).arguments)


def test_an_argument_that_is_no_plain_value_is_dropped_and_said():
    arguments = {**vars(torch.load(GOLDEN, weights_only=False)["args"]), "mean": torch.ones(3), "class_weights": torch.ones(3)}
    rows = {row["argument"]: row for row in translate(arguments)[1]}
    assert rows["mean"]["field"] is None and rows["mean"]["reason"] == "is a Tensor" and rows["class_weights"]["field"] is None
