"""guardkit for LlamaIndex: nodes, query and chat engines, ingestion, LLMs, tools, workflows and instrumentation."""

from guardkit.errors import MissingExtra

try:
    import llama_index.core  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise MissingExtra("llama_index.postprocessor.guardkit", "llama-index") from error

from llama_index.postprocessor.guardkit.chat_engine import GuardChatEngine
from llama_index.postprocessor.guardkit.instrumentation import GuardEventHandler, GuardSpanHandler, Observation
from llama_index.postprocessor.guardkit.llm import GuardedFunctionCallingLLM, GuardedLLM, guarded
from llama_index.postprocessor.guardkit.memory import GuardMemory
from llama_index.postprocessor.guardkit.nodes import Screened
from llama_index.postprocessor.guardkit.pipeline import GuardIngestionPipeline
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor, Screening
from llama_index.postprocessor.guardkit.query_engine import GuardQueryEngine
from llama_index.postprocessor.guardkit.rollback import RollbackLLM
from llama_index.postprocessor.guardkit.rules import REDACTED, VIOLATION_MESSAGE, ExitBehavior, GuardEvent
from llama_index.postprocessor.guardkit.runs import guard_policy
from llama_index.postprocessor.guardkit.structured import Withheld
from llama_index.postprocessor.guardkit.tools import guarded_tools
from llama_index.postprocessor.guardkit.transform import GuardTransform
from llama_index.postprocessor.guardkit.workflow import guard_step

__all__ = [
    "REDACTED",
    "VIOLATION_MESSAGE",
    "ExitBehavior",
    "GuardChatEngine",
    "GuardEvent",
    "GuardEventHandler",
    "GuardIngestionPipeline",
    "GuardMemory",
    "GuardNodePostprocessor",
    "GuardQueryEngine",
    "GuardSpanHandler",
    "GuardTransform",
    "GuardedFunctionCallingLLM",
    "GuardedLLM",
    "Observation",
    "RollbackLLM",
    "Screened",
    "Screening",
    "Withheld",
    "guard_policy",
    "guard_step",
    "guarded",
    "guarded_tools",
]
