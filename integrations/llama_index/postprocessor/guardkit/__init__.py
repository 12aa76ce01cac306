"""guardkit for LlamaIndex: nodes, query and chat engines, ingestion, LLMs, tools, workflows and instrumentation."""

from guardkit.errors import MissingExtra

try:
    import llama_index.core  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise MissingExtra("llama_index.postprocessor.guardkit", "llama-index") from error

from llama_index.postprocessor.guardkit.nodes import Screened
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor, Screening
from llama_index.postprocessor.guardkit.rules import REDACTED, VIOLATION_MESSAGE, GuardEvent
from llama_index.postprocessor.guardkit.transform import GuardTransform

__all__ = [
    "REDACTED",
    "VIOLATION_MESSAGE",
    "GuardEvent",
    "GuardNodePostprocessor",
    "GuardTransform",
    "Screened",
    "Screening",
]
