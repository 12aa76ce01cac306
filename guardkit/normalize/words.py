"""Words of everyday requests: what tells that letters, shifted, reversed or set without blanks, are a language."""

from __future__ import annotations

from functools import cache

# The commonest words of English, German, French, Spanish, Italian, Portuguese and Dutch, without accents.
_COMMON = """
a about after all an and any are as at be because been before build but by can could create describe did do does
explain find first for from get give had has have he help her here him his how i if ignore in into is it know like
list make many me more most my need no not now of on one only or our out people please previous provide put send she
should show so some someone step tell than that the their them then there these they this time to too up us use very
want was way we were what when where which who why will with without word would write you your instructions
aber alle als am auch auf aus bei bin bis bitte das dass dem den der des die dich dir du durch ein eine einem einen
einer er erklare es fur gegen gib haben hat ich ihr im ist kann kein konnen man mehr mein mich mir mit nach nicht noch
nur oder ohne schreibe schritt sehr sein sich sie sind uber und uns viele vom von vor wann war warum was wenn wer
werden wie wird wo zu zum zur zeige
au aux avec ce ces cette comment dans de des donne donner du elle en est et etre faire ils je la le les leur lui mais
moi mon ne nous on ou par pas peut plus pour pourquoi que quel qui sans ses sont sur tous tout tu un une vous
al como con cual cuando cuanto de del donde el ella en es esta este fue ha hacer hay la las lo los mas me mi muy nos
para pero por porque puede puedo que quien se ser si sin sobre son su sus todo todos tu un una usted
che chi come cosa dei della delle di fare gli il nel non per piu posso quale quando sono una
ao com da das do dos ele em faco fazer isso mais mas na nao no nos os ou pela pelo qual seu sua tem um uma voce
aan als bij dat de die dit een en er het hoe ik ze zijn in is je kan maak met mij naar niet om ook op te van voor waar
wat wij zo
"""
_OPENERS = """
how what why where when who which tell give explain describe write show list please ignore can could help wie was
warum bitte erklare schreibe zeige gib comment pourquoi donne como por que cual explica dime hoe wat
"""
COMMON = frozenset(_COMMON.split())
OPENERS = frozenset(_OPENERS.split())  # words that begin a request
BOTH_WAYS = frozenset(("era", "net", "nut", "pot", "saw", "top", "tub", "won"))  # words in either direction
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
REVERSED, MIRRORED = 0, 26  # ciphers; 1 to 25: letters are moved by so many places


@cache
def plain_letters(cipher: int) -> dict[int, int]:
    """The translation table that undoes a cipher other than reversal, in both cases."""
    other = ALPHABET[::-1] if cipher == MIRRORED else ALPHABET[-cipher:] + ALPHABET[:-cipher]
    return str.maketrans(ALPHABET + ALPHABET.upper(), other + other.upper())


@cache
def ciphered() -> dict[str, tuple[int, ...]]:
    """Common words as a cipher shows them, with the ciphers; none that is a common word itself."""
    words = sorted(word for word in COMMON if len(word) > 2 or (len(word) == 2 and word.isascii()))
    long = [word for word in words if len(word) > 2]
    found: dict[str, tuple[int, ...]] = {}
    for cipher in range(27):
        chosen = words if cipher == 13 else long
        if cipher == REVERSED:
            shown = [word[::-1] for word in chosen]
        elif cipher == MIRRORED:
            shown = " ".join(chosen).translate(plain_letters(cipher)).split()
        else:
            shown = " ".join(chosen).translate(plain_letters(26 - cipher)).split()
        for word in shown:
            if word not in COMMON and not (cipher == REVERSED and word in BOTH_WAYS):
                found[word] = (*found.get(word, ()), cipher)
    return found
