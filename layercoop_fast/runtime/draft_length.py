"""The number of tokens to draft, from measured acceptance and times; none where drafting does not pay.

If each drafted token is accepted with probability a, a round of k drafts and one verification yields
1 + a + a² + ... + a^k tokens (Leviathan et al., arXiv 2211.17192) and takes k drafts and one pass of k + 1 rows. The
speed-up is the time of plain steps for as many tokens over that time, and the k of the largest speed-up is drafted.

Rounds that do not pay cost time. The time of rounds beyond that of plain steps for the same tokens is summed, and no
round begins while the sum is above a small allowance, which grows with the number of tokens.

The speed of a machine changes. So a plain step is timed again after two rounds, and after twice as many each time its
time is unchanged. If it has changed, all measured times are discarded, and the cost of the latest rounds is computed
from the mean of the times of a step before and after them.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST = 8
"""Most tokens drafted at once."""

# Plain steps that are timed before the first round; rounds between two timed steps, at first and at most.
_STEPS, _SOON, _LATE = 3, 2, 32
# A step's time counts as unchanged if it differs by at most this share.
_STEADY = 0.2
# Factor on the weight of a draft's outcome with each further draft: about 30 drafts count.
_MEMORY = 0.97
# Weight of the initial guess of the acceptance, in drafts.
_GUESS_WEIGHT = 3.0
# Tokens between two tries where drafting did not pay.
_RETRY = 64
# Allowed cost of rounds that do not pay: a number of plain steps, and this share of the tokens.
_ALLOWED, _ALLOWED_SHARE = 2.5, 0.01
# Time of a further row of a verification over that of a step, until it is measured.
_ROW_SHARE = 0.05


def tokens_a_round(acceptance: float, drafted: int) -> float:
    """Mean number of tokens of a round: the accepted ones and the one that the verification adds."""
    return sum(acceptance**i for i in range(drafted + 1))


def speed_up(acceptance: float, drafted: int, draft: float, verify: float, step: float) -> float:
    """Tokens per second with rounds of drafts, over those without.

    Args:
        acceptance: probability that a draft is accepted.
        drafted: drafts in a round.
        draft: seconds of drafting one token.
        verify: seconds of verifying the round.
        step: seconds of a token without drafts.
    """
    return tokens_a_round(acceptance, drafted) * step / (drafted * draft + verify)


class DraftLength:
    """Chooses the number of drafts of each round, for one model and draft; it can serve several requests in turn.

    Args:
        share: initial guess of a draft's time over that of a step: the kept share of the blocks.
        acceptance: initial guess of the probability that a draft is accepted.
        most: most tokens drafted at once.

    Attributes:
        tokens: number of tokens so far in each sequence.
        rounds, drafted, accepted: number of rounds, and of tokens drafted and accepted in them.
        judged: number of drafts that were accepted, or were the first of their round that was rejected.
        expected_tokens, expected_seconds: sums of the predictions for every step and round before it ran.
    """

    def __init__(self, share: float, acceptance: float = 0.75, most: int = MOST) -> None:
        self._share, self._guess, self._most = share, acceptance, most
        self._steps: deque[float] = deque(maxlen=15)
        self._drafts: deque[float] = deque(maxlen=15)
        self._verified: dict[int, deque[float]] = {}  # seconds by rows
        self._accepted = self._tried = 0.0  # exponentially weighted numbers of drafts
        # Seconds of rounds beyond those of plain steps, without the rounds since the last step, which are below.
        self._cost = 0.0
        self._round_seconds = self._round_tokens = 0.0
        self._since_step = self._since_round = 0
        self._again = _SOON
        self.tokens = self.expected_tokens = self.expected_seconds = 0.0
        self.rounds = self.drafted = self.judged = self.accepted = 0

    @property
    def acceptance(self) -> float:
        """Estimated probability that the next draft is accepted."""
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
        """Seconds of a verification of `rows` rows: measured, else interpolated or extrapolated linearly."""
        if rows in self._verified:
            return median(self._verified[rows])
        step = self.step_seconds
        seen = {1: step, **{count: median(times) for count, times in self._verified.items()}}
        if len(seen) == 1:
            return step * (1 + _ROW_SHARE * (rows - 1))
        low = max((count for count in seen if count < rows), default=1)
        high = min((count for count in seen if count > rows), default=max(seen))
        if low == high:  # more rows than were measured
            return seen[low] + (rows - low) * max(seen[low] - step, 0.0) / (low - 1)
        return seen[low] + (rows - low) * (seen[high] - seen[low]) / (high - low)

    def predict(self, drafted: int, acceptance: float | None = None) -> float:
        """The expected speed-up of rounds of `drafted` drafts; 1 for none."""
        if not drafted or not self._steps:
            return 1.0
        found = self.acceptance if acceptance is None else acceptance
        return speed_up(found, drafted, self.draft_seconds, self.verify_seconds(drafted + 1), self.step_seconds)

    def length(self, room: int) -> int:
        """The number of tokens to draft now, 0 for a plain step. `room` is how many tokens may still be generated."""
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

    def record_step(self, seconds: float) -> None:
        """Record a plain step: one token of each sequence."""
        if self._since_step:
            self._settle(seconds)
        self._steps.append(seconds)
        self.expected_tokens += 1
        self.expected_seconds += self.step_seconds
        self.tokens += 1
        self._since_step = 0
        self._since_round += 1

    def record_round(self, drafted: int, accepted: list[int], draft_seconds: float, verify_seconds: float) -> None:
        """Record a round of `drafted` drafts, with the number accepted in each sequence of the batch."""
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
        """Update the cost of the rounds before this step, and discard the measured times if the speed has changed."""
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
