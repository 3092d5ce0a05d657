"""Views: numbered random variations of an image, drawn without a resolution and rendered at any size.

A recipe is a list of steps. `Recipe.draw` says what is done to an image in its view number v, as a pure function of
(recipe, seed, image key, v): never of order, batch, worker or library version. `Recipe.render` makes the picture of a
view at the size that a model wants; a teacher and a student of different sizes see the same crop.

A new step is one file with a `Part` that keeps the protocol `Step` and one of `Geometry` (images to pictures), `Change`
(pictures to pictures) and `Mix` (two pictures to one), one line in `STEPS`, and one example in its test. A geometry
that only resizes boxes is a `Crop`, for which no more of an image is decoded than the boxes.
"""

from softlabels.config import Table
from softlabels.views._autoaugment import AutoAugment
from softlabels.views._colour_jitter import ColourJitter
from softlabels.views._cutmix import CutMix
from softlabels.views._gaussian_blur import GaussianBlur
from softlabels.views._grayscale import Grayscale
from softlabels.views._horizontal_flip import HorizontalFlip
from softlabels.views._mixup import MixUp
from softlabels.views._mixup_or_cutmix import MixUpOrCutMix
from softlabels.views._operations import NAMES as OPERATION_NAMES
from softlabels.views._pad_and_crop import PadAndCrop
from softlabels.views._pixels import blank
from softlabels.views._randaugment import RandAugment
from softlabels.views._random_erasing import RandomErasing
from softlabels.views._random_resized_crop import RandomResizedCrop
from softlabels.views._recipe import Change, Crop, Geometry, Mix, Recipe, Recipes, Step
from softlabels.views._recorded import (
    ForeignView,
    Recorded,
    RecordedCrop,
    RecordedErasing,
    RecordedFlip,
    RecordedMix,
    RecordedOperations,
)
from softlabels.views._resize_centre_crop import ResizeCentreCrop
from softlabels.views._solarize import Solarize
from softlabels.views._trivialaugment import TrivialAugmentWide
from softlabels.views._vertical_flip import VerticalFlip
from softlabels.views._views import INTERPOLATIONS, Frame, View, Views

__all__ = [
    "INTERPOLATIONS",
    "OPERATION_NAMES",
    "RECIPES",
    "RECORDED",
    "STEPS",
    "Change",
    "Crop",
    "ForeignView",
    "Frame",
    "Geometry",
    "Mix",
    "Recipe",
    "Recipes",
    "Recorded",
    "Step",
    "View",
    "Views",
    "blank",
]

STEPS: Table[Step] = Table(
    "step",
    "views",
    (
        ResizeCentreCrop,
        RandomResizedCrop,
        PadAndCrop,
        HorizontalFlip,
        VerticalFlip,
        ColourJitter,
        Grayscale,
        GaussianBlur,
        Solarize,
        RandAugment,
        TrivialAugmentWide,
        AutoAugment,
        RandomErasing,
        MixUp,
        CutMix,
        MixUpOrCutMix,
    ),
)
"""Every step that is drawn, by its kind."""

RECORDED: Table[Step] = Table(
    "recorded step",
    "recorded_views",
    (RecordedCrop, RecordedFlip, RecordedOperations, RecordedErasing, RecordedMix, ForeignView),
)
"""Every step whose draws come with labels of other projects, by its kind."""

RECIPES = Recipes(
    STEPS,
    words={
        "clean": "resize-centre-crop",
        "crop": "random-resized-crop",
        "pad": "pad-and-crop",
        "flip": "horizontal-flip",
        "vflip": "vertical-flip",
        "jitter": "colour-jitter",
        "grayscale": "grayscale",
        "blur": "gaussian-blur",
        "solarize": "solarize",
        "randaugment": "randaugment",
        "trivialaugment": "trivialaugment",
        "autoaugment": "autoaugment:imagenet",
        "cifaraugment": "autoaugment:cifar10",
        "erase": "random-erasing",
        "mixup": "mixup",
        "cutmix": "cutmix",
        "mix": "mixup-or-cutmix",
    },
    usual=(
        "clean",
        "crop",
        "crop-flip",
        "crop-flip-autoaugment",
        "crop-flip-cutmix",
        "crop-flip-erase",
        "crop-flip-jitter",
        "crop-flip-mix",
        "crop-flip-mixup",
        "crop-flip-randaugment",
        "crop-flip-randaugment-erase",
        "crop-flip-trivialaugment",
        "pad",
        "pad-flip",
        "pad-flip-cifaraugment",
        "pad-flip-cutmix",
        "pad-flip-erase",
        "pad-flip-mix",
        "pad-flip-mixup",
        "pad-flip-randaugment",
    ),
    recorded=RECORDED,
)
"""Recipes by short name: any words in a sensible order, of which the usual ones are listed."""
