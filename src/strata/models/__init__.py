"""Architectures as `nn` modules, their weight maps, and reading of model folders.

::

    folder = locate("Qwen/Qwen2.5-0.5B")
    definition = build(read_config(folder), "bf16")
    for name, array in definition.load(Checkpoint(folder)): ...
"""

from . import gpt2, llama  # noqa: F401  (they register their architectures)
from .checkpoint import Checkpoint
from .config import ModelConfig
from .definition import ModelDefinition, build
from .hub import locate
from .registry import ARCHITECTURES, parse_config, read_config
from .shapes import SHAPES, random_params, shape_config
from .weights import NameRules, ParamSource, Transform, load_params

__all__ = [
    "ARCHITECTURES",
    "SHAPES",
    "Checkpoint",
    "ModelConfig",
    "ModelDefinition",
    "NameRules",
    "ParamSource",
    "Transform",
    "build",
    "load_params",
    "locate",
    "parse_config",
    "random_params",
    "read_config",
    "shape_config",
]
