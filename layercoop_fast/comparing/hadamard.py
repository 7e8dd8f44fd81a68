"""Hadamard matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard(width: int) -> Tensor | None:
    """An orthonormal Hadamard matrix, float64 [width, width]: all entries ±1 / √width.

    By Paley's constructions (1933), doubled as often as needed (Sylvester 1867); None for a width that they do not
    reach.
    """
    order, base = width, _paley(width)
    while base is None and order % 2 == 0:
        order //= 2
        base = _paley(order)
    if base is None:
        return None
    found = base.double()
    while len(found) < width:
        found = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), found)
    return found.div(width**0.5)


def _paley(order: int) -> Tensor | None:
    """Paley's Hadamard matrix of entries ±1, [order, order]; None where it has none for the order."""
    if order == 1:
        return torch.ones(1, 1)
    if order % 4:
        return None
    if _is_prime(order - 1):  # 3 modulo 4
        return torch.eye(order) + _residues(order - 1, -1)
    half = order // 2
    if half % 4 == 2 and _is_prime(half - 1):
        apart, joined = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        return torch.kron(torch.eye(half), apart) + torch.kron(_residues(half - 1, 1), joined)
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % other for other in range(2, math.isqrt(number) + 1))


def _residues(prime: int, sign: int) -> Tensor:
    """Paley's conference matrix [prime + 1, prime + 1].

    It has 0 on the diagonal, 1 in the rest of the first row, `sign` in that of the first column, and elsewhere 1 where
    the difference of row and column is a square modulo the prime, else −1.
    """
    squares = {number * number % prime for number in range(1, prime)}
    residues = torch.tensor([0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)])
    places = torch.arange(prime)
    inside = residues[(places[:, None] - places) % prime]
    found = torch.zeros(prime + 1, prime + 1)
    found[0, 1:], found[1:, 0], found[1:, 1:] = 1.0, float(sign), inside
    return found
