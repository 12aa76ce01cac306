"""Takes the wrapping off a text, layer by layer."""

from __future__ import annotations

from functools import partial

from guardkit.normalize.ciphers import decipher
from guardkit.normalize.codes import read_codes
from guardkit.normalize.draft import Draft
from guardkit.normalize.encodings import decode
from guardkit.normalize.escapes import unescape

MAX_LAYERS = 4  # wrappings inside wrappings that are undone


def unwrap(draft: Draft, layers: int = MAX_LAYERS) -> None:
    """Undo escapes and encodings, and what they hold in turn. No step makes a text longer, so time is linear."""
    for left in reversed(range(layers)):
        changed = decode(draft, partial(_inner, left))
        changed |= unescape(draft)
        changed |= read_codes(draft)
        changed |= decipher(draft)
        if not changed:
            return


def _inner(layers: int, text: str) -> Draft:
    draft = Draft(text)
    unwrap(draft, layers)
    return draft
