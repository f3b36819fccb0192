"""One run is one validated, frozen `Config`: a recipe or YAML file, then overrides, then every rule checked at once.

>>> config = load_config("digits", ["model.depth=1"])
>>> config.model.depth
1

A mistake raises `statten.errors.ConfigError`; its `problems` hold one sentence per mistake: dotted path, rule, value, nearest
choice.
"""

from statten.config.layouts import Stage
from statten.config.loading import (
    RECIPES,
    build_config,
    dump_config,
    field_at,
    field_paths,
    get_field,
    load_config,
    parse_overrides,
    recipe_names,
    validate_part,
    with_overrides,
)
from statten.config.model import AttentionMode, BackboneName, ModelConfig, NeuronKind, NeuronMap
from statten.config.parts import Float, Int, Part
from statten.config.reading import dump_yaml, parse_yaml, read_yaml
from statten.config.schema import (
    DATASET_NAMES,
    METRICS,
    Config,
    DataConfig,
    Dataset,
    Optimizer,
    Sampler,
    ScaleConfig,
    Scheduler,
    SearchConfig,
    TrainConfig,
    constraint,
    objective,
)

__all__ = [
    "DATASET_NAMES", "METRICS", "RECIPES", "AttentionMode", "BackboneName", "Config", "DataConfig",
    "Dataset", "Float", "Int", "ModelConfig", "NeuronKind", "NeuronMap", "Optimizer", "Part", "Sampler", "ScaleConfig",
    "Scheduler", "SearchConfig", "Stage", "TrainConfig", "build_config", "constraint", "dump_config", "dump_yaml", "field_at",
    "field_paths", "get_field", "load_config", "objective", "parse_overrides", "parse_yaml", "read_yaml", "recipe_names",
    "validate_part", "with_overrides",
]  # fmt: skip
