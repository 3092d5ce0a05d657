from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from softlabels.losses._rows import rows_of

NO_LABEL = -1
"""The label of an image without one."""


def hard_cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
    partners: Tensor | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with the true classes, the mean over the valid rows that have a label.

    ``-sum_k y_k ln softmax(student)_k``, y = (1 - e) * one-hot + e / classes, e = label_smoothing, natural logarithm.

    Args:
        student_logits: (batch, classes), any float dtype; computed in fp32 (in fp64 when given so).
        labels: integers (batch,); rows with -1 are left out. All left out: 0, with its graph.
        label_smoothing: e, at least 0 and less than 1.
        valid: bool (batch,), further rows to leave out where False; None: none.
        partners: of pictures mixed of two images the other's label, integers (batch,); a row in which either label is
            -1 is left out. Its y is share * one-hot + (1 - share) * one-hot of the partner, before smoothing.
        shares: floats (batch,), given with `partners`.

    Source of the smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7.
    """
    student = rows_of(student_logits, valid)
    labels = labels.long() if valid is None else labels.long().where(valid, NO_LABEL)
    if partners is None or shares is None:
        total = F.cross_entropy(
            student, labels, ignore_index=NO_LABEL, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (labels != NO_LABEL).sum().clamp(min=1)
    labels = labels.where(partners != NO_LABEL, NO_LABEL)
    own, other = (
        F.cross_entropy(student, each, ignore_index=NO_LABEL, label_smoothing=label_smoothing, reduction="none")
        for each in (labels, partners.long().where(labels != NO_LABEL, NO_LABEL))
    )
    return (shares * own + (1 - shares) * other).sum() / (labels != NO_LABEL).sum().clamp(min=1)
