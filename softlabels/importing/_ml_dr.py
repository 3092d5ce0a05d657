"""Dataset reinforcement (Faghri et al., "Reinforce data, multiply impact", 2023), apple/ml-dr: a file for each image.

``<I>.pth.tar``, written by ``torch.save`` (read of apple/ml-dr at a21113c), holds ``(I, [{params, prob}, ...])`` of
image I of the data set, with one entry per view: `prob` are K probabilities at temperature 1 and their classes, in no
order; `params` say what was done to the image and to a partner, in the order of ``config.pth.tar``:

    random_resized_crop     top, left, height, width in pixels of the image
    random_horizontal_flip  whether
    rand_augment            None, or operations and strengths as torchvision has them
    random_erase            None, or top, left, height, width of what becomes black, in pixels of the image
    mixup                   None, or the image's own share
    cutmix                  None, or a share and top, left, bottom, right of what becomes the partner's

They are a mapping whose values are pairs, of the image and of the partner (``id2``); or, with ``compress``, a list of
the values alone: first ``id2`` where views can be mixed, pairs only where it is there, operations by number. Mixup
comes before cutmix, both with one partner.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from softlabels.core.arrays import Rows
from softlabels.core.pickles import read_torch_file
from softlabels.datasets import Images
from softlabels.errors import ConfigError, DataError
from softlabels.importing._source import Choices, ImageLabels, checked_labels
from softlabels.views import OPERATION_NAMES, RECIPES

_ORDER = (
    "uint8",
    "resize",
    "center_crop",
    "random_crop",
    "random_resized_crop",
    "random_horizontal_flip",
    "rand_augment",
    "to_tensor",
    "random_erase",
    "normalize",
    "mixup",
    "cutmix",
)
_SILENT = frozenset({"uint8", "center_crop", "to_tensor", "normalize"})
"""What has no parameters."""
_OTHERS = frozenset({"resize", "center_crop", "random_crop"})
"""What is not replayed here."""
_OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_OURS = {name: place for place, name in enumerate(OPERATION_NAMES)}
_NAMED_OTHERWISE = {
    "ShearX": "shear-x",
    "ShearY": "shear-y",
    "TranslateX": "translate-x",
    "TranslateY": "translate-y",
    "Color": "colour",
}
_PLACES = {name: _OURS[_NAMED_OTHERWISE.get(name, name.lower())] for name in _OPERATIONS}
"""What we call them, by their place."""

_NO_JOBLIB = "write the labels with `joblib: false`"


class MlDr:
    """Dataset reinforcement: crops, changes, mixtures and probabilities, in a file for each image.

    The label files in `folder`, for the images of a data set in the order of the files' numbers.
    """

    settings: ClassVar[frozenset[str]] = frozenset({"temperature", "tail", "values"})
    project = "ml-dr"
    views_at_once: int | None = None
    notes: Sequence[str] = ()
    unpaired = 0
    interpolation: str | None = "bilinear"

    def __init__(self, folder: Path, images: Images, choices: Choices) -> None:
        self._folder, self._choices, self._images = _found(folder), choices, len(images)
        self._plan = _Plan.read(self._folder / "config.pth.tar", pictures=choices.pictures)
        numbers = np.fromiter(_numbers(self._folder), np.int64)
        held = np.zeros(len(images), bool)
        held[numbers[numbers < len(images)]] = True
        self.missing = np.flatnonzero(~held)
        self.surplus = int((numbers >= len(images)).sum())
        if not held.any():
            raise DataError(f"{self._folder} holds no 0.pth.tar to {len(images) - 1}.pth.tar")
        first = self._read(int(np.flatnonzero(held)[0]))
        self.views = len(first)
        self.codec = choices.codec(len(self._probabilities(first[0])[0]), np.dtype(np.float32))
        self.recipe = RECIPES.make(
            self._plan.steps() if choices.pictures else [{"kind": "foreign-view", "of": "ml-dr"}]
        )
        self.size = self._plan.size

    @staticmethod
    def by_place(folder: Path) -> bool:  # noqa: ARG004
        """See `Source.by_place`."""
        return True

    def ready(self, rows: Rows, views: Rows) -> None:
        """See `Source.ready`. Each image has a file of its own."""

    def labels(self, row: int, views: Sequence[int] | NDArray[np.integer[Any]]) -> ImageLabels:
        """See `Source.labels`."""
        file, entries = self._file(row), self._read(row)
        if len(entries) <= max(views, default=-1):
            raise DataError(f"{file} holds {len(entries)} views, other files {self.views}; choose fewer `views`")
        chosen = [entries[int(view)] for view in views]
        said = [self._probabilities(entry) for entry in chosen]
        k = self.codec.k
        if any(len(values) != k or len(ids) != k for values, ids in said):
            raise DataError(f"{file} does not hold {k} classes of each label, as other files do")
        ids, kept = (np.array([each[side] for each in said], np.float64) for side in (1, 0))
        known, values = checked_labels(ids, kept, self._choices.classes, file)
        if not self._choices.pictures:
            return ImageLabels(known, values)
        taken = _Taken.room(len(chosen), self._plan, row)
        for place, entry in enumerate(chosen):
            try:
                taken.enter(place, entry["params"])
            except (TypeError, ValueError, LookupError, OverflowError, ArithmeticError) as problem:
                raise DataError(
                    f"{file}: the parameters of view {int(views[place])} are not as config.pth.tar says "
                    f"({type(problem).__name__}: {problem}); is it that of another run?"
                ) from problem
        if taken.partner.max(initial=0) >= self._images:
            raise DataError(f"{file} names image {taken.partner.max()} as a partner, of {self._images:,}; see `data`")
        return ImageLabels(known, values, taken.records(), taken.mixed)

    def _file(self, row: int) -> Path:
        return self._folder / f"{row}.pth.tar"

    def _read(self, row: int) -> list[Any]:
        file = self._file(row)
        content = read_torch_file(file, _NO_JOBLIB)
        whole = isinstance(content, tuple) and len(content) == 2 and isinstance(content[1], list) and content[1]
        if not whole or not all(isinstance(each, dict) and {"params", "prob"} <= each.keys() for each in content[1]):
            raise DataError(f"{file} is no label of ml-dr: it should hold a number and a list of params and prob")
        if content[0] != row:
            raise DataError(f"{file} says it is of image {content[0]!r}; files were renamed or mixed up")
        views: list[Any] = content[1]
        return views

    def _probabilities(self, entry: Mapping[str, Any]) -> tuple[list[float], list[int]]:
        said = entry["prob"]
        if not isinstance(said, list | tuple) or len(said) != 2 or not all(isinstance(each, list) for each in said):
            raise DataError(f"{self._folder} holds labels that are not K probabilities and classes; these are not read")
        return said[0], said[1]


@dataclass(frozen=True)
class _Plan:
    """What ``config.pth.tar`` says was done, in order."""

    names: tuple[str, ...]
    size: int | None
    operations: int

    @property
    def mixes(self) -> bool:
        return "mixup" in self.names or "cutmix" in self.names

    @staticmethod
    def read(file: Path, *, pictures: bool) -> _Plan:
        if not file.is_file():
            raise DataError(f"{file} is missing; it says what the files' parameters mean")
        content = read_torch_file(file, _NO_JOBLIB)
        try:
            said = content["reinforce"]["image_augmentation"]
            chosen = {name: dict(said[name]) for name in _ORDER if name in said and said[name].get("enable", True)}
        except (TypeError, LookupError, AttributeError, ValueError) as problem:
            raise DataError(f"{file} does not say how images were made; is it of ml-dr?") from problem
        if not pictures:
            return _Plan(tuple(chosen), None, 0)
        _refuse(file, chosen)
        size = chosen["random_resized_crop"].get("size")
        sides = set(size) if isinstance(size, list | tuple) else {size}
        if len(sides) != 1 or type(side := sides.pop()) is not int or not 0 < side < 1 << 15:
            raise _unable(file, f"crops of {size!r}, which are no squares")
        operations = chosen.get("rand_augment", {}).get("num_ops", 2)
        if type(operations) is not int or not 0 < operations <= 8:
            raise _unable(file, f"rand_augment of {operations!r} operations")
        return _Plan(tuple(chosen), side, operations)

    def steps(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = [{"kind": "recorded-crop", "unit": "pixels"}]
        if "random_horizontal_flip" in self.names:
            made.append({"kind": "recorded-flip"})
        if "rand_augment" in self.names:
            made.append({"kind": "recorded-operations", "n": self.operations})
        if "random_erase" in self.names:
            made.append({"kind": "recorded-erasing", "size": self.size})
        return [*made, {"kind": "recorded-mix", "size": self.size}] if self.mixes else made


def _refuse(file: Path, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what is not replayed exactly, by name."""
    others = sorted(_OTHERS & chosen.keys())
    if others:
        raise _unable(file, " and ".join(others))
    if "random_resized_crop" not in chosen:
        raise _unable(file, "whole images, without random_resized_crop")
    for name in ("interpolation", "fill"):
        if chosen.get("rand_augment", {}).get(name) is not None:
            raise _unable(file, f"rand_augment with {name} {chosen['rand_augment'][name]!r}")


