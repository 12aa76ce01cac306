"""The normalised view of wrapped text: escapes and encodings come off, in any script, at linear cost."""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import gzip
import html
import json
import lzma
import quopri
import time
import urllib.parse
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkit import Guard
from guardkit.normalize import normalized_view
from guardkit.testing import FakeGuard

TEXTS = {
    "English": "How do I repair the old bicycle in the cellar?",
    "German": "Wie töte ich Läuse für größere Gärten, bitte ausführlich?",
    "Russian": "Расскажи мне, пожалуйста, про дикие яблони и лес",
    "Arabic": "كيف يمكنني إصلاح الدراجة القديمة في القبو",
    "Chinese": "请告诉我如何修理地下室里的旧自行车好吗谢谢",
    "emoji": "please water 🌻 the garden 🏡 tomorrow",
}


HOW = "how do you do this and that with it"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


WRAPPINGS: dict[str, Callable[[str], str]] = {
    "every character as \\u": lambda t: (
        "".join(f"\\u{ord(c):04x}" for c in t) if max(t) < "\U00010000" else json.dumps(t)
    ),
    "JSON": json.dumps,
    "JSON in JSON": lambda t: json.dumps(json.dumps(t)),
    "JSON three times": lambda t: json.dumps({"a": json.dumps({"b": json.dumps(t)})}),
    "\\u{}": lambda t: "".join(f"\\u{{{ord(c):x}}}" for c in t),
    "\\U": lambda t: "".join(f"\\U{ord(c):08x}" for c in t),
    "\\x": lambda t: "".join(f"\\x{b:02x}" for b in t.encode()),
    "octal": lambda t: "".join(f"\\{b:03o}" for b in t.encode()),
    "decimal references": lambda t: "".join(f"&#{ord(c)};" for c in t),
    "hexadecimal references": lambda t: "".join(f"&#x{ord(c):X};" for c in t),
    "references with zeros": lambda t: "".join(f"&#0000{ord(c)};" for c in t),
    "escaped references": lambda t: html.escape("".join(f"&#{ord(c)};" for c in t)),
    "references in JSON": lambda t: json.dumps("".join(f"&#{ord(c)};" for c in t)),
    "percent": lambda t: urllib.parse.quote(t),
    "percent twice": lambda t: urllib.parse.quote(urllib.parse.quote(t)),
    "percent, every byte": lambda t: "".join(f"%{b:02X}" for b in t.encode()),
    "a form": lambda t: "x=1&q=" + urllib.parse.quote_plus(t),
    "quoted-printable": lambda t: quopri.encodestring((t * 3).encode()).decode(),
    "quoted-printable, every byte": lambda t: "".join(f"={b:02X}" for b in t.encode()),
    "code points": lambda t: " ".join(f"U+{ord(c):04X}" for c in t),
    "base64": b64,
    "base64 without padding": lambda t: b64(t).rstrip("="),
    "base64 for URLs": lambda t: base64.urlsafe_b64encode(f"{t}???>>>".encode()).decode(),
    "base64 in lines": lambda t: base64.encodebytes((t * 5).encode()).decode(),
    "base64 in lines in JSON": lambda t: json.dumps({"data": base64.encodebytes((t * 5).encode()).decode()}),
    "base64 twice": lambda t: b64(b64(t)),
    "base64 of percent": lambda t: b64(urllib.parse.quote(t)),
    "base64 of JSON": lambda t: b64(json.dumps(t)),
    "base64 of UTF-16": lambda t: base64.b64encode(t.encode("utf-16-le")).decode() if t.isascii() else b64(t),
    "base64 with hidden characters": lambda t: "\u200b".join(b64(t)),
    "data address": lambda t: f"<img src='data:text/plain;base64,{b64(t)}'>",
    "in a path": lambda t: f"https://example.com/read/{base64.urlsafe_b64encode(t.encode()).decode()}",
    "a signed token": lambda t: f"eyJhbGciOiJIUzI1NiJ9.{b64(json.dumps({'sub': t})).rstrip('=')}.c2lnbmF0dXJl",
    "base32": lambda t: base64.b32encode(t.encode()).decode(),
    "hex": lambda t: t.encode().hex(),
    "hex, spaced": lambda t: t.encode().hex(" "),
    "hex with colons": lambda t: t.encode().hex(":"),
    "hex list": lambda t: ", ".join(f"0x{b:02x}" for b in t.encode()),
    "binary": lambda t: " ".join(f"{b:08b}" for b in t.encode()),
    "binary in one": lambda t: "".join(f"{b:08b}" for b in t.encode()),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("language", TEXTS)
def test_a_wrapping_comes_off(wrapping: str, language: str) -> None:
    text = TEXTS[language]
    wrapped = WRAPPINGS[wrapping](text)
    if text in wrapped:  # nothing to undo: ASCII in JSON
        return
    view = normalized_view(f"Note: {wrapped}\nthanks")
    assert view is not None
    assert text in view.text
    assert view.text.endswith("\nthanks")
    assert view.text.startswith("Note: ")


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("t&oumlte, t&ouml;te, t&#246te", "töte, töte, töte"),
        ("red&nbsp;apple and bl&shy;ue", "red\xa0apple and blue"),
        ("re<b></b>d ap<!-- x - y -->ple <i>n</i>ow", "red apple <i>now"),
        ("a<td>b</td>c", "a<td>b</td>c"),
        ("re\x1b[0md", "red"),
        ("ap[b][/b]ple", "apple"),
        ("ap**pl**e", "apple"),
        ("a large ap-\n   ple tree", "a large apple tree"),
        ("A LARGE AP-\r\n> PLE TREE", "A LARGE APPLE TREE"),
        ("call ap\u00adple", "call apple"),
        ("print('ap' + 'ple')", "print('apple')"),
        ('echo "ap" . "ple";', 'echo "apple";'),
        (r"\61\70\70\6c\65", "apple"),
        (r"\000061\000070\000070 le", "apple"),
        (r"\N{LATIN SMALL LETTER A}pple", "apple"),
        (r'{"a": "first\nSecond line"}', '{"a": "first\nSecond line"}'),
        (r"\ud83c\udf3b and \ud83c alone", "🌻 and \ud83c alone"),
        ("%u0061%u0070ple", "apple"),
        ("?q=water+the+red+apple&x=1", "?q=water the red apple&x=1"),
        ("the YXBwbGU= tree", "the apple tree"),
        ("String.fromCharCode(116,104,101,32,114,101,100,32,97,112,112,108,101)", "String.fromCharCode(the red apple)"),
        ("- .... . / .-. . -.. / .- .--. .--. .-.. .", "the red apple"),
        ("xn--mnchen-3ya.de", "münchen.de"),
        (r"the r\e[31med and the\x1b[0m r\033[1med ap\u001b[0mple ^[[1mm", "the red and the\\x1b[0m red apple ^[[1mm"),
        ("a^[[1mp^[[0mple", "apple"),
        ("[(the re)-12(d ap)3.5(ple)] TJ", "[(the red apple)] TJ"),
        (f"'\\x{b'the red apple'.hex()}'", "'\\xthe red apple'"),
        (
            json.dumps([{"t": f" {w}", "p": 0.5} for w in HOW.split()]),
            '[{"t": " how do you do this and that with it", "p": 0.5}]',
        ),
        (
            json.dumps(dict(enumerate(HOW.split()))),
            '{"0": "how do you do this and that with it "}',
        ),
    ],
    ids=ascii,
)
def test_a_single_disguise_comes_off(text: str, reads: str) -> None:
    view = normalized_view(text)
    assert (view.text if view else text) == reads


