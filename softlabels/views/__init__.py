"""Views: numbered random variations of an image, drawn without a resolution and rendered at any size.

A recipe is a list of steps. `Recipe.make_params` gives the parameters of view number v of an image, as a pure function
of (recipe, seed, image key, v): never of order, batch, worker or library version. `Recipe.render` makes the view at the
size that a model wants; a teacher and a student of different sizes see the same crop.

A new step is a class in its family's file, a `Part` that keeps the protocol `Step` and one of `Crop` (a box of the
image), `CropAndResize` (images to views by itself), `Transform` (views to views) and `Mix` (two views to one), one line
in `STEPS`, and one example in its test.
"""

from softlabels.choices import RECIPE_NAMES, RECORDED, STEPS
from softlabels.views._auto_augment import NAMES as OPERATION_NAMES
from softlabels.views._params import INTERPOLATIONS, ImageSpec, ViewParams
from softlabels.views._pixels import blank
from softlabels.views._recipe import (
    Crop,
    CropAndResize,
    DrawnParams,
    Mix,
    ParamSource,
    Recipe,
    Recipes,
    Recorded,
    Records,
    RecordSpec,
    Step,
    Transform,
)
from softlabels.views._recorded import RecordedCrop, RecordedMix, foreign_view
from softlabels.views._seeded_mix import SeededMix

__all__ = [
    "INTERPOLATIONS",
    "OPERATION_NAMES",
    "RECIPES",
    "RECORDED",
    "STEPS",
    "Crop",
    "CropAndResize",
    "DrawnParams",
    "ImageSpec",
    "Mix",
    "ParamSource",
    "Recipe",
    "Recipes",
    "RecordSpec",
    "Recorded",
    "RecordedCrop",
    "RecordedMix",
    "Records",
    "SeededMix",
    "Step",
    "Transform",
    "ViewParams",
    "blank",
    "foreign_view",
]

RECIPES = Recipes(STEPS, RECORDED, RECIPE_NAMES)
"""Recipes by short name, and what turns any description into a recipe."""
