"""Rollback as a LangChain chat model and as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("httpx")

from guardkit import GuardkitError
from guardkit.rollback import Rollback
from guardkit.rollback.chat import RollbackChat
from guardkit.testing import FakeGuard
from tests.rollback import tiny
from tests.rollback.test_server import Llm
from tests.servers import LocalServer, Reply, Request

SCRIPT: dict[str, Any] = {"forbidden": "unsafe"}
TOKENIZER = tiny.tokenizer()
FORBIDDEN, SUN = tiny.ids_of(TOKENIZER, " forbidden", " sun")
MANY = {"max_new_tokens": 30, "do_sample": True, "seed": 3}
SUNNY = {**MANY, "logits_processor": [tiny.Only([SUN])]}
NEVER = {**MANY, "logits_processor": [tiny.Only([FORBIDDEN])]}
REFUSAL = "I'm sorry, but I can't help with that."


def say(so_far: str, number: int) -> list[str]:
    return [" sun"] * 8 + [" a forbidden"] if not so_far else [" water."]


def rollback() -> Rollback:
    return Rollback(FakeGuard(SCRIPT), buffer=4, introspect=False)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that goes on with an answer, over HTTP."""
    llm = Llm(say)

    def respond(request: Request) -> Reply:
        import httpx

        body = request.body if request.body is not None else {}
        made = llm(httpx.Request(request.method, f"http://llm{request.path}", json=body))
        return Reply(made.content, made.status_code)

    with LocalServer(respond) as server:
        yield server.url


def test_langchain(address: str) -> None:
    pytest.importorskip("langchain_core")
    from langchain_guardkit import RollbackChatModel

    llm = tiny.model()
    model = RollbackChatModel(rollback(), llm=llm, tokenizer=TOKENIZER, options=SUNNY)
    message = model.invoke("What do tomatoes need?")
    assert message.content == " sun" * 30
    assert message.response_metadata["guardkit"] == {"refused": False, "rollbacks": 0, "wait_tokens": 4}
    chunks = list(model.stream([("system", "Be short."), ("user", "What do tomatoes need?")]))
    assert len(chunks) > 5
    assert "".join(str(c.content) for c in chunks) == " sun" * 30
    assert model.invoke("Say it.", stop=[" sun sun sun"]).content == ""

    refusing = RollbackChatModel(rollback(), llm=llm, tokenizer=TOKENIZER, options=NEVER)
    message = asyncio.run(refusing.ainvoke("What do tomatoes need?"))
    assert message.content == REFUSAL
    assert message.response_metadata["finish_reason"] == "content_filter"
    assert message.response_metadata["guardkit"]["rollbacks"] == 5

    served = RollbackChatModel(rollback(), client=address)
    assert served.invoke("What do tomatoes need?").content == " sun" * 6 + " water."
    assert served.invoke("What do tomatoes need?").response_metadata["guardkit"]["rollbacks"] == 1
    for chunk in served.stream("What do tomatoes need?"):
        assert chunk.content
        break

    async def texts() -> list[str]:
        return [str(chunk.content) async for chunk in served.astream("What do tomatoes need?")]

    assert "".join(asyncio.run(texts())) == " sun" * 6 + " water."
    with pytest.raises(GuardkitError, match="binds no tools"):
        served.bind_tools([])


def test_llama_index(address: str) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.llms import ChatMessage
    from llama_index.postprocessor.guardkit import RollbackLLM

    ask = [ChatMessage(role="user", content="What do tomatoes need?")]
    local = RollbackLLM(rollback(), model=tiny.model(), tokenizer=TOKENIZER, options=SUNNY)
    assert local.complete("What do tomatoes need?").text == " sun" * 30
    response = local.chat(ask)
    assert response.message.content == " sun" * 30
    assert response.additional_kwargs["guardkit"] == {"refused": False, "rollbacks": 0, "wait_tokens": 4}
    assert "".join(r.delta or "" for r in local.stream_chat(ask)) == " sun" * 30
    assert [r.text for r in local.stream_complete("Say it.")][-1] == " sun" * 30

    served = RollbackLLM(rollback(), client=address)
    assert served.chat(ask).message.content == " sun" * 6 + " water."

    async def all_of_it() -> tuple[Any, Any, str]:
        streamed = [r async for r in await served.astream_chat(ask)]
        completed = [r async for r in await local.astream_complete("Say it.")]
        assert (await served.achat(ask)).additional_kwargs["guardkit"]["rollbacks"] == 1
        assert (await local.acomplete("Say it.")).text == completed[-1].text
        return streamed, completed, "".join(r.delta or "" for r in streamed)

    assert asyncio.run(all_of_it())[2] == " sun" * 6 + " water."


def test_what_is_missing_is_said(address: str) -> None:
    with pytest.raises(GuardkitError, match="either model="):
        RollbackChat(rollback())
    with pytest.raises(GuardkitError, match="either model="):
        RollbackChat(rollback(), model=tiny.model())
    with pytest.raises(GuardkitError, match="pass its address"):
        list(RollbackChat(rollback(), client=Llm(say).client).texts([{"role": "user", "content": "hi"}]))
    with pytest.raises(GuardkitError, match="a Rollback is needed"):
        RollbackChat(None, client=address)  # type: ignore[arg-type]
    with pytest.raises(GuardkitError, match="does not answer"):
        list(RollbackChat(rollback(), client="http://127.0.0.1:9/v1").texts([{"role": "user", "content": "hi"}]))
