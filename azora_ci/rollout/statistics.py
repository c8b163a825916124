"""Exact bounds for shares of failed requests. Pure."""

from __future__ import annotations

import math


def share_bounds(failed: float, total: float, confidence: float) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) one-sided lower and upper bound of a share; (0, 1) for a total of 0."""
    if total == 0:
        return 0.0, 1.0
    alpha = 1 - confidence
    lower = 0.0 if failed == 0 else _beta_quantile(alpha, failed, total - failed + 1)
    upper = 1.0 if failed == total else _beta_quantile(1 - alpha, failed + 1, total - failed)
    return lower, upper


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):  # halves the interval to 1e-15
        middle = (low + high) / 2
        if _beta_share(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function (continued fraction, DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(500):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        d = 1 / _not_zero(1 + term * d)
        c = _not_zero(1 + term / c)
        fraction *= c * d
        if abs(1 - c * d) < 1e-12:
            break
    return front * (fraction - 1)


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
