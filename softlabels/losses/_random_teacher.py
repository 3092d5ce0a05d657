from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words, uniform
from softlabels.errors import ConfigError
from softlabels.losses._teachers import Weights, shares, shown, teachers_of


class RandomTeacher(Part):
    """The target of each row is one teacher's, drawn with probability w_i (equal ones when `weights` is None).

    The dice are the caller's: `words`, one random 64-bit word per row. With u = word / 2^64, the teacher is the first
    whose running sum of weights exceeds u. The same word draws the same teacher in any batch.
    """

    kind: Literal["random-teacher"] = "random-teacher"
    shorthand: ClassVar[str | None] = "weights"
    samples: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False

    weights: Weights | None = None

    def __call__(self, logits: Tensor, *, temperature: float, words: Words | None = None) -> Tensor:  # noqa: ARG002
        # The last edge is left out: rounding must not put it below 1 and the draw beyond the last teacher.
        edges = shares(self.weights, teachers_of(logits)).double().cpu().cumsum(0).numpy()[:-1]
        if len(logits) == 1:
            return logits[0]
        batch = logits.shape[1]
        if words is None or words.shape != (batch,) or words.dtype != np.uint64:
            got = "none" if words is None else f"{words.dtype} of shape {tuple(words.shape)}"
            raise ConfigError(f"blend 'random-teacher' needs words, uint64 of shape ({batch},), got {got}")
        chosen = torch.from_numpy(np.searchsorted(edges, uniform(np.asarray(words)), side="right"))
        return logits[chosen.to(logits.device), torch.arange(batch, device=logits.device)]

    def formula(self, temperature: float) -> str:
        over = "" if temperature == 1 else f" / {temperature:.6g}"
        return f"softmax(teacher_i{over}), i drawn for each row, {shown(self.weights)}"
