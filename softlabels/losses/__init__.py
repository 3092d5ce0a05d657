"""Losses between a student's and a teacher's logits, blends of several teachers, and the objective made of them.

One convention throughout: natural logarithm; forward direction KL(teacher || student); the mean over the valid rows
of the sum over classes; times T^2 always, for losses on softened probabilities (T * T_s where the student has its own
temperature T_s); log-softmax in fp32, above T = 20 in fp64. A teacher's logits are known up to a constant per row, so a
constant per row changes no loss.

Every loss is a function that returns a scalar (fp32, or fp64 of a student in fp64). Its arguments:

- student_logits: (batch, classes), any float dtype.
- teacher_logits: (batch, classes); takes no gradient. The divergences also take `SparseLogits`, and need no tensor of
  the teacher's of shape (batch, classes) then.
- temperature: T > 0, 1 by default. Losses that do not soften probabilities ignore it.
- labels: class ids, integers (batch,), -1 where there is none. Losses that do not look at the true class ignore them.
- valid: bool (batch,), the rows that count; None: all. What other rows hold (NaN, too) changes nothing. When no row
  counts the loss is 0, with its graph.

The family's file has the formula and the source of each:

    _divergences   kl ce js jeffreys confidence-penalty          _true_class   hard dkd wsl teacher-free
    _logits        mse l1 standardized-kl spherical-kd           _relational   relational-distance relational-angle dist
    _multi_level   mlkd batch-correlation class-correlation
    _features      hint cosine attention channel-map rkd-distance rkd-angle inherit-explore: of features, see there
    _blends        mean-probabilities mean-logits weighted random-teacher per-class class-accuracy
"""

from __future__ import annotations

from softlabels.choices import BLENDS, FEATURE_LOSSES, LOSSES
from softlabels.core.types import SparseLogits
from softlabels.losses._base import Blend, Loss, SparseLoss
from softlabels.losses._blends import ClassAccuracy
from softlabels.losses._divergences import (
    confidence_penalty,
    jeffreys,
    js_divergence,
    kl_divergence,
    soft_cross_entropy,
)
from softlabels.losses._features import (
    FeatureLossPart,
    attention_transfer,
    channel_map_mse,
    embedding_angle,
    embedding_distance,
    feature_cosine,
    feature_mse,
    inherit_explore,
    make_regressor,
)
from softlabels.losses._logits import logit_l1, logit_mse, spherical_kd, standardized_kl
from softlabels.losses._multi_level import batch_correlation, class_correlation, multi_level
from softlabels.losses._objective import Objective, Target, Term
from softlabels.losses._relational import dist, relational_angle, relational_distance
from softlabels.losses._true_class import decoupled_kd, hard_cross_entropy, teacher_free, weighted_soft_labels

__all__ = [
    "BLENDS",
    "FEATURE_LOSSES",
    "LOSSES",
    "Blend",
    "ClassAccuracy",
    "FeatureLossPart",
    "Loss",
    "Objective",
    "SparseLogits",
    "SparseLoss",
    "Target",
    "Term",
    "attention_transfer",
    "batch_correlation",
    "channel_map_mse",
    "class_correlation",
    "confidence_penalty",
    "decoupled_kd",
    "dist",
    "embedding_angle",
    "embedding_distance",
    "feature_cosine",
    "feature_mse",
    "hard_cross_entropy",
    "inherit_explore",
    "jeffreys",
    "js_divergence",
    "kl_divergence",
    "logit_l1",
    "logit_mse",
    "make_regressor",
    "multi_level",
    "relational_angle",
    "relational_distance",
    "soft_cross_entropy",
    "spherical_kd",
    "standardized_kl",
    "teacher_free",
    "weighted_soft_labels",
]
