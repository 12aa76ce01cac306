"""LLMs that go on with an answer: of transformers, and on servers."""

from __future__ import annotations

from typing import Any

import pytest

from guardkit.labelling.judging import RateLimit
from guardkit.models.remote_client import Limits
from guardkit.training.continuing import Continued, Prefix, RemoteLLM, Sampling
from tests.servers import LocalServer, Reply, Request

CHAT = [{"role": "user", "content": "How?"}]
LONG = "the beginning of an answer that is long enough to be known again"


class Server:
    """Goes on with " one", " two" and so on. choices: given for a request, whatever `n` says."""

    def __init__(
        self, owner: str = "vllm", choices: int = 99, refuses: str = "", fails: str = "\0", echo: bool = False
    ):
        self.owner, self.choices, self.refuses, self.fails, self.echo = owner, choices, refuses, fails, echo
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply({"data": [{"id": "m", "owned_by": self.owner}]})
        body = request.body
        self.asked.append(body)
        if self.refuses in body:
            return Reply({"error": {"message": f"unknown field {self.refuses}"}}, 400)
        if self.fails in body["messages"][-1]["content"]:
            return Reply({"error": {"message": "broken"}}, 400)
        begin = body["messages"][-1]["content"] if self.echo else ""
        texts = [f"{begin} more {i}" for i in range(min(body.get("n", 1), self.choices))]
        choices = [{"index": i, "message": {"role": "assistant", "content": t}} for i, t in enumerate(texts)]
        return Reply({"choices": choices, "usage": {"completion_tokens": 2 * len(texts)}})


def ask(server: Server, *prefixes: Prefix, **settings: Any) -> list[Any]:
    with LocalServer(server) as local:
        settings.setdefault("limits", Limits(retries=0))
        llm = RemoteLLM(local.url, Sampling(0.5, 0.9, 7), **settings)
        try:
            return llm.continuations(prefixes)
        finally:
            llm.close()


def test_a_server_continues_the_assistants_message() -> None:
    server = Server()
    found = ask(server, Prefix(CHAT, "First", 3, 5), Prefix(CHAT, "Other", 3, 6))
    assert found == [Continued((" more 0", " more 1", " more 2"), 1, 6)] * 2
    body = next(b for b in server.asked if b["messages"][-1]["content"] == "First")
    assert body["messages"] == [*CHAT, {"role": "assistant", "content": "First"}]
    assert (body["n"], body["seed"], body["max_tokens"], body["temperature"], body["model"]) == (3, 5, 7, 0.5, "m")
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    server = Server(owner="llamacpp")
    ask(server, Prefix(CHAT, "First", 1, 5))
    assert "continue_final_message" not in server.asked[0]
    server = Server()
    ask(server, Prefix(CHAT, "First", 1, 5), continue_by="prefix", model="x")
    assert server.asked[0]["messages"][-1]["prefix"] is True


@pytest.mark.parametrize("server", [Server(choices=2), Server(refuses="n")])
def test_a_server_that_gives_fewer_choices_is_asked_again(server: Server) -> None:
    (found,) = ask(server, Prefix(CHAT, "First", 5, 5))
    assert len(found.texts) == 5
    assert found.tokens == 10
    assert len({body["seed"] for body in server.asked}) >= 3


def test_what_fails_fails_alone_and_says_why() -> None:
    found = ask(Server(fails="bad"), Prefix(CHAT, "bad", 2, 1), Prefix(CHAT, "good", 2, 1))
    assert "broken" in str(found[0])
    assert isinstance(found[1], Continued)
    (found_,) = ask(Server(echo=True), Prefix(CHAT, LONG, 2, 1))
    assert "began its answer anew" in str(found_)
    assert "continues no assistant message" in str(ask(Server(owner="openai"), Prefix(CHAT, "x", 1, 1))[0])
    gone = RemoteLLM("http://127.0.0.1:9/v1", limits=Limits(retries=0, connect_timeout=2))
    assert isinstance(gone.continuations([Prefix(CHAT, "x", 1, 1)])[0], Exception)
    gone.close()
    with pytest.raises(ValueError, match="continue_by"):
        RemoteLLM("http://127.0.0.1:9/v1", continue_by="magic")


def test_requests_keep_to_the_rate() -> None:
    waits: list[float] = []
    limit = RateLimit(2.0, clock=lambda: 0.0, sleep=waits.append)
    ask(Server(), *[Prefix(CHAT, f"p{i}", 1, 1) for i in range(5)], limit=limit)
    assert waits == [0.5, 1.0, 1.5]


def test_a_local_model_continues_by_seed_and_counts_its_tokens() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from guardkit.training.continuing import LocalLLM
    from tests.rollback import tiny

    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    llm = LocalLLM(model, tokenizer, Sampling(max_tokens=6), batch=2)
    prefixes = [Prefix(CHAT, " sun", 3, 1), Prefix(CHAT, " water", 3, 1), Prefix(CHAT, " sun", 3, 2)]
    found = llm.continuations(prefixes)
    again = llm.continuations(prefixes[::-1])[::-1]
    assert found == again  # by seed, whatever else was asked
    for one in found:
        assert isinstance(one, Continued)
        assert (len(one.texts), one.calls) == (3, 2)
        assert 3 <= one.tokens <= 18
    assert found[0] != found[2]
    # The prefix is read once for all its continuations; they are what `generate` itself writes.
    import torch

    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(f"{rendered} sun", return_tensors="pt", add_special_tokens=False)["input_ids"]
    torch.manual_seed(1)
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, num_return_sequences=2, **drawn)
    assert isinstance(found[0], Continued)
    assert list(found[0].texts[:2]) == tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    greedy = LocalLLM(model, tokenizer, Sampling(0.0, max_tokens=6))
    (same,) = greedy.continuations([Prefix(CHAT, " sun", 3, 1)])
    assert isinstance(same, Continued)
    assert len(set(same.texts)) == 1
    assert len(same.texts) == 3
    assert same.tokens <= 6
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "alternate" in str(llm.continuations(prefixes)[0])
