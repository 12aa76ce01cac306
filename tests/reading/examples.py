# ruff: noqa: E501
"""One genuine record of each shape. A text stands as «stage», the stage at which it is judged; what is only read, and
not judged where a record is judged by what stands last in it, as «context»."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

PLACE = re.compile("«([a-z_]+)»")
EXAMPLES: dict[str, Any] = {
    "OpenAI chat request": {
        "model": "gpt-4o-mini", "temperature": 0.2, "tool_choice": "auto",
        "tools": [{"type": "function", "function": {"name": "get_weather", "description": "«context»", "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "«context»"}}}}}],
        "messages": [
            {"role": "system", "content": "«context»"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "«context»"},
            {"role": "user", "content": [{"type": "text", "text": "«prompt»"}, {"type": "text", "text": "«prompt»"}]},
        ],
    },
    "OpenAI chat response": {
        "id": "chatcmpl-9", "object": "chat.completion", "created": 1760000000, "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_1",
        "choices": [
            {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": "«response»", "refusal": None, "annotations": [{"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 3, "url": "https://example.org/a", "title": "«document»"}}]}},
            {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": None, "refusal": "«response»"}},
            {"index": 2, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": None, "reasoning_content": "«reasoning»", "tool_calls": [{"id": "call_2", "type": "function", "function": {"name": "search", "arguments": "{\"q\": \"«tool_call»\"}"}}, {"id": "call_3", "type": "custom", "custom": {"name": "shell", "input": "«tool_call»"}}]}},
            {"index": 3, "finish_reason": "length", "message": {"role": "assistant", "content": "«response»"}, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    },
    "OpenAI batch input": {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o", "messages": [{"role": "developer", "content": "«context»"}, {"role": "user", "content": "«prompt»"}]}},
    "OpenAI batch output": {"id": "batch_req_1", "custom_id": "request-1", "response": {"status_code": 200, "request_id": "req_1", "body": {"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "«response»"}, "finish_reason": "stop"}, {"index": 1, "message": {"role": "assistant", "content": "«response»"}, "finish_reason": "stop"}]}}, "error": None},
    "OpenAI fine-tuning line": {"messages": [{"role": "system", "content": "«context»"}, {"role": "user", "content": "«context»"}, {"role": "assistant", "content": "«response»", "weight": 1}], "parallel_tool_calls": False},
    "OpenAI preference line": {"input": {"messages": [{"role": "user", "content": "«context»"}]}, "preferred_output": [{"role": "assistant", "content": "«response»"}], "non_preferred_output": [{"role": "assistant", "content": "«response»"}]},
    "OpenAI completions": {"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": "«response»", "finish_reason": "stop"}, {"index": 1, "text": "«response»", "finish_reason": "stop"}]},
    "Responses request": {"model": "gpt-5", "instructions": "«context»", "input": [{"role": "user", "content": [{"type": "input_text", "text": "«context»"}]}, {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c1", "output": "«tool_output»"}]},
    "Responses response": {
        "id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5-2025-08-07", "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low", "summary": None},
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "«reasoning»"}], "content": [{"type": "reasoning_text", "text": "«reasoning»"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "«tool_call»"}},
            {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["«tool_call»"], "results": [{"file_id": "file-1", "filename": "a.txt", "score": 0.5, "text": "«tool_output»"}]},
            {"type": "code_interpreter_call", "id": "ci_1", "code": "«tool_call»", "container_id": "cntr_1", "outputs": [{"type": "logs", "logs": "«tool_output»"}], "status": "completed"},
            {"type": "mcp_call", "id": "mcp_1", "name": "fetch", "server_label": "web", "arguments": "{\"url\": \"«tool_call»\"}", "output": "«tool_output»", "error": None},
            {"type": "shell_call", "id": "sh_1", "call_id": "c9", "action": {"commands": ["«tool_call»"], "timeout_ms": 1000}, "status": "completed"},
            {"type": "shell_call_output", "id": "so_1", "call_id": "c9", "output": [{"stdout": "«tool_output»", "stderr": "«tool_output»", "outcome": {"type": "exit", "exit_code": 0}}]},
            {"type": "apply_patch_call", "id": "ap_1", "call_id": "c8", "status": "completed", "operation": {"type": "update_file", "path": "a.py", "diff": "«tool_call»"}},
            {"type": "custom_tool_call", "id": "ct_1", "call_id": "c7", "name": "sql", "input": "«tool_call»"},
            {"type": "program", "id": "pr_1", "call_id": "c6", "code": "«tool_call»", "fingerprint": "fp1"},
            {"type": "program_output", "id": "po_1", "call_id": "c6", "result": "«tool_output»", "status": "completed"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": "«response»", "annotations": [{"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://example.org", "title": "«document»"}]}, {"type": "refusal", "refusal": "«response»"}]},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    },
    "Anthropic request": {
        "model": "claude-sonnet-4-5", "max_tokens": 100, "system": [{"type": "text", "text": "«context»", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "«context»"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "search", "input": {"q": "x"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": False, "content": [{"type": "text", "text": "«tool_output»"}, {"type": "search_result", "source": "https://example.org", "title": "«document»", "content": [{"type": "text", "text": "«document»"}], "citations": {"enabled": True}}]},
                {"type": "document", "title": "«document»", "context": "«document»", "source": {"type": "text", "media_type": "text/plain", "data": "«document»"}, "citations": {"enabled": True}},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "«document»"}]}},
                {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": [{"type": "text", "text": "«tool_output»"}]},
                {"type": "text", "text": "«prompt»", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
            ]},
        ],
    },
    "Anthropic response": {
        "id": "msg_01", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_reason": "end_turn", "stop_sequence": None,
        "content": [
            {"type": "thinking", "thinking": "«reasoning»", "signature": "RXJlbW90ZQ=="},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "«tool_call»"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"type": "web_search_result", "url": "https://example.org", "title": "«document»", "encrypted_content": "RXJlbW90ZQ==", "page_age": "2 days ago"}]},
            {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_2", "content": {"type": "web_fetch_result", "url": "https://example.org", "retrieved_at": "2026-01-01T00:00:00Z", "content": {"type": "document", "title": "«document»", "source": {"type": "text", "media_type": "text/plain", "data": "«document»"}}}},
            {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_3", "content": {"type": "bash_code_execution_result", "stdout": "«tool_output»", "stderr": "«tool_output»", "return_code": 0, "content": []}},
            {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "echo", "server_name": "web", "input": {"text": "«tool_call»"}},
            {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": [{"type": "text", "text": "«tool_output»"}]},
            {"type": "text", "text": "«response»", "citations": [{"type": "char_location", "cited_text": "«document»", "document_index": 0, "document_title": "«document»", "start_char_index": 0, "end_char_index": 5}]},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 2},
    },
    "Bedrock Converse request": {
        "modelId": "anthropic.claude-3-haiku", "system": [{"text": "«context»"}],
        "messages": [{"role": "user", "content": [
            {"text": "«prompt»"}, {"document": {"format": "txt", "name": "notes", "source": {"text": "«document»"}, "context": "«document»"}},
            {"toolResult": {"toolUseId": "t1", "status": "success", "content": [{"text": "«tool_output»"}, {"json": {"note": "«tool_output»"}}]}},
            {"searchResult": {"source": "s", "title": "«document»", "content": [{"text": "«document»"}]}},
            {"guardContent": {"text": {"text": "«prompt»", "qualifiers": ["query"]}}}, {"cachePoint": {"type": "default"}},
        ]}],
    },
    "Bedrock Converse response": {
        "output": {"message": {"role": "assistant", "content": [
            {"reasoningContent": {"reasoningText": {"text": "«reasoning»", "signature": "c2ln"}}}, {"text": "«response»"},
            {"toolUse": {"toolUseId": "t1", "name": "f", "input": {"q": "«tool_call»"}}},
            {"citationsContent": {"content": [{"text": "«response»"}], "citations": [{"title": "«document»", "sourceContent": [{"text": "«document»"}], "location": {"documentChar": {"documentIndex": 0, "start": 1, "end": 4}}}]}},
        ]}},
        "stopReason": "end_turn", "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}, "metrics": {"latencyMs": 5},
    },
    "Gemini request": {"systemInstruction": {"parts": [{"text": "«context»"}]}, "contents": [{"role": "user", "parts": [{"text": "«context»"}]}, {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}, {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "«tool_output»"}}}, {"text": "«prompt»"}]}], "generationConfig": {"temperature": 0.1}},
    "Gemini response": {
        "candidates": [
            {"index": 0, "finishReason": "STOP", "safetyRatings": [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "NEGLIGIBLE"}], "content": {"role": "model", "parts": [{"text": "«reasoning»", "thought": True}, {"text": "«response»"}, {"functionCall": {"name": "f", "args": {"q": "«tool_call»"}}}, {"executableCode": {"language": "PYTHON", "code": "«tool_call»"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "«tool_output»"}}]},
             "groundingMetadata": {"webSearchQueries": ["«document»"], "groundingChunks": [{"web": {"uri": "https://example.org", "title": "«document»"}}], "groundingSupports": [{"segment": {"startIndex": 0, "endIndex": 4, "text": "«document»"}, "groundingChunkIndices": [0]}]}, "citationMetadata": {"citationSources": [{"startIndex": 1, "endIndex": 2, "uri": "https://example.org"}]}},
            {"index": 1, "finishReason": "STOP", "finishMessage": "«response»", "content": {"role": "model", "parts": [{"text": "«response»"}]}},
        ],
        "usageMetadata": {"promptTokenCount": 1}, "modelVersion": "gemini-2.5-flash", "responseId": "r1",
    },
    "AI SDK UI message": {"id": "m1", "role": "assistant", "metadata": {"note": "«response»"}, "parts": [
        {"type": "step-start"}, {"type": "reasoning", "text": "«reasoning»", "state": "done"}, {"type": "text", "text": "«response»", "state": "done"},
        {"type": "tool-weather", "toolCallId": "c1", "state": "output-available", "input": {"city": "«tool_call»"}, "output": {"note": "«tool_output»"}},
        {"type": "dynamic-tool", "toolName": "f", "toolCallId": "c2", "state": "output-error", "input": {"q": "«tool_call»"}, "errorText": "«tool_output»"},
        {"type": "source-document", "sourceId": "s1", "mediaType": "text/plain", "title": "«document»"}, {"type": "data-status", "data": {"text": "«response»"}},
    ]},
    "AI SDK model messages": [{"role": "user", "content": "«context»"}, {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c1", "toolName": "f", "output": {"type": "json", "value": {"k": "«tool_output»"}}}, {"type": "tool-result", "toolCallId": "c2", "toolName": "f", "output": {"type": "content", "value": [{"type": "text", "text": "«tool_output»"}]}}]}],
    "LangChain dump": {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessage"], "kwargs": {"content": [{"type": "text", "text": "«response»", "annotations": [{"type": "citation", "cited_text": "«document»"}]}, {"type": "reasoning", "reasoning": "«reasoning»"}], "additional_kwargs": {"note": "«response»"}, "response_metadata": {"model_name": "m-1", "finish_reason": "stop", "note": "«response»"}, "type": "ai", "tool_calls": [{"name": "f", "args": {"q": "«tool_call»"}, "id": "c1", "type": "tool_call"}], "invalid_tool_calls": [{"name": "f", "args": "«tool_call»", "id": "c2", "error": "«tool_output»", "type": "invalid_tool_call"}]}},
    "LangChain messages as dicts": [{"type": "human", "data": {"content": "«context»", "additional_kwargs": {}, "type": "human"}}, {"type": "ai", "data": {"content": "x", "tool_calls": [], "type": "ai"}}, {"type": "tool", "data": {"content": "«tool_output»", "artifact": {"rows": ["«tool_output»"]}, "tool_call_id": "c1", "type": "tool"}}],
    "LangChain document": {"page_content": "«document»", "metadata": {"source": "a.txt", "title": "«document»"}, "type": "Document"},
    "LlamaIndex message": {"role": "assistant", "additional_kwargs": {"note": "«response»"}, "blocks": [{"block_type": "thinking", "content": "«reasoning»", "num_tokens": 3, "additional_information": {}}, {"block_type": "text", "text": "«response»"}, {"block_type": "tool_call", "tool_call_id": "c1", "tool_name": "f", "tool_kwargs": {"q": "«tool_call»"}}, {"block_type": "citation", "title": "«document»", "source": "«document»", "cited_content": {"block_type": "text", "text": "«document»"}, "additional_location_info": {}}]},
    "LlamaIndex citable block": {"role": "user", "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": "«prompt»"}, {"block_type": "citable", "title": "«document»", "source": "«document»", "content": [{"block_type": "text", "text": "«document»"}]}]},
    "LlamaIndex node": {"id_": "n1", "class_name": "TextNode", "text": "«document»", "metadata": {"title": "«document»"}, "mimetype": "text/plain"},
    "ShareGPT": {"id": "c1", "system": "«context»", "conversations": [{"from": "human", "value": "«context»"}, {"from": "gpt", "value": "«response»"}]},
    "ShareGPT with tools": {"tools": "[]", "conversations": [{"from": "human", "value": "«context»"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}, {"from": "observation", "value": "«tool_output»"}]},
    "ShareGPT call": {"conversations": [{"from": "human", "value": "«context»"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"q\": \"«tool_call»\"}}"}]},
    "Alpaca": {"instruction": "«context»", "input": "«context»", "output": "«response»"},
    "Alpaca without an answer": {"instruction": "«prompt»", "input": "«prompt»"},
    "preference row": {"prompt": "«context»", "chosen": "«response»", "rejected": "«response»", "margin": 1.5},
    "preference of messages": {"chosen": [{"role": "user", "content": "«context»"}, {"role": "assistant", "content": "«response»"}], "rejected": [{"role": "user", "content": "«context»"}, {"role": "assistant", "content": "«response»"}]},
    "prompt and completion": {"prompt": "«context»", "completion": "«response»"},
    "prompt and response": {"prompt": "«context»", "response": "«response»", "reasoning_content": "«reasoning»"},
    "conversational prompt and completion": {"prompt": [{"role": "user", "content": "«context»"}], "completion": [{"role": "assistant", "content": "«response»"}]},
    "Ollama": {"model": "qwen3", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop", "total_duration": 5, "message": {"role": "assistant", "content": "«response»", "thinking": "«reasoning»", "tool_calls": [{"function": {"name": "f", "arguments": {"q": "«tool_call»"}}}]}},
    "MCP tool result": {"jsonrpc": "2.0", "id": 3, "result": {"content": [{"type": "text", "text": "«tool_output»"}, {"type": "resource", "resource": {"uri": "file:///a.txt", "mimeType": "text/plain", "text": "«tool_output»"}}], "structuredContent": {"rows": [{"note": "«tool_output»"}]}, "isError": False}},
    "MCP tool call": {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "search", "arguments": {"q": "«tool_call»"}}},
    "Pydantic AI messages": [
        {"kind": "request", "parts": [{"part_kind": "system-prompt", "content": "«context»"}, {"part_kind": "user-prompt", "content": "«context»"}]},
        {"kind": "response", "parts": [{"part_kind": "thinking", "content": "«context»"}, {"part_kind": "tool-call", "tool_name": "f", "tool_call_id": "c1", "args": {"q": "«context»"}}]},
        {"kind": "request", "parts": [{"part_kind": "tool-return", "tool_name": "f", "tool_call_id": "c1", "content": "«tool_output»"}]},
    ],
    "Gemini interaction": {"id": "v1", "model": "gemini-3-pro", "status": "completed", "outputs": [{"type": "thought", "signature": "c2ln", "summary": [{"type": "text", "text": "«reasoning»"}]}, {"type": "function_call", "name": "f", "id": "c1", "arguments": {"q": "«tool_call»"}}, {"type": "text", "text": "«response»"}]},
    "text": {"text": "«prompt»", "id": "row-1"},
    "prompt": {"prompt": "«prompt»"},
    "string": "«prompt»",
}  # fmt: skip


def places(value: Any) -> Iterator[tuple[str, Any]]:
    """The stage of each place in an example, and the example with `BAD` there and harmless words in all others."""
    stages = PLACE.findall(repr(value))
    for at, stage in enumerate(stages):
        count = iter(range(len(stages)))
        yield stage, _filled(value, lambda _: "this is BAD" if next(count) == at else "fine words")  # noqa: B023


def _filled(value: Any, text: Any) -> Any:
    if isinstance(value, str):
        return PLACE.sub(text, value)
    if isinstance(value, dict):
        return {key: _filled(inner, text) for key, inner in value.items()}
    return [_filled(inner, text) for inner in value] if isinstance(value, list) else copy.copy(value)
