"""The tables and patterns that `normalize` reads disguised text with."""

from __future__ import annotations

import re

MAX_CHARS = 1 << 22  # of a longer text the view shows the head: more than any model's context, and bounded memory
MAX_LEET = 40  # a longer token is no word
KEEP_REPEATS = 2  # of more than three equal letters
MIN_SPACED = 4  # single letters in a row; three are "A B C" or "e.g."

# --- what looks like what: strong letters are drawn like the ASCII letter, weak ones only resemble it ----------------
STRONG = {
    "a": "а", "b": "ЬᏏ", "c": "сϲⲥ", "d": "ԁꓒᏧ", "e": "е", "g": "Ԍ", "h": "һհ", "i": "іᎥ", "j": "јϳյ", "l": "ӏ",
    "n": "ո", "o": "оοօⲟ", "p": "рρⲣ", "q": "ԛզ", "s": "ѕ", "u": "ս", "v": "ѵν", "w": "ԝ", "x": "х", "y": "уү",
    "A": "АΑᎪꓮ", "B": "ВΒᏴꓐ", "C": "СᏟꓚ", "D": "Ꭰꓓ", "E": "ЕΕᎬꓰ", "F": "ꓝϜ", "G": "ᏀᎶꓖ", "H": "НΗᎻꓧ", "I": "ІΙӀꓲ",
    "J": "ЈᎫꓙ", "K": "КΚᏦꓗ", "L": "ԼᏞꓡ", "M": "МΜᎷꓟ", "N": "Νꓠ", "O": "ОΟՕꓳᎾ", "P": "РΡᏢꓑ", "Q": "Ԛ", "R": "ᎡᏒꓣ",
    "S": "ЅՏᏚꓢ", "T": "ТΤᎢꓔ", "U": "Սꓴ", "V": "ѴᏙꓦ", "W": "ԜᎳꓪ", "X": "ХΧꓫ", "Y": "ΥҮꓬ", "Z": "ΖᏃꓜ",
}  # fmt: skip
WEAK = {
    "a": "αΔΛ", "b": "вьъбβБ", "d": "δ", "e": "єεзЗΣξΞЄ", "f": "ғ", "g": "ց", "h": "нђћ", "i": "ι", "k": "кκ", "m": "м",
    "n": "пηπиИП", "o": "σθΘФφΦΩ", "r": "гяЯГ", "s": "ς", "t": "тτ", "u": "цμυ", "v": "γ", "w": "шщωШЩ", "x": "χж",
    "y": "чУЧ",
}  # fmt: skip
RARE = {  # Latin letters of no everyday spelling: small capitals, phonetic letters
    "a": "ᴀɑɐ", "b": "ʙƅɓ", "c": "ᴄɔ", "d": "ᴅɖɗ", "e": "ᴇǝɛⱻ", "f": "ꜰɟƒ", "g": "ɢɡƃ", "h": "ʜɥɦ", "i": "ɪᴉɩɨ",
    "j": "ᴊɾȷ", "k": "ᴋʞƙ", "l": "ʟʅɭ", "m": "ᴍɯɱ", "n": "ɴɳɲ", "o": "ᴏɵ", "p": "ᴘƥ", "q": "ꞯʠ", "r": "ʀɹ",
    "s": "ꜱʂ", "t": "ᴛʇƭ", "u": "ᴜʊ", "v": "ᴠʌʋ", "w": "ᴡʍɰ", "x": "ⅹ", "y": "ʏʎƴ", "z": "ᴢʐʑ",
}  # fmt: skip
STROKED = {  # Latin letters that do not decompose, but that some language writes every day
    "d": "đðĐ", "h": "ħĦ", "i": "ı", "l": "łŁ", "n": "ŋ", "o": "øØ", "t": "ŧ", "b": "ßƀ", "p": "þ",
}  # fmt: skip
SYMBOLS = {"a": "∂∆", "b": "₿", "c": "©¢", "e": "€℮∑", "i": "¡", "l": "£", "n": "∩", "o": "¤°", "r": "®", "t": "†",
            "u": "∪", "x": "×", "y": "¥"}  # fmt: skip
# Letters turned on their heads; what they spell is read from its end.
FLIPPED = dict(zip("ɐɔǝɟƃɥᴉɾʞʅɯɹʇʌʍʎqbdpnuosxzl", "acefghijklmrtvwybqpdunosxzl", strict=True))
FLIP_ONLY = "ɐɔǝɟƃɥᴉɾʞʅɯɹʇʌʍʎ"

