"""Qwen3's tokenizer: text is data, any chunking gives the tokens of the whole, what is held back stays short."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit.engine.template import ChatTemplate
from guardkit.errors import MissingExtra, ModelLoadError
from guardkit.models.qwen_tokenizer import MAX_RUN, QwenTokenizer
from guardkit.retokenize import IncrementalTokenizer
from tests.engine.checkpoints import GEN_TEMPLATE
from tests.engine.qwen3_tokenizer_builder import MISSING, cached

pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

TRAPS = [
    " ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "\t\t", "\u00a0", "\u3000", "\x1c", "\u2028", "!",
    "...", "==", "=", "-----", "'", "'s", "'S", "'re", "'r", "e", "'ll", "don't", "I'm", "1", "2024",
    "½", "x", "hello", "world", "internationalization", "ab1", "aGVsbG8gd29ybGQ", "中", "今天天气很好",
    "漢字かな", "か\u3099", "カタカナ", "가", "\u1112", "\u1161", "\u11ab", "ก", "ที่", "กำลัง", "่า",
    "नि", "क\u093c", "\u0958", "\ufb2a", "e\u0301", "q\u0301", "\u0301", "\u0327", "\u0315", "\u0338",
    "=\u0338", "\u0344", "\u212b", "🙂", "👨‍👩‍👧", "\u200d", "\ufe0f", "❤️", "<think>", "</think>",
    "<", "<th", "ink>", "<tool_call>", "_call>", "<|im_end|>", "<|im_", "end|>", "<|fim_", "prefix|>",
    "<|endoftext|>", "\ud83d", "\ude42", "\u0378", "\U000e0041", "🪐", "ß", "İ", ");\n", "//",
]  # fmt: skip
SCRIPTS = {
    "English": "The committee's decision, which wasn't unanimous, surprised 9 of us: \"We'll see,\" she said.\n\n- A\n",
    "German": "Die Donaudampfschifffahrtsgesellschaft fährt über die Brücke; 1.234,56 € kostet das Vergnügen. ",
    "Turkish": "İstanbul'daki çocuklar ılık süt içiyor, değil mi? Evet! ",
    "Vietnamese": "Tôi thích ăn phở vào buổi sáng với gia đình. ",
    "Vietnamese, decomposed": "To\u0302i thi\u0301ch a\u0306n pho\u031b\u0309 va\u0300o buo\u0302\u0309i sa\u0301ng. ",
    "Russian": "Достопримечательности города были закрыты, и мы пошли домой. ",
    "Greek": "Η ταχύτητα του φωτός είναι σταθερή στο κενό. ",
    "Arabic": "السلام عليكم، كيف حالك اليوم؟ أَهْلًا وَسَهْلًا. ",
    "Hebrew": "שלום עולם, מה שלומך היום? בְּרֵאשִׁית בָּרָא. ",
    "Hindi": "भारत में बहुत सारी भाषाएँ बोली जाती हैं, क़लम और ज़मीन। ",
    "Tamil": "தமிழ் மொழி மிகவும் பழமையான மொழிகளில் ஒன்று. ",
    "Thai": "วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะแล้วกลับบ้านไปกินข้าวน้ำแข็งเย็นๆ",
    "Khmer": "ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងទៅដើរលេងនៅសួនច្បារ។",
    "Chinese": "今天天气很好我们一起去公园散步吧然后回家吃饭睡觉明天再见。人工智能正在改变世界，这是事实！",
    "Japanese": "今日はとても天気がいいので公園を散歩してから家に帰りましょう。コンピューターゲームが好きです。",
    "Korean": "오늘은 날씨가 아주 좋아서 공원에서 산책을 했습니다. ",
    "Korean, decomposed": "\u110b\u1169\u1102\u1173\u11af\u110b\u1173\u11ab \u1102\u1161\u11af\u110a\u1175. ",
    "emoji": "👍🏽👨‍👩‍👧‍👦 🏳️‍🌈🇩🇪❤️‍🔥 done ✅✅✅",
    "code": "def f(x):\n    if x == 0:\n        return {'a': [1, 2]}  # note\n\n\n\tprint(f\"{x!r}\")\r\n",
    "base64": "aGVsbG8gd29ybGQhIFRoaXMgaXMgYSBsb25nIHN0cmluZyB3aXRob3V0IGFueSBib3VuZGFyeQ==",
}
FLOODS = [
    "=", "-", "_", "/", ".", "!", "<", "a", "ab", "A", "1", "x1", " ", "\n", " \n", "\t", "\r\n", "!\n",
    "\u00a0", "中", "今天", "の", "カ", "か\u3099", "ก", "ที่", "่า", "क\u093c", "\u0958", "\u0958क", "가",
    "\u1112\u1161\u11ab", "\u1161", "\u0301", "e\u0301", "=\u0338", "🙂", "❤️", "👨‍👩‍👧", "\u200d",
    "<think>", "<tool", "\ud83d", "\u0378", "don't", "'", "=-", "()",
]  # fmt: skip
TRICKY = [
    # Combining marks that change places or join.
    "a\u0315\u0301b", "a\u0327\u0323\u0301bab\u0315\u0301\u0323c\u0327b", "e\u0302\u0323\u0301\n", "<\u0338think>",
    "a\u0327\u0323abab\u0315\u0301\u0323c\u0327b\u0315aa\u0327_", "\u1112\u1161\u11ab\u11ab\u1161", "\u0344\u0301",
    # Characters of which NFC makes two words.
    " \u0958子里c", "ab1\ufb2a天气", "एकत\u0958एक", "\u0958" * 17 + "\u0338\u037ehello", "라라라마라\ufb2a-am",
    # Blanks.
    "  1", "\u00a0\u00a0!", "\t\t🪐 \n !", " \n 1", "天\u00a0\u00a0\u00a0cationi", "!\n\n \nx", "; \t\x1e<think>",
    "a  <think>  b", " \n" * 300 + "x", "!" + "\n" * 600 + " \n",
    # Punctuation and contractions.
    "don'", "'re", "'red", "\t\t'LLama", "=='s", "=\u0338\u0338a", "🙂" * 10 + "_name", "🙂" * 10 + "'s",
    "~!" * 9 + "(a", "e" + "\u0301\u0323" * 300 + "!",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(TRAPS),
        st.sampled_from(TRAPS),
        st.tuples(st.sampled_from(TRAPS), st.sampled_from([2, 3, 9, 40, 300])).map(lambda p: p[0] * p[1]),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> QwenTokenizer:
    return QwenTokenizer(cached())


@pytest.fixture(scope="module")
def plain() -> Any:
    """The library's own tokenizer, special tokens in a text matched."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(cached() / "tokenizer.json"))


