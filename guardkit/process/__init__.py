"""A model in a process of its own, shared by all that connect to it: `Guard.load(name, process=True)`."""

from guardkit.process.model import ProcessModel, load

__all__ = ["ProcessModel", "load"]
