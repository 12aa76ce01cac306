"""What can go wrong, as one tree.

GuardkitError
├── GuardViolation          the policy blocked a text; carries the decision
├── NotJudged               the guard could not judge (model fault, timeout, unjudgeable content)
├── StreamClosed            feed() or finish() after the stream was finished or closed
├── PolicyError             a policy that does not validate, with the line where it is known
├── MessageError            a message, or a list of them, that cannot be read
├── EvaluationError         a data set of `guard eval` that is unknown, not at hand, or without labels
├── TrainingError           rows, categories or a backbone that a guard cannot be trained with
├── LabelError              an input that `guard label` cannot read, or labels begun with other settings
└── ModelError
    ├── UnknownModel        no such model; names those that exist
    ├── Overloaded          as many streams are open, or as much work waits, as the model may hold
    ├── ModelLoadError      the model's files are missing, damaged or of the wrong kind
    ├── ServerError         a remote server refused, failed or could not be reached
    ├── Unparsable          a model's answer is outside its grammar
    └── MissingExtra        an optional dependency is not installed; names the pip command
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardkit.policy import Decision
    from guardkit.verdict import Stage, Verdict


class GuardkitError(Exception):
    """The base of every error that guardkit raises on purpose. All of them can be pickled, to cross processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), vars(self)


def _rebuilt(kind: type[GuardkitError], args: tuple[Any, ...]) -> GuardkitError:
    """Made without its `__init__`, whose arguments are not kept."""
    return kind.__new__(kind, *args)


class GuardViolation(GuardkitError):
    """Raised by `Guard.enforce` when the policy's action is block. The text itself is not in the message."""

    def __init__(self, decision: Decision, message: str | None = None):
        self.decision = decision
        self.verdict: Verdict | None = decision.verdict
        self.stage: Stage = decision.stage
        super().__init__(message or str(decision))


class NotJudged(GuardkitError):
    """Raised by `Guard.check` when there is no verdict. `__cause__` is what stopped it; nothing was found safe."""


class StreamClosed(GuardkitError):
    """Raised when a stream is fed after `finish()` or `close()`."""


class PolicyError(GuardkitError, ValueError):
    """Raised for a policy that is not valid. `line` is 1-based where the policy came from a file."""

    def __init__(self, message: str, *, source: str | None = None, line: int | None = None):
        self.source, self.line = source, line
        where = f"{source or 'policy'}:{line}: " if line is not None else f"{source}: " if source else ""
        super().__init__(where + message)


class MessageError(GuardkitError, ValueError):
    """Raised for a message without a known shape; names the message's index and what was expected."""


class EvaluationError(GuardkitError, ValueError):
    """Raised for a data set that cannot be scored; names those that exist, or what its rows lack."""


class LabelError(GuardkitError, ValueError):
    """Raised for a data set that cannot be labelled: an input that cannot be read, an output that cannot be written, or
    labels that were begun with other settings; names what differs."""


class TrainingError(GuardkitError, ValueError):
    """Raised for what a guard cannot be trained with: a row (with its file and line), a list of categories, a backbone,
    an output folder that holds something else."""


class ModelError(GuardkitError):
    """The base of the errors about a model itself, as opposed to one text."""


class UnknownModel(ModelError):
    """Raised by `Guard.load` for a name that is no model, folder or server address."""


class Overloaded(ModelError):
    """Raised when as many streams are open, or as much work waits, as a model may hold. Try again later."""


class ModelLoadError(ModelError):
    """Raised when a model's files are missing, damaged, or not what the name promised."""


class MissingExtra(ModelError, ImportError):
    """Raised when an optional dependency is needed and absent; the message holds the pip command."""

    def __init__(self, what: str, extra: str):
        self.extra = extra
        super().__init__(f"{what} needs the '{extra}' extra: pip install 'guardkit[{extra}]'")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ "; did you mean 'balanced'?" for the known name that `given` is closest to; "" where none is close."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.7)
    return f"; did you mean '{by_lower[found[0]]}'?" if found else ""
