"""Losses between features of a student and of its teacher: maps (n, C, H, W), tokens (n, N, C), vectors (n, C).

Each is a function that returns a scalar, the mean over the rows that count (fp32, or fp64 of a student in fp64). Its
arguments:

- student: (n, ...), any float dtype.
- teacher: (n, ...) of the same images; takes no gradient.
- valid: bool (n,), the rows that count; None: all. What other rows hold changes nothing.
- temperature, labels: ignored; an objective hands them to every loss.

Heights and widths may differ: the larger map is averaged over cells (`adaptive_avg_pool2d`) to the size of the smaller.
Where the numbers of channels differ and a loss needs equal ones, `FeatureLossPart.regressor` makes the layer that is
trained with the student and maps its features to the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from softlabels.errors import ConfigError
from softlabels.losses._base import LossPart
from softlabels.losses._relational import angle_error, distance_error
from softlabels.losses._rows import mean_over

LEAST_LENGTH = 1e-12
"""What a norm is at least when it is divided by: a map or vector of zeros stays one."""


class FeatureLossPart(LossPart):
    """A loss between features; it gets them in the shapes that the networks give them."""

    def regressor(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:  # noqa: ARG002
        """The layer that goes before the loss, for these shapes of one image's features; None where it needs none.

        Raises:
            ConfigError: no layer leads from one shape to the other.
        """
        return None


def make_regressor(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """A layer from the student's width to the teacher's: for maps a 1x1 convolution, else a linear layer.

    `student` and `teacher` are shapes of one image's features. Heights and widths stay the student's.

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets", arXiv:1412.6550, whose regressor is a convolution
    with larger kernels.

    Raises:
        ConfigError: one is a map and the other is none.

    Example:
        >>> losses.make_regressor((16, 8, 8), (64, 4, 4))(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """
    if len(student) != len(teacher) or len(student) not in (1, 2, 3):
        larger = len(student) > len(teacher)
        advice = (
            "add a pooling to the student's, as LAYER:mean" if larger else "name a layer before the student's pooling"
        )
        raise ConfigError(
            f"no layer leads from the student's shape {tuple(student)} to the teacher's {tuple(teacher)}; {advice}"
        )
    if len(student) == 3:
        return nn.Conv2d(student[0], teacher[0], 1)
    return nn.Linear(student[-1], teacher[-1])


def channels_axis(features: Tensor) -> int:
    """The axis of the channels: the second of maps, the last of tokens and vectors."""
    return 1 if features.ndim == 4 else -1


def feature_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """The mean over all values of squared differences, of features of equal width.

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets", arXiv:1412.6550, equation 3, where it is half the
    sum over the values; the student's features have been through the regressor.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.feature_mse(student, teacher).item(), 3)
        1.083
    """
    student, teacher = _equal(*_pair(student, teacher, valid))
    return mean_over((student - teacher).square().flatten(1).mean(1), valid)


class Hint(FeatureLossPart):
    """Squared difference of features behind a regressor that is trained with the student (FitNets)."""

    kind: Literal["hint"] = "hint"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(feature_mse)
    text: ClassVar[str] = "mean (r(s) - t)^2, r: a 1x1 convolution or linear layer that is trained along"

    def regressor(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
        """See `make_regressor`."""
        return make_regressor(student, teacher)


def feature_cosine(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """One minus the cosine between a student's and a teacher's features, as vectors of all values; 1 where one is 0.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
        >>> teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
        >>> round(losses.feature_cosine(student, teacher).item(), 3)
        0.234
    """
    student, teacher = _equal(*_pair(student, teacher, valid))
    return mean_over(1 - (_unit(student) * _unit(teacher)).sum(1), valid)


class Cosine(FeatureLossPart):
    """Directions of features, behind a regressor where the widths differ; see `feature_cosine`."""

    kind: Literal["cosine"] = "cosine"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(feature_cosine)
    text: ClassVar[str] = "1 - cos(s, t) (s behind a trained layer where the widths differ)"

    def regressor(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
        """See `make_regressor`; None for equal widths."""
        axis = 0 if len(student) == 3 else -1
        same = len(student) == len(teacher) and student[axis] == teacher[axis]
        return None if same else make_regressor(student, teacher)


def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Squared difference of attention maps, the mean over their places.

    The attention map of features (n, C, H, W) is the sum over the channels of their squares, divided by its norm over
    the places; features (n, H, W) are attention maps already. Numbers of channels need not agree.

    Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", arXiv:1612.03928, with the mean over
    places of their code (weight 1,000 there) where equation 2 has the norm.

    Example:
        >>> student, teacher = torch.arange(8.0).view(1, 2, 2, 2), torch.ones(1, 3, 2, 2)
        >>> round(losses.attention_transfer(student, teacher).item(), 3)
        0.044
    """
    maps = (_attention(each, whose) for each, whose in zip(_pair(student, teacher, valid), _SIDES, strict=True))
    ours, theirs = (_unit(each) for each in _same_places(*maps))
    return mean_over((ours - theirs).square().mean(1), valid)


class AttentionTransfer(FeatureLossPart):
    """Where the networks look: maps of summed squares; see `attention_transfer`."""

    kind: Literal["attention"] = "attention"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(attention_transfer)
    text: ClassVar[str] = "mean over places of (a(s) - a(t))^2, a: sum over channels of squares / its norm"


def channel_map_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    by: Literal["mean", "norm"] = "mean",
) -> Tensor:
    """Squared difference of maps of one channel, the mean over their places.

    Features (n, C, H, W) become (n, H, W) by the mean over the channels, or by the norm over them divided by sqrt(C),
    so that numbers of channels need not agree; features (n, H, W) are such maps already.

    Example:
        >>> student, teacher = torch.arange(8.0).view(1, 2, 2, 2), torch.ones(1, 3, 2, 2)
        >>> losses.channel_map_mse(student, teacher).item()
        7.5
    """
    pair = zip(_pair(student, teacher, valid), _SIDES, strict=True)
    ours, theirs = _same_places(*(_one_channel(each, by, whose) for each, whose in pair))
    return mean_over((ours - theirs).square().flatten(1).mean(1), valid)


