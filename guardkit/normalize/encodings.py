"""Text that is written as numbers: base64, base32, hex, binary, decimal codes, Morse; and names in Punycode.

A run counts only if it turns into something that reads like text: printable, mostly letters, words with blanks between
them or letters of another script than Latin. Keys, hashes, pictures and certificates are none of that.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from guardkit.normalize.draft import Draft, Pieces
from guardkit.normalize.words import plain_letters

Unwrapped = Callable[[str], Draft]  # what a decoded text says in turn

MIN_BYTES = 6
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff\ud800-\udfff]")
WORDS = re.compile(r"[^\W\d_]{2}[,.;:!?'\")]{0,3}\s[\"'(]?[^\W\d_]|[^\W\d_]\s[^\W\d_]{2}")
OTHER_SCRIPT = re.compile("[\u0370-\u1dff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff\U00020000-\U0003ffff]")

RUN = "[A-Za-z0-9+/_-]"
NEXT_LINE = r"(?:\r?\n|\\{1,8}[rn]){1,2}[ \t>]{0,8}"
BASE64 = re.compile(  # a key=value has no padding; short runs count only with it
    rf"(?<!{RUN})(?:{RUN}{{40,}}+(?:{NEXT_LINE}{RUN}{{2,}}+(?![^\s\"'=\\]))*+={{0,2}}|{RUN}{{16,}}+={{0,2}}"
    r"|(?<![\w=])[A-Za-z0-9+/]{6,15}+={1,2}(?![\w=]))"
)
LINE = re.compile(rf"(?:(?<=\\[rn])|(?<!\\)){RUN}+={{0,2}}")
CUTS = re.compile(r"[/_-]")
CUT = re.compile(r"[A-Za-z0-9+]{16,}+={0,2}")
STANDARD = bytes.maketrans(b"-_", b"+/")
GROUPED64 = re.compile(  # in groups of one length
    r"(?<![^\s\"'])(?:(?:[A-Za-z0-9+/]{4} ){5,}+[A-Za-z0-9+/]{1,4}|(?:[A-Za-z0-9+/]{8} ){3,}+[A-Za-z0-9+/]{1,8})={0,2}"
    r"(?![^\s\"'])"
)
BACKWARDS64 = re.compile(r"(?<![\w=])={1,2}[A-Za-z0-9+/]{16,4000}+(?![\w=])")
BASE32 = re.compile(
    r"(?<![A-Z2-7a-z])(?:[A-Z2-7]{16,}+|(?=[a-z]{0,80}[2-7][a-z]{0,80}[2-7])[a-z2-7]{24,}+)={0,6}(?![A-Za-z0-9])"
)
HEX_RUN = re.compile(
    r"(?:(?<!\w)|(?<=\\x))(?:0[xX])?(?:[0-9a-fA-F]{2})++(?!\w)"
    r"(?:(?:[ ,;:]{1,2}|-|\r?\n)(?:0[xX])?(?:[0-9a-fA-F]{2})++(?!\w))*+"
)
NUMBER = 8  # bytes of what may be a number: by chance some read as letters and signs
PLAIN = re.compile(r"(?:[^\W\d_]{2,}|[aAI])(?:[ ,.']{1,2}(?:[^\W\d_]{2,}|[aAI]))*+[.!?]?")
HEX_WORD = re.compile(r"[0-9a-fA-F]{2,}")
HEX_GROUP = re.compile(r"(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]{2}|[^0-9a-fA-F]++)")
PACKED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"BZh", b"\xfd7zXZ\0")
"""What compressed bytes begin with: gzip, zlib, bzip2, xz."""
MAX_PACKED = 4096  # bytes that are decompressed, and at most eight times as many come out
BITS = re.compile(r"(?<!\w)[01]{8}(?![^\W01])(?:[ ,]{0,2}[01]{8}(?![^\W01])){3,}+")
BYTE = re.compile("[01]{8}")
BITS7 = re.compile(r"(?<!\w)[01]{7}(?:[ ,]{1,2}[01]{7}(?!\w)){5,}+")
BYTE7 = re.compile("[01]{7}")
OCTAL = re.compile(
    r"(?<![\w.])(?:1[0-7]{2}|[4-7][0-7]|0[0-7]{2,3})(?:[ ,]{1,2}(?:1[0-7]{2}|[4-7][0-7]|0[0-7]{2,3})(?![\w.])){5,}+"
)
DUMP_LINE = re.compile(  # of a hex dump: an offset, bytes, and the same as letters
    r"^[ \t]{0,4}(?:0x)?[0-9a-fA-F]{4,8}:?[ \t]{1,4}"
    r"((?:[0-9a-fA-F]{2}){1,2}(?:[ \t]{1,2}(?:[0-9a-fA-F]{2}){1,2}(?!\w)){1,15})"
    r"(?:[ \t]{2,60}[^\n]{0,40})?$",
    re.M,
)
PAIR = re.compile("[0-9a-fA-F]{2}")
DECIMAL = re.compile(r"(?<![\w.])(?:1[0-9]{2}|[3-9][0-9])(?:(?:, ?|;? )(?:1[0-9]{2}|[3-9][0-9])(?![\w.])){5,}+")
CODE = re.compile(r"[0-9]+")
SIGN = "[.·•∙‧_–—−-]{1,5}"
MORSE = re.compile(
    rf"(?<![^\s\"']){SIGN}(?![^\s\"'])(?:(?: | {{1,3}}[/|] {{1,3}}| {{2,7}}| ?\n){SIGN}(?![^\s\"'])){{5,}}+"
)
MORSE_SIGN = re.compile(rf"({SIGN})( {{2,}}| ?[/|\n] ?)?")
PLAIN_SIGNS = str.maketrans("·•∙‧_–—−", "....----")
MORSE_LETTERS = dict(
    zip(
        re.findall(
            r"\S+",
            ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- "
            "--.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.",
        ),
        "abcdefghijklmnopqrstuvwxyz0123456789",
        strict=True,
    )
)
PUNYCODE = re.compile(r"(?<![\w-])xn--([a-zA-Z0-9-]{1,59})(?![\w-])")

# --- the fast path: letters of a kind become one letter, so that a run of them is a substring ------------------------
IS_BASE64 = bytes(97 if (chr(code).isalnum() and code < 128) or chr(code) in "+/-_" else 32 for code in range(256))
IS_HEX = bytes(
    104 if chr(code) in "0123456789abcdefABCDEF" else 120 if chr(code) in "xX" else 32 if chr(code) in " ,;:-\n" else 46
    for code in range(256)
)
LONG = b"a" * 16
GROUPS_OF_4, GROUPS_OF_8 = b"aaaa " * 5, b"aaaaaaaa " * 3
NUMBERS = (  # long runs; bytes and codes set apart by one or two signs (a date with its time has seven groups)
    *(b"h" * 12, b"h" * 8 + b" " + b"h" * 8, b"hh " * 8, b"hh  " * 8, b"hhh hhh hhh", b"hhh  hhh  hhh"),
    *(
        b"hxhhhh hxhh",
        b"hxhhhh hxhhhh",
        b"hxhh hxhhhh",
        b"hhhhhh hhhh hhhhhh",
        b"hxhh hxhh hxhh",
        b"hxhh  hxhh  hxhh",
        b"hhhhhhh hhhhhhh",
        b"hhhh hhhh hhhh hhhh",
    ),
)


def decode(draft: Draft, unwrapped: Unwrapped) -> bool:
    """Replace runs that hold text by the text; `unwrapped` reads what a run holds. True if there were any."""
    text, changed = draft.text, False
    raw = text.encode("utf-8", "replace")
    runs = raw.translate(IS_BASE64)
    if LONG in runs:
        changed |= draft.rewrite(BACKWARDS64, lambda m: _backwards(m, unwrapped))
        changed |= draft.rewrite(BASE64, lambda m: _base64(m, unwrapped))
        changed |= draft.rewrite(BASE32, lambda m: _base32(m, unwrapped))
    elif "=" in text:
        changed |= draft.rewrite(BASE64, lambda m: _base64(m, unwrapped))
    if GROUPS_OF_4 in runs or GROUPS_OF_8 in runs:
        changed |= draft.rewrite(GROUPED64, lambda m: _grouped(m, unwrapped))
    numbers = raw.translate(IS_HEX)
    if any(hint in numbers for hint in NUMBERS):
        changed |= _dumps(draft, unwrapped)
        changed |= draft.rewrite(BITS7, lambda m: _numbers(m, BYTE7, 2, unwrapped))
        changed |= draft.rewrite(BITS, lambda m: _numbers(m, BYTE, 2, unwrapped))
        changed |= draft.rewrite(DECIMAL, lambda m: _numbers(m, CODE, 10, unwrapped))
        changed |= draft.rewrite(OCTAL, lambda m: _numbers(m, CODE, 8, unwrapped))
        changed |= draft.rewrite(HEX_RUN, lambda m: _hex(m, unwrapped))
    if ".- " in text or "-. " in text or "·" in text or "•" in text:
        changed |= draft.rewrite(MORSE, _morse)
    if "xn--" in text:
        changed |= draft.rewrite(PUNYCODE, _punycode)
    return changed


def reads_as_text(text: str) -> bool:
    """Whether decoded bytes are text: hardly any other bytes pass for it by chance."""
    letters = sum(map(str.isalpha, text))
    if letters < len(text) / 2 or UNPRINTABLE.search(text):
        return False
    return bool(WORDS.search(text)) or len(OTHER_SCRIPT.findall(text)) > 2


def _settle(raw: bytes, at: Callable[[int], int], unwrapped: Unwrapped, *, word: int = 0) -> Pieces | None:
    """The text that bytes hold, its characters at `at(byte)`; `word`: the letters of which a lone word is enough."""
    packed = raw.startswith(PACKED)
    read = _as_text(_inflated(raw) if packed else raw)
    if read is None or UNPRINTABLE.search(read[0]):
        return None
    text, offsets = read
    inner = unwrapped(text)
    if not (reads_as_text(inner.text) or (word and len(text) >= word and text.isascii() and text.isalpha())):
        return None
    if packed:  # its characters have no places of their own
        return [(inner.text, at(0))]
    return [(char, at(offsets[index])) for char, index in zip(inner.text, inner.origin, strict=True)]


def _inflated(raw: bytes) -> bytes:
    """What compressed bytes hold, or its beginning; nothing where they are none."""
    if len(raw) > MAX_PACKED:
        return b""
    most = 8 * len(raw)
    try:
        if raw.startswith(b"BZh"):
            import bz2

            return bz2.BZ2Decompressor().decompress(raw, most)
        if raw.startswith(b"\xfd7z"):
            import lzma

            return lzma.LZMADecompressor(memlimit=1 << 25).decompress(raw, most)
        import zlib

        return zlib.decompressobj(47).decompress(raw, most)
    except Exception:  # each module has an error of its own
        return b""


def _as_text(raw: bytes) -> tuple[str, Sequence[int]] | None:
    """Bytes as text, and the byte that each character begins at."""
    wide = b"\0" in raw and not len(raw) % 2 and len(set(raw[1::2])) <= 2  # as PowerShell takes it
    code = "utf-16-le" if wide else "utf-8"
    try:
        text = raw.decode(code)
    except UnicodeDecodeError:
        return None
    if len(text) == len(raw):
        return text, range(len(text))
    return text, list(accumulate((len(char.encode(code)) for char in text), initial=0))


# --- base64, base32 --------------------------------------------------------------------------------------------------


def _base64(match: re.Match[str], unwrapped: Unwrapped) -> Pieces | None:
    """Lines of one length are one run, with the shorter line behind them; a run that is no text may hold one."""
    lines = list(LINE.finditer(match.string, match.start(), match.end()))
    pieces: Pieces = []
    done = match.start()
    for read, end in _blocks(lines, unwrapped):
        pieces += [(match.string[k], k) for k in range(done, read[0][1])]
        pieces += read
        done = end
    return pieces + [(match.string[k], k) for k in range(done, match.end())] if pieces else None


def _blocks(lines: Sequence[re.Match[str]], unwrapped: Unwrapped) -> Iterator[tuple[Pieces, int]]:
    """The texts in lines of base64, and where each ends."""
    i = 0
    while i < len(lines):
        size, j = len(lines[i][0]), i + 1
        while j < len(lines) and len(lines[j - 1][0]) == size and len(lines[j][0]) <= size:
            j += 1
        for k in (j, j - 1):  # the shorter line may be a word that follows
            if k > i + 1 and (read := _decode64(lines[i:k], unwrapped)):
                yield read, lines[k - 1].end()
                i = k
                break
        else:
            for line in lines[i:j]:
                if read := _decode64([line], unwrapped):
                    yield read, line.end()
                elif inner := _inside(line, unwrapped):
                    yield inner
            i = j


def _inside(line: re.Match[str], unwrapped: Unwrapped) -> tuple[Pieces, int] | None:
    """A run of base64 behind a path or a prefix: what begins after one of the first signs, or lies between two."""
    signs = [m.end() for m in CUTS.finditer(line[0])]
    for start in signs[:3]:
        rest = LINE.match(line.string, line.start() + start, line.end())
        if rest and len(rest[0]) >= 16 and (read := _decode64([rest], unwrapped)):
            return read, rest.end()
    if signs:
        for part in CUT.finditer(line.string, line.start(), line.end()):
            if read := _decode64([part], unwrapped):
                return read, part.end()
    return None


def _decode64(lines: Sequence[re.Match[str]], unwrapped: Unwrapped) -> Pieces | None:
    run = "".join(line[0] for line in lines)
    short = len(run) < 16
    run = run.rstrip("=")
    found = _from64(run)
    if short and not found.isalpha():
        return None
    if len(lines) == 1:
        start = lines[0].start()
        read = _settle(found, lambda byte: start + byte * 4 // 3, unwrapped, word=4)
        return read or _otherwise64(run, start, unwrapped)
    places = [k for line in lines for k in range(line.start(), line.end())]
    return _settle(found, lambda byte: places[byte * 4 // 3], unwrapped, word=4)


def _backwards(match: re.Match[str], unwrapped: Unwrapped) -> Pieces | None:
    """Base64 that is written from its end: all of it points at where it begins."""
    run = match[0].lstrip("=")[::-1]
    return _settle(_from64(run), lambda _: match.start(), unwrapped)


def _grouped(match: re.Match[str], unwrapped: Unwrapped) -> Pieces | None:
    places = [i for i in range(match.start(), match.end()) if match.string[i] not in " ="]
    raw = _from64("".join(match.string[i] for i in places))
    return _settle(raw, lambda byte: places[byte * 4 // 3], unwrapped)


def _from64(run: str) -> bytes:
    """The bytes of base64, of either alphabet, without its padding."""
    raw = run.encode().translate(STANDARD)
    raw = raw[: len(raw) - (len(raw) % 4 == 1)]
    return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4))


def _otherwise64(run: str, at: int, unwrapped: Unwrapped) -> Pieces | None:
    """Base64 in rot13, from its end, deflated without a head, or of UTF-16 as UTF-7 has it."""
    if len(run) < 24 or len(run) > 4000:
        return None
    found = _from64(run)
    if found.startswith(PACKED):
        return None
    if read := _deflated(found, at, unwrapped):
        return read
    if run[0] == "+":
        try:
            raw = _from64(run[1:].rstrip("-")).decode("utf-16-be").encode("ascii")
        except UnicodeError:
            return None
    else:
        raw = _from64(run.translate(plain_letters(13)))
        if len(run) % 4 == 0 and (read := _settle(_from64(run[::-1]), lambda _: at, unwrapped)):
            return read
    return _settle(raw, lambda _: at, unwrapped)


def _deflated(raw: bytes, at: int, unwrapped: Unwrapped) -> Pieces | None:
    """As single sign-on sends its messages."""
    import zlib

    codec = zlib.decompressobj(-15)
    try:
        text = codec.decompress(raw, 8 * len(raw))
    except zlib.error:
        return None
    return _settle(text, lambda _: at, unwrapped) if codec.eof and len(text) > MIN_BYTES else None


def _base32(match: re.Match[str], unwrapped: Unwrapped) -> Pieces | None:
    import base64  # seldom needed

    run = match[0].rstrip("=")
    run = run[: len(run) - {1: 1, 3: 1, 6: 1}.get(len(run) % 8, 0)]
    return _settle(
        base64.b32decode(run.upper() + "=" * (-len(run) % 8)),
        lambda byte: match.start() + byte * 8 // 5,
        unwrapped,
        word=8,
    )


# --- numbers ---------------------------------------------------------------------------------------------------------


def _hex(match: re.Match[str], unwrapped: Unwrapped) -> Pieces | None:
    if len(match[0]) < 2 * MIN_BYTES:
        return None
    found = [(m[1], m.start(1)) for m in HEX_GROUP.finditer(match.string, match.start(), match.end())]
    sizes = {len(group) for group in HEX_WORD.findall(match[0])[1:-1]}
    digits = [(int(pair, 16), at) for pair, at in found if len(pair) == 2 and pair.isalnum()]
    if len(sizes) > 1 and max(sizes) > 2:  # a group a word
        digits = [(int(p, 16) if len(p) == 2 and p.isalnum() else 32, at) for p, at in found if p.isalnum() or at]
    if len(digits) < MIN_BYTES:
        return None
    read = _settle(bytes(value for value, _ in digits), lambda byte: digits[byte][1], unwrapped, word=8)
    if read is not None and len(digits) <= NUMBER and not PLAIN.fullmatch("".join(char for char, _ in read)):
        return None
    return read


def _dumps(draft: Draft, unwrapped: Unwrapped) -> bool:
    """Replace hex dumps by what they hold: lines that follow one another."""
    blocks: list[list[re.Match[str]]] = []
    for line in DUMP_LINE.finditer(draft.text):
        if blocks and line.start() - blocks[-1][-1].end() <= 2:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    spans = []
    for block in blocks:
        bytes_ = [(int(m[0], 16), m.start()) for line in block for m in PAIR.finditer(line.string, *line.span(1))]
        read = _settle(bytes(b for b, _ in bytes_), lambda byte: bytes_[byte][1], unwrapped)  # noqa: B023
        if read:
            spans.append((block[0].start(), block[-1].end(), read))
    return draft.replace(spans)


def _numbers(match: re.Match[str], unit: re.Pattern[str], base: int, unwrapped: Unwrapped) -> Pieces | None:
    found = [(int(m[0], base), m.start()) for m in unit.finditer(match.string, match.start(), match.end())]
    if any(value > 255 for value, _ in found):
        return None
    return _settle(bytes(value for value, _ in found), lambda byte: found[byte][1], unwrapped)


def _morse(match: re.Match[str]) -> Pieces | None:
    pieces: Pieces = []
    for sign in MORSE_SIGN.finditer(match.string, match.start(), match.end()):
        letter = MORSE_LETTERS.get(sign[1].translate(PLAIN_SIGNS))
        if letter is None:
            return None
        pieces.append((letter, sign.start()))
        if sign[2]:
            pieces.append((" ", sign.start(2)))
    letters = {char for char, _ in pieces}
    return pieces if len(letters) > 4 and letters & set("aeiou") else None


def _punycode(match: re.Match[str]) -> Pieces | None:
    try:
        name = match[1].encode().decode("punycode")
    except UnicodeError:
        return None
    return [(name, match.start())] if name.replace("-", "").isalnum() else None
