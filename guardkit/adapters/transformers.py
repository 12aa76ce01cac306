"""Guard `transformers`' `generate`: a streamer and a stopping criterion in one object.

    guarded = GuardedGeneration(guard.stream(messages), tokenizer, on_event=print)
    model.generate(**inputs, streamer=guarded, stopping_criteria=[guarded])

Generation ends at the token at which the guard stops the text. Nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from guardkit.errors import MissingExtra
from guardkit.events import Event
from guardkit.stream import StreamGuard


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ...) -> str: ...


class GuardedGeneration:
    """Feeds generated tokens to a stream as text and stops `generate` at a violation. For one sequence.

    stream: from `guard.stream(...)`; tokenizer: the generating model's, with `decode`; on_event: called with every
    event; skip_prompt: the first call carries the prompt, which is not judged. A text that cannot be judged raises
    `NotJudged` out of `generate`. Afterwards `stream.verdict` tells the verdict, `text` what may be shown.
    """

    def __init__(
        self,
        stream: StreamGuard,
        tokenizer: Decoder,
        *,
        on_event: Callable[[Event], object] | None = None,
        skip_prompt: bool = True,
    ):
        self.stream, self._tokenizer, self._on_event = stream, tokenizer, on_event
        self._prompt_follows = skip_prompt
        self._ids: list[int] = []  # since the last line end
        self._fed = 0  # characters of their text that were fed
        self.text = ""

    def put(self, value: Any) -> None:
        """Called by `generate` with the prompt's ids, then with each new token id (a tensor [1] or [1, n])."""
        ids = value.reshape(-1).tolist() if value.ndim < 2 or value.shape[0] == 1 else None
        if ids is None:
            raise ValueError(f"GuardedGeneration guards one sequence, not a batch of {value.shape[0]}")
        if self._prompt_follows:
            self._prompt_follows = False
            return
        self._ids += ids
        self._feed(final=False)

    def end(self) -> None:
        """Called by `generate` when it is done: the rest is judged and released."""
        self._feed(final=True)
        self._take(self.stream.finish())

    def __call__(self, input_ids: Any, scores: Any = None, **_: Any) -> Any:
        """The stopping criterion: a bool tensor [batch], true once the guard has stopped the text."""
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("guardkit.adapters.transformers", "torch") from error
        return torch.full((input_ids.shape[0],), self.stream.stopped, dtype=torch.bool, device=input_ids.device)

    def _feed(self, final: bool) -> None:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        # A character whose bytes have not all come decodes to U+FFFD: wait for the rest of it.
        ready = len(text) if final or not text.endswith("\ufffd") else len(text.rstrip("\ufffd"))
        if ready > self._fed:
            self._take(self.stream.feed(text[self._fed : ready]))
            self._fed = ready
        if text.endswith("\n"):  # so that decoding stays cheap however long the text
            self._ids, self._fed = [], 0

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if event.kind == "text":
                self.text += event.text
            elif event.kind == "retract":
                self.text = self.text[: -event.n_chars]
            if self._on_event is not None:
                self._on_event(event)
