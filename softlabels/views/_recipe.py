"""Recipes: a list of random steps, of which a view is one draw."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_serializer, field_validator
from torch import Tensor

from softlabels.choices import RecipeNames, steps_in_words
from softlabels.core.arrays import Rows
from softlabels.core.config import Table, validated
from softlabels.core.philox import Words, hash_keys, philox
from softlabels.errors import ConfigError, DataError
from softlabels.views._crops import ResizeCentreCrop
from softlabels.views._params import Boxes, ImageSpec, Lengths, Params, ViewParams
from softlabels.views._pixels import resize_boxes

Records = Mapping[str, NDArray[Any]]
"""What is recorded of n views, (n, ...) each, by name."""
RecordSpec = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each array that is recorded of one view, by name."""

_CLEAN = ResizeCentreCrop()
_ROWS_AT_ONCE = 4096
"""So many views' words fit into a processor's cache together; more at once take over twice as long per view."""


class Step(Protocol):
    """A random step of a recipe. It receives its random words and never asks for others."""

    @property
    def kind(self) -> str:
        """Its name in `STEPS`."""

    @property
    def blocks(self) -> int:
        """How many blocks of four Philox words its parameters take."""

    def make_params(self, words: Words) -> Params:
        """Parameters of n views from words (n, 4 * blocks) uint64: a structured array (n,), without any resolution."""


@runtime_checkable
class Crop(Step, Protocol):
    """A step that cuts a box out of the image, which is then resized to what a model sees."""

    def boxes(self, params: Params, height: Lengths, width: Lengths) -> Boxes:
        """The box of each view in pixels of an image of that size, or (n,) sizes, and inside of it: (n, 4)."""


@runtime_checkable
class CropAndResize(Step, Protocol):
    """A step that crops and resizes by itself: it pads first, or resizes before it crops."""

    def boxes(self, params: Params, height: int, width: int) -> Boxes:
        """The part of the image that each view reads; padding lies outside of it: (n, 4)."""

    def crop(self, images: Tensor, params: Params, spec: ImageSpec) -> Tensor:
        """uint8 (n, 3, H, W) as uint8 (n, 3, size, size) in memory of their own."""


@runtime_checkable
class Transform(Step, Protocol):
    """A step that changes images and keeps their size."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, size, size), changed, each by its own parameters alone; `images` may be written over."""


@runtime_checkable
class Mix(Step, Protocol):
    """A step that mixes the view of an image with that of a partner image of the same view number."""

    def partners(self, params: Params, pool: int | Rows) -> Rows:
        """Which of `pool` images (one number, or one for each view) each view is mixed with: (n,), -1 for none."""

    def shares(self, params: Params, size: int) -> NDArray[np.float64]:
        """How much of each view of `size` is the image's own, 1 where it is not mixed: (n,)."""

    def mix(self, images: Tensor, partners: Tensor, params: Params) -> Tensor:
        """uint8 (n, 3, size, size) of both to new uint8 (n, 3, size, size)."""


@runtime_checkable
class Recorded(Step, Protocol):
    """A step whose parameters cannot be drawn: they are recorded with the labels of the views."""

    @property
    def records(self) -> RecordSpec:
        """What is recorded of each view."""

    def replay(self, records: Records) -> Params:
        """The parameters of n views, from what is recorded of them."""

    def check_renderable(self) -> None:
        """Raises ConfigError where only another project can render such views."""