@pytest.mark.parametrize(
    "line",
    [
        r"path C:\users\x64\data and \\server\share\file",
        r're.compile("[^\\w\\d]+\s*\.\d{2}")',
        '[{"tag": "python"}, {"tag": "kill"}, {"tag": "bomb"}, {"tag": "disposal"}, {"tag": "web"}, {"tag": "is"}]',
        '[{"d": "in"}, {"d": "out"}, {"d": "in"}, {"d": "out"}, {"d": "in"}, {"d": "out"}, {"d": "in"}, {"d": "up"}]',
        "rm -rf build[0] && echo ^[a-z] and x[33[1]] in a[1b[",
        r'{"html": "\u003cp\u003e5 \u0026 6\u003c/p\u003e", "q": "say \"hi\""}',
        "<p>Tom &amp; Jerry &lt;tom@example.com&gt; &quot;hi&quot; &#39;s</p><td>a</td><td>b</td>",
        "GET /a%2Fb?x=1&copy=2&lang=de&region=eu&order=3 HTTP/1.1",
        "50% of 20% at 100%, %d of %s, %20s|%-5d|%5.2f",
        "if (a<b && c>d) x = y == z ? 1 : 2; a=B; c=DE",
        "sha512-9NET910DNaIPngYnLLPeg+Ogzqsi9uM4mSboU5y6p8S5DzMTVEsJZrawi+BoDNUVBa2DhJqQYUFvMDfgU062LQ==",
        "d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "550e8400-e29b-41d4-a716-446655440000 aa:bb:cc:dd:ee:ff 2024-05-01 12:00:03,123",
        "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ\n-----END",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "65 70 75 80 85 90 95 100 | 100 101 102 103 104 105 | 00 01 02 03 04 05 06 07 08",
        "10110100 01101001 11110000 00001111",
        "- - - - - - - -\n. . . . . . .\n-- -- -- -- -- --",
        "ConfigurationManagerFactoryBean org/apache/commons/lang3/StringUtils garden-chairs-and-tables-sale",
        "caagtgcagttgtagtgccgtatttgtggcatgagcccgggcaaagttttctgaaataagcaagacgccc",
        "x**2 + y**2 and __init__ and 2**10",
        "312, 0xca5691191da2b946\n313, 0x696a542109457466\n314, 0x9eb5d658a5022ba5",
    ],
)
def test_ordinary_notation_has_no_view(line: str) -> None:
    assert normalized_view(line) is None


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "deflate": lambda raw: zlib.compress(raw)[2:-4],
}


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_text_comes_out(kind: str) -> None:
    packed = PACKED[kind](SENTENCE.encode())
    wrappings = [base64.b64encode(packed).decode(), b64(base64.b64encode(packed).decode())]
    if kind != "deflate":
        wrappings += [packed.hex(), base64.encodebytes(packed).decode(), f"'\\x{packed.hex()}'"]
    for wrapped in wrappings:
        for around in ("{}", "data: {} end"):
            view = normalized_view(around.format(wrapped))
            assert view is not None
            assert SENTENCE in view.text, wrapped
    half = base64.b64encode(packed[: len(packed) // 2]).decode()  # what there is of it, or nothing
    view = normalized_view(half)
    assert view is None or SENTENCE.startswith(view.text.strip()[:20]) or view.text in half
    bomb = base64.b64encode(PACKED[kind](b"a b " * 1_000_000)).decode()
    view = normalized_view(bomb)
    assert view is None or len(view.text) <= 8 * len(bomb)


SENTENCE = "How do I repair the old red bike in our cellar?"
MORSE_OF = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..".split(),  # noqa: E501, SIM905
        strict=True,
    )
)
NAMES = """
Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec Romeo
Sierra Tango Uniform Victor Whiskey Xray Yankee Zulu
"""
NATO = NAMES.split()
BRAILLE = dict(zip("abcdefghijklmnopqrstuvwxyz", "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", strict=True))


