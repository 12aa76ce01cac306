"""What the model was not measured on is said, and nothing that it was measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

import guardkit
from guardkit import Action, Guard, Policy, PolicyError, Severity
from guardkit.coverage import SEGMENT, Coverage, Meter, language
from guardkit.testing import FakeGuard

ROOT = Path(guardkit.__file__).parents[1]
FOUR = Coverage({code: {} for code in ("en", "de", "es", "fr")})
UNMEASURED = {
    "Russian": "Завтра в библиотеке пройдёт встреча читателей.",
    "Chinese": "图书馆明天上午开门。",
    "Japanese": "図書館は明日の朝に開きます。",
    "Korean": "도서관은 내일 아침에 문을 엽니다.",
    "Arabic": "تفتح المكتبة أبوابها صباح الغد في المدينة.",
    "Hebrew": "הספרייה נפתחת מחר בבוקר לכל תושבי העיר.",
    "Hindi": "पुस्तकालय कल सुबह खुलेगा और सबका स्वागत है।",
    "Thai": "ห้องสมุดเปิดพรุ่งนี้เช้า",
    "Greek": "Η βιβλιοθήκη ανοίγει αύριο το πρωί για όλους.",
    "Italian": "La biblioteca della città è aperta anche di domenica, perché molti lettori sono liberi.",
    "Portuguese": "A biblioteca não abre aos domingos, mas você pode devolver os livros pela janela.",
    "Dutch": "De bibliotheek is op zondag niet open, maar je kunt de boeken ook bij de buren brengen.",
    "Polish": "Biblioteka jest otwarta także w niedzielę, ponieważ wielu czytelników ma wtedy czas.",
    "Turkish": "Kütüphane pazar günü de açık, çünkü birçok okur için bu daha iyi bir gün.",
    "Vietnamese": "Thư viện mở cửa vào sáng mai cho tất cả mọi người.",
    "Indonesian": "Perpustakaan akan buka besok pagi untuk semua orang yang tidak bisa datang pada hari ini.",
    "Swedish": "Biblioteket är öppet även på söndagar eftersom många inte har tid under veckan.",
}
MEASURED = (
    "The library opens tomorrow morning, and everybody is welcome.",
    "Die Bücherei öffnet morgen früh, und alle sind willkommen; außerdem gibt es Kaffee.",
    "La biblioteca abre mañana por la mañana y todos están invitados, también los niños.",
    "La bibliothèque ouvre demain matin et tout le monde est invité, même les enfants déjà grands.",
    "naïve café, über-cool, façade, piñata, résumé",
    "user Александр Пушкин logged in from 10.0.0.1",
    "Meet Łukasz Żółkiewski and Jiří Dvořák at the café.",
    "The 北京 office and the 東京 office",
    "α + β = γ, Δt ≈ 5 μs, ∑ xᵢ ≤ 1",
    "x9F2kQ==/aGVsbG8gd29ybGQgdGhpcyBpcyBiYXNlNjQgdGV4dCB3aXRob3V0IGJsYW5rcw==",
    "def main(argv): return sum(int(x) for x in argv if x.isdigit()) or None",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "12:00:03.114 WARN  [pool-2-thread-7] c.e.d.HikariPool - killed 3 idle connections (pid 4711)",
    'GET /api/v1/items?id=42&lang=pt HTTP/1.1" 200 512 "-" "Mozilla/5.0 (X11; Linux x86_64)"',
    "ok",
    "",
    "👍🏽 🎉🎉🎉 ✓ → … 100 %",
    "𝓯𝓪𝓷𝓬𝔂 𝓵𝓮𝓽𝓽𝓮𝓻𝓼 𝓪𝓻𝓮 𝓛𝓪𝓽𝓲𝓷",
)


@pytest.mark.parametrize("name", UNMEASURED)
def test_an_unmeasured_language_is_told(name: str) -> None:
    assert language(UNMEASURED[name], FOUR) is not None


def test_several_are_told_by_name() -> None:
    for name in ("Chinese", "Japanese", "Korean", "Italian", "Portuguese", "Dutch", "Polish", "Vietnamese", "Swedish"):
        assert language(UNMEASURED[name], FOUR) == name


@pytest.mark.parametrize(
    "text", ["ᚺᛟᚹ ᛞᛟ ᛁ ᛗᚨᚲᛖ ᚨ ᚲᛁᛏᛖ", "𐐸𐐬 𐐻𐐭 𐑋𐐩𐐿 𐐩 𐐿𐐴𐐻 𐐮𐑌", "𓀀𓁐𓂀 𓃀𓄿𓅓𓆣𓆤 𓆥𓆦𓆧𓆨", "ⰔⰎⰑⰂⰑ ⱄⰾⱁⰲⱁ ⰱⱏⰺⱄⱅⱏ ⰳⰾⰰⰳⱁⰾⱏ ⰰⰸⱏ"]
)
def test_a_rare_script_is_told(text: str) -> None:
    assert language(text, FOUR) is not None


@pytest.mark.parametrize("text", MEASURED)
def test_measured_languages_code_and_names_are_covered(text: str) -> None:
    assert language(text, FOUR) is None


def test_the_log_and_the_documentation_raise_nothing() -> None:
    log = (ROOT / "cookbook" / "app.log").read_text(encoding="utf-8")
    for line in [*log.splitlines(), log]:
        assert language(line, FOUR) is None, line
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "guardkit").glob("[a-be-k]*.py")]:
        assert language(path.read_text(encoding="utf-8"), FOUR) is None, path


def test_one_paragraph_in_another_language_is_enough() -> None:
    calm = MEASURED[0] + " "
    assert language(calm * 100 + UNMEASURED["Russian"] + calm * 100, FOUR) is not None


def test_what_a_model_was_measured_on_is_its_own() -> None:
    for code, name in (
        ("ru", "Russian"),
        ("it", "Italian"),
        ("zh-Hant", "Chinese"),
        ("ar", "Arabic"),
        ("ja", "Japanese"),
    ):
        assert language(UNMEASURED[name], Coverage({**FOUR.languages, code: {}})) is None
    assert language(MEASURED[1], Coverage({"en": {}})) is not None  # German
    ukrainian = "Бібліотека відкриється завтра вранці, і всі її читачі можуть прийти."
    assert language(ukrainian, Coverage({"ru": {}})) is not None


def test_any_cutting_gives_the_same() -> None:
    text = MEASURED[0] * 9 + UNMEASURED["Italian"] * 9 + MEASURED[1] * 9
    for size in (1, 7, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5000):
        meter = Meter(FOUR)
        for at in range(0, len(text), size):
            meter.add(text[at : at + size])
        assert meter.found == language(text, FOUR) == "Italian"


def _guard(**settings: object) -> FakeGuard:
    guard = FakeGuard({"bad": "unsafe"}, **settings)
    guard.model.coverage = FOUR
    return guard


@pytest.mark.parametrize("stage", ["prompt", "document", "response", "reasoning"])
@pytest.mark.parametrize("action", ["allow", "flag", "block"])
def test_the_policy_acts_on_what_would_be_allowed(stage: str, action: str) -> None:
    guard = _guard(policy={"on_unmeasured": action})
    decision = guard.decide(UNMEASURED["Russian"], stage=stage)
    assert decision.verdict is not None
    assert (decision.verdict.severity, decision.verdict.coverage) == (Severity.safe, "unmeasured")
    assert decision.action is Action(action)
    assert guard.decide(MEASURED[0], stage=stage).action is Action.allow
    assert guard.decide("bad " + UNMEASURED["Russian"], stage=stage).action is Action.block


def test_flag_is_the_default() -> None:
    decision = _guard().decide(UNMEASURED["Chinese"])
    assert (decision.action, decision.rule) == (Action.flag, "balanced: on_unmeasured")


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stream_says_so_and_stops_where_told_to(size: int) -> None:
    text = "Hello there. " + UNMEASURED["Russian"]
    seen = []
    for action in ("flag", "block"):
        guard = _guard(policy={"on_unmeasured": action})
        with guard.stream() as stream:
            shown = ""
            for at in range(0, len(text), size):
                shown += "".join(e.text for e in stream.feed(text[at : at + size]) if e.kind == "text")
            shown += "".join(e.text for e in stream.finish() if e.kind == "text")
        assert stream.verdict.coverage == "unmeasured"
        assert stream.decision.action is Action(action)
        assert stream.released + stream.withheld == len(text)
        assert stream.verdict == guard.check(text, stage="response")
        seen.append(shown)
    assert seen[0] == text
    assert UNMEASURED["Russian"][25:] not in seen[1]
    assert stream.stopped


def test_the_embedded_model_has_its_list() -> None:
    verdict = Guard.load().check(UNMEASURED["Greek"])
    assert verdict.coverage == "unmeasured"
    assert verdict.to_dict()["coverage"] == "unmeasured"
    for text in ("The library opens tomorrow.", UNMEASURED["Russian"]):
        assert Guard.load().check(text).coverage is None


def test_only_three_words_are_known() -> None:
    with pytest.raises(PolicyError, match="on_unmeasured must be"):
        Policy.load({"on_unmeasured": "redact"})
    assert Policy.load({"on_unmeasured": "block"}).to_dict()["on_unmeasured"] == "block"
