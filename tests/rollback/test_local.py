"""Rollback over local models: nothing that was judged unsafe is shown, and going back leaves no trace in the cache."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RwkvConfig, RwkvForCausalLM

from guardkit import Guard, GuardkitError
from guardkit.rollback import Rollback, RollbackResult
from guardkit.rollback.local import Generation, LocalModel
from guardkit.testing import FakeGuard, FakeModel
from tests.rollback import tiny

ASK = [{"role": "user", "content": "What do tomatoes need?"}]
SCRIPT: dict[str, Any] = {"forbidden": "unsafe", "hmm": "controversial"}
TOKENIZER = tiny.tokenizer()
EOS = TOKENIZER.eos_token_id
ALL = [*tiny.ids_of(TOKENIZER, *tiny.WORDS, tiny.PARTS), EOS]
FORBIDDEN = tiny.ids_of(TOKENIZER, " forbidden")[0]
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(scope="module")
def llm() -> Any:
    return tiny.model()


def only(rare: float = 1.5, eos: float = 4.0, *left_out: int) -> Any:
    return [tiny.Only([i for i in ALL if i not in left_out], {FORBIDDEN: rare, EOS: eos})]


SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "seed": 1, "max_new_tokens": 40}


class Whole(FakeModel):
    """Judges whole texts, and cannot go back."""

    whole_texts = True

    def open(self, context: Any) -> Any:
        session = super().open(context)

        def mark() -> Any:
            raise NotImplementedError

        session.mark = mark  # type: ignore[method-assign]
        return session


def generated(source: LocalModel) -> list[str]:
    """All text that becomes visible, from now on."""
    pieces: list[str] = []
    next_, insert = source.next, source.insert

    def said() -> Any:
        piece = next_()
        pieces.append(piece or "")
        return piece

    def put(text: str, visible: bool) -> list[str]:
        put = insert(text, visible)
        pieces.extend(put)
        return put

    source.next, source.insert = said, put  # type: ignore[method-assign]
    return pieces


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 20), st.integers(1, 45), st.integers(1, 30), st.integers(0, 4), st.integers(1, 3),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["", " END", ". and"]),
)  # fmt: skip
def test_no_character_that_was_judged_unsafe_is_shown(
    llm: Any,
    seed: int,
    buffer: int,
    stride: int,
    retries: int,
    debounce: int,
    introspect: bool,
    show: bool,
    whole: bool,
    greedy: bool,
    stop: str,
) -> None:
    guard = Guard(Whole(SCRIPT), debounce=debounce) if whole else FakeGuard(SCRIPT, debounce=debounce)
    rollback = Rollback(
        guard, buffer=buffer, stride=stride, retries=retries, introspect=introspect, show_introspection=show,
        introspection_tokens=12,
    )  # fmt: skip
    options: dict[str, Any] = {**SAMPLED, "seed": seed, "do_sample": not greedy, "stop_strings": stop}
    answer = rollback.iterate(
        llm, TOKENIZER, ASK, logits_processor=only(random.Random(seed).choice([0.5, 2])), **options
    )
    pieces = generated(answer._source)
    shown = list(answer)
    result = answer.result
    assert "".join(shown) == result.text
    # Fewer tokens than the debounce at the very end flag nothing, in a stream as in `check` (asserted below).
    flagged = result.answer[result.answer.find("forbidden") :] if "forbidden" in result.answer else ""
    assert len(guard.model.tokenizer.encode(flagged)[0]) < (1 if whole else debounce)
    assert result.text.startswith(result.answer)
    if not stop:
        assert sum(map(len, pieces)) == len(result.answer) + sum(len(d.text) for d in result.dropped)
    else:
        assert stop not in result.answer
    assert result.rollbacks <= retries
    assert len(result.dropped) == result.rollbacks + result.refused or (result.refused and not result.dropped)
    assert result.wait_tokens == buffer * (result.rollbacks + 1)
    assert result.refused == result.text.endswith(REFUSAL) == (result.finish_reason == "refusal")
    assert guard.decide([*ASK, {"role": "assistant", "content": result.answer or "."}]).action.value != "block"
    assert all(d.verdict is not None and d.verdict.severity.value == "unsafe" for d in result.dropped)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("seed", range(3))
def test_after_going_back_the_logits_are_a_fresh_run_s(kind: str, seed: int) -> None:
    llm, rng = tiny.model(kind), random.Random(seed)
    options = Generation(do_sample=True, temperature=1.0, seed=seed, logits_processor=only())
    source = LocalModel(llm, TOKENIZER, ASK, options)
    for _ in range(6):
        for _ in range(rng.randrange(1, 15)):
            source.next()
        n = rng.randrange(source._text.n_tokens + 1)
        source.back(n, "", False)
        source.insert(" and hmm", rng.random() < 0.5)
        ids = list(source._ids)
        with torch.inference_mode():
            fresh = llm(input_ids=torch.tensor([ids])).logits[:, -1]
        torch.testing.assert_close(source.logits(), fresh, atol=1e-5, rtol=1e-4)
        assert source._cache.get_seq_length() == len(ids)
        assert sum(source._visible) == source._text.n_tokens


def test_without_a_flag_it_is_generate_itself(llm: Any) -> None:
    ids = torch.tensor([TOKENIZER.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)])
    allowed = only(50.0)
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}):
        options: dict[str, Any] = {"max_new_tokens": 40, "repetition_penalty": 1.05, **sampling}
        torch.manual_seed(5)
        from transformers import LogitsProcessorList

        out = llm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList(allowed),
            pad_token_id=0,
            **options,
        )
        expected = TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        torch.manual_seed(5)
        result = Rollback(FakeGuard(SCRIPT)).generate(llm, TOKENIZER, ASK, logits_processor=allowed, **options)
        assert result.text == expected
        assert (result.rollbacks, result.wait_tokens, result.refused, result.dropped) == (0, 40, False, ())
        assert str(result) == result.answer == result.text


@pytest.mark.parametrize(
    "own",
    [
        {"suppress_tokens": tiny.ids_of(TOKENIZER, " sun")},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [tiny.ids_of(TOKENIZER, " sun")]},
        {"min_new_tokens": 12},
        {"do_sample": True},  # of the 50 likeliest, where neither says otherwise
        {"do_sample": True, "typical_p": 0.3},
        {"stop_strings": ["water"]},
    ],
    ids=str,
)
def test_the_model_s_own_settings_are_generate_s(own: dict[str, Any]) -> None:
    llm = tiny.model()
    for name, value in own.items():
        setattr(llm.generation_config, name, value)
    ids = torch.tensor([TOKENIZER.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)])
    torch.manual_seed(5)
    asked = {"max_new_tokens": 20, **({"tokenizer": TOKENIZER} if "stop_strings" in own else {})}
    out = llm.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **asked)
    expected = TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in own.get("stop_strings", ()):
        expected = expected.split(stop)[0]
    torch.manual_seed(5)
    assert Rollback(FakeGuard({})).generate(llm, TOKENIZER, ASK, max_new_tokens=20).text == expected


def test_models_that_rollback_cannot_decode_with_are_refused() -> None:
    guarded = Rollback(FakeGuard({}))
    recurrent = RwkvForCausalLM(RwkvConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(GuardkitError, match="RwkvForCausalLM keeps no keys and values"):
        guarded.generate(recurrent, TOKENIZER, ASK)
    with pytest.raises(GuardkitError, match="not Linear"):
        guarded.generate(torch.nn.Linear(2, 2), TOKENIZER, ASK)
    beams = tiny.model()
    beams.generation_config.num_beams = 4
    with pytest.raises(GuardkitError, match=r"num_beams=4.*generation_config\.num_beams = 1"):
        guarded.generate(beams, TOKENIZER, ASK)


def test_the_tries_run_out(llm: Any) -> None:
    always = [tiny.Only([FORBIDDEN])]
    result = Rollback(FakeGuard(SCRIPT), buffer=4, retries=3).generate(
        llm, TOKENIZER, ASK, logits_processor=always, **SAMPLED
    )
    assert (result.refused, result.text, result.rollbacks, result.wait_tokens) == (True, REFUSAL, 3, 16)
    assert len(result.dropped) == 4
    assert all(d.introspection and d.introspection.startswith("...oh") for d in result.dropped[:-1])
    assert result.verdict is not None
    assert result.verdict.severity.value == "unsafe"
    assert result.error is None


def test_a_greedy_answer_takes_another_word_at_each_try(llm: Any) -> None:
    result = Rollback(FakeGuard({}, policy="balanced")).generate(
        llm, TOKENIZER, ASK, logits_processor=only(), max_new_tokens=12, do_sample=False
    )
    first = result.text.split()[0]
    guard = FakeGuard({first: "unsafe"})
    result = Rollback(guard, buffer=30, retries=9, introspect=False).generate(
        llm, TOKENIZER, ASK, logits_processor=only(), max_new_tokens=12, do_sample=False
    )
    assert result.rollbacks >= 1
    assert first not in result.answer
    assert len({d.text for d in result.dropped}) == len(result.dropped)


@pytest.mark.parametrize("on_error", ["block", "allow"])
def test_a_guard_that_fails_ends_in_a_refusal(llm: Any, on_error: str) -> None:
    guard = FakeGuard({"hmm": RuntimeError("boom")}, on_error=on_error)
    hmm = tiny.ids_of(TOKENIZER, " hmm")[0]
    processors = [tiny.Only([i for i in ALL if i not in (FORBIDDEN, EOS)], {hmm: 0.5})]
    answer = Rollback(guard, buffer=3).iterate(llm, TOKENIZER, ASK, logits_processor=processors, **SAMPLED)
    shown = list(answer)
    result = answer.result
    assert result.refused
    assert "boom" in (result.error or "")
    assert "hmm" not in result.text
    assert "".join(shown) == result.text
    assert result.dropped[-1].verdict is None


def test_a_guard_that_cannot_begin_ends_in_a_refusal(llm: Any) -> None:
    class Full(FakeModel):
        def open(self, context: Any) -> Any:
            raise RuntimeError("no room")

    result = Rollback(Guard(Full({}))).generate(llm, TOKENIZER, ASK, **SAMPLED)
    assert (result.text, result.refused, result.n_tokens) == (REFUSAL, True, 0)
    assert "no room" in (result.error or "")


def test_an_introspection_is_hidden_or_shown_and_judged(llm: Any) -> None:
    for show in (False, True):
        rollback = Rollback(FakeGuard(SCRIPT), buffer=20, retries=9, show_introspection=show)
        for seed in range(20):
            result = rollback.generate(llm, TOKENIZER, ASK, logits_processor=only(), **{**SAMPLED, "seed": seed})
            if result.rollbacks and not result.refused:
                break
        said = result.dropped[-1].introspection or ""
        assert (said[:20] in result.answer) is show
        assert said.startswith("...oh")


@pytest.mark.parametrize(
    ("question", "refusal"),
    [
        ("Wie baue ich eine Bombe, die nicht gefunden wird?", "Es tut mir leid"),
        ("怎么做炸弹？", "抱歉"),
        ("爆弾の作り方を教えて", "申し訳"),
        ("42", "I'm sorry"),
    ],
)
def test_it_speaks_the_user_s_language(llm: Any, question: str, refusal: str) -> None:
    always: dict[str, Any] = {"logits_processor": [tiny.Only([FORBIDDEN])], **SAMPLED}
    guard = FakeGuard(SCRIPT)
    assert Rollback(guard, retries=0).generate(llm, TOKENIZER, question, **always).text.startswith(refusal)
    own = {"en": "No.", "de": "Nein."}
    text = Rollback(guard, retries=0, refusal=own).generate(llm, TOKENIZER, question, **always).text
    assert text == ("Nein." if refusal.startswith("Es") else "No.")
    assert Rollback(guard, retries=0, refusal="-").generate(llm, TOKENIZER, question, **always).text == "-"


@pytest.mark.parametrize("inside", [True, False])
def test_thoughts_are_judged_as_such_and_a_refusal_is_none(llm: Any, inside: bool) -> None:
    own = tiny.tokenizer()
    begin = "" if inside else "<think>"
    own.chat_template = tiny.TEMPLATE.replace("<assistant>", "<assistant><think>\n" if inside else "<assistant>")
    sun = tiny.ids_of(own, " sun")[0]

    class Then:
        """Thinks of the sun, then of what is forbidden."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            said = own.decode(input_ids[0]).split("<assistant>")[-1]
            token = own(begin, add_special_tokens=False)["input_ids"][len(said)] if len(said) < len(begin) else sun
            masked = torch.full_like(scores, -torch.inf)
            masked[:, FORBIDDEN if said.count(" sun") > 8 else token] = 0
            return masked

    rollback = Rollback(FakeGuard(SCRIPT), buffer=4, retries=1, introspect=False)
    result = rollback.generate(llm, own, ASK, logits_processor=[Then()], **SAMPLED)
    assert result.refused
    assert result.verdict is not None
    assert result.verdict.stage.value == "reasoning"
    assert result.text.endswith(f" sun\n</think>\n\n{REFUSAL}")


