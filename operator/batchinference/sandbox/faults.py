"""Faults on demand: rules that a test posts, and which call they hit.

Owns the rules and their counting down. Must not know HTTP.
"""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Kind = Literal["lose_response", "drop_request", "error", "delay", "truncate", "quota", "fail"]
Provider = Literal["openai", "bedrock", "sts", "s3"]


@dataclass(slots=True, kw_only=True)
class Rule:
    """One fault. It hits calls of `operation` (all, when unset) whose subject holds `match`.

    The subject is what identifies the call: metadata, names, ids and bodies as text.
    """

    kind: Kind
    provider: Provider
    operation: str | None = None
    match: str = ""
    times: int | None = 1  # None = every call until removed
    skip: int = 0  # let so many matching calls pass first
    # error, quota, fail
    status: int = 500
    code: str | None = None
    message: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    commit: bool = False  # error: do the work first, then answer with the error
    # delay
    seconds: float = 0.0
    when: Literal["before", "after"] = "before"  # the commit
    # truncate
    keep_bytes: int | None = None
    keep_ratio: float = 0.5
    # kept by the sandbox
    id: int = 0
    hits: int = 0

    def kept(self, total: int) -> int:
        """Return how many of `total` bytes a truncated body keeps."""
        kept = self.keep_bytes if self.keep_bytes is not None else int(total * self.keep_ratio)
        return min(kept, max(0, total - 1))


class BadRule(ValueError):
    """A posted rule cannot be understood."""


class Faults:
    """The rules in force, oldest first."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._numbers = itertools.count(1)

    def add(self, given: dict[str, Any]) -> Rule:
        """Put a rule in force.

        Raises:
            BadRule: an unknown member, kind or provider.
        """
        unknown = given.keys() - set(Rule.__slots__)
        if unknown:
            raise BadRule(f"unknown members {sorted(unknown)}; known: {sorted(Rule.__slots__)}")
        try:
            rule = msgspec.convert({**given, "id": next(self._numbers), "hits": 0}, Rule)
        except msgspec.ValidationError as error:
            raise BadRule(str(error)) from error
        self._rules.append(rule)
        return rule

    def take(self, provider: str, operation: str, subject: str) -> Rule | None:
        """Return the first rule that hits this call, and count the hit."""
        for rule in self._rules:
            if rule.provider != provider or rule.operation not in {None, operation}:
                continue
            if rule.times is not None and rule.hits >= rule.times:
                continue
            if rule.match not in subject:
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.hits += 1
            return rule
        return None

    def wants(self, provider: str) -> bool:
        """Tell whether any rule of a provider could still hit."""
        return any(
            rule.provider == provider and (rule.times is None or rule.hits < rule.times)
            for rule in self._rules
        )

    def remove(self, rule_id: int | None = None) -> int:
        """Remove one rule, or all; returns how many went."""
        before = len(self._rules)
        self._rules = [rule for rule in self._rules if rule_id not in {None, rule.id}]
        return before - len(self._rules)

    def view(self) -> list[dict[str, Any]]:
        """List the rules as JSON values."""
        shown: list[dict[str, Any]] = json.loads(msgspec.json.encode(self._rules))
        return shown
