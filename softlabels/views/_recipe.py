"""Recipes: a list of random steps, of which a view is one draw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_serializer, field_validator
from torch import Tensor

from softlabels._philox import Words, hash_keys, philox
from softlabels.config import Table, validated
from softlabels.errors import ConfigError, DataError, did_you_mean
from softlabels.views._chance import Draws, whole_below
from softlabels.views._resize_centre_crop import ResizeCentreCrop
from softlabels.views._views import Frame, View, Views

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


class Recipe(BaseModel):
    """The steps in order, and the version of the arithmetic that turns random words into draws.

    A view is a pure function of (recipe, seed, image key, view number). Its random words are Philox4x64-10 with
    key (hash of the image key, seed) and counter (block, view number, stream of the step, version); the stream is the
    hash of ``kind/occurrence``, so steps added or taken away leave the draws of the others as they are. When the
    arithmetic changes, it gets a new version number, and the old one stays.

    The first step may be a geometry; without one, pictures are cut as the clean view is. The last may be a mix; then
    the picture of a view is `mix` of what `render` makes of the image and of its partner in the same view number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    version: Literal[1] = 1
    steps: tuple[Step, ...]
    _cuts: bool = PrivateAttr()
    _mixer: Mix | None = PrivateAttr()

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
        return tuple(steps)

    @field_serializer("steps")
    def _as_list(self, steps: tuple[Step, ...]) -> list[Any]:
        return list(steps)

    def model_post_init(self, context: Any) -> None:  # noqa: ARG002
        """Note once which steps cut and mix; asking a protocol takes as long as rendering a small picture."""
        self._cuts = bool(self.steps) and isinstance(self.steps[0], Geometry)
        last = self.steps[-1] if self.steps else None
        self._mixer = last if isinstance(last, Mix) else None

    def draw(self, seed: int, hashes: ArrayLike, views: ArrayLike) -> Views:
        """One view for each image key hash (uint64) and view number (int64), which broadcast to one axis (n,).

        Raises:
            ConfigError: the seed or a view number is negative, or the seed does not fit into 64 bits.
        """
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

    def boxes(self, views: Views, height: int, width: int) -> NDArray[np.int64]:
        """Top, left, height and width of the source box of each view, in pixels of an image of that size: (n, 4).

        A box may reach beyond the image where the recipe pads.
        """
        geometry, drawn, _ = self._parted(views)
        return geometry.boxes(drawn, height, width)

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
        pairs: list[Any] = list(zip(self.steps, views.draws, strict=True))
        geometry, draws = pairs.pop(0) if self._cuts else (_CLEAN, np.empty(len(views), dtype=[]))
        return geometry, draws, pairs[:-1] if self.mixes else pairs


class Recipes:
    """The table of recipes by short name, and what turns any description into a `Recipe`.

    A short name is made of words joined by hyphens, each a step: ``crop-flip-randaugment-erase``.
    """

    def __init__(self, steps: Table[Step], words: Mapping[str, str], usual: Sequence[str]) -> None:
        self._steps = steps
        self._words = dict(words)
        self.names = tuple(sorted(usual))
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
            value = self._expand(value)
        if isinstance(value, (list, tuple)):
            value = {"steps": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("steps"), (list, tuple)):
            raise ConfigError(f"a recipe is a short name such as 'crop-flip' or a list of steps, not {value!r}")
        if value.get("version", 1) != 1:
            raise ConfigError(f"recipe version {value['version']!r} is unknown here; a newer softlabels may read it")
        steps = tuple(self._steps.make(step) for step in value["steps"])
        return validated(Recipe, {**value, "steps": steps}, "recipe")

    def _expand(self, name: str) -> list[str]:
        words = name.split("-")
        for word in words:
            if word not in self._words:
                near = {*self.names, *(name.replace(word, other) for other in self._words)}
                words_known = ", ".join(self._words)
                raise ConfigError(f"unknown recipe {name!r}; {did_you_mean(name, near)} (words: {words_known})")
        return [self._words[word] for word in words]


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