def of_words(letter: Callable[[str], str], between: str = " ", after: str = " / ") -> Callable[[str], str]:
    """Each letter by `letter`, in words."""
    return lambda t: after.join(between.join(letter(c) for c in w if c.isalpha()) for w in t.lower().split())


def hexdump(text: str) -> str:
    raw = text.encode()
    return "\n".join(f"{i:08x}  {raw[i : i + 16].hex(' '):<48} |{'.' * 16}|" for i in range(0, len(raw), 16))


APART: dict[str, Callable[[str], str]] = {
    **{f"letters between {mark!r}": mark.join for mark in ("|", "/", "_", ",", "::", " | ", ")(", "][", "``", "🙂")},
    "every letter in brackets": lambda t: "".join(f"[{c}]" for c in t),
    "a JSON list of letters": lambda t: json.dumps(list(t)),
    "a Python list of letters": lambda t: f"''.join({list(t)!r})",
    "cells of a CSV": lambda t: ",".join(f'"{c}"' for c in t),
    "a JSON list of words": lambda t: json.dumps(t.split()),
    "tags between all letters": lambda t: "".join(f"{c}<b></b>" for c in t),
    "colours of a terminal": lambda t: "".join(f"\x1b[31m{c}\x1b[0m" for c in t),
    "CDATA": lambda t: "]]><![CDATA[".join(t),
    "cut strings": lambda t: " + ".join(f'"{t[i : i + 3]}"' for i in range(0, len(t), 3)),
    "struck letters": lambda t: "".join(f"{c}x\b" for c in t),
    "TeX": lambda t: "".join(rf"\text{{{c}}}" if c != " " else "\\ " for c in t),
    "pictures between words": lambda t: t.replace(" ", "😀"),
    "letters twice": lambda t: "".join(c * 2 if c.isalpha() else c for c in t),
    "letters three times": lambda t: "".join(c * 3 if c.isalpha() else c for c in t),
    "calls": lambda t: "+".join(f"chr({ord(c)})" for c in t),
    "calls of SQL": lambda t: "||".join(f"CHAR({ord(c)})" for c in t),
    "_x0048_": lambda t: "".join(f"_x{ord(c):04x}_" for c in t),
    "octal codes": lambda t: " ".join(f"{b:o}" for b in t.encode()),
    "seven bits": lambda t: " ".join(f"{b:07b}" for b in t.encode()),
    "a hex dump": hexdump,
    "numbers of letters": of_words(lambda c: str(ord(c) - 96)),
    "numbers of letters, 0 between words": lambda t: " ".join(
        str(ord(c) - 96) if c.isalpha() else "0" for c in t.lower() if c.isalpha() or c == " "
    ),
    "names of letters": of_words(lambda c: NATO[ord(c) - 97]),
    "Braille": of_words(BRAILLE.__getitem__, "", " "),
    "Morse in signs": of_words(lambda c: MORSE_OF[c].translate({46: "·", 45: "−"})),
    "Morse, a word a line": of_words(MORSE_OF.__getitem__, " ", "\n"),
    "uuencode": lambda t: (
        f"begin 644 x\n{binascii.b2a_uu(t[:40].encode()).decode()}{binascii.b2a_uu(t[40:].encode()).decode()}`\nend"
    ),
    "Ascii85": lambda t: base64.a85encode(t.encode(), adobe=True).decode(),
    "base64 in groups": lambda t: " ".join(b64(t)[i : i + 4] for i in range(0, len(b64(t)), 4)),
    "base64 backwards": lambda t: b64(t)[::-1],
    "base64 in rot13": lambda t: codecs.encode(b64(t), "rot13"),
    "base64, compressed": lambda t: base64.b64encode(zlib.compress(t.encode())).decode(),
    "base32 in lower case": lambda t: base64.b32encode(t.encode()).decode().lower(),
    "UTF-7": lambda t: "+" + base64.b64encode(t.encode("utf-16-be")).decode().rstrip("=") + "-",
    "Ascii85 without marks": lambda t: "say " + base64.a85encode(t.encode()).decode() + " now",
    "base85": lambda t: base64.b85encode(t.encode()).decode(),
    "words in hex": lambda t: " ".join("0x" + word.encode().hex() for word in t.split()),
    "bits that no screen shows": lambda t: (
        "hi" + "".join("\u200b" if bit == "0" else "\u200c" for b in t.encode() for bit in f"{b:08b}") + " there"
    ),
    "names of letters, joined": of_words(lambda c: NATO[ord(c) - 97], "-", " "),
    "pieces in a call": lambda t: "CONCAT(" + ",".join(f"'{t[i : i + 3]}'" for i in range(0, len(t), 3)) + ")",
    "pieces in a list": lambda t: json.dumps([t[i : i + 5] for i in range(0, len(t), 5)]).strip("[]"),
    "pieces side by side": lambda t: " ".join(f"'{t[i : i + 5]}'" for i in range(0, len(t), 5)),
    "pieces on lines": lambda t: "\n".join(f'"{t[i : i + 8]}"' for i in range(0, len(t), 8)),
    "pieces and dots": lambda t: ".".join(f"'{t[i : i + 4]}'" for i in range(0, len(t), 4)),
    "pieces in variables": lambda t: "".join(f'a{i}="{t[i * 7 : i * 7 + 7]}"; ' for i in range(7)) + "print(a0 + a1)",
    "pieces in variables, a line each": lambda t: "\n".join(
        f"{v} = '{t[i * 7 : i * 7 + 7]}'" for i, v in enumerate("abcdefg")
    ),
    "RTF": lambda t: "{\\rtf1 " + "".join(f"\\u{ord(c)}?" for c in t) + "}",
    "moves of a cursor": lambda t: "".join(f"{c}\x1b[1C\x1b[1D" for c in t),
    "dots in words": lambda t: " ".join("·".join((w[:2], w[2:])) if len(w) > 3 else w for w in t.split()),
    "pictures beside words": lambda t: t.replace(" ", " 🌻 "),
    "rot47": lambda t: "".join(chr(33 + (ord(c) + 14) % 94) if c != " " else c for c in t),
}


