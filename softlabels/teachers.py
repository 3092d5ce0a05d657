"""The former name of `softlabels.models`, for one release."""

from softlabels.models import teacher_spec

__all__ = ["teacher_spec"]
