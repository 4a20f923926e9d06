"""The settings of an experiment and their limits, read from YAML, validated, and written as YAML."""

from mft_jax.config.asking import AskOptions
from mft_jax.config.build import from_dict, to_dict, to_yaml, validate
from mft_jax.config.changes import Change, Difference, compare, lasting, with_earlier_settings
from mft_jax.config.fields import (
    ADDITION_DIGITS,
    FUSED,
    MATH_LEVELS,
    TARGETS,
    DebateConfig,
    ExperimentConfig,
    FeedbackConfig,
    FinetuningConfig,
    LoggingConfig,
    LoraConfig,
    MeshConfig,
    MetricsConfig,
    ModelSource,
    PolicyConfig,
    PreferenceConfig,
    RoleConfig,
    SamplingConfig,
    Speakers,
    TaskConfig,
)
from mft_jax.config.grid import Cell, Grid, load_grid
from mft_jax.config.hosts import HostsConfig
from mft_jax.config.yaml_file import from_yaml, load_config, parse_yaml

__all__ = [
    "ADDITION_DIGITS",
    "FUSED",
    "MATH_LEVELS",
    "TARGETS",
    "AskOptions",
    "Cell",
    "Change",
    "DebateConfig",
    "Difference",
    "ExperimentConfig",
    "FeedbackConfig",
    "FinetuningConfig",
    "Grid",
    "HostsConfig",
    "LoggingConfig",
    "LoraConfig",
    "MeshConfig",
    "MetricsConfig",
    "ModelSource",
    "PolicyConfig",
    "PreferenceConfig",
    "RoleConfig",
    "SamplingConfig",
    "Speakers",
    "TaskConfig",
    "compare",
    "from_dict",
    "from_yaml",
    "lasting",
    "load_config",
    "load_grid",
    "parse_yaml",
    "to_dict",
    "to_yaml",
    "validate",
    "with_earlier_settings",
]
