"""Labelling data sets of any size: each record back with what the guard found, nothing lost, in order.

guard label data/ --out labelled/         the command
Labeller(model="nano")                    a callable for batches, ready for Ray Data's `map_batches`
"""

from guardkit.labelling.labeller import Labeller

__all__ = ["Labeller"]