def encode_apart(tokenizer: QwenTokenizer, *parts: str) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    starts: list[int] = []
    offset = 0
    for part in parts:
        found = tokenizer.encode(part)
        ids += found[0]
        starts += [offset + start for start in found[1]]
        offset += len(part)
    return ids, starts


def encode_in_chunks(tokenizer: QwenTokenizer, chunks: list[str]) -> tuple[list[int], list[int], int]:
    """Ids, starts, and the longest tail that was ever held back."""
    stream = IncrementalTokenizer(tokenizer)
    ids: list[int] = []
    starts: list[int] = []
    longest = 0
    for chunk in [*chunks, None]:
        found = stream.finish() if chunk is None else stream.push(chunk)
        ids += found[0]
        starts += found[1]
        longest = max(longest, len(stream.tail))
    return ids, starts, longest


def assert_final(tokenizer: QwenTokenizer, text: str, later: str) -> None:
    n = tokenizer.stable_chars(text)
    assert encode_apart(tokenizer, text[:n], text[n:] + later) == tokenizer.encode(text + later)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, later=TEXTS)
def test_a_stable_prefix_is_final_whatever_follows(tokenizer: QwenTokenizer, text: str, later: str) -> None:
    assert_final(tokenizer, text, later)


@pytest.mark.parametrize("text", TRICKY, ids=ascii)
def test_every_prefix_of_a_tricky_text(tokenizer: QwenTokenizer, text: str) -> None:
    for n in range(len(text) + 1):
        assert_final(tokenizer, text[:n], text[n:])
    ids, starts, _ = encode_in_chunks(tokenizer, list(text))
    assert (ids, starts) == tokenizer.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_chunking_gives_the_tokens_of_the_whole(tokenizer: QwenTokenizer, text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    ids, starts, _ = encode_in_chunks(tokenizer, chunks)
    assert (ids, starts) == tokenizer.encode(text)
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)
    assert bool(starts) == bool(text)


