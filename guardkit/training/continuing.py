"""LLMs that continue an answer: of transformers here, or on OpenAI-compatible servers; several share the work."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from guardkit.labelling.judging import Limit
from guardkit.models.remote_client import Limits, Server, ServerError
from guardkit.rollback.server import CONTINUE, ECHO, OWNERS, REFUSING

Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token. max_tokens: of a continuation."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 64


@dataclass(frozen=True)
class Prefix:
    """The beginning of an answer that is to be continued `k` times. chat: the messages before the answer; seed: of the
    samples, so that the same prefix gets the same ones from a local model, whatever else is asked."""

    chat: Chat
    text: str
    k: int
    seed: int


@dataclass(frozen=True)
class Continued:
    """texts: what follows the prefix. calls: how often the LLM was called; tokens: that it wrote."""

    texts: tuple[str, ...]
    calls: int
    tokens: int


class LLM(Protocol):
    name: str

    def continuations(self, prefixes: Sequence[Prefix]) -> Sequence[Continued | Exception]:
        """For each prefix its continuations, or why there are none."""


class LocalLLM:
    """A chat model of transformers. batch: continuations that are written at a time, at most."""

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling | None = None, *, batch: int = 16, name: str = ""
    ):
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        self._model, self._tokenizer = model, tokenizer
        self._sampling, self._batch = sampling or Sampling(), batch

    def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
        found: list[Continued | Exception] = []
        for prefix in prefixes:
            try:
                found.append(self._one(prefix))
            except Exception as error:  # out of memory, a chat template that refuses: this row's, not all rows'
                found.append(error)
        return found

    def _one(self, prefix: Prefix) -> Continued:
        import torch

        tokenizer, sampling = self._tokenizer, self._sampling
        rendered = tokenizer.apply_chat_template(list(prefix.chat), add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(rendered + prefix.text, return_tensors="pt", add_special_tokens=False).to(self._model.device)
        start = inputs["input_ids"].shape[1]
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        texts: list[str] = []
        calls = tokens = 0
        ends = _ends(self._model, tokenizer)
        with torch.inference_mode():
            cache = self._read(inputs) if drawn["do_sample"] and prefix.k > 1 else {}
            while len(texts) < prefix.k:
                torch.manual_seed(prefix.seed + len(texts))
                n = min(self._batch, prefix.k - len(texts)) if drawn["do_sample"] else 1
                out = self._model.generate(
                    **{name: rows.repeat(n, 1) for name, rows in inputs.items()}, **_repeated(cache, n), **drawn,
                    max_new_tokens=sampling.max_tokens, pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
                new = out[:, start:].tolist()
                calls += 1
                tokens += sum(_length(row, ends) for row in new)
                texts += tokenizer.batch_decode(new, skip_special_tokens=True) * (1 if drawn["do_sample"] else prefix.k)
        return Continued(tuple(texts[: prefix.k]), calls, tokens)

    def _read(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The prefix read once for all its continuations: keys and values of all tokens but the last, under the name
        that the model calls them by; nothing for a model whose cache cannot be had twice."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        ids = inputs["input_ids"][:, :-1]
        if not ids.shape[1] or any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
            return {}
        parameters = inspect.signature(self._model.forward).parameters
        name = "cache" if "cache" in parameters else "past_key_values"  # by transformers' version
        self._model(
            ids, use_cache=True, **{name: cache}, **({"logits_to_keep": 1} if "logits_to_keep" in parameters else {})
        )
        return {name: cache}


def _repeated(cache: Mapping[str, Any], n: int) -> dict[str, Any]:
    found = {name: copy.deepcopy(kept) for name, kept in cache.items()}
    for kept in found.values():
        kept.batch_repeat_interleave(n)
    return found


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    told = model.generation_config.eos_token_id
    ids = told if isinstance(told, list) else [told]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _length(row: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens up to the one that ends an answer, that one included."""
    return next((i + 1 for i, token in enumerate(row) if token in ends), len(row))


