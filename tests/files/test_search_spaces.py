"""Every shipped search space proposes valid configs only: with each recipe, and beside each file, that its header names."""

import random
import re
from pathlib import Path

import optuna
import pytest

from statten.config import load_config
from statten.space.loading import load_space

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "search_spaces").glob("*.yaml"))
SAMPLES = 10_000


def commands(path: Path) -> list[tuple[str, list[str], list[str]]]:
    """Recipe, space files and overrides of the commands in a header."""
    header = "".join(re.findall(r"^#.*\n", path.read_text(), flags=re.M))
    lines = re.findall(r"^#   statten tune (\S+) (.*)$", header, flags=re.M)
    return [(recipe, re.findall(r"--space (\S+)", rest), re.findall(r"--set (\S+)", rest)) for recipe, rest in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_space_proposes_valid_configs_only(path):
    named = commands(path)
    assert path.read_text().startswith("# ") and named
    generator = random.Random(0)
    for recipe, files, overrides in named:
        assert f"search_spaces/{path.name}" in files
        space = load_space([ROOT / file for file in files], load_config(recipe, overrides))
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        points = [space.random_point(generator) for _ in range(SAMPLES // len(named))]
        points += [space.suggest(study.ask()) for _ in range(100)]
        for point in {tuple(point.items()): point for point in points}.values():  # of a finite space each config once
            config = space.config(point)
            assert config.model.timesteps % config.model.block_size == 0
        assert all(space.contains(point) for point in points[::50])
