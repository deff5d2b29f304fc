"""An index of everything said so far that finds the longest earlier match at once."""

from __future__ import annotations

_REFRESHED = 32
"""So many suffixes learn their latest place with each token; only pure repetition has more."""


class SuffixAutomaton:
    """Suffix automaton of a growing sequence (Blumer et al. 1985).

    Appending a token takes amortised constant time; memory is at most two states a token (about
    half a kilobyte of Python objects). After ``append``, ``match`` is the length of the longest
    suffix that occurred before, and ``end`` the index of the last token of its latest known place.
    """

    def __init__(self) -> None:
        self.size = 0
        self.match = 0
        self.end = -1
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]  # the state of the longest suffix that occurs in more places
        self._length = [0]
        self._ends = [-1]  # the latest index at which the state's strings are known to end
        self._last = 0

    def _add(self, transitions: dict[int, int], link: int, length: int, end: int) -> int:
        self._next.append(transitions)
        self._link.append(link)
        self._length.append(length)
        self._ends.append(end)
        return len(self._link) - 1

    def append(self, token: int) -> None:
        """Extend the sequence by ``token``."""
        after, link, length = self._next, self._link, self._length
        state = self._last
        new = self._last = self._add({}, 0, length[state] + 1, self.size)
        while state >= 0 and token not in after[state]:
            after[state][token] = new
            state = link[state]
        if state >= 0:
            suffix = after[state][token]
            if length[suffix] != length[state] + 1:  # it also stands for longer strings: split it
                whole = suffix
                suffix = self._add(
                    after[whole].copy(), link[whole], length[state] + 1, self._ends[whole]
                )
                link[whole] = suffix
                while state >= 0 and after[state].get(token) == whole:
                    after[state][token] = suffix
                    state = link[state]
            link[new] = suffix
        match = link[new]
        self.match, self.end = length[match], self._ends[match]
        for _ in range(_REFRESHED):
            if match <= 0:
                break
            self._ends[match] = self.size
            match = link[match]
        self.size += 1
