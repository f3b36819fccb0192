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
    SHORT_FORMS,
    build_config,
    config_tree,
    dump_config,
    load_config,
    parse_overrides,
    recipe_file,
    recipe_names,
    validate_part,
    with_overrides,
    with_short_forms,
)
from statten.config.model import AttentionMode, BackboneName, ModelConfig, NeuronKind, NeuronMap
from statten.config.parts import Float, Int, Part
from statten.config.paths import field_at, field_paths, get_field, nearest_field
from statten.config.reading import dump_yaml, parse_yaml, read_yaml
from statten.config.schema import (
    DATASET_NAMES,
    METRICS,
    Config,
    DataConfig,
    Dataset,
    LogConfig,
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
    "DATASET_NAMES", "METRICS", "RECIPES", "SHORT_FORMS", "AttentionMode", "BackboneName", "Config", "DataConfig", "Dataset",
    "Float", "Int", "LogConfig", "ModelConfig", "NeuronKind", "NeuronMap", "Optimizer", "Part", "Sampler", "ScaleConfig",
    "Scheduler", "SearchConfig", "Stage", "TrainConfig", "build_config", "config_tree", "constraint", "dump_config",
    "dump_yaml", "field_at", "field_paths", "get_field", "load_config", "nearest_field", "objective", "parse_overrides",
    "parse_yaml", "read_yaml", "recipe_file", "recipe_names", "validate_part", "with_overrides", "with_short_forms",
]  # fmt: skip