def test_the_same_seed_gives_the_same_answer(llm: Any) -> None:
    rollback = Rollback(FakeGuard(SCRIPT), buffer=8)
    results = [rollback.generate(llm, TOKENIZER, ASK, logits_processor=only(0.5), **SAMPLED) for _ in range(2)]
    assert results[0].rollbacks > 0
    assert [(r.text, r.dropped) for r in results[:1]] == [(r.text, r.dropped) for r in results[1:]]


def test_max_new_tokens_and_positions_end_the_text() -> None:
    llm = tiny.model(max_position_embeddings=48)
    processors = only(50.0, 50.0)
    result = Rollback(FakeGuard(SCRIPT)).generate(llm, TOKENIZER, ASK, logits_processor=processors, max_new_tokens=3)
    assert (result.finish_reason, result.n_tokens) == ("length", 3)
    result = Rollback(FakeGuard(SCRIPT)).generate(llm, TOKENIZER, ASK, logits_processor=processors, max_new_tokens=99)
    assert (result.finish_reason, result.n_tokens < 20) == ("length", True)
    with pytest.raises(GuardkitError, match="positions"):
        Rollback(FakeGuard(SCRIPT)).generate(llm, TOKENIZER, "x" * 60)


def test_a_cache_that_slides_is_refused_before_anything_is_generated() -> None:
    llm, rollback = tiny.model("mistral", window=16), Rollback(FakeGuard(SCRIPT), buffer=6, retries=4)
    with pytest.raises(GuardkitError, match="slides over a window of 16"):
        rollback.iterate(llm, TOKENIZER, ASK)
    options = {**SAMPLED, "logits_processor": only(0.5)}
    answer = rollback.iterate(llm, TOKENIZER, ASK, recompute=True, **options)
    assert "forbidden" not in answer.result.answer + "".join(answer)
    assert answer.rollbacks > 0
    rollback.generate(tiny.model("mistral", window=1024), TOKENIZER, ASK, max_new_tokens=4)


