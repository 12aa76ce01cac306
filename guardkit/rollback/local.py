"""A transformers causal language model that decodes token by token and can go back: its keys and values are cropped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from guardkit.errors import GuardkitError, MissingExtra
from guardkit.messages import Message
from guardkit.rollback.detokenizer import Detokenizer
from guardkit.rollback.result import FinishReason
from guardkit.verdict import Stage

MAX_NEW_TOKENS = 512  # where neither the call nor the model's generation config says
_OWN = (
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id",
    "stop_strings",
)  # fmt: skip
INTROSPECTION_TEMPERATURE = 1.1  # CARE's best; a reflection is sampled even where the answer is greedy


@dataclass(frozen=True)
class Generation:
    """How to generate, named as `generate` names it. What is None is the model's own generation config's.

    seed: for sampling, of a generator of its own. logits_processor: further ones, called where `generate` calls
    them. template: arguments of the chat template, such as {"enable_thinking": False}. recompute: go back by
    computing the kept tokens again, for a cache that cannot be cropped.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    seed: int | None = None
    logits_processor: Sequence[Any] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = False

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Generation:
        known = list(cls.__dataclass_fields__)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(f"generation has no setting {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**options)

    def of(self, model: Any) -> Any:
        """`generate`'s own settings of this call: these, then the model's, then transformers'. Raises `GuardkitError`
        for a model that does not generate, or not token by token."""
        if not hasattr(model, "_prepare_generation_config"):
            raise GuardkitError(
                f"Rollback decodes with transformers' causal language models, not {type(model).__name__}"
            )
        given = {name: value for name in _OWN if (value := getattr(self, name)) is not None}
        settings = model._prepare_generation_config(None, **given)[0]
        if not isinstance(settings.eos_token_id, int) and not settings.eos_token_id:
            settings.eos_token_id = None  # [] is none, too
        for name, plain in (("num_beams", 1), ("guidance_scale", 1)):
            if getattr(settings, name, None) not in (None, plain):
                raise GuardkitError(
                    f"the model's generation config says {name}={getattr(settings, name)}, and this cannot be taken "
                    f"back: set model.generation_config.{name} = {plain}"
                )
        return settings


class LocalModel:
    """One answer of a model, for one caller at a time. Tokens behind the prompt are visible, or hidden: those of an
    introspection that is not shown."""

    def __init__(
        self, model: Any, tokenizer: Any, messages: Any, generation: Generation, generator: Any = None, least: int = 0
    ):
        """least: tokens that the answer may need beyond `max_new_tokens`. Raises `GuardkitError` for a model whose
        cache cannot be cropped, or that is no decoder."""
        try:
            import torch
            import transformers
        except ImportError as error:
            raise MissingExtra("Rollback.generate", "rl") from error
        self._torch, self._model, self._tokenizer = torch, model, tokenizer
        self._generation, settings = generation, generation.of(model)
        if getattr(model.config, "is_encoder_decoder", False):
            raise GuardkitError("Rollback decodes with causal language models; this one has an encoder")
        text_config = model.config.get_text_config()
        self._positions = getattr(text_config, "max_position_embeddings", None) or 1 << 62
        self._prompt = _encode(tokenizer, messages, generation.template)
        most = settings.max_new_tokens if settings.max_new_tokens is not None else MAX_NEW_TOKENS
        if most < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {most}")
        if len(self._prompt) >= self._positions:
            raise GuardkitError(f"the prompt has {len(self._prompt)} tokens, the model {self._positions} positions")
        self._most = most
        self._cache_class: Any = transformers.DynamicCache
        self._cache = self._new_cache()
        if not generation.recompute:
            _check_croppable(self._cache, len(self._prompt) + most + least)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT's, which take anything
        parameters = inspect.signature(inner.forward).parameters
        if "input_ids" in parameters and not {"cache", "past_key_values"} & set(parameters):
            raise GuardkitError(
                f"{type(inner).__name__} keeps no keys and values (its forward takes no past_key_values): Rollback "
                "cannot decode with it"
            )
        self._forward = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in parameters else {})}
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # by transformers' version
        settings.max_length = len(self._prompt) + most
        model._prepare_special_tokens(settings, device=model.device)
        own = transformers.LogitsProcessorList(generation.logits_processor)
        self._processors = model._get_logits_processor(
            settings, input_ids_seq_length=len(self._prompt), logits_processor=own, device=model.device
        )
        self._samples = bool(settings.do_sample)
        stops = settings.stop_strings or ()
        self.stops: tuple[str, ...] = (stops,) if isinstance(stops, str) else tuple(stops)
        if generator is None and generation.seed is not None:
            generator = torch.Generator(device=model.device)
            generator.manual_seed(generation.seed)
        self._generator, self._eos = generator, _eos(settings)
        self._ids: list[int] = list(self._prompt)
        self._visible: list[bool] = []  # of the tokens behind the prompt
        self._cached = 0  # tokens whose keys and values the cache has
        self._text = Detokenizer(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))
        self._tried: dict[int, set[int]] = {}  # tokens that a greedy answer did not get on with, by place
        self._end: FinishReason | None = None

    @property
    def stage(self) -> Stage:
        """Reasoning where the prompt leaves the answer inside of it."""
        end = str(self._tokenizer.decode(self._prompt[-8:], skip_special_tokens=False)).rstrip()
        return Stage.reasoning if end.endswith("<think>") else Stage.response

    def reason(self) -> FinishReason:
        """Why the text ended."""
        return self._end or "stop"

    def next(self) -> str | None:
        """The text that the next token completes ("" for a part of a character); None where the answer ends."""
        if self._end is not None:
            return None
        token = None
        if self._text.n_tokens >= self._most or len(self._ids) >= self._positions:
            self._end = "length"
        else:
            token = self._choose()
            if token in self._eos:
                token, self._end = None, "stop"
        if token is None:  # an unfinished character is all that is left
            return self._text.finish() or None
        self._ids.append(token)
        self._visible.append(True)
        return self._text.add(token)

    def back(self, n_tokens: int, text: str, avoid: bool) -> None:
        """Keep the first `n_tokens` visible tokens, and the hidden ones between them. avoid: a greedy answer does not
        choose the first of the others again."""
        self._end = None
        n, seen = 0, 0
        while seen < n_tokens:
            seen += self._visible[n]
            n += 1
        keep = len(self._prompt) + n
        if avoid and not self._samples and keep < len(self._ids):
            self._tried.setdefault(keep, set()).add(self._ids[keep])
            self._tried = {place: tokens for place, tokens in self._tried.items() if place <= keep}
        del self._ids[keep:], self._visible[n:]
        self._text.keep(n_tokens)
        self._crop(keep)

    def insert(self, text: str, visible: bool) -> list[str]:
        """Put text behind what is kept; returns the pieces of its tokens where they are visible."""
        ids = [int(i) for i in self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        self._ids += ids
        self._visible += [visible] * len(ids)
        return [self._text.add(i) for i in ids] if visible else []

    def introspect(self, asked: str, begin: str, most: int) -> str:
        """What the model says to `asked`, beginning with `begin`, in at most `most` tokens and one paragraph."""
        settings = replace(
            self._generation,
            max_new_tokens=most,
            do_sample=True,
            temperature=INTROSPECTION_TEMPERATURE,
            stop_strings=(),
            recompute=True,  # it never goes back
        )
        other = LocalModel(
            self._model, self._tokenizer, [{"role": "user", "content": asked}], settings, self._generator
        )
        said = "".join(other.insert(begin, True))
        while "\n" not in said.strip() and (piece := other.next()) is not None:
            said += piece
        return said.strip().split("\n")[0]

    def logits(self) -> Any:
        """The next token's logits, [1, vocabulary], float32."""
        torch = self._torch
        with torch.inference_mode():
            self._crop(len(self._ids) - 1)
            ids = torch.tensor([self._ids[self._cached :]], device=self._model.device)
            out = self._model(input_ids=ids, **{self._cache_name: self._cache}, **self._forward)
            self._cached = len(self._ids)
            return out.logits[:, -1].float()

    def close(self) -> None:
        self._cache = None

    def _choose(self) -> int:
        torch = self._torch
        logits = self.logits()
        tried = self._tried.get(len(self._ids))
        with torch.inference_mode():
            if tried:
                logits[:, list(tried)] = -torch.inf
            if self._processors:
                logits = self._processors(torch.tensor([self._ids], device=logits.device), logits)
            if not self._samples:
                return int(logits.argmax())
            return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))

    def _new_cache(self) -> Any:
        return self._cache_class(config=self._model.config)

    def _crop(self, n_tokens: int) -> None:
        if n_tokens >= self._cached:
            return
        if self._generation.recompute or not n_tokens:
            self._cache, self._cached = self._new_cache(), 0
        else:
            self._cache.crop(n_tokens - self._cached)  # a negative count: tokens to remove
            self._cached = n_tokens