@pytest.mark.parametrize("wrapping", APART)
def test_letters_apart_and_codes_are_read(wrapping: str) -> None:
    view = normalized_view(APART[wrapping](SENTENCE))
    assert view is not None
    assert SENTENCE.rstrip("?").lower() in view.text.lower()
    assert list(view.origin) == sorted(view.origin)


@pytest.mark.parametrize(
    "line",
    [
        "x | y | z | w | 1 | 2 | 3 | 4",
        "| a | b | c | d | e | f | g | h |",
        '["a", "b", "c", "d", "e", "f", "g", "h"]',
        '"color", "size", "name", "type", "width", "height", "depth"',
        'keys = ["id", "name", "email", "created_at", "updated_at", "role"]',
        "f(a, b, c, d, e, f, g, h, i, j, k)",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "scores: 8, 15, 23, 4, 15, 9, 13, 1, 11, 5, 1, 2, 15, 13, 2",
        "chmod 644 a 755 b 600 c 700 d 640 e 750 f",
        "total 110 157 167 143 144 157 101 102",
        "1001000 1101111 0000000 0000001 1000000 1111111",
        "00000010  89 50 4e 47 0d 0a 1a 0a  00 00 00 0d 49 48 44 52  |.PNG........IHDR|",
        "this that with from have been were they when what your them",
        "MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAt7bZ8Qm1dYcKf0pT2wJ5",
        "Mike and Oscar met Juliet in November at the Golf hotel in India",
        "bookkeeper Aaron 11 22 33 aabb",
        "\\n\\t\\r\\n\\t\\r\\n\\t",
        "char(10) varchar(255) nchar(20), getchar()",
        "<~ and ~> are signs; a <~ b",
        "begin 644 is how it starts",
        "rUCAwEAAaOBgDB+MA8GA1UdEwEB+rUCAwEAAaOBgDB+MA8GA1UdEwEB",
        "case`s`:case`o`:f(e,n){g(t),h(),o(),s(),c(),l(),d(),f(),p(),m()}",
        "A[i]=A[j];A[j]=t;x=y==z?a:b;(e,t,n)=>{e(t),n(r)}",
        "⠠⠝⠕ · a • b • c",
        '["apple", "pear", "fig", "nut", "oat", "rye"]',
        '<svg x="1 " y="2 " w="3 " h="4 "><a id="x" b="y" c="z"/>',
        'a="x"; b="y"; c="z"; d="1"',
        "Hi 😊 how are you today my friend, I am fine 😊 and well 🌻 ok thanks a lot for asking me",
        "https://example.com/a?x=%(1)+{2}*3|4;5<6>7@8!9#10$11^12`13~14&y=!!!!((((",
        "function(e,t){return!(e<t)||{a:$(e),b:`x`}};!function(){}(window);",
        "0x1234 0xab 0xcafe 0xbeef 0x12 0x99aabb deadbeef cafe 1234 abcdef00 12",
        "la cel·la i el col·legi",
    ],
)
def test_lists_and_tables_have_no_view(line: str) -> None:
    assert normalized_view(line) is None


