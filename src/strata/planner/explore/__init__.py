"""Exploration: plans for many machines, lengths, models and objectives, one row each.

::

    axes     what varies: parameters of a machine and their values
    sweep    the definition of a sweep, its rows, and the plans of a chunk of it
    workers  who plans the chunks: this process, others, or a Ray cluster
    table    rows in a CSV or Parquet file, which a later sweep goes on with
    run      all of it
"""

from .axes import Axis, parse_axis
from .run import Output, explore
from .sweep import Row, Sweep
from .workers import Workers

__all__ = ["Axis", "Output", "Row", "Sweep", "Workers", "explore", "parse_axis"]
