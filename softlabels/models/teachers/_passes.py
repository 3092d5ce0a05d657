"""How many pictures a teacher looks at together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch

from softlabels.models.devices import Passes, best_batch

if TYPE_CHECKING:
    from softlabels.models.teachers import Teacher

BatchSize = int | Literal["auto"]
"""Pictures per forward pass; "auto": as many as are worth it and fit into memory."""

MOST_AT_ONCE = 512
"""Pictures of the largest batch that "auto" tries: whoever makes batches holds several of them."""


def teacher_passes(
    teacher: Teacher, batch_size: BatchSize, *, most: int, compile: bool = False, say: Callable[[str], None]
) -> Passes:
    """What runs the teacher on pictures, `size` at a time; on fewer, and it says so, when memory is full.

    Compiled, the teacher always sees so many: a batch of fewer is filled up, and the filling's logits are cut off.

    Args:
        most: pictures that there are together, at most: more are not tried.

    Raises:
        ModelError: not even one picture fits into memory.
    """
    if batch_size == "auto":
        size, tried = best_batch(_on_noise(teacher), teacher.device, most=min(most, MOST_AT_ONCE))
        say(f"teacher {teacher.name}: batches of {size} pictures ({'; '.join(tried)})")
    else:
        size = batch_size
    if compile:
        say(f"teacher {teacher.name} is compiled for batches of {size}, which takes up to some minutes")
        teacher = teacher.compile()

    def reduced(size: int, why: str) -> None:
        say(f"teacher {teacher.name}: {why}; going on with {size} pictures at a time")

    return Passes(teacher.logits, size, padded=compile, reduced=reduced)


def _on_noise(teacher: Teacher) -> Callable[[int], object]:
    """Runs the teacher on so many pictures."""
    side = teacher.preprocessing.size
    picture = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=teacher.device)
    return lambda size: teacher.logits(picture.expand(size, 3, side, side))
