"""Steps whose draws were made elsewhere and are recorded with each label: views of labels from other projects.

They stand in a table of their own, since no random words make such a view: a recipe that holds one needs the records
of the labels. Each step names its `records`; `Recipe` puts ``view_`` before the names, and ``other_`` for those of the
partner of a mixed view, whose own crop and changes belong to the label, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_serializer
from torch import Tensor

from softlabels.core.config import Part
from softlabels.core.philox import Words
from softlabels.errors import ConfigError, DataError
from softlabels.views._chance import Draws, Reals, records
from softlabels.views._mixing import blended, left_over, pasted
from softlabels.views._operations import NAMES, Style, operated
from softlabels.views._pixels import changed, resized_boxes
from softlabels.views._settings import Colour, rgb
from softlabels.views._views import Frame, Sides

Records = Mapping[str, NDArray[Any]]
Spec = dict[str, tuple[str, tuple[int, ...]]]
"""What a step records: dtype and shape of each array of one view, by name."""


@runtime_checkable
class Recorded(Protocol):
    """A step that is told what was drawn, instead of random words."""

    @property
    def records(self) -> Spec:
        """What is recorded of each view."""

    def recall(self, recorded: Records) -> Draws:
        """The draws of n views from the arrays (n, ...) of `records`."""


class RecordedCrop(Part):
    """A box of the image, resized to the frame.

    `unit` says how `box` (top, left, height, width) is recorded: ``pixels`` of the image, int32; or ``shares`` of its
    height and width, float32. Of shares, the edges are the products in float64, rounded half to even, which is where
    PIL cuts a box of fractions.
    """

    kind: Literal["recorded-crop"] = "recorded-crop"
    unit: Literal["pixels", "shares"] = "pixels"

    blocks: ClassVar[int] = 0
    shorthand: ClassVar[str] = "unit"

    @property
    def records(self) -> Spec:
        """`box` (4,)."""
        return {"box": ("int32" if self.unit == "pixels" else "float32", (4,))}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`box` (n, 4)."""
        return records(len(recorded["box"]), box=recorded["box"])

    def boxes(self, draws: Draws, height: Sides, width: Sides) -> NDArray[np.int64]:
        """Top, left, height and width of each box in pixels of an image of that size: int64 (n, 4).

        An image of one pixel, which stands for those that cannot be read, has no other box than itself.

        Raises:
            DataError: a box of pixels does not lie in the image, or one of shares is none.
        """
        box = draws["box"].astype(np.float64)
        sides = np.broadcast_to(np.stack([height, width], axis=-1).astype(np.float64), (len(box), 2))
        if self.unit == "pixels":
            start, stop = box[:, :2], box[:, :2] + box[:, 2:]
        else:
            start, far = box[:, :2] * sides, box[:, 2:] * sides
            start, stop = np.rint(start), np.rint(start + far)
            # Half floats can bring an edge a pixel beyond the image, where the teacher saw nothing either.
            start, stop = np.clip(start, 0, sides - 1), np.clip(stop, 1, sides)
            stop = np.maximum(stop, start + 1)
        point = (sides == 1).all(axis=1, keepdims=True)
        start, stop = np.where(point, 0, start), np.where(point, 1, stop)
        wrong = ~((start >= 0) & (stop > start) & (stop <= sides)).all(axis=1)
        if wrong.any():
            top, left, tall, wide = draws["box"][wrong][0].tolist()
            height, width = sides[wrong][0].astype(int).tolist()
            raise DataError(
                f"a recorded crop of {tall} x {wide} at ({top}, {left}) does not lie in an image of {height} x "
                f"{width}; the label is of another image"
            )
        return np.concatenate([start, stop - start], axis=1).astype(np.int64)

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size): the box is cut out first, then resized."""
        return self.cropped(images, self.boxes(draws, *images.shape[-2:]), frame)

    def cropped(self, images: Tensor, boxes: NDArray[np.int64], frame: Frame, out: Tensor | None = None) -> Tensor:
        """Those boxes (n, 4) of uint8 (n, 3, H, W), resized: uint8 (n, 3, size, size), in `out` where it is given."""
        return resized_boxes(images, boxes, frame.size, frame.interpolation, out)


class RecordedFlip(Part):
    """The picture mirrored left to right where `flip` says so."""

    kind: Literal["recorded-flip"] = "recorded-flip"
    blocks: ClassVar[int] = 0

    @property
    def records(self) -> Spec:
        """`flip` ()."""
        return {"flip": ("bool", ())}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`flip` (n,) bool."""
        return records(len(recorded["flip"]), flip=recorded["flip"])

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, H, W), some mirrored."""
        return changed(pictures, draws["flip"], lambda chosen: chosen.flip(3))


class RecordedOperations(Part):
    """`n` operations of those that RandAugment knows, one after the other, each with its strength.

    `operation` holds places in `OPERATION_NAMES` (0 leaves the picture as it is); strengths are as there: slopes, sides
    of the picture, degrees, changes of a factor, bits, a share of 255.
    """

    kind: Literal["recorded-operations"] = "recorded-operations"
    n: PositiveInt = Field(2, le=8)
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    fill: Colour = 0

    blocks: ClassVar[int] = 0
    shorthand: ClassVar[str] = "n"

    @property
    def records(self) -> Spec:
        """`operation` (n,) and `strength` (n,)."""
        return {"operation": ("int8", (self.n,)), "strength": ("float32", (self.n,))}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`operation`, `strength` (views, n).

        Raises:
            DataError: an operation that does not exist.
        """
        operation = recorded["operation"]
        if operation.size and not 0 <= int(operation.min()) <= int(operation.max()) < len(NAMES):
            raise DataError(f"a label records operation {int(operation.max())} of {len(NAMES)}; it is damaged")
        return records(len(operation), operation=operation, strength=recorded["strength"].astype(np.float64))

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S), operated on."""
        return operated(pictures, draws, Style(self.interpolation, self.fill))


class RecordedErasing(Part):
    """A rectangle painted over with `fill`: `erased` (top, left, height, width) in pixels of a picture of `size`.

    A rectangle without area erases nothing. In pictures of another size its edges are scaled and rounded.
    """

    kind: Literal["recorded-erasing"] = "recorded-erasing"
    size: PositiveInt
    fill: Colour = 0

    blocks: ClassVar[int] = 0
    shorthand: ClassVar[str] = "size"

    @property
    def records(self) -> Spec:
        """`erased` (4,)."""
        return {"erased": ("int16", (4,))}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`erased` (n, 4)."""
        return records(len(recorded["erased"]), erased=recorded["erased"])

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S), some with a rectangle painted over."""
        box = draws["erased"].astype(np.int64)
        edges = _scaled(np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1), self.size, pictures.shape[-1])
        colour = torch.tensor(rgb(self.fill), dtype=torch.uint8)[:, None, None]
        for place in np.flatnonzero(box[:, 2] * box[:, 3]):
            top, left, bottom, right = edges[place].tolist()
            pictures[place, :, top:bottom, left:right] = colour
        return pictures


class RecordedMix(Part):
    """The picture blended with its partner's, and then a box of it filled from the partner's.

    `mix_partner` is the partner's row in the store, `mix_blend` the picture's own share of the blend (1: none), and
    `mix_cut` the box (top, left, bottom, right) in pixels of a picture of `size`; one without area cuts nothing.
    """

    kind: Literal["recorded-mix"] = "recorded-mix"
    size: PositiveInt

    blocks: ClassVar[int] = 0
    shorthand: ClassVar[str] = "size"

    @property
    def records(self) -> Spec:
        """`mix_partner` (), `mix_blend` (), `mix_cut` (4,)."""
        return {"mix_partner": ("uint32", ()), "mix_blend": ("float32", ()), "mix_cut": ("int16", (4,))}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`chosen` (n,) bool, `partner` (n,) row, `blend` (n,), `cut` (n, 4)."""
        blend, cut = recorded["mix_blend"].astype(np.float64), recorded["mix_cut"].astype(np.int64)
        chosen = (blend < 1) | ((cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1]))
        partner = recorded["mix_partner"].astype(np.int64)
        return records(len(blend), chosen=chosen, partner=partner, blend=blend, cut=cut)

    def shares(self, draws: Draws, size: int) -> Reals:
        """How much of each picture of `size` is the image's own, 1 where it is not mixed: (n,)."""
        return draws["blend"] * left_over(_scaled(draws["cut"], self.size, size), size)

    def mix(self, pictures: Tensor, partners: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, S, S) twice to uint8 (n, 3, S, S)."""
        made = blended(pictures, partners, draws["blend"])
        return pasted(made, partners, _scaled(draws["cut"], self.size, pictures.shape[-1]))


class ForeignView(Part):
    """A view that only the project `of` can make, from a seed that is recorded where it is `seeded`.

    Labels of such views can be read, but their pictures come from somebody's own data set (`softlabels.attach`).
    `mixed` is what the user said of seeded views, whose files do not tell; where it is True, a `SeededMix` follows.
    """

    kind: Literal["foreign-view"] = "foreign-view"
    of: str
    seeded: bool = False
    mixed: bool | None = None

    blocks: ClassVar[int] = 0
    shorthand: ClassVar[str] = "of"

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, usual: Any) -> dict[str, Any]:
        # As it was before there was such a field, so that older stores are those of the same recipe.
        return {name: value for name, value in usual(self).items() if name != "mixed" or value is not None}

    @property
    def records(self) -> Spec:
        """`seed` (), where there is one."""
        return {"seed": ("int64", ())} if self.seeded else {}

    def draw(self, words: Words) -> Draws:
        """Nothing is drawn: records without fields, (n,)."""
        return records(len(words))

    def recall(self, recorded: Records) -> Draws:
        """`seed` (n,), where there is one."""
        count = len(next(iter(recorded.values()))) if recorded else 0
        return records(count, **dict(recorded))

    def boxes(self, draws: Draws, height: int, width: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Raises ConfigError: what the view shows is not known here."""
        raise self.refusal()

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:  # noqa: ARG002
        """Raises ConfigError: what the view shows is not known here."""
        raise self.refusal()

    def refusal(self) -> ConfigError:
        """Why there are no pictures, and what can be done."""
        how = "softlabels.attach(dataset, labels, view=..., seeded=...)" if self.seeded else "softlabels.attach"
        return ConfigError(
            f"only {self.of}'s own code makes the views of these labels: pair them with its data set by {how}, "
            f"docs/importing.md says how"
        )


def _scaled(edges: NDArray[np.int64], old: int, new: int) -> NDArray[np.int64]:
    """Edges in pixels of pictures of `old` as those of `new`."""
    return edges if old == new else np.rint(edges * (new / old)).astype(np.int64)
