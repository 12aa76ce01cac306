"""CARE: decode under the eyes of a guard, and go back where it objects (arXiv 2509.06982; Qwen3Guard report, 4.5).

    rollback = Rollback(guard)
    result = rollback.generate(model, tokenizer, messages, max_new_tokens=300)      # a transformers model
    async for text in rollback.stream(client, messages): ...                         # an OpenAI-compatible server

The newest tokens wait in a buffer while the guard reads. Where the policy stops the text, the buffer is dropped, the
model reflects on what it wrote, and decoding goes on from before. When the tries are used up, or the guard cannot
judge, the answer ends in a refusal; no text is shown that was not judged.
"""

from guardkit.rollback.result import Dropped, RollbackResult
from guardkit.rollback.rollback import Rollback, RollbackIterator, RollbackStream

__all__ = ["Dropped", "Rollback", "RollbackIterator", "RollbackResult", "RollbackStream"]