class ChannelMap(FeatureLossPart):
    """Feature maps compressed to one channel by their mean or norm; see `channel_map_mse`."""

    kind: Literal["channel-map"] = "channel-map"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(channel_map_mse)
    text: ClassVar[str] = "mean over places of (m(s) - m(t))^2, m: the channels' {by}"
    shorthand: ClassVar[str] = "by"

    by: Literal["mean", "norm"] = "mean"

    def formula(self, temperature: float) -> str:  # noqa: ARG002
        """See `Loss.formula`."""
        return self.text.format(by=self.by)


def embedding_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Relational distillation of distances between embeddings, whose widths may differ.

    As `relational_distance`, of features as they are (these are not known up to a constant only): the mean over ordered
    pairs of distinct valid rows of ``huber(d^s_ij / m^s - d^t_ij / m^t)``.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
        >>> round(losses.embedding_distance(student, teacher).item(), 3)
        0.068
    """
    ours, theirs = (each.flatten(1) for each in _pair(student, teacher, valid))
    return distance_error(ours, theirs, valid)


class EmbeddingDistance(FeatureLossPart):
    """Distances between the embeddings of a batch (RKD-D); see `embedding_distance`."""

    kind: Literal["rkd-distance"] = "rkd-distance"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(embedding_distance)
    text: ClassVar[str] = (
        "mean over pairs of rows of huber(student's distance / its mean - teacher's distance / its mean)"
    )


def embedding_angle(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
) -> Tensor:
    """Relational distillation of angles between embeddings, whose widths may differ.

    As `relational_angle`, of features as they are.

    Source: Park et al. 2019, "Relational knowledge distillation", arXiv:1904.05068.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
        >>> round(losses.embedding_angle(student, teacher).item(), 3)
        0.54
    """
    ours, theirs = (each.flatten(1) for each in _pair(student, teacher, valid))
    return angle_error(ours, theirs, valid)


class EmbeddingAngle(FeatureLossPart):
    """Angles between the embeddings of a batch (RKD-A); see `embedding_angle`."""

    kind: Literal["rkd-angle"] = "rkd-angle"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(embedding_angle)
    text: ClassVar[str] = "mean over triples of rows of huber(student's cosine - teacher's cosine)"


def inherit_explore(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,  # noqa: ARG001
    labels: Tensor | None = None,  # noqa: ARG001
    valid: Tensor | None = None,
    exploration: float = 1.0,
) -> Tensor:
    """Inheritance and exploration: one part of the student's features near the teacher's, the other far from them.

    ``d(near, t) - exploration * d(far, t)``, d the mean absolute difference of the two as vectors of length 1 over all
    values. `student` has twice the teacher's channels: those of the near part, then those of the far part. The value
    may be negative.

    Source: Huang et al. 2021, "Revisiting knowledge distillation: an inheritance and exploration framework",
    arXiv:2107.00181, which compares factors of auto-encoders; here a regressor stands in their place.

    Example:
        >>> student = torch.tensor([[2.0, 0.0, 0.0, 3.0]])
        >>> round(losses.inherit_explore(student, torch.tensor([[1.0, 0.0]])).item(), 3)
        -1.0
    """
    student, teacher = _pair(student, teacher, valid)
    axis = channels_axis(student)
    if student.ndim != teacher.ndim or student.shape[axis] != 2 * teacher.shape[axis]:
        raise ConfigError(
            f"inherit-explore takes student features of twice the teacher's channels, not {tuple(student.shape)} for "
            f"{tuple(teacher.shape)}; `softlabels.losses` has its regressor"
        )
    near, far = (_apart(each, teacher) for each in student.chunk(2, axis))
    return mean_over(near - exploration * far, valid)


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    ours, theirs = _equal(ours, theirs)
    return (_unit(ours) - _unit(theirs)).abs().mean(1)


class HalvesRegressor(nn.Module):
    """Two halves of the channels through one regressor to the teacher's width: (n, C, ...) to (n, 2 * C_t, ...).

    The second half, which is to be far from the teacher, gives the regressor no gradient: else it could turn away from
    the teacher in the student's place.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        axis = 0 if len(student) == 3 else -1
        if student[axis] % 2:
            raise ConfigError(
                f"inherit-explore halves the student's channels, and {tuple(student)} has {student[axis]}; name "
                f"a layer with an even number"
            )
        half = [*student]
        half[axis] //= 2
        self.layer = make_regressor(half, teacher)

    def forward(self, features: Tensor) -> Tensor:
        """The near part, then the far part, along the channels."""
        axis = channels_axis(features)
        near, far = features.chunk(2, axis)
        still = {name: parameter.detach() for name, parameter in self.layer.named_parameters()}
        return torch.cat([self.layer(near), functional_call(self.layer, still, (far,))], axis)