REQUESTS = {
    "English": "Please explain step by step how to get into the old cellar without a key",
    "short": "tell me how to build a red bicycle at home",
    "German": "Wie baue ich eine Hütte aus dem, was man im Haus hat",
    "French": "comment faire une tarte pour les enfants",
    "Spanish": "Dime como puedo hacer una torta en mi casa",
}


def shifted(text: str, by: int) -> str:
    lower, upper = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return text.translate(str.maketrans(lower + upper, lower[by:] + lower[:by] + upper[by:] + upper[:by]))


def mirrored(text: str) -> str:
    lower, upper = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return text.translate(str.maketrans(lower + upper, lower[::-1] + upper[::-1]))


CIPHERS: dict[str, Callable[[str], str]] = {
    "rot13": lambda t: shifted(t, 13),
    "shift by 3": lambda t: shifted(t, 3),
    "shift by 20": lambda t: shifted(t, 20),
    "mirrored": mirrored,
    "backwards": lambda t: t[::-1],
    "words backwards": lambda t: " ".join(word[::-1] for word in t.split()),
    "rot13 in base64": lambda t: b64(shifted(t, 13)),
}


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("language", REQUESTS)
def test_a_cipher_is_read(cipher: str, language: str) -> None:
    text = REQUESTS[language]
    for before in ("", "Decode this and answer it: "):
        view = normalized_view(before + CIPHERS[cipher](text))
        assert view is not None
        assert text in view.text
        assert view.text.startswith(before)


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog, and the dog was not amused by it at all.",
        "Was it a saw? No, the era of the net and the tub was won; a pot on top of a nut.",
        "svn grep nginx vpn lbh gcc xml sql ssh; GB vs. MB, va, bs and zr",
        "GCAT GATTACA MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF ATG CCC TGA",
        "Mwy na dim, mae pob dyn yn cael ei eni yn rhydd. Zażółć gęślą jaźń. Çok güzel bir gün.",
        "xyz qwerty asdf jkl uvw lmn opq rst abc def ghi",
        "for (int i = 0; i < n; i++) { tmp = ptr->nxt; free(ptr); ptr = tmp; } // nxt ptr",
    ],
)
def test_what_is_no_cipher_is_left_alone(text: str) -> None:
    assert normalized_view(text) is None


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("HowToMakeARedKite", "How To Make A Red Kite"),
        ("howToMakeARedKite now", "how To Make A Red Kite now"),
        ("CómoPuedoHacerUnaTortaÑandú", "Cómo Puedo Hacer Una Torta Ñandú"),
        ("notwithstanding", "notwithstanding"),
        (
            "T3ll m3 h0w t0 p41nt 4 wh1t3 d00r 50 1t 5h1n35, größ3r",
            "Tell me how to paint a white door so it shines, größer",
        ),
        (
            "h4sh3s a1 b2 c3: 4 of 5 at 10:35, 40 m1n, v1, t3mp 35",
            "hashes a1 b2 c3: 4 of 5 at 10:35, 40 m1n, v1, temp 35",
        ),
        ("how_to_make_a_kite", "how to make a kite"),
        ("how-to-make-a-kite", "how to make a kite"),
        ("tellmehowtobuildakite", "tell me how to build a kite"),
        ("WIEBAUEICHEINEBANK", "WIE BAUE ICH EINE BANK"),
        ("b()mb, we4p()n, |<ill, /\\/\\ake", "bomb, weapon, kill, make"),
        ("AbstractSingletonProxyFactoryBean", "AbstractSingletonProxyFactoryBean"),
        ("internationalization methamphetamine", "internationalization methamphetamine"),
        ("Geschwindigkeitsbegrenzung donaudampfschifffahrt", "Geschwindigkeitsbegrenzung donaudampfschifffahrt"),
        ("foo() a || b ls|less https:\\/\\/example.com\\/a", "foo() a || b ls|less https:\\/\\/example.com\\/a"),
    ],
)
def test_blanks_and_drawn_letters_come_back(text: str, reads: str) -> None:
    view = normalized_view(text)
    assert (view.text if view else text) == reads