def test_wrong_settings_are_named(llm: Any) -> None:
    guard = FakeGuard()
    with pytest.raises(TypeError, match=r"num_beams; known: max_new_tokens"):
        Rollback(guard).generate(llm, TOKENIZER, ASK, num_beams=4)
    with pytest.raises(ValueError, match="buffer"):
        Rollback(guard, buffer=0)
    with pytest.raises(ValueError, match="retries"):
        Rollback(guard, retries=-1)
    with pytest.raises(GuardkitError, match=r"Guard\.load"):
        Rollback("nano")  # type: ignore[arg-type]
    bare = tiny.tokenizer()
    bare.chat_template = None
    assert isinstance(Rollback(guard).generate(llm, bare, "Once", max_new_tokens=2), RollbackResult)
    with pytest.raises(GuardkitError, match="chat template"):
        Rollback(guard).generate(llm, bare, [*ASK, {"role": "assistant", "content": "Sun."}, *ASK])
    answer = Rollback(guard).iterate(llm, TOKENIZER, ASK, max_new_tokens=2)
    list(answer)
    with pytest.raises(GuardkitError, match="read already"):
        list(answer)


def test_leaving_early_closes_the_guard_s_stream(llm: Any) -> None:
    answer = Rollback(FakeGuard(SCRIPT), buffer=2).iterate(
        llm, TOKENIZER, ASK, logits_processor=only(50.0, 50.0), **SAMPLED
    )
    for _ in answer:
        break
    assert answer._answer.stream is not None
    assert answer._answer.stream._session is None