class Recipe(BaseModel):
    """The steps in order, and the version of the arithmetic that turns random words into parameters.

    A view is a pure function of (recipe, seed, image key, view number). Its random words are Philox4x64-10 with
    key (hash of the image key, seed) and counter (block, view number, stream of the step, version); the stream is the
    hash of ``kind/occurrence``, so steps added or taken away leave the parameters of the others as they are. When the
    arithmetic changes, it gets a new version number, and the old one stays.

    The first step may be a crop; without one, images are cropped as for the clean view. The last may be a mix; then a
    view is `mix` of what `render` makes of the image and of its partner in the same view number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    version: Literal[1] = 1
    steps: tuple[Step, ...]
    # Kept, since asking a protocol takes as long as rendering a small image.
    _crop: Crop | CropAndResize | None = PrivateAttr()
    _boxes_only: bool = PrivateAttr()
    _transforms: slice = PrivateAttr()
    _mix: Mix | None = PrivateAttr()

    @field_validator("steps", mode="plain")
    @classmethod
    def _in_order(cls, steps: Sequence[Step]) -> tuple[Step, ...]:
        for place, step in enumerate(steps):
            if not isinstance(step, (Crop, Transform, Mix)):
                raise ConfigError(f"step {place} of the recipe is no step: {step!r}; make recipes with RECIPES.make")
            if isinstance(step, Crop) and place > 0:
                raise ConfigError(f"{step.kind!r} crops, which only the first step can, but it is step {place + 1}")
            if isinstance(step, Mix) and place < len(steps) - 1:
                raise ConfigError(
                    f"{step.kind!r} mixes images, which only the last step can, but it is step {place + 1}"
                )
        names = [name for step in steps if isinstance(step, Recorded) for name in step.records]
        if len(set(names)) < len(names):
            raise ConfigError(f"two recorded steps of the recipe have one name for what they record: {sorted(names)}")
        return tuple(steps)

    @field_serializer("steps")
    def _as_list(self, steps: tuple[Step, ...]) -> list[Any]:
        return list(steps)

    def model_post_init(self, context: Any) -> None:  # noqa: ARG002
        """Note once which steps crop, transform and mix."""
        first, last = (self.steps[0], self.steps[-1]) if self.steps else (None, None)
        self._crop = first if isinstance(first, Crop) else None
        self._mix = last if isinstance(last, Mix) else None
        self._boxes_only = self._crop is not None and not isinstance(self._crop, CropAndResize)
        self._transforms = slice(int(self._crop is not None), len(self.steps) - int(self._mix is not None))

    # ---- parameters

    def make_params(self, seed: int, hashes: ArrayLike, views: ArrayLike) -> ViewParams:
        """One view for each image key hash (uint64) and view number (int64), which broadcast to one axis (n,).

        Raises:
            ConfigError: the seed or a view number is negative, the seed does not fit into 64 bits, or a step is
                recorded.
        """
        keys, numbers = np.broadcast_arrays(
            np.atleast_1d(np.asarray(hashes, np.uint64)), np.atleast_1d(np.asarray(views, np.int64))
        )
        if not 0 <= seed < 1 << 64:
            raise ConfigError(f"a seed is a whole number from 0 to 2**64 - 1, not {seed}")
        if (numbers < 0).any():
            raise ConfigError(f"view numbers begin at 0; got {numbers.min()}")
        parts = [
            self._chunk(seed, keys[at : at + _ROWS_AT_ONCE], numbers[at : at + _ROWS_AT_ONCE])
            for at in range(0, max(len(keys), 1), _ROWS_AT_ONCE)
        ]
        by_step = parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        return ViewParams(numbers.copy(), tuple(by_step))

    def _chunk(self, seed: int, keys: Words, numbers: Rows) -> list[Params]:
        sizes = [step.blocks for step in self.steps]
        streams = _streams(tuple(step.kind for step in self.steps))
        blocks = np.concatenate([np.arange(size, dtype=np.uint64) for size in (*sizes, 0)])
        counter = (blocks, numbers.astype(np.uint64)[:, None], np.repeat(streams, sizes), self.version)
        words = philox((keys[:, None], np.uint64(seed)), counter).reshape(len(keys), 4 * len(blocks))
        ends = 4 * np.cumsum(sizes, dtype=np.int64)
        return [
            step.make_params(words[:, end - 4 * size : end])
            for step, size, end in zip(self.steps, sizes, ends, strict=True)
        ]

    # ---- rendering

    @property
    def clean(self) -> bool:
        """Whether images are cropped as those on which networks are evaluated, and not at random."""
        return self._crop is None or isinstance(self._crop, ResizeCentreCrop)

    def boxes(self, params: ViewParams, height: Lengths, width: Lengths) -> Boxes:
        """The box of each view, in pixels of an image of that size: (n, 4).

        A box may reach beyond the image where the recipe pads. Where it `crops`, each view may have a size of its own.
        """
        crop, own = self._cropping(params)
        return crop.boxes(own, height, width)  # type: ignore[arg-type]

    def render(self, image: Tensor, params: ViewParams, spec: ImageSpec) -> Tensor:
        """The view of one image with the parameters (1,): uint8 (3, H, W) on the CPU to uint8 (3, size, size).

        Raises:
            DataError: the image is not uint8 of that shape.
        """
        return self.render_batch(image[None], params, spec)[0]

    def render_batch(self, images: Tensor, params: ViewParams, spec: ImageSpec) -> Tensor:
        """uint8 (n, 3, H, W) and n views to uint8 (n, 3, size, size); row by row the same bytes as `render`.

        Raises:
            DataError: the images are not uint8 of that shape, or not as many as the views.
        """
        _check(images, params)
        crop, own = self._cropping(params)
        if self._boxes_only:
            boxes = crop.boxes(own, *images.shape[-2:])
            return self._transformed(resize_boxes(images, boxes, spec.size, spec.interpolation), params)
        return self._transformed(crop.crop(images, own, spec), params)  # type: ignore[union-attr]

    @property
    def crops(self) -> bool:
        """Whether views show nothing but their `boxes`, resized; see `render_boxes`."""
        return self._boxes_only

    def render_boxes(
        self, image: Tensor, boxes: Boxes, params: ViewParams, spec: ImageSpec, out: Tensor | None = None
    ) -> Tensor:
        """What `render_batch` makes of n views of one image, uint8 (3, H, W), whose boxes (n, 4) are known already.

        Only for recipes that crop. Memory for the views, uint8 (n, 3, size, size), may be given as `out`.
        """
        if not self._boxes_only:
            raise DataError("this recipe reads more of an image than boxes; render its views with render_batch")
        many = image.expand(len(boxes), *image.shape)
        images = self._transformed(resize_boxes(many, boxes, spec.size, spec.interpolation, out), params)
        return images if out is None or images is out else out.copy_(images)

    def _cropping(self, params: ViewParams) -> tuple[Crop | CropAndResize, Params]:
        """The crop and its parameters."""
        return (self._crop, params.by_step[0]) if self._crop else (_CLEAN, np.empty(len(params), dtype=[]))

    def _transformed(self, images: Tensor, params: ViewParams) -> Tensor:
        for step, each in zip(self.steps[self._transforms], params.by_step[self._transforms], strict=True):
            made = step.apply(images, each)  # type: ignore[attr-defined]
            if not isinstance(made, Tensor) or made.dtype != images.dtype or made.shape != images.shape:
                found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise DataError(f"step {step.kind!r} made {found} of images uint8 {tuple(images.shape)}")
            images = made
        return images

    # ---- mixing

    @property
    def mixes(self) -> bool:
        """Whether views are mixed with those of partners, see `partners` and `mix`."""
        return self._mix is not None

    def partners(self, params: ViewParams, pool: int | Rows) -> Rows:
        """Which of `pool` images (one number, or one for each view) each view is mixed with: (n,), -1 for none.

        The pool is part of what is drawn, so its count and order must be recorded with the labels. An image can be its
        own partner.
        """
        return np.full(len(params), -1) if self._mix is None else self._mix.partners(params.by_step[-1], pool)

    def mix(self, images: Tensor, partners: Tensor, params: ViewParams) -> Tensor:
        """The mixed views: uint8 (n, 3, S, S) from what `render_batch` made of images and partners.

        The partner of a view is rendered with its own parameters of the same view number. Its row is read only where
        the view is mixed.
        """
        return images if self._mix is None else self._mix.mix(images, partners, params.by_step[-1])

    def shares(self, params: ViewParams, size: int) -> NDArray[np.float64]:
        """How much of each view of `size` is the image's own, not its partner's; it weighs class labels: (n,)."""
        return np.ones(len(params)) if self._mix is None else self._mix.shares(params.by_step[-1], size)


class Recipes:
    """The table of recipes by short name, and what turns any description into a `Recipe`.

    A short name is made of words joined by hyphens, each a step: ``crop-flip-randaugment-erase``.
    """

    def __init__(self, steps: Table[Step], recorded: Table[Step], short: RecipeNames) -> None:
        self._steps, self._recorded, self._short = steps, recorded, short
        self.names = tuple(sorted({*short.usual, *short.presets}))
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

    def spelled(self, recipe: Recipe) -> str:
        """A recipe as a person writes it: its short name where it has one, else its steps with all settings."""
        words = {word: self._step(step) for word, step in self._short.words.items()}
        names = [next((word for word, each in words.items() if each == step), "") for step in recipe.steps]
        if names and all(names):
            return "-".join(names)
        known = (name for name in self._short.presets if self.make(name) == recipe)
        return next(known, None) or steps_in_words(recipe.model_dump(mode="json"))

    def _step(self, step: Any) -> Step:
        kind = step.get("kind") if isinstance(step, Mapping) else getattr(step, "kind", str(step).partition(":")[0])
        return (self._recorded if kind in self._recorded.names else self._steps).make(step)


@functools.lru_cache(maxsize=256)
def _streams(kinds: tuple[str, ...]) -> Words:
    """A number for each step, of its kind and of how often that came before: uint64 (steps,)."""
    return hash_keys(f"{kind}/{kinds[:position].count(kind)}" for position, kind in enumerate(kinds))


def _check(images: Tensor, params: ViewParams) -> None:
    if str(images.dtype) != "torch.uint8" or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(
            f"images to render are uint8 of shape (3, H, W), or (n, 3, H, W) as a batch; got {images.dtype} of shape "
            f"{tuple(images.shape)}; convert them first"
        )
    if len(images) != len(params):
        raise DataError(f"{len(images)} images but {len(params)} views; give one view for each image")