def test_positions_lead_to_the_run() -> None:
    for wrapped in (b64(TEXTS["German"]), TEXTS["German"].encode().hex(" "), json.dumps(TEXTS["German"])[1:-1]):
        text = f"first {wrapped} last"
        view = normalized_view(text)
        assert view is not None
        start = view.text.index("größere")
        assert list(view.origin) == sorted(view.origin)
        assert view.to_original(0) == 0
        assert view.to_original(view.text.index("last")) == text.index("last")
        assert 6 < view.to_original(start) < view.to_original(start + 7) < 6 + len(wrapped)
    view = normalized_view("say \\u0061pple, &#97;pple")
    assert view is not None
    assert view.text == "say apple, apple"
    assert (view.to_original(4), view.to_original(5), view.to_original(11), view.to_original(12)) == (4, 10, 16, 21)


def test_the_view_counts_at_every_stage_and_only_where_it_is_worse() -> None:
    class Model(type(FakeGuard({}).model)):  # type: ignore[misc]
        judges_normalized_view = True

    guard = Guard(Model({"BAD THING": "unsafe"}))
    for stage in ("prompt", "response", "tool_output", "document", "reasoning", "tool_call"):
        wrapped = f'{{"data": "{b64("this is a BAD THING here")}"}}'
        verdict = guard.check(wrapped, stage=stage)
        assert verdict.severity.value == "unsafe", stage
        assert guard.check(wrapped, stage=stage, normalize=False).severity.value == "safe"
        assert guard.check(f"BAD THING {b64('all is well here')}", stage=stage).severity.value == "unsafe"