# --- characters that no screen shows ---------------------------------------------------------------------------------
CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f"
HIDDEN = (
    f"{CONTROL}\x80-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
HIDDEN_RUN = re.compile(f"[{HIDDEN}]+")
NATIVE_JOINER = re.compile(  # scripts whose spelling needs joiners, direction marks, selectors or invisible breaks
    "[\u0590-\u10ff\u1100-\u11ff\u1780-\u18af\u1950-\u1aaf\u1b00-\u1c7f\u2e80-\uabff\uac00-\ufaff\ufb1d-\ufdff"
    "\ufe70-\ufefc\U00011000-\U00011fff\U00020000-\U0003ffff]"
)
FLAG_TAGS = re.compile("\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f|"  # England, Scotland, Wales
                        "\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f|"
                        "\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f")  # fmt: skip
OVERRIDE = re.compile("\u202e([^\u202c\n\u2029]{2,1000})")  # shown from right to left: "bmob" reads "bomb"
UPSIDE_DOWN = re.compile(
    f"(?<![a-z{FLIP_ONLY}])[qbdpnuosxzl]*+[{FLIP_ONLY}][a-z{FLIP_ONLY}]*+"
    f"(?:[ ,.'!?]{{1,2}}+(?:[qbdpnuosxzl]*+[{FLIP_ONLY}][a-z{FLIP_ONLY}]*+|[qbdpnuosxzl]{{1,3}}+(?![a-z])))*+"
)

# --- words: runs of letters of the alphabets that can pass for one another, and of the marks on them -----------------
MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
ODD = (  # none of these is in everyday text (nor any mark): their absence is the fast path of non-ASCII text
    "\u0180-\u019f\u01a2-\u01ae\u01b1-\u01cc\u01dd-\u0217\u021c-\u036f\u0483-\u0489\u13a0-\u13ff\u1ab0-\u1aff"
    "\u1d00-\u1e9f\u1f00-\u1fff\u2071-\u209c\u20d0-\u20ff\u2100-\u218f\u249c-\u24e9\u2c60-\u2cff\ua4d0-\ua4ff"
    "\ua640-\ua69f\ua720-\ua7ff\uab30-\uabbf\ufb00-\ufb06\ufe20-\ufe2f\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
    "\U0001d400-\U0001d7ff\U0001f110-\U0001f1ff"
)
ALPHABETS = "\u0370-\u058f"  # Greek, Cyrillic, Armenian
SIGNS = "".join(SYMBOLS.values())
ACCENTED = "\u00c0-\u024f\u1ea0-\u1ef9"
HOT = tuple(map(re.compile, (  # apart, since a set of characters at the start is what makes a search fast
    f"[{HIDDEN}{ODD}]", f"[{SIGNS}](?<=[A-Za-z].)[A-Za-z]", f"[{ACCENTED}][{ACCENTED}]{{3}}"
)))  # fmt: skip
ALPHABET, ASCII_LETTER = re.compile(f"[{ALPHABETS}]"), re.compile("[A-Za-z]")
WORD = re.compile(f"[0-9A-Za-z{ACCENTED}{ALPHABETS}{ODD}{SIGNS}]+")
FORCED = ((0xFF10, 0xFF5A), (0x1D400, 0x1D7FF), (0x249C, 0x24C1), (0x24C3, 0x24E9), (0x1F110, 0x1F169))
BADGES = ((0x1F150, 0x41), (0x1F170, 0x41), (0x24C2, 0x4D))  # first of a set of boxed letters, its ASCII letter
OVERLAYS = re.compile("[A-Za-z](?=[\u0305\u0332-\u0338\u033f\u20d0-\u20f0])")
LOOSE_MARK = re.compile(f"([A-Za-z])([{MARKS}])")
EXEMPT = "ªº™℠ℹ"
REGIONAL = re.compile("[\U0001f1e6-\U0001f1ff]+")
FLAGS = (  # the regions that have a flag: pairs that spell none of them are letters
    "ACADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICKCLCMCNCOCPCRCUCVCWCX"
    "CYCZDEDGDJDKDMDODZEAECEEEGEHERESETEUFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGSGTGUGWGYHKHMHNHRHTHUICIDIEILIMINIO"
    "IQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMFMGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZNANCNE"
    "NFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTATCTDTFTG"
    "THTJTKTLTMTNTOTRTTTVTWTZUAUGUMUNUSUYUZVAVCVEVGVIVNVUWFWSXKYEYTZAZMZW"
)
FLAG_PAIRS = frozenset(FLAGS[i : i + 2] for i in range(0, len(FLAGS), 2))

# --- letters set apart -----------------------------------------------------------------------------------------------
LETTERS = f"0-9A-Za-z@$!\u00c0-\u024f{ALPHABETS}"
BLANKS = " \u00a0\u2000-\u200a\u202f\u205f\u3000"
ONE = rf"[{LETTERS}](?![^\W_])"
SPACED = re.compile(
    rf"(?<![^\W_]){ONE}( [.*_|~+·•-] |[{BLANKS}\n]|[.*_|~+·•,-]){ONE}(?:\1{ONE})*+"
    rf"(?:(?:[{BLANKS}]{{2,8}}+|[ \t]{{0,4}}+[/\n][ \t]{{0,4}}+|[-_.*|~+]{{2,4}}+|[ \t]){ONE}(?:\1{ONE})*+)*+"
)
ARTICLE_FOLLOWS = re.compile(r"(?<!\bto)(?<=[a-z]) \Z")

# --- digits and signs for letters ------------------------------------------------------------------------------------
# A token is looked at only where words stand: not inside a path, an address, a version, a name with hyphens, a value.
TOKEN_END = r"(?=[\s\"')\]}>,;*?…”’»]|[.:](?!\w)|\Z)"
LEET = re.compile(rf"(?<![^\s\"'(\[{{<,;*“‘«])[A-Za-z0-9@$!]{{3,{MAX_LEET}}}+{TOKEN_END}")
LEET_SIGNS = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "@": "a", "$": "s", "!": "i"}
LEET_RUN = re.compile("[0134578@$!]+")
LEET_SHORT = {"s3x": "sex", "g4y": "gay", "d1e": "die", "f4g": "fag", "@ss": "ass", "a$s": "ass", "a$$": "ass",
               "ki11": "kill"}  # fmt: skip
