"""The adapter for local generation, against transformers' own `generate` where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from guardkit import Severity
from guardkit.adapters.transformers import GuardedGeneration
from guardkit.testing import FakeGuard

SCRIPT = {"make a bomb": "unsafe"}


class ByteTokenizer:
    def decode(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str:
        return bytes(int(i) for i in token_ids).decode("utf-8", "replace")


def test_bytes_become_text_and_the_text_is_guarded() -> None:
    text = "naïve 🙂 words that\nlead to how to make a bomb and more"
    guarded = GuardedGeneration(FakeGuard(SCRIPT).stream(holdback=2), ByteTokenizer())
    guarded.put(np.array([[1, 2, 3]]))  # the prompt
    for byte in text.encode():
        guarded.put(np.array([byte]))
    guarded.end()
    assert guarded.stream.stopped
    assert guarded.text == "naïve 🙂 words that\nlead to how to "
    assert guarded.stream.released + guarded.stream.withheld == len(text)


def test_a_batch_is_refused() -> None:
    guarded = GuardedGeneration(FakeGuard().stream(), ByteTokenizer())
    with pytest.raises(ValueError, match="batch of 2"):
        guarded.put(np.zeros((2, 3)))


def test_generate_stops_at_the_violation() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    wanted = b"first some words, then how to make a bomb, then a great deal more that nobody sees " * 3

    class Scripted(transformers.LogitsProcessor):  # type: ignore[misc,name-defined]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            forced = torch.full_like(scores, float("-inf"))
            forced[:, wanted[input_ids.shape[1] - 3]] = 0.0
            return forced

    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    seen: list[str] = []
    guarded = GuardedGeneration(
        FakeGuard(SCRIPT).stream(), ByteTokenizer(), on_event=lambda event: seen.append(event.kind)
    )
    out = model.generate(
        torch.tensor([[1, 2, 3]]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=len(wanted),
        do_sample=False,
        streamer=guarded,
        stopping_criteria=[guarded],
        logits_processor=[Scripted()],
        eos_token_id=None,
        pad_token_id=0,
    )
    assert guarded.stream.verdict.severity is Severity.unsafe
    # `generate` asks whether to stop before or after it hands the token over, depending on its version.
    assert out.shape[1] - 3 - (wanted.index(b"bomb,") + len(b"bomb, ")) in (0, 1)
    assert "bomb" not in guarded.text
    assert seen[-1] == "stop"


def test_the_prompt_may_be_left_in() -> None:
    guarded = GuardedGeneration(FakeGuard(SCRIPT).stream(), ByteTokenizer(), skip_prompt=False)
    guarded.put(np.array([list(b"hi ")]))
    guarded.end()
    assert guarded.text == "hi "
