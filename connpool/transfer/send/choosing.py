"""
The choice of what is sent, by patterns as in C{.gitignore}.

Theory of operation
===================
The patterns are kept in the order in which they were given, and the last one that fits
decides, as gitignore(5) says.  What is in a directory that is left out is not looked at.
Where no pattern fits, a file goes; not so if the first pattern says what goes (as GNU grep
has it): then the others stay.

A newline in a name is shown to the library as NUL, which no name has: its expressions end at
a newline, and the rest of such a name would escape the patterns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

import attrs
from pathspec import GitIgnoreSpec

from connpool.errors import WrongSetting

__all__ = ["Choice", "Rule", "readRules"]

#: Bytes of a file of patterns.
MAX_PATTERNS_BYTES = 1 << 20
#: A star, in the library's expressions.
_STAR = "[^/]*"


@attrs.frozen
class Rule:
    """
    A pattern.

    @ivar pattern: as in C{.gitignore}: C{!} makes what fits go.
    @ivar origin: where it is from, as the user reads it before the pattern.
    """

    pattern: str
    origin: str

    @classmethod
    def excluding(cls, text: str, origin: str) -> Rule:
        """
        Make the rule of an option, in which C{#} is a character like others.

        @raise WrongSetting: no name fits it.
        """
        rule = cls(f"\\{text}" if text.startswith("#") else text, origin)
        rule.verify()
        return rule

    @classmethod
    def including(cls, text: str, origin: str) -> Rule:
        """
        Make the rule of an option that says what goes.

        @raise WrongSetting: no name fits it.
        """
        if text.startswith("!"):
            raise WrongSetting(f"{text!r} begins with !; write it as a pattern to leave out")
        rule = cls(f"!{text}", origin)
        rule.verify()
        return rule

    def verify(self) -> None:
        """
        @raise WrongSetting: no name fits it.
        """
        try:
            fits = any(
                each.include is not None
                for each in _compiled([self.pattern.removeprefix("!")]).patterns
            )
        except ValueError:
            fits = False
        if not fits or "\n" in self.pattern:
            raise WrongSetting(
                f"{self.pattern!r} is a pattern that no name fits; write one as in .gitignore, "
                "such as *.log or build/"
            )


def _compiled(lines: Iterable[str]) -> GitIgnoreSpec:
    # not whatever other engine is installed: one meaning everywhere
    spec = GitIgnoreSpec.from_lines(lines, backend="simple")
    for each in spec.patterns:
        if each.regex is not None:
            each.regex = re.compile(_withoutBacktracking(each.regex.pattern), each.regex.flags)
    return spec


def _withoutBacktracking(expression: str) -> str:
    """
    Keep an expression with many stars from trying them all: what stands between two stars of
    one name fits best where it is first found, as L{fnmatch} has it.
    """
    before, *parts = expression.split(_STAR)
    for number, part in enumerate(parts, 1):
        last = number == len(parts) or "/" in part.replace("[^/]", "")
        before += f"{_STAR}{part}" if last else f"(?>{_STAR}?{part})"
    return before


def readRules(path: str) -> list[Rule]:
    """
    Read a file of patterns, one a line; empty lines and those that begin with C{#} say nothing.

    @raise WrongSetting: for a line that is no pattern, or a file that is too large.
    @raise OSError: it cannot be read.
    """
    rules = []
    with open(path, "rb") as file:
        data = file.read(MAX_PATTERNS_BYTES + 1)
    if len(data) > MAX_PATTERNS_BYTES:
        raise WrongSetting(f"it has more than {MAX_PATTERNS_BYTES} bytes; divide it")
    for number, line in enumerate(data.split(b"\n"), 1):
        text = os.fsdecode(line.removesuffix(b"\r"))
        if number == 1:
            text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        if text.strip() and not text.startswith("#"):
            rule = Rule(text, f"{path} line {number}:")
            try:
                rule.verify()
            except WrongSetting as e:
                raise WrongSetting(f"line {number}: {e}") from None
            rules.append(rule)
    return rules


class Choice:
    """
    The patterns of a run; the default leaves nothing out.

    @ivar onlyIncluded: whether that stays which no pattern fits.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = rules
        self._check = _compiled([rule.pattern for rule in rules]).check_file
        self.onlyIncluded = bool(rules) and rules[0].pattern.startswith("!")

    @classmethod
    def ignoring(cls, patterns: Sequence[str]) -> Choice | None:
        """
        Make the choice of a folder that is watched.

        @return: L{None} if there are no patterns.
        @raise WrongSetting: for one that no name fits.
        """
        return cls([Rule.excluding(text, "--ignore") for text in patterns]) if patterns else None

    def leftOut(self, path: str, directory: bool = False) -> str:
        """
        Tell why a file or directory does not go, whose parents do.

        @param path: relative, with slashes.
        @return: empty if it goes.
        """
        subject = path.replace("\n", "\0")
        found = self._check(f"{subject}/" if directory else subject)
        if found.index is not None:
            rule = self._rules[found.index]
            return f"{rule.origin} {rule.pattern}" if found.include else ""
        return "no pattern of what goes fits" if self.onlyIncluded and not directory else ""

    def leftOutBelow(self, path: str, directory: bool = False) -> str:
        """
        Tell why a file or directory does not go, or one of the directories that it is in.
        """
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if why := self.leftOut("/".join(parts[:depth]), directory=True):
                return why
        return self.leftOut(path, directory)
