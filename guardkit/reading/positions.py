"""What stands where in the messages and blocks of chat APIs: tables, one row a fact, each from its makers' docs.

A key that no table knows is walked, and its texts are judged. So a row here is needed only for a position that holds no
text, for one whose stage is not that of its surroundings, and for media.
"""

from __future__ import annotations

import re
from typing import Any

from guardkit.verdict import Stage

ROLES = {
    "user": Stage.prompt,
    "human": Stage.prompt,
    "prompter": Stage.prompt,
    "system": Stage.prompt,
    "developer": Stage.prompt,
    "assistant": Stage.response,
    "ai": Stage.response,
    "model": Stage.response,
    "chatbot": Stage.response,
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "agent"), Stage.response),
    "tool": Stage.tool_output,
    "function": Stage.tool_output,
    "ipython": Stage.tool_output,
    **dict.fromkeys(("observation", "tool_response", "function_response"), Stage.tool_output),
}
CALL_ROLES = frozenset(("function_call", "tool_call"))
"""ShareGPT's messages of a model that are a tool call."""
ROLE_OF_TYPE = {  # messages without a role: LangChain's types, and items of the Responses API
    **dict.fromkeys(("human", "HumanMessage", "HumanMessageChunk"), "user"),
    **dict.fromkeys(("ai", "AIMessage", "AIMessageChunk"), "assistant"),
    **dict.fromkeys(("system", "SystemMessage", "SystemMessageChunk"), "system"),
    **dict.fromkeys(("tool", "ToolMessage", "ToolMessageChunk"), "tool"),
    **dict.fromkeys(("function", "FunctionMessage", "FunctionMessageChunk"), "tool"),
    **dict.fromkeys(("input_text", "input_image", "input_file", "mcp_approval_response", "item_reference"), "user"),
    **dict.fromkeys(("reasoning", "output_text", "refusal", "message", "compaction", "message.output"), "assistant"),
    **dict.fromkeys(("configuration_update", "compaction_trigger", "additional_tools"), "system"),
}

ROLE_OF_KIND = {"request": "user", "response": "assistant"}
"""Pydantic AI's messages, whose parts are `part_kind`."""


def role_of(value: Any) -> str | None:
    """The role, one of `ROLES`, that is written so: in any case, or with an agent's name behind it ("agent/writer")."""
    value = getattr(value, "value", value)
    if not isinstance(value, str):
        return None
    name = value.lower()
    name = name if name in ROLES else name.partition("/")[0]
    return name if name in ROLES else None


# ------------------------------------------------------------------------------------------------------- messages

CONTENT = ("content", "parts", "blocks", "value", "text")
"""Where a message's own content stands. `value` is ShareGPT's, `blocks` LlamaIndex's, `parts` Gemini's and AI SDK's."""
REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_delta")
CALLS = ("tool_calls", "function_call", "invalid_tool_calls", "tool_call_chunks", "toolInvocations", "executed_tools")
ASIDE = ("annotations", "citations", "groundingMetadata", "grounding_metadata", "citationMetadata", "search_results")
"""What an answer cites: other people's words, judged as documents."""
RESULTS = ("artifact", "toolUseResult")
TOLD_BY_KEY = {
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought", "thoughts"), Stage.reasoning),
    **dict.fromkeys(("tool_calls", "function_call"), Stage.tool_call),
    **dict.fromkeys(("observation", "observations", "tool_output", "tool_outputs", "tool_result"), Stage.tool_output),
    **dict.fromkeys(("tool_results", "tool_response", "toolUseResult", "structuredContent"), Stage.tool_output),
    **dict.fromkeys(("documents", "source_documents", "retrieved_documents", "retrieved_contexts"), Stage.document),
}
"""Keys of values of no known shape that tell the stage of what stands there."""
NO_TEXT = frozenset((
    "role", "from", "name", "id", "tool_call_id", "toolCallId", "call_id", "type", "status", "index", "usage",
    "usage_metadata", "finish_reason", "stop_reason", "model", "created_at", "createdAt", "timestamp", "phase",
    "is_error", "isError", "cache_control", "weight", "prefix", "partial", "tool_name", "logprobs", "class_name",
    "example", "chunk_position", "loss", "train", "mask", "expires_at", "object", "created", "stop_sequence",
    "container", "finishReason", "token_count", "tokenCount", "safetyRatings", "safety_ratings", "avgLogprobs",
    "avg_logprobs", "logprobsResult", "logprobs_result", "content_filter_results", "kind", "messageId",
))  # fmt: skip
"""Of a message."""
RESPONSE_METADATA = frozenset((
    "model_name", "model", "id", "token_usage", "usage", "finish_reason", "stop_reason", "stop_sequence",
    "system_fingerprint", "logprobs", "service_tier", "created_at", "done", "done_reason", "total_duration",
    "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration", "model_provider",
    "headers", "safety_ratings", "object", "created",
))  # fmt: skip
"""Of LangChain's `response_metadata`."""

