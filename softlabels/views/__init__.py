"""Views: numbered random variations of an image, drawn without a resolution and rendered at any size.

A recipe is a list of steps. `Recipe.make_params` gives the parameters of view number v of an image, as a pure function
of (recipe, seed, image key, v): never of order, batch, worker or library version. `Recipe.render` makes the view at the
size that a model wants; a teacher and a student of different sizes see the same crop.

A new step is a class in its family's file, a `Part` that keeps the protocol `Step` and one of `Crop` (a box of the
image), `CropAndResize` (images to views by itself), `Transform` (views to views) and `Mix` (two views to one), one line
in `STEPS`, and one example in its test.

Where the parameters of views come from, drawn or replayed, is known to their `ParamSource` alone. The steps that are
replayed are not here: `softlabels.importing.replayed` has them, and `RECORDED` names them.
"""

from softlabels.choices import RECIPE_NAMES, RECORDED, STEPS
from softlabels.core.config import Part
from softlabels.views._auto_augment import NAMES as OPERATION_NAMES
from softlabels.views._auto_augment import Operations
from softlabels.views._mix import area_outside, blend
from softlabels.views._params import (
    INTERPOLATIONS,
    Boxes,
    Colour,
    ImageSpec,
    Lengths,
    Params,
    Probability,
    ViewParams,
    as_params,
    rgb,
)
from softlabels.views._pixels import apply_where, blank, erase, paste
from softlabels.views._recipe import (
    Crop,
    CropAndResize,
    Mix,
    Recipe,
    Recipes,
    Recorded,
    Records,
    RecordSpec,
    Step,
    Transform,
)
from softlabels.views._sources import ParamSource, Taker, param_source, record_spec, recorded_steps

__all__ = [
    "INTERPOLATIONS",
    "OPERATION_NAMES",
    "RECIPES",
    "RECORDED",
    "STEPS",
    "Boxes",
    "Colour",
    "Crop",
    "CropAndResize",
    "ImageSpec",
    "Lengths",
    "Mix",
    "Operations",
    "ParamSource",
    "Params",
    "Part",
    "Probability",
    "Recipe",
    "Recipes",
    "RecordSpec",
    "Recorded",
    "Records",
    "Step",
    "Taker",
    "Transform",
    "ViewParams",
    "apply_where",
    "area_outside",
    "as_params",
    "blank",
    "blend",
    "erase",
    "param_source",
    "paste",
    "record_spec",
    "recorded_steps",
    "rgb",
]

RECIPES = Recipes(STEPS, RECORDED, RECIPE_NAMES)
"""Recipes by short name, and what turns any description into a recipe."""