def _encode(tokenizer: Any, messages: Any, template: Mapping[str, Any]) -> list[int]:
    """The prompt's ids. Messages need a chat template; a plain text without one is gone on with as it is."""
    if isinstance(messages, str) and not getattr(tokenizer, "chat_template", None):
        return [int(i) for i in tokenizer(messages)["input_ids"]]
    rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else [as_mapping(m) for m in messages]
    if not getattr(tokenizer, "chat_template", None):
        if len(rows) == 1 and rows[0].get("role") == "user":
            return [int(i) for i in tokenizer(rows[0]["content"])["input_ids"]]
        raise GuardkitError("the tokenizer has no chat template: messages cannot be laid out; pass one text")
    ids = tokenizer.apply_chat_template(
        rows, **{"tokenize": True, "add_generation_prompt": True, **template}, return_dict=False
    )
    return [int(i) for i in ids]


def as_mapping(message: Any) -> Mapping[str, Any]:
    """A message as chat templates and servers take it."""
    return {"role": message.role, "content": message.said} if isinstance(message, Message) else message


def _check_croppable(cache: Any, n_tokens: int) -> None:
    """Raises `GuardkitError` for a cache that could not go back within `n_tokens`."""
    for layer in cache.layers:
        window = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
        if window is not None and n_tokens >= window:
            raise GuardkitError(
                f"this model's cache slides over a window of {window} tokens, and in {n_tokens} tokens, prompt "
                "included, it could not be cropped: lower max_new_tokens, or pass recompute=True, which computes what "
                "is kept again"
            )
        if not getattr(layer, "is_croppable", True):
            raise GuardkitError(
                f"this model's cache ({type(layer).__name__}) cannot be cropped: pass recompute=True, which computes "
                "what is kept again"
            )


def _eos(settings: Any) -> frozenset[int]:
    ids = settings.eos_token_id
    return frozenset(() if ids is None else (ids,) if isinstance(ids, int) else map(int, ids))