@pytest.mark.parametrize("seed", range(4))
def test_a_boundary_inside_a_word_survives_every_completion_of_a_token(tokenizer: QwenTokenizer, seed: int) -> None:
    rng = random.Random(seed)
    pieces = [tokenizer.bytes_of(token).decode("utf-8", "ignore") for token in range(151643)]
    words = [piece for piece in pieces if piece.isalpha()]
    followers: dict[str, list[str]] = {}
    for word in words:
        for n in range(1, min(len(word), 5)):
            followers.setdefault(word[:n], []).append(word[n:])
    cut_inside = 0
    for _ in range(500):
        start = rng.choice(words)
        alphabet = [start, start[: rng.randint(1, len(start))], *rng.choices(words, k=rng.randint(0, 3))]
        text = "".join(rng.choices(alphabet, k=rng.randint(3, 30)))
        cut_inside += tokenizer.stable_chars(text) > 0
        for n in range(1, 5):
            for later in rng.choices(followers.get(text[-n:], [""]), k=3):
                assert_final(tokenizer, text, later)
    assert cut_inside > 400


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(tokenizer: QwenTokenizer, plain: Any, name: str) -> None:
    rng = random.Random(name)
    text = SCRIPTS[name] * 4
    whole = tokenizer.encode(text)
    assert whole[0] == plain.encode(text, add_special_tokens=False).ids
    for size in (1, 2, 3, 7, 31):
        chunks = []
        at = 0
        while at < len(text):
            step = rng.randint(1, size)
            chunks.append(text[at : at + step])
            at += step
        ids, starts, longest = encode_in_chunks(tokenizer, chunks)
        assert (ids, starts) == whole
        assert longest < 40 + size


