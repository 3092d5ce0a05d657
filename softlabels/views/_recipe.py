"""Recipes: a list of random steps, of which a view is one draw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_serializer, field_validator
from torch import Tensor

from softlabels.core.config import Table, validated
from softlabels.core.philox import Words, hash_keys, philox
from softlabels.core.tables import RecipeNames
from softlabels.errors import ConfigError, DataError
from softlabels.views._chance import Draws, whole_below
from softlabels.views._recorded import ForeignView, Recorded, Records, Spec
from softlabels.views._resize_centre_crop import ResizeCentreCrop
from softlabels.views._views import Frame, Sides, View, Views

_CLEAN = ResizeCentreCrop()
_ROWS_AT_ONCE = 4096
"""So many views' words fit into a processor's cache together; more at once take over twice as long per view."""


class Step(Protocol):
    """A random step: a part of a recipe. It is told its random words and never asks for others."""

    @property
    def kind(self) -> str:
        """Its name in `STEPS`."""

    @property
    def blocks(self) -> int:
        """How many blocks of four Philox words a draw takes."""

    def draw(self, words: Words) -> Draws:
        """What the words (n, 4 * blocks) uint64 mean: a structured array (n,), without any resolution."""


@runtime_checkable
class Geometry(Step, Protocol):
    """A step that makes pictures out of images: where the image is cut and how it comes to the frame's size."""

    def boxes(self, draws: Draws, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height, width of the part of the image that is read, int64 (n, 4); padding lies outside it."""

    def pictures(self, images: Tensor, draws: Draws, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) images as uint8 (n, 3, size, size) pictures in memory of their own."""


@runtime_checkable
class Crop(Geometry, Protocol):
    """A geometry that resizes its boxes and reads nothing else; they lie in the image."""

    def boxes(self, draws: Draws, height: Sides, width: Sides) -> NDArray[np.int64]:
        """As of any geometry; each view may be of an image of its own size."""

    def cropped(self, images: Tensor, boxes: NDArray[np.int64], frame: Frame, out: Tensor | None = None) -> Tensor:
        """Boxes (n, 4) of uint8 (n, 3, H, W), resized: uint8 (n, 3, size, size) in memory of their own.

        That is `out` where it is given, unless n is 1.
        """


@runtime_checkable
class Change(Step, Protocol):
    """A step that changes pictures and keeps their size."""

    def apply(self, pictures: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, size, size), changed, each by its own draw alone; `pictures` may be written over."""


@runtime_checkable
class Mix(Step, Protocol):
    """A step that mixes the picture of a view with that of a partner image in its own view of the same number.

    Its draws have the fields `chosen` (n,) bool and `partner` (n,), the partner's place in the population in [0, 1).
    """

    def shares(self, draws: Draws, size: int) -> NDArray[np.float64]:
        """How much of each picture of `size` is the image's own, 1 where it is not mixed: (n,)."""

    def mix(self, pictures: Tensor, partners: Tensor, draws: Draws) -> Tensor:
        """uint8 (n, 3, size, size) of both to new uint8 (n, 3, size, size)."""


class _Kinds(NamedTuple):
    """What the steps of a recipe are: where pictures begin, whether as mere boxes, and which of the steps change them.

    Kept, since asking a protocol takes as long as rendering a small picture.
    """

    geometry: Geometry | None
    crop: Crop | None
    changes: slice


class Recipe(BaseModel):
    """The steps in order, and the version of the arithmetic that turns random words into draws.

    A view is a pure function of (recipe, seed, image key, view number). Its random words are Philox4x64-10 with
    key (hash of the image key, seed) and counter (block, view number, stream of the step, version); the stream is the
    hash of ``kind/occurrence``, so steps added or taken away leave the draws of the others as they are. When the
    arithmetic changes, it gets a new version number, and the old one stays.

    The first step may be a geometry; without one, pictures are cut as the clean view is. The last may be a mix; then
    the picture of a view is `mix` of what `render` makes of the image and of its partner in the same view number.

    A step may be recorded: then `draw` is told what the labels of the views recorded, under the names of `records`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    version: Literal[1] = 1
    steps: tuple[Step, ...]
    _kinds: _Kinds = PrivateAttr()
    _mixer: Mix | None = PrivateAttr()
    _recorded: bool = PrivateAttr()

    @field_validator("steps", mode="plain")
    @classmethod
    def _in_order(cls, steps: Sequence[Step]) -> tuple[Step, ...]:
        for place, step in enumerate(steps):
            if not isinstance(step, (Geometry, Change, Mix)):
                raise ConfigError(f"step {place} of the recipe is no step: {step!r}; make recipes with RECIPES.make")
            if isinstance(step, Geometry) and place > 0:
                raise ConfigError(
                    f"{step.kind!r} cuts pictures, which only the first step can, but it is step {place + 1}"
                )
            if isinstance(step, Mix) and place < len(steps) - 1:
                raise ConfigError(
                    f"{step.kind!r} mixes pictures, which only the last step can, but it is step {place + 1}"
                )
        names = [name for step in steps if isinstance(step, Recorded) for name in step.records]
        if len(set(names)) < len(names):
            raise ConfigError(f"two recorded steps of the recipe have one name for what they record: {sorted(names)}")
        return tuple(steps)

    @field_serializer("steps")
    def _as_list(self, steps: tuple[Step, ...]) -> list[Any]:
        return list(steps)

    def model_post_init(self, context: Any) -> None:  # noqa: ARG002
        """Note once which steps cut, change and mix."""
        first, last = (self.steps[0], self.steps[-1]) if self.steps else (None, None)
        self._mixer = last if isinstance(last, Mix) else None
        geometry = first if isinstance(first, Geometry) else None
        changes = slice(int(geometry is not None), len(self.steps) - int(self._mixer is not None))
        self._kinds = _Kinds(geometry, geometry if isinstance(geometry, Crop) else None, changes)
        self._recorded = any(isinstance(step, Recorded) for step in self.steps)

    @property
    def clean(self) -> bool:
        """Whether pictures are cut as those on which networks are evaluated, and not at random."""
        return self._kinds.geometry is None or isinstance(self._kinds.geometry, ResizeCentreCrop)

    @property
    def records(self) -> Spec:
        """Dtype and shape of what is recorded of each view, by name; empty where all of it is drawn."""
        if not self._recorded:
            return {}
        own = {name: each for step in self._own for name, each in step.records.items()}
        mixer = self._mixer if isinstance(self._mixer, Recorded) else None
        sides = ("view", "other") if mixer else ("view",)
        named = {f"{side}_{name}": each for side in sides for name, each in own.items()}
        return named | (mixer.records if mixer else {})

    @property
    def foreign(self) -> ForeignView | None:
        """The step whose views cannot be made here, if there is one."""
        return next((step for step in self.steps if isinstance(step, ForeignView)), None)

    @property
    def _own(self) -> list[Recorded]:
        """The recorded steps that are done to image and partner alike."""
        return [step for step in self.steps if isinstance(step, Recorded) and step is not self._mixer]

    def draw(
        self,
        seed: int,
        hashes: ArrayLike,
        views: ArrayLike,
        records: Records | None = None,
        *,
        of_partner: bool = False,
    ) -> Views:
        """One view for each image key hash (uint64) and view number (int64), which broadcast to one axis (n,).

        Args:
            records: what the labels of these views recorded, (n, ...) each, where steps of the recipe are recorded.
            of_partner: the hashes are of partners, in the views that were recorded for them.

        Raises:
            ConfigError: the seed or a view number is negative, the seed does not fit into 64 bits, or records are
                needed and not given.
        """
        drawn = self._drawn(seed, hashes, views)
        return self._recalled(drawn, records, "other" if of_partner else "view") if self._recorded else drawn

    def _recalled(self, views: Views, records: Records | None, side: str) -> Views:
        if records is None:
            kinds = ", ".join(repr(step.kind) for step in self.steps if isinstance(step, Recorded))
            raise ConfigError(
                f"views of {kinds} are recorded with the labels they were made for and cannot be drawn; choose another "
                f"`recipe`, or name the store that holds them"
            )
        draws = list(views.draws)
        for place, step in enumerate(self.steps):
            if isinstance(step, Recorded):
                prefix = "" if step is self._mixer else f"{side}_"
                draws[place] = step.recall({name: records[prefix + name] for name in step.records})
        return Views(views.numbers, tuple(draws))

    def _drawn(self, seed: int, hashes: ArrayLike, views: ArrayLike) -> Views:
        keys, numbers = np.broadcast_arrays(
            np.atleast_1d(np.asarray(hashes, np.uint64)), np.atleast_1d(np.asarray(views, np.int64))
        )
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"a seed is a whole number from 0 to 2**64 - 1, not {seed}")
        if (numbers < 0).any():
            raise ConfigError(f"view numbers begin at 0; got {numbers.min()}")
        parts = [
            tuple(self._draw(seed, keys[at : at + _ROWS_AT_ONCE], numbers[at : at + _ROWS_AT_ONCE]))
            for at in range(0, max(len(keys), 1), _ROWS_AT_ONCE)
        ]
        draws = parts[0] if len(parts) == 1 else tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return Views(numbers.copy(), draws)

    def boxes(self, views: Views, height: Sides, width: Sides) -> NDArray[np.int64]:
        """Top, left, height and width of the source box of each view, in pixels of an image of that size: (n, 4).

        A box may reach beyond the image where the recipe pads. Where it `crops`, each view may have a size of its own.
        """
        geometry, drawn, _ = self._parted(views)
        return geometry.boxes(drawn, height, width)  # type: ignore[arg-type]

    def render(self, image: Tensor, view: View, frame: Frame) -> Tensor:
        """The picture that `view` shows of one image: uint8 (3, H, W) on the CPU to uint8 (3, size, size).

        Raises:
            DataError: the image is not uint8 of that shape.
        """
        return self.render_batch(image[None], view.batch(), frame)[0]

    def render_batch(self, images: Tensor, views: Views, frame: Frame) -> Tensor:
        """uint8 (n, 3, H, W) and n views to uint8 (n, 3, size, size); row by row the same bytes as `render`.

        Raises:
            DataError: the images are not uint8 of that shape, or not as many as the views.
        """
        _check(images, views)
        geometry, drawn, changes = self._parted(views)
        pictures = geometry.pictures(images, drawn, frame)
        for step, draws in changes:
            pictures = step.apply(pictures, draws)
        return pictures

    @property
    def crops(self) -> bool:
        """Whether pictures are made of nothing but the `boxes` of their views, see `render_boxes`."""
        return self._kinds.crop is not None

    def render_boxes(
        self, image: Tensor, boxes: NDArray[np.int64], views: Views, frame: Frame, out: Tensor | None = None
    ) -> Tensor:
        """What `render_batch` makes of n views of one image, uint8 (3, H, W), whose boxes (n, 4) are known already.

        Only for recipes that crop. Memory for the pictures, uint8 (n, 3, size, size), may be given as `out`.
        """
        _, crop, changes = self._kinds
        if crop is None:
            raise DataError("this recipe reads more of an image than boxes; render its pictures with render_batch")
        pictures = crop.cropped(image.expand(len(boxes), *image.shape), boxes, frame, out)
        for step, draws in zip(self.steps[changes], views.draws[changes], strict=True):
            pictures = step.apply(pictures, draws)  # type: ignore[attr-defined]
        return pictures if out is None or pictures is out else out.copy_(pictures)

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with those of partners, see `partners` and `mix`."""
        return self._mixer is not None

    def partners(self, views: Views, population: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `population` images (one number, or one for each view) each view is mixed with, each equally likely:
        rows int64 (n,), -1 for none.

        The population is part of what is drawn, so its count and order must be recorded with the labels. An image can
        be its own partner.
        """
        if self._mixer is None:
            return np.full(len(views), -1)
        draws = views.draws[-1]
        if isinstance(self._mixer, Recorded):
            return np.where(draws["chosen"], draws["partner"], -1)
        return np.where(draws["chosen"], whole_below(draws["partner"], population), -1)

    def mix(self, pictures: Tensor, partners: Tensor, views: Views) -> Tensor:
        """The mixed pictures of `views`: uint8 (n, 3, S, S) from what `render_batch` made of images and partners.

        The partner of a view is rendered in its own draw of the same view number. Its row is read only where the view
        is mixed.
        """
        return pictures if self._mixer is None else self._mixer.mix(pictures, partners, views.draws[-1])

    def shares(self, views: Views, size: int) -> NDArray[np.float64]:
        """How much of each picture of `size` is the image's own, not its partner's; it weighs hard labels: (n,)."""
        return np.ones(len(views)) if self._mixer is None else self._mixer.shares(views.draws[-1], size)

    def _draw(self, seed: int, keys: Words, numbers: NDArray[np.int64]) -> list[Draws]:
        sizes = [step.blocks for step in self.steps]
        streams = _streams(tuple(step.kind for step in self.steps))
        blocks = np.concatenate([np.arange(size, dtype=np.uint64) for size in (*sizes, 0)])
        counter = (blocks, numbers.astype(np.uint64)[:, None], np.repeat(streams, sizes), self.version)
        words = philox((keys[:, None], np.uint64(seed)), counter).reshape(len(keys), 4 * len(blocks))
        ends = 4 * np.cumsum(sizes, dtype=np.int64)
        return [
            step.draw(words[:, end - 4 * size : end]) for step, size, end in zip(self.steps, sizes, ends, strict=True)
        ]

    def _parted(self, views: Views) -> tuple[Geometry, Draws, Sequence[tuple[Change, Draws]]]:
        """The geometry with its draws, and the changes with theirs."""
        geometry, _, changes = self._kinds
        pairs: Any = list(zip(self.steps[changes], views.draws[changes], strict=True))
        return (geometry, views.draws[0], pairs) if geometry else (_CLEAN, np.empty(len(views), dtype=[]), pairs)


class Recipes:
    """The table of recipes by short name, and what turns any description into a `Recipe`.

    A short name is made of words joined by hyphens, each a step: ``crop-flip-randaugment-erase``.
    """

    def __init__(self, steps: Table[Step], recorded: Table[Step], short: RecipeNames) -> None:
        self._steps, self._recorded, self._short = steps, recorded, short
        self.names = tuple(sorted(short.usual))
        """The usual short names, sorted; any other order of words makes a recipe too."""

    def make(self, value: Any) -> Recipe:
        """The recipe that `value` describes: a recipe, a short name, a list of steps, or a mapping with `steps`.

        Each step is what `STEPS.make` takes: a kind, ``KIND:VALUE``, or a mapping with a `kind`.

        Raises:
            ConfigError: a name is unknown (the nearest are given), a setting is wrong, or the order of steps is.
        """
        if isinstance(value, Recipe):
            return value
        if isinstance(value, str):
            value = self._short.expand(value)
        if isinstance(value, (list, tuple)):
            value = {"steps": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("steps"), (list, tuple)):
            raise ConfigError(f"a recipe is a short name such as 'crop-flip' or a list of steps, not {value!r}")
        if value.get("version", 1) != 1:
            raise ConfigError(f"recipe version {value['version']!r} is unknown here; a newer softlabels may read it")
        steps = tuple(self._step(step) for step in value["steps"])
        return validated(Recipe, {**value, "steps": steps}, "recipe")

    def _step(self, step: Any) -> Step:
        kind = step.get("kind") if isinstance(step, Mapping) else getattr(step, "kind", str(step).partition(":")[0])
        return (self._recorded if kind in self._recorded.names else self._steps).make(step)


@functools.lru_cache(maxsize=256)
def _streams(kinds: tuple[str, ...]) -> Words:
    """A number for each step, of its kind and of how often that came before: uint64 (steps,)."""
    return hash_keys(f"{kind}/{kinds[:position].count(kind)}" for position, kind in enumerate(kinds))


def _check(images: Tensor, views: Views) -> None:
    if str(images.dtype) != "torch.uint8" or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(
            f"images to render are uint8 of shape (3, H, W), or (n, 3, H, W) as a batch; got {images.dtype} of shape "
            f"{tuple(images.shape)}; convert them first"
        )
    if len(images) != len(views):
        raise DataError(f"{len(images)} images but {len(views)} views; give one view for each image")
