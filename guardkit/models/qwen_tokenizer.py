"""Qwen3's tokenizer for a guard: text is data, token starts are exact, and any chunking gives the same tokens.

What differs from plain `tokenizers`:

* special tokens spelled in a text are ordinary text, so a text cannot forge the end of its own turn;
* a run of more than `MAX_RUN` blanks, or of as many characters that may combine with their neighbours, is cut every
  `MAX_RUN` characters, counted from its start. Under NFC one more combining mark can reorder a run of any length, and
  one more line break can join a run of blanks, so without the cut no token of such a run would ever be final.

Why a prefix is final (`stable_chars`): the pre-tokenizer reads left to right and looks one character ahead, so all
words are final but the last, and a run of blanks at the end, which later blanks can still join. Inside a long word,
byte-pair encoding depends on neighbours alone: two tokens that stand side by side in one text may do so in any, and
what stands before a boundary does not depend on what comes after. Whatever follows, the token that will cover the end
begins where the rest begins some token of the vocabulary; a boundary common to all those cases is final.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from unicodedata import category, combining, decomposition, normalize

from guardkit.errors import MissingExtra, ModelLoadError

MAX_RUN = 256
_STRIDE = 64
_SHORT, _KNOWN = 24, 1 << 15  # texts of at most so many characters are remembered, so many of them
LONG_WORD = 8  # characters of an unfinished word from which a boundary is sought inside it
_LOOK_BACK = (4, 32, 256)  # tokens in front of the earliest open position that the search takes in, one after another
# What the pre-tokenizer takes for blank: str.isspace() adds four separators.
_BLANKS = "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char not in "\x1c\x1d\x1e\x1f")
_Offsets = list[tuple[int, int]]
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
# The characters that stand for bytes in a byte-level vocabulary: printable ones for themselves.
_BYTES = {chr(b): b for b in _SHOWN} | {chr(0x100 + i): b for i, b in enumerate(sorted({*range(256)} - {*_SHOWN}))}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@lru_cache(maxsize=1)
def _joining() -> str:
    """A regular expression's class of the characters that NFC may join to, or move before, what precedes them.

    Unassigned characters count among them: the tokenizer's Unicode tables may be newer than Python's.
    """
    chars = list(map(chr, range(0x40000)))
    parts = {char: found.split() for char in chars if (found := decomposition(char)) and found[0] != "<"}
    joining = {*map(chr, range(0x1160, 0x1200))}  # Hangul vowels and finals
    joining.update(chr(int(code, 16)) for part in parts.values() for code in part[1:])
    joining.update(char for char in chars if combining(char) or category(char) == "Cn")
    joining.update([char for char in parts if normalize("NFD", char)[0] in joining])
    marked = "".join("x" if char in joining else "." for char in chars)
    ranges = [f"\\U{run.start():08x}-\\U{run.end() - 1:08x}" for run in re.finditer("x+", marked)]
    return "".join(ranges) + "\\U00040000-\\U000dffff"  # planes without a character so far


class QwenTokenizer:
    """Text to token ids with the index of each token's first character.

    `folder` holds the checkpoint's tokenizer.json; embedded: how many tokens its model has embeddings for (None: not
    checked). Raises `MissingExtra` without the `tokenizers` package and `ModelLoadError` for a file that is missing,
    damaged, not Qwen3's or another model's. Safe to use from several threads.
    """

    def __init__(self, folder: Path, embedded: int | None = None):
        self._tokenizer = _load(folder / "tokenizer.json")
        if embedded is not None and self.vocab_size > embedded:
            raise ModelLoadError(
                f"{folder}: the tokenizer has {self.vocab_size} tokens, the model {embedded}: they do not belong "
                "together; download the checkpoint again"
            )
        self._bpe, self._pre_tokenize = self._tokenizer.model.tokenize, self._tokenizer.pre_tokenizer.pre_tokenize_str
        self._added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        self._path = folder / "tokenizer.json"
        self.made_of = folder, embedded
        self._entries: list[str] = sorted(self._tokenizer.get_vocab(with_added_tokens=False))
        self._longest_entry = max(map(len, self._entries))
        self._bytes: dict[int, bytes] = {}
        self._known: dict[str, tuple[list[int], list[int]]] = {}
        self._joins = re.compile(f"[{_joining()}]")
        self._alone = re.compile(f"[^{_joining()}]")
        seen = "|".join(f"[{c}]{{{MAX_RUN // _STRIDE}}}" for c in (_BLANKS, _joining()))
        self._run_seen = re.compile(seen)
        self._run = re.compile("|".join(f"[{c}]{{{MAX_RUN}}}(?=[{c}])" for c in (_BLANKS, _joining())))
        names = [token.content for token in self._added.values() if not token.special]
        begun = {re.escape(name[:n]) for name in names for n in range(1, len(name))}
        self._begun = re.compile(f"(?:{'|'.join(sorted(begun)) or '(?!)'})\\Z")
        self._longest_name = max(map(len, names), default=0)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included; a checkpoint's embedding may have more rows."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def special_names(self) -> list[str]:
        """How the special tokens are spelled."""
        return [token.content for token in self._added.values() if token.special]

    def special(self, name: str) -> int:
        """The id of an added token such as `<|im_end|>`. Raises `ModelLoadError` where the file has none."""
        found = self._tokenizer.token_to_id(name)
        if found not in self._added:
            raise ModelLoadError(f"{self._path} has no token {name}; take the tokenizer.json of the checkpoint itself")
        return int(found)

    def ids_of(self, text: str) -> list[int]:
        """The ids of template text; those of special tokens come from `special`."""
        return self.encode(text)[0]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        if len(text) > _SHORT:
            return self._encode(text)
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            known = self._known[text] = self._encode(text)
        return known[0][:], known[1][:]

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        text = _SURROGATE.sub("\ufffd", text)
        ids: list[int] = []
        starts: list[int] = []
        begin = 0
        for end in [*self._cuts(text), len(text)]:
            piece = self._tokenizer.encode(text[begin:end], add_special_tokens=False)
            ids += piece.ids
            starts += [begin + start for start, _ in piece.offsets]
            begin = end
        return ids, starts

    def stable_chars(self, text: str) -> int:
        """The length of a prefix of `text` that no later text can re-tokenise."""
        # Most of a stream: a short English word, or a blank, behind the blank that begins it.
        at = text.rfind(" ")
        if at != 0 and len(text) - at <= LONG_WORD and text.isascii():
            word = text[at + 1 :]
            if at > 0 and not text[at - 1].isspace() and (not word or word.isalpha()):
                return at
        text = _SURROGATE.sub("\ufffd", text)
        cut = max(self._cuts(text), default=0)
        begun = self._begun.search(text, max(cut, len(text) - self._longest_name))
        rest = text[cut : begun.start() if begun else len(text)]
        return cut + self._stable(rest) if rest else cut

    def decoder(self) -> TextDecoder:
        """A new incremental decoder: token ids in, text out."""
        return TextDecoder(self)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for in UTF-8; nothing for a special token. Raises ValueError for an unknown id."""
        if token_id not in self._bytes:
            token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
            if token is None:
                raise ValueError(f"{token_id} is no token of this vocabulary; feed text, or ids of a Qwen3 model")
            added = self._added.get(token_id)
            spelled = token.encode() if added else bytes(map(_BYTES.__getitem__, token))
            self._bytes[token_id] = b"" if added and added.special else spelled
        return self._bytes[token_id]

    def _cuts(self, text: str) -> list[int]:
        """Where runs longer than `MAX_RUN` are cut."""
        # Most texts have no such run, and to look at every `_STRIDE`th character is enough to see that.
        if len(text) <= MAX_RUN or not self._run_seen.search(text[::_STRIDE]):
            return []
        return [match.end() for match in self._run.finditer(text)]

    def _stable(self, text: str) -> int:
        """`stable_chars` of a text without a cut in it and without the beginning of an added token at its end."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        words, offsets = encoding.word_ids, encoding.offsets
        closed: int = len(text.rstrip(_BLANKS))  # the blanks from here on may still be joined
        settled = len(text) - 1  # how NFC writes what comes before this character is final
        while settled and self._joins.match(text, settled):
            settled -= 1
        end = len(words)
        while end:
            first = end - 1
            while first and words[first - 1] == words[first]:
                first -= 1
            start: int = offsets[first][0]
            if start <= closed:
                after = offsets[end][0] if end < len(words) else len(text)
                stop, complete = min(closed, after), after < settled
                movable = first == 0 or self._may_cut(text, offsets, first)
                if stop - start >= LONG_WORD or not movable:
                    tokens = encoding.tokens[first:end]
                    if inside := self._inside(text, stop, tokens, offsets[first:end], complete):
                        return inside
                if movable:
                    return start
            end = first
        return 0

    def _splits(self, text: str, at: int) -> bool:
        """Whether NFC treats what comes before and after this place apart, whatever follows the text."""
        if not self._joins.match(text, at):
            return True
        end = self._alone.search(text, at)
        if end is None:
            return False
        begin = at - 1
        while begin > 0 and self._joins.match(text, begin):
            begin -= 1
        before, after = text[begin:at], text[at : end.start()]
        apart = normalize("NFC", before) + normalize("NFC", after) == normalize("NFC", before + after)
        return apart and all(category(char) != "Cn" for char in before + after)

    def _begins(self, text: str, offsets: _Offsets, at: int) -> bool:
        """Whether token `at` begins with a character of its own and the text may be cut there as far as NFC goes."""
        return offsets[at - 1][1] <= offsets[at][0] and self._splits(text, offsets[at][0])

    def _may_cut(self, text: str, offsets: _Offsets, at: int) -> bool:
        """Whether the text may be cut before token `at`, which begins a word."""
        if not self._begins(text, offsets, at):
            return False
        start = offsets[at][0]
        if text[start - 1] not in _BLANKS or text[start] in _BLANKS:
            return True
        # The blanks in front of the cut must be read alike when nothing follows them.
        return text[start - 1] in "\r\n" or start < 2 or text[start - 2] not in _BLANKS

    def _inside(self, text: str, stop: int, tokens: list[str], offsets: _Offsets, complete: bool) -> int:
        """The last final boundary inside a word, which is known up to `stop` or complete; 0 if there is none."""
        known = len(tokens)
        while not complete and known and (known == len(tokens) or not self._begins(text, offsets, known)):
            known -= 1
        places = [0, *accumulate(map(len, tokens[:known]))]
        word = "".join(tokens[:known])
        ends = [len(word)] if complete else self._open_ends(word)
        last = min(bisect_right(places, ends[-1]), len(tokens)) - 1
        for back in _LOOK_BACK:
            first = max(0, last - back)
            common = self._common(word[places[first] :], [end - places[first] for end in ends], tokens[first])
            for at in range(last, max(first, 1) - 1, -1) if common else ():
                if places[at] - places[first] in common and self._may_part(text, stop, offsets, at):
                    return offsets[at][0]
            if not first:
                break
        return 0

    def _may_part(self, text: str, stop: int, offsets: _Offsets, at: int) -> bool:
        """Whether both sides of token `at` of a word are read as a word of the same kind again.

        In front that takes three characters, or one that is neither a blank nor the apostrophe of a contraction.
        Behind it takes a letter, or two characters.
        """
        begin, start = offsets[0][0], offsets[at][0]
        if text[start] in _BLANKS or (start - begin < 3 and (start == begin or text[begin] in _BLANKS + "'")):
            return False
        behind = self._alone.search(text, start + 1, stop) or len(self._pre_tokenize("a" + text[start])) == 1
        return bool(behind) and self._begins(text, offsets, at)

    def _open_ends(self, word: str) -> list[int]:
        """Where the token that will cover the end of `word` may begin; falling."""
        found = [len(word)]
        for begin in range(len(word) - 1, max(-1, len(word) - self._longest_entry), -1):
            rest = word[begin:]
            at = bisect_right(self._entries, rest)
            if at < len(self._entries) and self._entries[at].startswith(rest):
                found.append(begin)
        return found

    def _common(self, word: str, ends: Sequence[int], first: str) -> set[int]:
        """The boundaries that all `word[:end]` share, if all of them begin with the token `first`; 0 is one."""
        common = {*range(len(word) + 1)}
        for end in ends:
            parts = [token.value for token in self._bpe(word[:end])]
            if not common or (end and parts[0] != first):
                return set()
            common &= {0, *accumulate(map(len, parts))}
        return common


class TextDecoder:
    """Token ids in, text out as soon as its characters are complete. Special tokens are left out."""

    def __init__(self, tokenizer: QwenTokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def copy(self) -> TextDecoder:
        """A twin that goes its own way."""
        twin = TextDecoder(self._tokenizer)
        twin._utf8.setstate(self._utf8.getstate())
        return twin

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete. Raises ValueError for an unknown id, and takes none of `ids` then."""
        return self._utf8.decode(b"".join([self._tokenizer.bytes_of(token_id) for token_id in ids]))

    def finish(self) -> str:
        """What is left: U+FFFD for an incomplete character."""
        text = self._utf8.decode(b"", True)
        self._utf8.reset()
        return text


def _load(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer, processors
    except ImportError as error:
        raise MissingExtra("Qwen3's tokenizer", "torch") from error
    if not path.is_file():
        raise ModelLoadError(f"{path} is missing; download the checkpoint again, tokenizer.json included")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        splitter = json.loads(tokenizer.pre_tokenizer.__getstate__())
        pattern = splitter["pretokenizers"][0]["pattern"]["Regex"]
        normalizer = json.loads(tokenizer.normalizer.__getstate__())["type"]
    except Exception as error:  # the library raises bare Exception
        raise ModelLoadError(f"{path} cannot be read ({error}); download it again") from error
    if (pattern, normalizer, type(tokenizer.model).__name__) != (SPLIT, "NFC", "BPE"):
        raise ModelLoadError(f"{path} is not Qwen3's tokenizer; take the file of the checkpoint itself")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    return tokenizer
