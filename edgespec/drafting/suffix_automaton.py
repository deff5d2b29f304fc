"""An index of a growing sequence that finds the longest earlier match in constant time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AutomatonConstants:
    """Constants of the suffix automaton. All of them are guesses."""

    refreshed: int = 32
    """Suffixes that learn with each token what followed them; only pure repetition has more."""
    followers: int = 3
    """Different tokens that a state remembers as having followed its strings."""


CONSTANTS = AutomatonConstants()


class SuffixAutomaton:
    """Suffix automaton of a growing sequence (Blumer et al. 1985).

    Appending a token takes amortised constant time. Memory is at most two states a token (some 0.6 KB of Python
    objects). A place is a state and the number of last tokens that led to it; state 0 is the empty string. After
    ``append``, ``place`` is that of the longest suffix that occurred before. By state: ``latest`` are the tokens that
    followed it, the latest first; ``length`` is that of its longest string; ``link`` is the state of the longest
    suffix that occurs in more places.
    """

    def __init__(self) -> None:
        self.size = 0
        self.latest: list[tuple[int, ...]] = [()]
        self.link = [-1]
        self.length = [0]
        self._next: list[dict[int, int]] = [{}]
        self._last = 0

    @property
    def place(self) -> tuple[int, int]:
        """The place of the longest suffix that occurred before; ``(0, 0)`` where none did."""
        state = max(self.link[self._last], 0)
        return state, self.length[state]

    def step(self, place: tuple[int, int], token: int) -> tuple[int, int]:
        """The place after ``place`` and ``token``: that of their longest suffix that occurred."""
        state, match = place
        while token not in self._next[state]:
            if state == 0:
                return 0, 0
            state = self.link[state]
            match = self.length[state]
        return self._next[state][token], match + 1

    def append(self, token: int) -> None:
        """Extend the sequence by ``token``."""
        after, link, length = self._next, self.link, self.length
        before = state = self._last
        new = self._last = self._add({}, 0, length[state] + 1, ())
        while state >= 0 and token not in after[state]:
            after[state][token] = new
            state = link[state]
        if state >= 0:
            suffix = after[state][token]
            if length[suffix] != length[state] + 1:  # it also stands for longer strings: split it
                whole = suffix
                suffix = self._add(
                    after[whole].copy(), link[whole], length[state] + 1, self.latest[whole]
                )
                link[whole] = suffix
                while state >= 0 and after[state].get(token) == whole:
                    after[state][token] = suffix
                    state = link[state]
            link[new] = suffix
        for _ in range(CONSTANTS.refreshed):
            if before <= 0:
                break
            others = [other for other in self.latest[before] if other != token]
            self.latest[before] = (token, *others[: CONSTANTS.followers - 1])
            before = link[before]
        self.size += 1

    def _add(
        self, transitions: dict[int, int], link: int, length: int, latest: tuple[int, ...]
    ) -> int:
        self._next.append(transitions)
        self.link.append(link)
        self.length.append(length)
        self.latest.append(latest)
        return len(self.link) - 1
