"""What every student can say of itself."""

from __future__ import annotations

from collections.abc import Sequence

from softlabels.models.networks import Description, Preprocessing


def metadata(
    resolved: str, preprocessing: Preprocessing, classes: int, class_names: Sequence[str] = ()
) -> dict[str, str]:
    """Text for the header of a student's weights, from which they can be loaded again by their path alone."""
    told = Description(
        architecture=resolved, classes=classes, class_names=tuple(class_names), preprocessing=preprocessing
    )
    return told.to_metadata()
