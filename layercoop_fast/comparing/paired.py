"""Tests of rows against each other, on the same windows and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from layercoop_fast.comparing.rows import Row
from layercoop_fast.masks.types import Floats
from layercoop_fast.tasks.paired import paired, sign_flip


def mark_best(rows: Sequence[Row]) -> None:
    """Test the rows of one size, each text's and each judge's results, against the best of them."""
    for text in range(len(rows[0].texts) if rows else 0):
        column = [row.texts[text] for row in rows]
        means = np.array([one.window_nll.mean() for one in column])
        best = column[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]
        for row, one in zip(rows, column, strict=True):
            p = 1.0 if one is best else paired_p(one.window_nll - best.window_nll)
            row.texts[text] = replace(one, p_best=p)
    for name in dict.fromkeys(name for row in rows for name in row.judged):
        most = max((row.judged[name].values for row in rows if name in row.judged), key=lambda values: values.mean())
        for row in rows:
            if name in row.judged:
                row.judged[name] = replace(row.judged[name], p_best=document_p(row.judged[name].values, most))


def document_p(values: Floats, others: Floats) -> float:
    """Two-sided p-value of values of documents, float64 [N], against others of the same documents; 1 where all agree.

    Its test is that of `tasks/paired.py`.
    """
    p = paired(values, others).p
    return 1.0 if p is None else p


def paired_p(differences: Floats) -> float | None:
    """Two-sided p-value of differences (float64 [W]) that were symmetric about zero (`tasks/paired.py:sign_flip`).

    None where one is not finite, 1 where all are zero.
    """
    if not np.isfinite(differences).all():
        return None
    p = sign_flip(differences)
    return 1.0 if p is None else p
