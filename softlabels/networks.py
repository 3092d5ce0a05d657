"""The former name of `softlabels.models`, for one release."""

from softlabels.models import build, digest, preprocessing, resolve

__all__ = ["build", "digest", "preprocessing", "resolve"]
