"""Models: the contract, the name table, and the embedded model."""

from guardkit.models.base import Query, QueryScores, Scores, Session, StreamModel, Tokenizer
from guardkit.models.registry import DEFAULT_MODEL, ModelInfo, categories_of, list_models, load_model

__all__ = [
    "DEFAULT_MODEL",
    "ModelInfo",
    "Query",
    "QueryScores",
    "Scores",
    "Session",
    "StreamModel",
    "Tokenizer",
    "categories_of",
    "list_models",
    "load_model",
]