PARTS = st.sampled_from(
    (
        *"\\ux0123456789abcdefN{}&#;%=+<>!-/[]'\"\n ._\x1b",
        "\\u00",
        "\\ud83d",
        "&amp;",
        "&#x",
        "%25",
        "xn--",
        "ué",
        "中",
        "aGVsbG8gd29ybGQgYWdhaW4",
        "68656c6c6f20776f726c64",
        "01101000",
        ".-",
        " -...",
        "U+0061",
        "=C3=B6",
        "**",
        "<b>",
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PARTS, max_size=25).map("".join) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode())
)
def test_any_text_gives_a_sound_view_or_none(text: str) -> None:
    view = normalized_view(text)
    if view is not None:
        assert view.text != text
        assert len(view.origin) == len(view.text)
        assert list(view.origin) == sorted(view.origin)
        assert all(0 <= i < len(text) for i in view.origin)


ADVERSARIAL = [
    *(
        "\\",
        "\\u",
        "\\u00",
        "\\u0062",
        "\\x62",
        "\\0",
        "\\u{",
        "\\N{A",
        "&",
        "&amp;",
        "&#",
        "&#9",
        "&a",
        "%",
        "%25",
        "%2",
    ),
    *("=", "=3", "=\n", "a=", "=a+", "a<", "a<b", "a<!--", "a<!--a-", "a[/b", "a\x1b[", "a**", "a-\n", "a'+", "a' + '"),
    *(
        "A",
        "AAAA\n",
        "A/",
        "A=",
        "ab ",
        "00 ",
        "0x",
        "01",
        "00000000 ",
        "99 ",
        "999, ",
        ".- ",
        "- . ",
        "xn--a",
        "U+0061 ",
    ),
    *("a|", "a, ", '"a", ', '"the" ', "aabb", "x\b", "\\text{a}", "chr(99)+", "_x0061_", "1 ", "7 / ", "alfa ", "⠁"),
    *("aGVs ", "=AAAA", "begin 644 a\n", "#0V%T\n", "<~", "+AGEA-", "101 ", "0000 00 00\n", "E96 2?5 J@F "),
    *('"a": "the", ', '{"1":" of"}', "a) 1 (TJ", "\\e[1", "a^[[1m", "\\x6161", "H4sIAAAA"),
    *('a="b "; ', '"a ", ', "'", "a·", "~!#", "\\u99?", "\u200b\u200c", "0xab 0xabab ", "a 🌻 ", "Alfa-", "\x1b[1"),
    *("aGVsbG8gd29ybGQgYWdhaW4=\n", "68656c6c6f20776f726c64 ", "gur naq ", "Aa", "q=a+b+c", "eht dna "),
    "a" * 63 + "\n",
    b64(b64("how are you all " * 9)),
]


@pytest.mark.parametrize("unit", ADVERSARIAL, ids=lambda unit: ascii(unit)[:20])
def test_work_grows_with_the_length_only(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit)) + "x"
        best = []
        for _ in range(3):
            start = time.process_time()
            normalized_view(text)
            best.append(time.process_time() - start)
        return min(best)

    small, large = seconds(8_000), seconds(64_000)
    # Eight times the text: eight times the work, sixty-four times if it were quadratic.
    assert large < 28 * small + 0.02