NOT_LEET = frozenset(("a11y", "c3po", "g11n", "h5py", "i18n", "i3wm", "l10n", "log1p", "log4j", "py3k", "rav1e"))
DOLLAR = re.compile(  # "$teal", not "$scalar": a sign in front is a variable unless the word is one of these
    r"\$(?:teal|tole|ex$|exual|exy|hit|lut|uck|uici|lave|nort|moke|hoot|tab|tarv|trang|cam|mut|perm|lit|nuff|ick)\w*"
)
FORMAT = re.compile(r".*(?:![ras]|[a-z]{3}[1-4][dfi])|.*\$.*\$[a-z]{3,}")  # {name!r}, rotate3d, $sync$array
HEX = re.compile(r"[0-9a-f]{6,}|[0-9A-F]+|0[xX]\w*")
# Which letter may follow which in an English word ("$": it may end there): each group is a letter and its followers.
FOLLOWERS = {
    group[0]: frozenset(group[1:])
    for group in re.findall(
        r"\S+",
        "a$bcdefghiklmnoprstuvwxyz b$abeilorstuy c$acehiklorstuy d$adegilmnorsuvwy e$abcdefghiklmnopqrstuvwxyz "
        "f$aefilortu g$aeghilnorstuy h$aeilmnorstuy i$abcdefgiklmnoprstuvxz jaeou k$aeilnosy l$abcdefgiklmopstuvwy "
        "m$abeimnopsuy n$acdefghijklmnorstuvwyz o$abcdefghiklmnoprstuvwxy p$aehiloprstuy qu r$abcdefghiklmnoprstuvwy "
        "s$abcefhiklmnopqstuwy t$acehilmnorstuwy u$abcdefgilmnprst v$aeio w$aehilnors x$aceipt y$acdeilmnoprst z$aeio",
    )
}
WORDLIKE = re.compile(  # an onset that English has, and never more than four consonants
    r"(?:[bcfgkp][lr]|[cgkpstw]h|[dt][rw]|s[cfklmnpqtw]|[gkw]n|wr|[sct]hr|s[cpt]r|spl|qu|[b-df-hj-np-tvwxz])?"
    r"(?:[aeiouy]+[b-df-hj-np-tvwxz]{1,4})*[aeiouy]*"
)
REPEATED = re.compile("([A-Za-z\u00c0-\u024f\u0370-\u058f])\\1{3,}+", re.IGNORECASE)
REPEATS = re.compile(r"[\w+/=]{5,}+")

# --- the fast path: each hint begins with a set of characters that few lines have many of ----------------------------
HINT_RARE = re.compile(  # a control character between letters; a digit or sign inside a token, or a sign at its start
    rf"[{CONTROL}0134578@$!](?:(?<=[A-Za-z].)(?:[{CONTROL}]*+[A-Za-z]|"
    rf"[0134578@$!]{{0,{MAX_LEET}}}+(?:[A-Za-z]|(?<=\$\$)|(?<=[a-z]11))[A-Za-z0-9@$!]{{0,{MAX_LEET}}}+{TOKEN_END})|"
    "(?<=[$@])[a-z]{2})"
)
HINT_SPACED, HINT_SPACED_WIDE = (  # the middle of four: one at least of the two is a letter
    re.compile(
        f"[{sep}][0134578@$!{abc}][{sep}]"
        f"(?:(?<=[{abc}].)[0134578@$!{abc}][{sep}]|[{abc}][{sep}]|(?<= [{abc}] )[.*_|~+·•-] [{abc}] )"
    )
    for abc, sep in (("A-Za-z", " \n.*_|~+,-"), (f"A-Za-z\u00c0-\u024f{ALPHABETS}", f"{BLANKS}\n.*_|~+·•,-"))
)
LOWER = bytes(range(256)).lower()
NOT_LETTERS = bytes(code for code in range(256) if not chr(code).isalpha() or code > 127)
