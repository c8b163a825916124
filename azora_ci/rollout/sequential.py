"""A test that may be looked at after every tick: does the new version fail more often than the old one, by more than a margin? Pure.

It is a bet (a test martingale: Shafer 2021, "Testing by betting"; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting"). The null: at every tick, the new version's share of failures is at most the old one's plus the margin. Let y be 1
for a failed request and 0 otherwise. At a tick with m requests of the new version and n of the old one, wealth is multiplied by

    prod over new (1 + L (y - c - margin))  *  prod over old (1 - L m/n (y - c)),    L >= 0 and c chosen without the tick's failures.

Under the null the expectation of this factor is at most 1 for any shares and any c: 1 + x <= exp(x), and what remains in the exponent is
L m (new share - old share - margin) <= 0. So wealth that begins with 1 ever reaches 1/a with a probability of at most a, however often one
looks (Ville's inequality). Both versions are paired inside a tick: trouble, trends and stalls that befall both at once are no evidence.
The best c projects the expected shares to the null (Turner and Grünwald 2023, "Exact anytime-valid confidence intervals for contingency
tables"); a poor one costs power, not validity. Several bets share the wealth, for small and for large rises, and a part of it enters
tick by tick, so that a fault that begins late is not weighed against long good behaviour.

The old version's share before the rollout only shifts the first guesses of c, so it may be wrong.

Several failures of one cause (a clump) are not independent. The logarithm of a factor is therefore divided by the design effect: the
variance of failures from tick to tick over that of independent ones, no more of it than chance alone would seldom show (a lower bound), as
the proof must not wait for doubts that nothing supports. While that is little known, no tick counts for more than half a proof; and
always several ticks must agree, unless one would do even if its failures came in the largest clumps. All this only takes wealth away
(E[F ** (1 / d)] <= E[F] ** (1 / d) for a d >= 1 known before the tick): for independent failures the guarantee stays; for clumps it is as
good as the estimate of the design effect, which ``scripts/bench verdict`` measures.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from azora_ci.rollout.statistics import share_bounds

Count = tuple[int, int]  # (failed, all) requests of a tick

BETS = ((0.02, 0.05), (0.05, 0.70), (0.15, 0.25))  # (expected rise above the margin, share of the wealth)
AT_ONCE = 0.95  # of the wealth is bet from the first tick on, the rest enters at later ticks
AGREEING_TICKS = 3  # ticks with more failures than the null lets expect, without which nothing is proved
LATEST_TICKS, LATEST_REQUESTS = 10, 500  # what an old version did lately counts apart; of fewer requests it says too little
LARGEST_CLUMP = 10.0  # failures of one cause
FIRST_TICKS = 15  # in which a tick counts for half a proof at most
CHANCE = 1.75  # standard deviations of the variance of independent failures that are no sign of clumps
PRIOR_REQUESTS, PRIOR_SHARE = 50.0, 0.01  # the old version, before anything is known of it
MOST_KNOWN = 500.0  # requests for which its record before the rollout counts at most: it may be of other days
SMALLEST_SHARE, LARGEST_SHARE = 0.001, 0.99
MOST = 1e100  # a wealth that stands for all above


@dataclass(slots=True)
class Stream:
    """Failures and requests of one version, and how much the failures vary from tick to tick.

    The variance is that of differences between neighbouring ticks (von Neumann 1941), to which a lasting change adds only once. Given the
    failures of both ticks together, those of one are hypergeometric if they are independent: a lone failure tells nothing of clumps.
    """

    failed: int = 0
    requests: int = 0
    variance: float = 0.0  # summed over pairs of ticks
    independent: float = 0.0  # what it would be if failures were independent
    chance: float = 0.0  # the variance of ``variance`` if they were
    last: Count = (0, 0)

    def add(self, failed: int, requests: int) -> None:
        """Add a tick that has requests."""
        last_failed, last_requests = self.last
        if last_requests:
            both, failures = requests + last_requests, failed + last_failed
            product = requests * last_requests / both**2
            independent = failures * product * (both - failures) / (both - 1)
            self.variance += ((failed * last_requests - last_failed * requests) / both) ** 2
            self.independent += independent
            self.chance += max(0.0, independent * (1 + 2 * product * (failures - 3)))
        self.failed += failed
        self.requests += requests
        self.last = (failed, requests)


@dataclass(slots=True)
class Comparison:
    """The evidence, over all stages of a rollout, that the new version's share is above the old one's by more than ``margin``.

    ``budget``: the probability with which a version that is no worse may be called worse. ``ceiling``: a fixed share to compare with,
    where no old requests come. All state is the ticks that were added: a rollout that starts again, at 0 %, starts with none.
    """

    margin: float
    budget: float
    ceiling: float | None = None
    known: Count = (0, 0)  # of the old version, before the rollout
    new: Stream = field(default_factory=Stream)
    old: Stream = field(default_factory=Stream)
    latest: deque[Count] = field(default_factory=lambda: deque(maxlen=LATEST_TICKS))  # of the old version
    wealth: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    design_effect: float = 1.0
    ticks: int = 0
    agreeing: int = 0

    @property
    def proved(self) -> bool:
        """Return whether the new version is worse."""
        return self.agreeing >= AGREEING_TICKS and sum(self.wealth) * self.budget >= 1

    def compare_with_record(self, record: Count, budget: float) -> None:
        """From now on compare with the old version's record: the upper bound of its share, wrong with a probability of ``budget``.

        The share of its latest ticks counts where that is higher: failures may have become more frequent since the rollout began.
        """
        lately = (sum(failed for failed, _ in self.latest), sum(requests for _, requests in self.latest))
        self.ceiling = max(
            share_bounds(failed / self.design_effect, requests / self.design_effect, 1 - budget)[1]
            for failed, requests in ((record, lately) if lately[1] >= LATEST_REQUESTS else (record,))
        )

    def requests_needed(self, rise: float) -> int:
        """Return about how many requests of the new version prove that it fails ``rise`` more often than the margin allows.

        Wald's bound (1945), evidence over the Kullback-Leibler divergence of one request, with the wealth that other bets hold.
        """
        expected = self._expected
        null = min(max((expected if self.ceiling is None else self.ceiling) + self.margin, SMALLEST_SHARE), LARGEST_SHARE)
        worse = min(null + rise, (1 + null) / 2)
        divergence = worse * math.log(worse / null) + (1 - worse) * math.log((1 - worse) / (1 - null))
        return math.ceil((1.2 - math.log(self.budget)) * self.design_effect / divergence)

    def add(self, new: Count, old: Count) -> None:
        """Add the (failed, all) requests of one tick."""
        factors = self._factors(new, old) if new[1] else []
        if new[1]:
            self.new.add(*new)
        if old[1]:
            self.old.add(*old)
            self.latest.append(old)
        if not factors:
            return
        before = self.design_effect
        variance, independent = self.new.variance + self.old.variance, self.new.independent + self.old.independent
        if independent > 0:
            self.design_effect = max(1.0, (variance - CHANCE * math.sqrt(self.new.chance + self.old.chance)) / independent)
        self.ticks += 1
        # The shares that enter at all ticks add up to 1.
        entering = AT_ONCE if self.ticks == 1 else (1 - AT_ONCE) * ((self.ticks - 1) ** -0.5 - self.ticks**-0.5)
        needed, best = -math.log(self.budget), max(factors)
        if best > 0:
            self.agreeing += AGREEING_TICKS if best / LARGEST_CLUMP >= needed else 1
        most = needed / 2 if self.ticks <= FIRST_TICKS else needed
        for index, (factor, (_, share)) in enumerate(zip(factors, BETS, strict=True)):
            # Gains are divided by a design effect that includes this tick, losses by the one before: hindsight only harms.
            gain = min(max(most, factor / LARGEST_CLUMP), factor / max(before, self.design_effect)) if factor > 0 else factor / before
            self.wealth[index] = min(MOST, (self.wealth[index] + entering * share) * math.exp(min(gain, math.log(MOST))))

    @property
    def _expected(self) -> float:
        """Return the old version's share of failures as far as it is known, before this tick."""
        failed, requests = self.known[0] + PRIOR_SHARE * PRIOR_REQUESTS, self.known[1] + PRIOR_REQUESTS
        weight = min(1.0, MOST_KNOWN / requests)
        return (self.old.failed + failed * weight) / (self.old.requests + requests * weight)

    def _factors(self, new: Count, old: Count) -> list[float]:
        """Return the logarithms of a tick's factors, one per bet; none when there is nothing to compare with."""
        requests, old_requests = new[1], old[1]
        if self.ceiling is not None:
            limit = max(self.ceiling + self.margin, SMALLEST_SHARE)
            rises = [min(rise, LARGEST_SHARE - limit) for rise, _ in BETS] if limit < LARGEST_SHARE else []
            return [_logarithm(new, rise / (limit * (1 - limit)), limit) for rise in rises]
        expected = self._expected
        if not old_requests or expected + self.margin >= LARGEST_SHARE:
            return []
        factors = []
        for rise, _ in BETS:
            # The centre is the average of what both versions let expect, weighted by requests, then once by precision.
            shifted = min(expected + rise, LARGEST_SHARE - self.margin)
            center = (old_requests * expected + requests * shifted) / (old_requests + requests)
            limit = center + self.margin
            old_weight, weight = old_requests / (center * (1 - center)), requests / (limit * (1 - limit))
            center = (old_weight * expected + weight * shifted) / (old_weight + weight)
            limit = center + self.margin
            old_stake = (center - expected) / (center * (1 - center))
            stake = min((shifted - center) / (limit * (1 - limit)), old_stake * old_requests / requests)
            old_stake = stake * requests / old_requests
            factors.append(_logarithm(new, stake, limit) + _logarithm(old, -old_stake, center))
        return factors


def _logarithm(count: Count, stake: float, share: float) -> float:
    failed, requests = count
    return failed * math.log1p(stake * (1 - share)) + (requests - failed) * math.log1p(-stake * share)