# --------------------------------------------------------------------------------------------------------- blocks

TEXT = frozenset(("text", "input_text", "output_text", "refusal", "summary_text", "text_delta"))
REASONING_BLOCKS = frozenset((
    "thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary", "reasoning.encrypted",
    "redacted_thinking", "reasoningContent", "compaction", "thought",
))  # fmt: skip
CALL_BLOCKS = frozenset((
    "tool_use", "tool_call", "function_call", "server_tool_use", "custom_tool_call", "mcp_tool_use", "tool_call_chunk",
    "invalid_tool_call", "server_tool_call", "server_tool_call_chunk", "input_json_delta", "tool-call",
    "dynamic-tool", "tool-invocation", "mcp_call", "mcp_approval_request", "web_search_call", "file_search_call",
    "code_interpreter_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "image_generation_call", "toolUse", "functionCall", "function_call_part", "executableCode", "executable_code",
    "constructor_call", "tool_search_call", "program", "toolCall", "tool-approval-request", "tool.execution",
))  # fmt: skip
RESULT_BLOCKS = frozenset((
    "tool_result", "mcp_tool_result", "web_search_tool_result", "web_fetch_tool_result", "tool-result", "tool-error",
    "function_call_output", "custom_tool_call_output", "computer_call_output", "local_shell_call_output",
    "shell_call_output", "apply_patch_call_output", "mcp_list_tools", "code_execution_tool_result",
    "bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "tool_search_tool_result",
    "server_tool_result", "toolResult", "functionResponse", "function_response", "codeExecutionResult",
    "code_execution_result", "tool_search_output", "program_output", "advisor_tool_result", "mcp_tool_listing",
    "toolResponse", "tool_response", "tool_call_response", "tool-return", "retry-prompt",
))  # fmt: skip
CALL_ENDINGS = ("_call", "-call", ".call")
RESULT_ENDINGS = ("_result", "-result", ".result", "_call_output")
"""Of the kinds of blocks that no table knows yet."""
DOCUMENT_BLOCKS = frozenset((
    "document", "search_result", "web_search_result", "web_fetch_result", "text-plain", "citable", "citation",
    "source-url", "source-document", "searchResult", "citationsContent_citation", "search_result_location",
))  # fmt: skip
MEDIA_BLOCKS = frozenset((
    "image", "image_url", "input_image", "output_image", "audio", "audio_url", "input_audio", "output_audio", "video",
    "video_url", "input_video", "file", "input_file", "media", "container_upload", "inlineData", "inline_data",
    "fileData", "file_data", "image_file", "computer_screenshot", "image_document", "item_reference", "file-data",
    "file-url", "file-id", "file-reference", "image-data", "image-url", "image-file-id", "image-file-reference",
    "reasoning-file",
))  # fmt: skip


def is_call(kind: str) -> bool:
    return kind in CALL_BLOCKS or (kind.endswith(CALL_ENDINGS) and not is_result(kind))


