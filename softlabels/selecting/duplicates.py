"""Images of a pool that are images of a held-out set: equal files, and near ones that SIFT or their hashes confirm.

Candidates are pairs of nearly equal perceptual hashes, of an image as it is and mirrored. Each is confirmed by SIFT
(Lowe, "Distinctive image features from scale-invariant keypoints", 2004): matched keypoints that one rotation, scale
and shift maps onto each other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softlabels.core.installed import required
from softlabels.core.progress import Advance
from softlabels.datasets import Images, content_checksums, thread_count
from softlabels.errors import ConfigError, DataError
from softlabels.selecting.hashes import Hashes, near, thumbnails

How = Literal["content", "sift", "hash"]

_AT_ONCE = 256
"""Images that are hashed together."""

_MOST_CANDIDATES = 16
"""Held-out images with which an image of the pool is compared, the nearest first."""

_SHORT, _LONG = 256, 512
"""Keypoints are looked for in images whose shorter side is enlarged to the one, or whose longer is shrunk to the
other: of 32 pixels as they are there would be next to none."""

_RATIO = 0.75
"""A match counts if its distance is below this share of the next best one's; Lowe's paper takes 0.8."""

_FEWEST, _SHARE, _REACH = 6, 0.1, 6.0
"""Matches in one place, within so many pixels: at least so many, and this share of the keypoints of the image that has
fewer. Of the 89 images of CIFAR-10 (10,000 against 2,000) that are candidates, these tell 23 copies from 66 others, as
an eye does; other images of one class have up to 5 such matches."""


@dataclass(frozen=True)
class Pair:
    """The image in row `pool` of the pool, and that in row `held_out` which it is near to.

    `distance` is that of their hashes, 0 to 64, of one of them mirrored where `mirrored`; `matches` are keypoints of
    SIFT that fit together, None where it was not asked. `how` says what made them duplicates; None: nothing did.
    """

    pool: int
    held_out: int
    distance: int
    mirrored: bool
    matches: int | None
    how: How | None


@dataclass(frozen=True)
class Hashed:
    """The hashes of a data set as it is, and why images could not be read, by row."""

    hashes: Hashes
    failed: dict[int, str]


def hashed(
    images: Images, advance: Advance, *, mirrored: bool = False, skip_bad_images: bool = False
) -> tuple[Hashed, Hashes | None]:
    """The hashes of all images, and those of the mirrored ones where these are wanted.

    Raises:
        DataError: an image cannot be read, unless `skip_bad_images`: then it is like a plain one.
    """
    failed: dict[int, str] = {}

    def small(row: int) -> Tensor:
        try:
            return thumbnails(images.decode(row)[None])[0]
        except DataError as problem:
            if not skip_bad_images:
                raise
            failed[row] = str(problem)
            return torch.zeros(1, 1).expand(thumbnails(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[1:])

    straight, turned = [], []
    with ThreadPoolExecutor(thread_count(), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for start in range(0, len(images), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(images)))
            if images.pixels is not None:
                grey = thumbnails(images.pixels[rows.start : rows.stop])
            else:
                grey = torch.stack(list(threads.map(small, rows)))
            straight.append(Hashes.of(grey))
            if mirrored:
                turned.append(Hashes.of(grey.flip(-1)))
            advance(len(rows))
    return Hashed(Hashes.joined(straight), failed), Hashes.joined(turned) if mirrored else None


def equal_content(pool: Images, held_out: Images, rows: NDArray[np.int64]) -> list[Pair]:
    """The images in these `rows` of the pool whose bytes are those of a held-out image.

    Raises:
        DataError: an image cannot be read.
    """
    theirs: dict[int, int] = {}
    for row, checksum in enumerate(content_checksums(held_out).tolist()):
        theirs.setdefault(checksum, row)
    sums = content_checksums(pool, rows).tolist()
    return [
        Pair(row, theirs[checksum], 0, False, None, "content")
        for row, checksum in zip(rows.tolist(), sums, strict=True)
        if checksum in theirs
    ]


def candidates(pool: Hashes, held_out: Hashes, mirrored: Hashes, most: int) -> list[list[Pair]]:
    """For each image of the pool that has some, the held-out images whose hashes differ in at most `most` bits of 64.

    The nearest first, at most `_MOST_CANDIDATES`.
    """
    found: dict[int, list[Pair]] = {}
    for other, flag in ((held_out, False), (mirrored, True)):
        for here, there, distances in near(pool, other, most):
            for row, place, distance in zip(here.tolist(), there.tolist(), distances.tolist(), strict=True):
                found.setdefault(row, []).append(Pair(row, place, int(distance), flag, None, None))
    order = sorted(found)
    return [
        sorted(found[row], key=lambda pair: (pair.distance, pair.mirrored, pair.held_out))[:_MOST_CANDIDATES]
        for row in order
    ]


def by_hash(groups: Sequence[Sequence[Pair]]) -> list[Pair]:
    """The nearest pair of each group, confirmed by its hashes alone."""
    return [_confirmed(group[0], None, "hash") for group in groups]


def by_sift(groups: Sequence[Sequence[Pair]], pool: Images, held_out: Images, advance: Advance) -> list[Pair]:
    """Of each group the first pair that SIFT confirms; where it confirms none, the one with the most matches.

    Raises:
        DataError: an image cannot be read.
    """
    match = Sift()
    theirs = functools.lru_cache(maxsize=4096)(lambda row, flag: match.keypoints(_turned(held_out.decode(row), flag)))

    def look(group: Sequence[Pair]) -> Pair:
        own = match.keypoints(pool.decode(group[0].pool))
        tried: list[Pair] = []
        for pair in group:
            found, enough = match(own, theirs(pair.held_out, pair.mirrored))
            tried.append(_confirmed(pair, found, "sift" if enough else None))
            if enough:
                return tried[-1]
        return max(tried, key=lambda pair: (pair.matches or 0, -pair.distance))

    made = []
    with ThreadPoolExecutor(thread_count()) as threads:
        for pair in threads.map(look, groups):
            made.append(pair)
            advance(1)
    return made


class Sift:
    """Keypoints of images, and how many of two images fit together.

    Raises:
        ConfigError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            self._cv = required("cv2", "opencv", "SIFT, which confirms candidates,")
        except ConfigError as problem:
            raise ConfigError(
                f"{problem}, or take pairs of nearly equal hashes as duplicates without a further look: `confirm=hash`"
            ) from problem
        self._sift = self._cv.SIFT_create()

    def keypoints(self, image: Tensor) -> tuple[NDArray[np.float32], Any]:
        """Of an image uint8 (3, H, W) the places (k, 2) and descriptors (k, 128) of its keypoints."""
        cv = self._cv
        grey = cv.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv.COLOR_RGB2GRAY)
        scale = max(_SHORT / min(grey.shape), 1.0)
        if scale == 1.0:
            scale = min(_LONG / max(grey.shape), 1.0)
        if scale != 1.0:
            kernel = cv.INTER_CUBIC if scale > 1 else cv.INTER_AREA
            grey = cv.resize(grey, None, fx=scale, fy=scale, interpolation=kernel)
        points, descriptors = self._sift.detectAndCompute(grey, None)
        return np.array([point.pt for point in points], np.float32).reshape(-1, 2), descriptors

    def __call__(self, one: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[int, bool]:
        """How many matched keypoints one rotation, scale and shift maps onto each other; whether these are enough."""
        (places, own), (others, theirs) = one, other
        fewer = min(len(places), len(others))
        if fewer < _FEWEST:
            return 0, False
        pairs = self._cv.BFMatcher(self._cv.NORM_L2).knnMatch(own, theirs, k=2)
        good = [first for first, second in pairs if first.distance < _RATIO * second.distance]
        if len(good) < 3:
            return 0, False
        _, fits = self._cv.estimateAffinePartial2D(
            places[[each.queryIdx for each in good]],
            others[[each.trainIdx for each in good]],
            method=self._cv.RANSAC,
            ransacReprojThreshold=_REACH,
        )
        count = 0 if fits is None else int(fits.sum())
        return count, count >= max(_FEWEST, _SHARE * fewer)


def _turned(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(-1) if mirrored else image


def _confirmed(pair: Pair, matches: int | None, how: How | None) -> Pair:
    return Pair(pair.pool, pair.held_out, pair.distance, pair.mirrored, matches, how)