def _unable(file: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{file} tells of {what}, of which images are not made here; import the labels alone with `labels_only=True`"
    )


@dataclass
class _Side:
    """What was done to the image, or to its partner, in n views."""

    box: NDArray[np.int32]
    flip: NDArray[np.bool_]
    operation: NDArray[np.int8]
    strength: NDArray[np.float32]
    erased: NDArray[np.int16]

    @staticmethod
    def room(count: int, operations: int) -> _Side:
        return _Side(
            np.zeros((count, 4), np.int32),
            np.zeros(count, np.bool_),
            np.zeros((count, operations), np.int8),
            np.zeros((count, operations), np.float32),
            np.zeros((count, 4), np.int16),
        )


@dataclass
class _Taken:
    """The parameters of n views of an image as our steps record them."""

    plan: _Plan
    sides: tuple[_Side, _Side]
    partner: NDArray[np.uint32]
    blend: NDArray[np.float32]
    cut: NDArray[np.int16]
    mixed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @staticmethod
    def room(count: int, plan: _Plan, row: int) -> _Taken:
        return _Taken(
            plan,
            (_Side.room(count, plan.operations), _Side.room(count, plan.operations)),
            np.full(count, row, np.uint32),
            np.ones(count, np.float32),
            np.zeros((count, 4), np.int16),
            np.zeros(count, np.bool_),
        )

    def enter(self, place: int, params: Any) -> None:
        """Enter the parameters of one view. Raises the likes of ValueError for those that are none."""
        given = params if isinstance(params, dict) else _spread(params, self.plan)
        for name in self.plan.names:
            if name in _SILENT or name in ("mixup", "cutmix"):
                continue
            for side, value in zip(self.sides, given[name], strict=False):
                if value is not None:
                    self._change(side, place, name, value)
        share, cut = given.get("mixup"), given.get("cutmix")
        if share is not None:
            self.blend[place] = _between(share, 0, 1)
        if cut is not None:
            self.cut[place] = [_whole(edge, 0, self.plan.size or 0) for edge in cut[1]]
        self.mixed[place] = share is not None or cut is not None
        if self.mixed[place]:
            self.partner[place] = _whole(given["id2"], 0, (1 << 32) - 1)

    def _change(self, side: _Side, place: int, name: str, value: Any) -> None:
        if name == "random_resized_crop":
            side.box[place] = [_whole(each, 0, (1 << 31) - 1) for each in _four(value)]
        elif name == "random_horizontal_flip":
            side.flip[place] = bool(value)
        elif name == "rand_augment":
            if len(value) != self.plan.operations:
                raise ValueError(f"{len(value)} operations instead of {self.plan.operations}")
            for turn, (operation, strength) in enumerate(value):
                called = operation if isinstance(operation, str) else _OPERATIONS[_whole(operation, 0, 13)]
                side.operation[place, turn] = _PLACES[called]
                side.strength[place, turn] = _strength(called, float(strength), self.plan.size or 1)
        elif name == "random_erase":
            side.erased[place] = [_whole(each, 0, self.plan.size or 0) for each in _four(value)]

    def records(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names of the recipe's records, and the share that `MIX_LAYOUT` wants."""
        fields = {"box": True, "flip": "random_horizontal_flip" in self.plan.names}
        fields |= dict.fromkeys(("operation", "strength"), "rand_augment" in self.plan.names)
        fields |= {"erased": "random_erase" in self.plan.names}
        wanted = [name for name, there in fields.items() if there]
        made = {f"view_{name}": getattr(self.sides[0], name) for name in wanted}
        if not self.plan.mixes:
            return made
        made |= {f"other_{name}": getattr(self.sides[1], name) for name in wanted}
        return made | {"mix_partner": self.partner, "mix_blend": self.blend, "mix_cut": self.cut}


def _spread(params: Sequence[Any], plan: _Plan) -> dict[str, Any]:
    """The list of a compressed file as the mapping that it was made of."""
    values, given = iter(params), dict[str, Any]()
    partner = next(values) if plan.mixes else None
    if partner is not None:
        given["id2"] = partner
    loud = [name for name in plan.names if name not in _SILENT]
    for name, value in zip(loud, values, strict=True):
        if name == "mixup":
            given[name] = value
        elif name == "cutmix":
            given[name] = None if value is None else (value[0], value[1:])
        else:
            given[name] = value if partner is not None else (value,)
    return given


def _strength(operation: str, told: float, size: int) -> float:
    """A strength of torchvision's, at images of `size`, as our operations take it."""
    if not math.isfinite(told):
        raise ValueError(f"strength {told}")
    if operation.startswith("Translate"):
        return told / size
    if operation == "Solarize":
        # What inverts whole levels from `told` on; half a level lower, no rounding can move it.
        return (math.ceil(told) - 0.5) / 255
    return told


def _four(value: Sequence[Any]) -> Sequence[Any]:
    if len(value) != 4:
        raise ValueError(f"{len(value)} numbers instead of 4")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
    return value


def _between(value: Any, least: float, most: float) -> float:
    if not isinstance(value, float | int) or not least <= value <= most:
        raise ValueError(f"{value!r} is not a number from {least} to {most}")
    return float(value)


def _found(folder: Path) -> Path:
    for candidate in (folder, folder / "reinforced_data"):
        if (candidate / "config.pth.tar").is_file():
            return candidate
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    raise DataError(f"{folder} holds no config.pth.tar; give the folder that reinforce.py wrote")


def _numbers(folder: Path) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            number, _, ending = entry.name.partition(".")
            if ending == "jb":
                raise DataError(
                    f"{folder / entry.name} was written by joblib, whose pickles are not read; {_NO_JOBLIB}"
                )
            if ending == "pth.tar" and number.isdigit() and len(number) < 12:
                yield int(number)
