"""The exceptions of the operator: a vocabulary of what to do, not of what broke.

    BatchInferenceError
    ├── InvalidObject      a manifest or a stored document is wrong: path and sentence
    ├── Fault              something could not be done; says what to do about it
    │   ├── Stalled        a person must act; tried again slowly, heals by itself when they did
    │   ├── Waiting        nothing is wrong, come back after a while
    │   ├── Retry          a passing failure, tried again with backoff
    │   └── Permanent      final for this run: the run ends with this reason
    ├── Superseded         a precondition failed: somebody else wrote first; read again
    └── NewerSchema        a journal written by a newer operator: never touched, only reported
        └── Unreadable     a journal that makes no sense: likewise, until somebody restores it

A fault carries a machine reason (a constant of `model.status`) and a message for the person who
reads the condition: what was wrong, where, what to do. It never holds prompts, answers or secrets.
Adapters map foreign exceptions to these; `core.decide` alone maps them to conditions.
"""

from __future__ import annotations


class BatchInferenceError(Exception):
    """The root of everything this package raises on purpose."""


class InvalidObject(BatchInferenceError):
    """A document does not have the shape it must have.

    Attributes:
        path: where, as a field path such as `spec.input.s3.uri`.
        message: what must be different, without the path.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class Fault(BatchInferenceError):
    """Something could not be done; the class says what follows.

    Attributes:
        reason: CamelCase machine reason, part of the API.
        message: one or two sentences for the reader of the condition.
        after_s: seconds until trying again makes sense; None leaves it to the caller.
    """

    def __init__(self, reason: str, message: str, after_s: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.after_s = after_s


class Stalled(Fault):
    """A person must act. Tried again slowly, so that it heals when they did."""


class Waiting(Fault):
    """Nothing is wrong; it can't be done yet (a full disk, a quota, a warming-up worker)."""


class Retry(Fault):
    """A passing failure of a network or a service."""


class Permanent(Fault):
    """Final for this run."""


class Superseded(BatchInferenceError):
    """A conditional write lost: the stored version is another one. Read again and decide again."""


class NewerSchema(BatchInferenceError):
    """A journal of a newer schema than this operator knows.

    Attributes:
        reason: machine reason, part of the API.
    """

    reason = "JournalOfNewerOperator"


class Unreadable(NewerSchema):
    """A journal that can't be read at all."""

    reason = "JournalUnreadable"
