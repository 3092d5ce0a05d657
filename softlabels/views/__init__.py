"""Views: numbered random variations of an image, drawn without a resolution and rendered at any size.

A recipe is a list of steps. `Recipe.draw` says what is done to an image in its view number v, as a pure function of
(recipe, seed, image key, v): never of order, batch, worker or library version. `Recipe.render` makes the picture of a
view at the size that a model wants; a teacher and a student of different sizes see the same crop.

A new step is one file with a `Part` that keeps the protocol `Step` and one of `Geometry` (images to pictures), `Change`
(pictures to pictures) and `Mix` (two pictures to one), one line in `STEPS`, and one example in its test. A geometry
that only resizes boxes is a `Crop`, for which no more of an image is decoded than the boxes.
"""

from softlabels.core import tables
from softlabels.core.config import Table
from softlabels.views._operations import NAMES as OPERATION_NAMES
from softlabels.views._pixels import blank
from softlabels.views._recipe import Change, Crop, Geometry, Mix, Recipe, Recipes, Step
from softlabels.views._recorded import ForeignView, Recorded, RecordedCrop, RecordedMix
from softlabels.views._seeded_mix import SeededMix
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
    "RecordedCrop",
    "RecordedMix",
    "SeededMix",
    "Step",
    "View",
    "Views",
    "blank",
]

STEPS: Table[Step] = tables.STEPS
"""Every step that is drawn, by its kind."""

RECORDED: Table[Step] = tables.RECORDED
"""Every step whose draws come with labels of other projects, by its kind."""

RECIPES = Recipes(STEPS, RECORDED, tables.RECIPE_NAMES)
"""Recipes by short name, and what turns any description into a recipe."""
