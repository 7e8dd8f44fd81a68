"""How many tokens to draft, from how many were accepted and how long things took; none where drafting does not pay.

Where each drafted token is accepted with probability a, a round of k drafts and one verification yields
1 + a + a² + ... + a^k tokens (Leviathan et al., arXiv 2211.17192) and takes k drafts and one pass of k + 1 rows. Over
what plain steps take for as many tokens, that is the speed-up, and the k of the largest is drafted.

Trying costs time where it does not pay. What rounds took beyond plain steps for the same tokens is counted, and no
round is begun while that is more than a small allowance, which grows with the tokens written.

A machine's speed changes. So a plain step is timed again after two rounds, and after twice as many each time that it
took what it took before. Where it did not, all times so far are let go of, and rounds that were counted by the old ones
are counted once more, by what a step took before and after them.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST = 8
"""Tokens drafted at once, at most."""

# Plain steps that are timed before the first round; rounds between two of them, at first and at most.
_STEPS, _SOON, _LATE = 3, 2, 32
# By what share a step's time may differ from that of those before it.
_STEADY = 0.2
# What an accepted or rejected draft still counts after the next one: some 30 decide.
_MEMORY = 0.97
# What a first guess of the acceptance counts, in drafts.
_GUESS_WEIGHT = 3.0
# Tokens between tries where drafting did not pay.
_RETRY = 64
# What trying may cost, in plain steps: so many, and this share of the tokens written.
_ALLOWED, _ALLOWED_SHARE = 2.5, 0.01
# Of a round, a row's share of a step, until seen.
_ROW_SHARE = 0.05


def tokens_a_round(acceptance: float, drafted: int) -> float:
    """Tokens that a round yields on average: the accepted ones and the one that the verification adds."""
    return sum(acceptance**i for i in range(drafted + 1))


def speed_up(acceptance: float, drafted: int, draft: float, verify: float, step: float) -> float:
    """Tokens a second with rounds, over those without.

    `draft`, `verify` and `step` are the seconds of drafting one token, of verifying the whole round, and of a token
    without drafts.
    """
    return tokens_a_round(acceptance, drafted) * step / (drafted * draft + verify)


class DraftLength:
    """Decides round by round, for one model and draft; it can serve one request after another.

    Args:
        share: what share of a step's time a draft takes, as far as is known: the kept share of the weights.
        acceptance: how likely a draft is accepted, as far as is known.
        most: tokens drafted at once at most.

    Attributes:
        tokens: written so far in each sequence.
        rounds, drafted, accepted: rounds, and tokens drafted and accepted in them.
        judged: drafts that were accepted, or were the first of their round that was not.
        expected_tokens, expected_seconds: the sums of what was expected of every step and round just before it.
    """

    def __init__(self, share: float, acceptance: float = 0.75, most: int = MOST) -> None:
        self._share, self._guess, self._most = share, acceptance, most
        self._steps: deque[float] = deque(maxlen=15)
        self._drafts: deque[float] = deque(maxlen=15)
        self._verified: dict[int, deque[float]] = {}  # seconds by rows
        self._accepted = self._tried = 0.0  # drafts, fading
        self._cost = 0.0  # seconds that rounds took beyond plain steps, but for those since the last step:
        self._round_seconds = self._round_tokens = 0.0
        self._since_step = self._since_round = 0
        self._again = _SOON
        self.tokens = self.expected_tokens = self.expected_seconds = 0.0
        self.rounds = self.drafted = self.judged = self.accepted = 0

    @property
    def acceptance(self) -> float:
        """How likely the next draft is accepted."""
        return (self._accepted + _GUESS_WEIGHT * self._guess) / (self._tried + _GUESS_WEIGHT)

    @property
    def step_seconds(self) -> float:
        """Seconds of a plain step; 0 before the first."""
        return median(self._steps) if self._steps else 0.0

    @property
    def draft_seconds(self) -> float:
        """Seconds of drafting a token."""
        return median(self._drafts) if self._drafts else self._share * self.step_seconds

    def verify_seconds(self, rows: int) -> float:
        """Seconds of verifying with so many rows: as seen, else along the line through what was seen."""
        if rows in self._verified:
            return median(self._verified[rows])
        step = self.step_seconds
        seen = {1: step, **{count: median(times) for count, times in self._verified.items()}}
        if len(seen) == 1:
            return step * (1 + _ROW_SHARE * (rows - 1))
        low = max((count for count in seen if count < rows), default=1)
        high = min((count for count in seen if count > rows), default=max(seen))
        if low == high:  # beyond all that was seen
            return seen[low] + (rows - low) * max(seen[low] - step, 0.0) / (low - 1)
        return seen[low] + (rows - low) * (seen[high] - seen[low]) / (high - low)

    def predict(self, drafted: int, acceptance: float | None = None) -> float:
        """The speed-up expected of rounds of so many drafts; 1 for none."""
        if not drafted or not self._steps:
            return 1.0
        found = self.acceptance if acceptance is None else acceptance
        return speed_up(found, drafted, self.draft_seconds, self.verify_seconds(drafted + 1), self.step_seconds)

    def length(self, room: int) -> int:
        """How many tokens to draft now; 0: take a plain step. `room` is how many tokens may still be written."""
        most = min(self._most, room - 1)
        if most < 1 or len(self._steps) < _STEPS or self._since_step >= self._again:
            return 0
        step = self.step_seconds
        cost = self._cost + self._round_seconds - self._round_tokens * step
        if cost > (_ALLOWED + _ALLOWED_SHARE * self.tokens) * step:
            return 0
        best = max(range(1, most + 1), key=self.predict)
        if self.predict(best) > 1:
            return best
        return 1 if self._since_round >= _RETRY else 0

    def stepped(self, seconds: float) -> None:
        """Note a plain step: one token of each sequence."""
        if self._since_step:
            self._settle(seconds)
        self._steps.append(seconds)
        self.expected_tokens += 1
        self.expected_seconds += self.step_seconds
        self.tokens += 1
        self._since_step = 0
        self._since_round += 1

    def went(self, drafted: int, accepted: list[int], draft_seconds: float, verify_seconds: float) -> None:
        """Note a round: so many drafted, and how many accepted in each sequence of the batch."""
        self.expected_tokens += tokens_a_round(self.acceptance, drafted)
        self.expected_seconds += drafted * self.draft_seconds + self.verify_seconds(drafted + 1)
        self._drafts.append(draft_seconds / drafted)
        self._verified.setdefault(drafted + 1, deque(maxlen=15)).append(verify_seconds)
        for count in accepted:
            for good in [True] * count + [False] * (count < drafted):
                self._tried = _MEMORY * self._tried + 1
                self._accepted = _MEMORY * self._accepted + good
                self.judged += 1
        written = sum(accepted) / len(accepted) + 1
        self._round_seconds += draft_seconds + verify_seconds
        self._round_tokens += written
        self.rounds += 1
        self.drafted += drafted * len(accepted)
        self.accepted += sum(accepted)
        self.tokens += written
        self._since_step += 1
        self._since_round = 0

    def _settle(self, seconds: float) -> None:
        """What the rounds before this step cost, and whether the times seen so far still hold."""
        before = self.step_seconds
        steady = abs(seconds - before) <= _STEADY * before
        step = before if steady else (before + seconds) / 2
        self._cost = max(0.0, self._cost + self._round_seconds - self._round_tokens * step)
        self._round_seconds = self._round_tokens = 0.0
        self._again = min(2 * self._again, _LATE) if steady else _SOON
        if not steady:
            self._steps.clear()
            self._drafts.clear()
            self._verified.clear()