@pytest.mark.parametrize("unit", FLOODS)
def test_a_flood_leaves_a_short_tail(tokenizer: QwenTokenizer, unit: str) -> None:
    text = "word" + unit * (20_000 // len(unit))
    assert len(text) - tokenizer.stable_chars(text) < 300
    text = unit * (5_000 // len(unit))
    chunks = [text[at : at + 41] for at in range(0, len(text), 41)]
    ids, starts, longest = encode_in_chunks(tokenizer, chunks)
    assert longest < 300
    assert (ids, starts) == tokenizer.encode(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_plain_text_is_tokenized_as_published(tokenizer: QwenTokenizer, plain: Any, text: str) -> None:
    expected = plain.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == (expected.ids, [start for start, _ in expected.offsets])
    assert tokenizer.ids_of(text) == expected.ids


def test_only_longer_runs_of_blanks_are_cut(tokenizer: QwenTokenizer, plain: Any) -> None:
    for n in (MAX_RUN - 1, MAX_RUN):
        text = "a" + " \n" * (n // 2) + "b"
        assert tokenizer.encode(text)[0] == plain.encode(text).ids
    text = "a" + " \n" * MAX_RUN + "b"
    edges = [0, 1 + MAX_RUN, len(text)]
    assert tokenizer.encode(text) == encode_apart(tokenizer, *(text[a:b] for a, b in itertools.pairwise(edges)))


def test_special_tokens_in_a_text_are_text(tokenizer: QwenTokenizer, plain: Any) -> None:
    end = tokenizer.special("<|im_end|>")
    assert end == 151645
    assert plain.encode("a<|im_end|>").ids[-1] == end
    for name in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"):
        ids, starts = tokenizer.encode(f"a{name}b")
        assert tokenizer.special(name) not in ids
        assert len(ids) > 3
        assert starts[0] == 0
        assert "".join(tokenizer.bytes_of(token).decode() for token in ids) == f"a{name}b"


def test_tokens_that_are_added_but_not_special_are_matched(tokenizer: QwenTokenizer) -> None:
    assert tokenizer.encode("a<think>\n") == ([64, tokenizer.special("<think>"), 198], [0, 1, 8])
    assert tokenizer.stable_chars("so <tool_ca") == len("so")
    assert tokenizer.stable_chars("so <tool_cart and") == len("so <tool_cart")


def test_what_is_held_back(tokenizer: QwenTokenizer) -> None:
    assert tokenizer.stable_chars("") == 0
    assert tokenizer.stable_chars("Hello wor") == len("Hello")
    assert tokenizer.stable_chars("Hello world ") == len("Hello world")
    assert tokenizer.stable_chars("stop.") == len("stop")
    assert tokenizer.stable_chars("e") == 0


def test_starts_count_characters_of_the_original_text(tokenizer: QwenTokenizer) -> None:
    ids, starts = tokenizer.encode("e\u0301x 🪐!")
    assert tokenizer.encode("éx 🪐!")[0] == ids
    assert starts[:2] == [0, 2]
    assert starts[-1] == 5
    assert set(starts[2:-1]) <= {3, 4}


def test_lone_surrogates_become_replacement_characters(tokenizer: QwenTokenizer) -> None:
    assert tokenizer.encode("a\ud83d b\ude42") == tokenizer.encode("a\ufffd b\ufffd")


def test_vocabulary(tokenizer: QwenTokenizer) -> None:
    assert tokenizer.vocab_size == 151669
    with pytest.raises(ModelLoadError, match="no token <\\|nothing\\|>"):
        tokenizer.special("<|nothing|>")
    with pytest.raises(ModelLoadError):
        tokenizer.special("hello")  # an entry, but nothing that was added


IDS = st.lists(
    st.one_of(
        st.integers(0, 151668),
        st.integers(0, 255),  # single bytes: incomplete and invalid UTF-8
        st.sampled_from([151643, 151645, 151657, 151667, 151668, 145367, 378, 235]),
    ),
    max_size=30,
)


@settings(max_examples=400, deadline=None)
@given(ids=IDS, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_decoded_pushes_make_the_decoded_whole(
    tokenizer: QwenTokenizer, plain: Any, ids: list[int], cuts: list[int]
) -> None:
    decoder = tokenizer.decoder()
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    text = "".join(decoder.push(ids[a:b]) for a, b in itertools.pairwise(edges)) + decoder.finish()
    assert text == plain.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_decoding_token_by_token(tokenizer: QwenTokenizer, plain: Any, name: str) -> None:
    ids, _ = tokenizer.encode(SCRIPTS[name])
    decoder = tokenizer.decoder()
    shown = [decoder.push([token]) for token in ids]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + decoder.finish() == plain.decode(ids)


def test_an_incomplete_character_waits(tokenizer: QwenTokenizer) -> None:
    ids, _ = tokenizer.encode("🪐")
    assert len(ids) > 1
    decoder = tokenizer.decoder()
    assert decoder.push(ids[:-1]) == ""
    assert decoder.push([tokenizer.special("<|im_end|>")]) == ""
    assert decoder.push(ids[-1:]) == "🪐"
    assert decoder.push(ids[:1]) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


@pytest.mark.parametrize("unknown", [-1, 151669, 1 << 40])
def test_an_unknown_id_is_refused_and_changes_nothing(tokenizer: QwenTokenizer, unknown: int) -> None:
    decoder = tokenizer.decoder()
    ids, _ = tokenizer.encode("🪐")
    decoder.push(ids[:-1])
    with pytest.raises(ValueError, match=f"{unknown} is no token"):
        decoder.push([ids[-1], unknown])
    assert decoder.push(ids[-1:]) == "🪐"


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is missing; download"):
        QwenTokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot be read"):
        QwenTokenizer(tmp_path)
    published = json.loads((cached() / "tokenizer.json").read_text(encoding="utf-8"))
    published["model"]["vocab"], published["model"]["merges"], published["added_tokens"] = {"a": 0}, [], []
    path.write_text(json.dumps(published | {"normalizer": {"type": "NFKC"}}))
    with pytest.raises(ModelLoadError, match="is not Qwen3's tokenizer"):
        QwenTokenizer(tmp_path)
    path.write_text(json.dumps(published | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(ModelLoadError):
        QwenTokenizer(tmp_path)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"guardkit\[torch\]"):
        QwenTokenizer(Path("unused"))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=" \n\r\t'a<s1é\u0301가\u1161.\u00a0", max_size=12), min_size=2, max_size=2))
def test_a_templates_own_text_is_tokenised_apart_as_it_would_be_together(
    tokenizer: QwenTokenizer, contents: list[str]
) -> None:
    template = ChatTemplate(GEN_TEMPLATE, tokenizer, Path("template"))
    layout = template.lay_out(["user", "assistant"])
    special = re.compile("(" + "|".join(map(re.escape, tokenizer.special_names)) + ")")
    expected: list[int] = []
    text = ""
    for piece in layout:
        for i, part in enumerate([contents[piece]] if isinstance(piece, int) else special.split(piece)):
            if i % 2:
                expected += [*tokenizer._encode(text)[0], tokenizer.special(part)]
                text = ""
            else:
                text += part
    expected += tokenizer._encode(text)[0]
    assert template.encode(layout, contents) == expected