def is_result(kind: str) -> bool:
    return kind in RESULT_BLOCKS or (kind.endswith(RESULT_ENDINGS) and kind not in DOCUMENT_BLOCKS)


ITEMS = TEXT | REASONING_BLOCKS | CALL_BLOCKS | RESULT_BLOCKS | MEDIA_BLOCKS
ITEMS |= {"configuration_update", "compaction_trigger"}
"""Blocks that can stand as messages of their own (the Responses API's items)."""
BARE = (
    "text", "image", "document", "video", "audio", "toolUse", "toolResult", "searchResult", "reasoningContent",
    "citationsContent", "guardContent", "cachePoint", "functionCall", "functionResponse", "function_call",
    "function_response", "toolCall", "tool_call", "toolResponse", "tool_response", "inlineData", "inline_data",
    "fileData", "file_data", "executableCode", "executable_code", "codeExecutionResult", "code_execution_result",
)  # fmt: skip
"""Blocks that name their kind by their key (Bedrock's, Gemini's): ``{"toolResult": {...}}``."""
CALL_ARGUMENTS = (
    "arguments", "args", "input", "tool_kwargs", "kwargs", "tool_input", "partial_json", "action", "code", "queries",
    "operation", "parameters", "actions",
)  # fmt: skip
CALL_NAMES = ("name", "toolName", "tool_name", "toolType", "tool_type")
CALL_RESULTS = frozenset(("output", "outputs", "results", "result", "error", "errorText"))
BLOCK_NO_TEXT = frozenset((
    "type", "kind", "block_type", "id", "index", "cache_control", "cacheControl", "cachePoint", "logprobs", "status",
    "signature", "encrypted_content", "encrypted_index", "thought_signature", "thoughtSignature", "tool_use_id",
    "toolUseId", "tool_call_id", "toolCallId", "call_id", "is_error", "isError", "state", "caller", "server_label",
    "approval_request_id", "container_id", "thought", "format", "media_type", "mimeType", "mime_type", "mediaType",
    "detail", "language", "file_id", "fileId", "sourceId", "preliminary", "providerExecuted", "page_age",
    "retrieved_at",
    "start_index", "end_index", "start_char_index", "end_char_index", "document_index", "start_page_number",
    "end_page_number", "start_block_index", "end_block_index", "search_result_index", "file_type", "class_name",
    "redactedContent", "fingerprint", "caller_id", "prompt_cache_breakpoint", "num_tokens",
    "acknowledged_safety_checks", "pending_safety_checks", "max_output_length", "environment", "extras_type",
))  # fmt: skip
"""Of a block of a known kind; `type` of one whose kind is known."""
TEXT_MEDIA = re.compile(
    r"text/.+|.+\+(?:json|xml|yaml)|message/rfc822|application/(?:x-)?(?:json|jsonl|ndjson|json5|xml|yaml|toml|csv|tsv|sql"
    r"|javascript|ecmascript|typescript|python|sh|shellscript|perl|ruby|php|httpd-php|tex|latex|rtf|graphql|subrip"
    r"|www-form-urlencoded)"
)
"""Media types of files that are texts: decoded and judged as documents."""
WRAPPERS = frozenset(
    ("content", "json", "error-text", "error-json", "resource", "resource_link", "non_standard", "logs")
)
"""Blocks that only wrap others, or plain values, at the stage of their surroundings."""
NAMED = frozenset(("name", "toolName", "tool_name", "server_name", "serverName"))
"""Of a tool's result: what the tool is called."""
CAPTIONS = frozenset(
    ("transcript", "alt", "title", "text", "caption", "context", "filename", "revised_prompt", "description")
)
"""Of media: texts beside the data, judged even where they are a single word."""
MEDIA_TYPES = ("media_type", "mimeType", "mime_type", "mediaType", "image_mimetype", "document_mimetype")
TEXT_FORMATS = ("txt", "md", "csv", "html")
MEDIA_DATA = ("data", "file_data", "fileData", "bytes", "base64", "blob")
