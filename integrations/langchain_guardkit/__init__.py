"""guardkit for LangChain: chains, chat models, agents, retrievers and graphs in which every text is judged."""

from langchain_guardkit.chat_model import GuardedChatModel
from langchain_guardkit.enforcing import MessageViolation
from langchain_guardkit.runnable import GuardRunnable

__all__ = ["GuardRunnable", "GuardedChatModel", "MessageViolation"]