class InheritExplore(FeatureLossPart):
    """Half of the student's channels near the teacher, the other half far from it; see `inherit_explore`."""

    kind: Literal["inherit-explore"] = "inherit-explore"
    function: ClassVar[Callable[..., Tensor]] = staticmethod(inherit_explore)
    text: ClassVar[str] = (
        "d(r(s1), t) - {exploration} * d(r(s2), t), s1 and s2 halves of the channels, r a layer that is trained along, "
        "d: mean absolute difference of vectors of length 1"
    )
    shorthand: ClassVar[str] = "exploration"

    exploration: float = 1.0

    def regressor(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
        """See `HalvesRegressor`."""
        return HalvesRegressor(student, teacher)


_SIDES = ("student", "teacher")


def _pair(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both in fp32 at least, with zeros in rows that do not count; the teacher's without gradient."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ConfigError(
            f"a loss takes features (n, ...) of the same images, got {tuple(student.shape)} of the student and "
            f"{tuple(teacher.shape)} of the teacher"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != student.shape[:1]):
        raise ConfigError(
            f"valid must be bool of shape ({len(student)},), one per image, got {valid.dtype} of shape "
            f"{tuple(valid.shape)}"
        )
    ours = student.to(torch.promote_types(student.dtype, torch.float32))
    return _masked(ours, valid), _masked(teacher.detach().to(ours.dtype), valid)


def _masked(features: Tensor, valid: Tensor | None) -> Tensor:
    return features if valid is None else features.where(valid.view(-1, *[1] * (features.ndim - 1)), 0.0)


def _same_places(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (n, H, W) or (n, C, H, W) of the smaller height and width of the two."""
    size = (min(ours.shape[-2], theirs.shape[-2]), min(ours.shape[-1], theirs.shape[-1]))
    resized = (each if tuple(each.shape[-2:]) == size else F.adaptive_avg_pool2d(each, size) for each in (ours, theirs))
    first, second = resized
    return first, second


def _equal(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Features of equal shapes; maps are brought to one height and width."""
    if ours.ndim == theirs.ndim == 4:
        ours, theirs = _same_places(ours, theirs)
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"features of the student have shape {tuple(ours.shape)}, of the teacher {tuple(theirs.shape)}; name "
            f"layers of equal widths, or `hint`, which learns a layer between them"
        )
    return ours, theirs


def _attention(features: Tensor, whose: str) -> Tensor:
    if features.ndim == 4:
        return features.square().sum(1)
    return _map(features, whose)


def _one_channel(features: Tensor, by: str, whose: str) -> Tensor:
    if features.ndim != 4:
        return _map(features, whose)
    if by == "mean":
        return features.mean(1)
    norms: Tensor = torch.linalg.vector_norm(features, dim=1)
    return norms.div(features.shape[1] ** 0.5)


def _map(features: Tensor, whose: str) -> Tensor:
    if features.ndim != 3:
        raise ConfigError(
            f"the loss takes feature maps (n, C, H, W), or maps (n, H, W), and the {whose}'s features have shape "
            f"{tuple(features.shape)}; name a layer before the pooling"
        )
    return features


def _unit(features: Tensor) -> Tensor:
    """All values of each image as a vector of length 1, (n, values)."""
    unit: Tensor = F.normalize(features.flatten(1), dim=1, eps=LEAST_LENGTH)
    return unit
