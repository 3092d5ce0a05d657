"""Types that several parts of the package share. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from softlabels.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

LOGITS = "logits"
"""The name of the output that every network has, and of which a store always holds the labels."""

FIT = "fit"
"""The setting of a codec that nobody writes: what it took from the teacher."""

Outputs = dict[str, "Tensor"]
"""What a network answers, by name: its logits (n, classes), and features (n, ...)."""


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """Logits (n, classes) of which each row names K classes and gives every other class one value.

    Like all logits of teachers they are known up to a constant per row.

    Attributes:
        ids: the classes named, integers (n, K), distinct within a row.
        logits: their logits, floats (n, K).
        tail: the logit of each other class, floats (n,); -inf is a probability of 0.
        classes: number of classes, named or not.

    Raises:
        ConfigError: the shapes do not fit each other.
    """

    ids: Tensor
    logits: Tensor
    tail: Tensor
    classes: int

    def __post_init__(self) -> None:
        ids, logits, tail = (tuple(each.shape) for each in (self.ids, self.logits, self.tail))
        if len(ids) != 2 or logits != ids or tail != ids[:1]:
            raise ConfigError(
                f"sparse logits need ids and logits of shape (n, K) and a tail of shape (n,), got {ids}, {logits} and "
                f"{tail}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, classes), the shape of `dense`."""
        return len(self.tail), self.classes

    def dense(self) -> Tensor:
        """The same logits as one tensor (n, classes)."""
        rows = self.logits.new_empty(self.shape).copy_(self.tail[:, None])
        return rows.scatter_(1, self.ids.long(), self.logits)

    def map(self, function: Callable[[Tensor], Tensor]) -> SparseLogits:
        """The same with `function` applied to each tensor, to move them to a device for instance."""
        return replace(self, ids=function(self.ids), logits=function(self.logits), tail=function(self.tail))
