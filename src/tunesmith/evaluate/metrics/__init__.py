"""Everything that rates an answer, by name; importing it registers the built-in metrics and loads no heavy library."""

from tunesmith.evaluate.metrics import classes, cost, encoded, entities, execute, overlap, structured, text, translation
from tunesmith.evaluate.metrics.base import Measured, Metric, MetricEntry, Pool, described, metric, names

__all__ = [
    "Measured",
    "Metric",
    "MetricEntry",
    "Pool",
    "classes",
    "cost",
    "described",
    "encoded",
    "entities",
    "execute",
    "metric",
    "names",
    "overlap",
    "structured",
    "text",
    "translation",
]