class RemoteLLM:
    """A model on an OpenAI-compatible server that goes on with an assistant's message.

    model: its name there, the first that is listed by default. continue_by: a key of `rollback.server.CONTINUE`; by
    default what the server's list of models tells, else vLLM's. limit: of requests. Requests run side by side, as
    `limits` says, and are tried again as it says. Seeds are sent; not every server heeds them.
    """

    def __init__(
        self,
        url: str,
        sampling: Sampling | None = None,
        *,
        model: str | None = None,
        continue_by: str | None = None,
        limit: Limit | None = None,
        limits: Limits | None = None,
    ):
        if continue_by is not None and continue_by not in CONTINUE:
            raise ValueError(f"continue_by is one of {', '.join(CONTINUE)}, not {continue_by!r}")
        self._server = Server(url, limits)
        self._sampling, self._limit = sampling or Sampling(), limit
        self._model, self._continue_by = model, continue_by
        self.name = f"{model or 'the first model'} on {self._server.where}"

    def close(self) -> None:
        self._server.close()

    def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
        try:
            model, way = self._found()
        except ServerError as error:
            return [error] * len(prefixes)
        running: list[Future[Continued]] = []
        for prefix in prefixes:
            if self._limit is not None:
                self._limit.wait(1)
            running.append(self._server.submit(self._one(prefix, model, way)))
        found: list[Continued | Exception] = []
        for future in running:
            try:
                found.append(future.result())
            except Exception as error:
                found.append(error)
        return found

    def _found(self) -> tuple[str, str]:
        """The model's name, and how its server continues a message."""
        if self._model is None or self._continue_by is None:
            listed = self._server.run(self._listed())
            if self._model is None and not listed:
                raise ServerError(f"{self._server.where}: lists no models; name one")
            self._model = self._model or next(iter(listed))
            owner = listed.get(self._model, "").lower()
            if self._continue_by is None and owner in REFUSING:
                raise ServerError(f"{self._server.where} ({owner}) continues no assistant message")
            self._continue_by = self._continue_by or OWNERS.get(owner, "vllm")
        return self._model, self._continue_by

    async def _listed(self) -> dict[str, str]:
        try:
            rows = (await self._server.get("/models"))["data"]
            return {str(row["id"]): str(row.get("owned_by") or "") for row in rows}
        except (KeyError, TypeError, AttributeError):
            return {}

    async def _one(self, prefix: Prefix, model: str, way: str) -> Continued:
        flags, own = CONTINUE[way]
        sampling = self._sampling
        body = {
            "model": model,
            "messages": [*prefix.chat, {"role": "assistant", "content": prefix.text, **own}],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **flags,
        }
        texts: list[str] = []
        calls = tokens = 0
        while len(texts) < prefix.k:  # some servers give one choice, whatever is asked
            optional = {"n": {"n": prefix.k - len(texts)}, "seed": {"seed": (prefix.seed + len(texts)) & 0x7FFFFFFF}}
            answer = await self._server.chat(body, optional)
            new, n = _choices(answer)
            for text in new:
                if len(prefix.text) >= ECHO and text.lstrip().startswith(prefix.text[:ECHO]):
                    raise ServerError(
                        "the server began its answer anew instead of going on with it: say how it continues a message "
                        f"({', '.join(CONTINUE)})"
                    )
            texts += new
            calls, tokens = calls + 1, tokens + n
        return Continued(tuple(texts[: prefix.k]), calls, tokens)


def _choices(answer: Any) -> tuple[list[str], int]:
    """The texts of a chat completion, and how many tokens they have (a token counts as 4 characters where the server
    does not say). Raises `ServerError`."""
    try:
        texts = [str(choice["message"]["content"] or "") for choice in answer["choices"]]
    except (KeyError, TypeError) as error:
        raise ServerError("the server's answer is no chat completion") from error
    if not texts:
        raise ServerError("the server's answer holds no choices")
    usage = answer.get("usage") or {}
    told = usage.get("completion_tokens")
    return texts, told if isinstance(told, int) else sum(len(text) // 4 for text in texts)


@dataclass
class Ensemble:
    """Several LLMs, each of which writes its share of the continuations of a prefix."""

    llms: Sequence[LLM]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = ", ".join(llm.name for llm in self.llms)

    def continuations(self, prefixes: Sequence[Prefix]) -> list[Continued | Exception]:
        found: list[list[Continued | Exception]] = [[] for _ in prefixes]
        for at, llm in enumerate(self.llms):
            shares = [_share(prefix, at, len(self.llms)) for prefix in prefixes]
            wanted = [i for i, share in enumerate(shares) if share.k]
            for i, one in zip(wanted, llm.continuations([shares[i] for i in wanted]), strict=True):
                found[i].append(one)
        return [_joined(parts) for parts in found]


def _share(prefix: Prefix, at: int, n: int) -> Prefix:
    k = prefix.k // n + (at < prefix.k % n)
    return Prefix(prefix.chat, prefix.text, k, prefix.seed + at)


def _joined(parts: Sequence[Continued | Exception]) -> Continued | Exception:
    failed = next((part for part in parts if isinstance(part, Exception)), None)
    if failed is not None:
        return failed
    whole = cast(Sequence[Continued], parts)
    texts = tuple(text for part in whole for text in part.texts)
    return Continued(texts, sum(part.calls for part in whole), sum(part.tokens for part in whole))
