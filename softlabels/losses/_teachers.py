"""What blends share: the logits of several teachers and a weight for each."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from softlabels.errors import ConfigError


def _numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _some_weight(value: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(value) > 0:
        raise ValueError("weights must have a sum greater than 0")
    return value


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weights = Annotated[tuple[Weight, ...], BeforeValidator(_numbers), AfterValidator(_some_weight)]
"""One number per teacher, in the teachers' order, at least 0; their sum need not be 1. As text: ``0.7,0.3``."""


def teachers_of(logits: Tensor) -> Tensor:
    """Logits (teachers, batch, classes) in fp32, or in fp64 if they came so.

    Raises:
        ConfigError: they have another shape.
    """
    if logits.ndim != 3 or not len(logits):
        raise ConfigError(f"a blend takes logits of shape (teachers, batch, classes), got {tuple(logits.shape)}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def shares(weights: tuple[float, ...] | None, logits: Tensor) -> Tensor:
    """The weights (teachers,) of the blend, with sum 1; equal ones when `weights` is None.

    Raises:
        ConfigError: there are not as many weights as teachers.
    """
    if weights is None:
        weights = (1.0,) * len(logits)
    if len(weights) != len(logits):
        raise ConfigError(f"the blend has {len(weights)} weights for {len(logits)} teachers; give one for each")
    return torch.tensor([weight / sum(weights) for weight in weights], dtype=logits.dtype, device=logits.device)


def mean_of_probabilities(logits: Tensor, temperature: float, log_shares: Tensor) -> Tensor:
    """T * ln of the weighted sum over teachers of softmax(logits / T): (batch, classes).

    `log_shares` broadcasts over (teachers, batch, classes). What the sums lack to 1 is a constant per row.
    """
    return temperature * torch.logsumexp((logits / temperature).log_softmax(-1) + log_shares, 0)


def shown(weights: tuple[float, ...] | None) -> str:
    """The weights as a formula shows them."""
    if weights is None:
        return "equal weights"
    return f"weights {', '.join(f'{weight:.6g}' for weight in weights)}"
