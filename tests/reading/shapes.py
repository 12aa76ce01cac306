# ruff: noqa: E501
"""A message of every API, one a row, with a text in it and the stage that it belongs to."""

from __future__ import annotations

import base64
from typing import Any

from guardkit import Stage

T = "some words"
DATA = base64.b64encode(T.encode()).decode()


def blocks(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None} | more


SHAPES: list[tuple[str, dict[str, Any], Stage]] = [
    ("OpenAI text", user(*blocks(T)), Stage.prompt),
    ("OpenAI tool message", {"role": "tool", "tool_call_id": "call_1", "content": blocks(T)}, Stage.tool_output),
    ("OpenAI refusal", assistant(refusal=T), Stage.response),
    ("OpenAI annotation", assistant(annotations=[{"type": "url_citation", "url_citation": {"title": T}}]), Stage.document),
    ("OpenAI call", assistant(tool_calls=[{"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{T}"}}'}}]), Stage.tool_call),
    ("Responses text", user({"type": "input_text", "text": T}), Stage.prompt),
    ("Responses call", {"type": "function_call", "call_id": "c", "name": "f", "arguments": f'{{"a": "{T}"}}'}, Stage.tool_call),
    ("Responses output", {"type": "function_call_output", "call_id": "c", "output": T}, Stage.tool_output),
    ("Responses output blocks", {"type": "function_call_output", "output": [{"type": "input_text", "text": T}]}, Stage.tool_output),
    ("Responses reasoning", {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": T}]}, Stage.reasoning),
    ("Responses mcp_call output", {"type": "mcp_call", "name": "f", "arguments": "{}", "output": T}, Stage.tool_output),
    ("Responses mcp_list_tools", {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "f", "description": T}]}, Stage.tool_output),
    ("Responses file_search", {"type": "file_search_call", "queries": ["q"], "results": [{"text": T}]}, Stage.tool_output),
    ("Responses shell", {"type": "local_shell_call", "action": {"command": ["echo", T]}}, Stage.tool_call),
    ("Responses code", {"type": "code_interpreter_call", "code": "1", "outputs": [{"type": "logs", "logs": T}]}, Stage.tool_output),
    ("Anthropic document", user({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": T}}), Stage.document),
    ("Anthropic document blocks", user({"type": "document", "source": {"type": "content", "content": blocks(T)}}), Stage.document),
    ("Anthropic document title", user({"type": "document", "title": T, "source": {"type": "text", "data": "x"}}), Stage.document),
    ("Anthropic document base64", user({"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": DATA}}), Stage.document),
    ("Anthropic search_result", user({"type": "search_result", "source": "s", "title": "x", "content": blocks(T)}), Stage.document),
    ("Anthropic tool_result", user({"type": "tool_result", "tool_use_id": "a", "content": T}), Stage.tool_output),
    ("Anthropic document in a result", user({"type": "tool_result", "content": [{"type": "search_result", "content": blocks(T)}]}), Stage.document),
    ("Anthropic mcp_tool_result", user({"type": "mcp_tool_result", "tool_use_id": "a", "content": blocks(T)}), Stage.tool_output),
    ("Anthropic web_search", assistant(content=[{"type": "web_search_tool_result", "content": [{"type": "web_search_result", "title": T, "url": "u"}]}]), Stage.document),
    ("Anthropic code execution", assistant(content=[{"type": "code_execution_tool_result", "content": {"type": "code_execution_result", "stdout": T}}]), Stage.tool_output),
    ("Anthropic citation", assistant(content=[{"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": T}]}]), Stage.document),
    ("Anthropic thinking", assistant(content=[{"type": "thinking", "thinking": T, "signature": "c2lnbmF0dXJl"}]), Stage.reasoning),
    ("Bedrock text", {"role": "user", "content": [{"text": T}]}, Stage.prompt),
    ("Bedrock toolResult", user({"toolResult": {"toolUseId": "a", "content": [{"text": T}], "status": "success"}}), Stage.tool_output),
    ("Bedrock json", user({"toolResult": {"toolUseId": "a", "content": [{"json": {"k": T}}]}}), Stage.tool_output),
    ("Bedrock toolUse", assistant(content=[{"toolUse": {"toolUseId": "a", "name": "f", "input": {"k": T}}}]), Stage.tool_call),
    ("Bedrock document", user({"document": {"format": "txt", "name": "n", "source": {"text": T}}}), Stage.document),
    ("Bedrock reasoning", assistant(content=[{"reasoningContent": {"reasoningText": {"text": T, "signature": "x"}}}]), Stage.reasoning),
    ("Bedrock guardContent", user({"guardContent": {"text": {"text": T}}}), Stage.prompt),
    ("Bedrock citations", assistant(content=[{"citationsContent": {"content": [{"text": "x"}], "citations": [{"sourceContent": [{"text": T}]}]}}]), Stage.document),
    ("Gemini text", {"role": "user", "parts": [{"text": T}]}, Stage.prompt),
    ("Gemini thought", {"role": "model", "parts": [{"text": T, "thought": True}]}, Stage.reasoning),
    ("Gemini call", {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"k": T}}}]}, Stage.tool_call),
    ("Gemini response", {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"k": T}}}]}, Stage.tool_output),
    ("Gemini code result", {"role": "model", "parts": [{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": T}}]}, Stage.tool_output),
    ("Gemini inline text", {"role": "user", "parts": [{"inlineData": {"mimeType": "text/plain", "data": DATA}}]}, Stage.document),
    ("AI SDK tool-result", {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "a", "output": {"type": "text", "value": T}}]}, Stage.tool_output),
    ("AI SDK result content", {"role": "tool", "content": [{"type": "tool-result", "output": {"type": "content", "value": blocks(T)}}]}, Stage.tool_output),
    ("AI SDK tool-call", assistant(content=[{"type": "tool-call", "toolCallId": "a", "toolName": "f", "input": {"k": T}}]), Stage.tool_call),
    ("AI SDK UI tool", {"id": "m1", "role": "assistant", "parts": [{"type": "tool-weather", "toolCallId": "a", "state": "output-available", "input": {}, "output": {"k": T}}]}, Stage.tool_output),
    ("AI SDK UI data", {"role": "assistant", "parts": [{"type": "data-note", "data": {"k": T}}]}, Stage.response),
    ("LangChain dict", {"type": "human", "content": T}, Stage.prompt),
    ("LangChain data", {"type": "ai", "data": {"content": T, "type": "ai"}}, Stage.response),
    ("LangChain dump", {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "ToolMessage"], "kwargs": {"content": T, "type": "tool"}}, Stage.tool_output),
    ("LangChain artifact", {"type": "tool", "content": "x", "artifact": {"rows": [T]}}, Stage.tool_output),
    ("LangChain text-plain", {"type": "human", "content": [{"type": "text-plain", "text": T, "mime_type": "text/plain"}]}, Stage.document),
    ("LlamaIndex", {"role": "user", "blocks": [{"block_type": "text", "text": T}], "additional_kwargs": {}}, Stage.prompt),
    ("LlamaIndex chatbot", {"role": "chatbot", "blocks": [{"block_type": "thinking", "content": T}]}, Stage.reasoning),
    ("ShareGPT", {"from": "gpt", "value": T}, Stage.response),
    ("ShareGPT observation", {"from": "observation", "value": T}, Stage.tool_output),
    ("dict content", {"role": "tool", "content": {"result": T}}, Stage.tool_output),
    ("unknown block", user({"type": "made_up", "payload": {"deep": [T]}}), Stage.prompt),
    ("unknown key", {"role": "user", "content": "x", "made_up": {"deep": [T]}}, Stage.prompt),
    ("a sentence as an id", {"role": "user", "content": "x", "id": T}, Stage.prompt),
    ("a sentence as a key", {"role": "tool", "content": {T: 1}}, Stage.tool_output),
]  # fmt: skip
