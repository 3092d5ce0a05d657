"""Settings of `softlabels select` and `dedup`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from softlabels.choices import DataChoice
from softlabels.core.config import MOST, CommandConfig
from softlabels.loading.settings import Caching


class SelectConfig(Caching):
    """What `softlabels select` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"out"}

    labels: str = Field(
        "shards/",
        description="label store of the pool, a folder or a URL",
        json_schema_extra={"argument": True},
    )
    top_k_per_class: int = Field(..., ge=1, le=MOST, description="images of each predicted class, at most")
    min_confidence: float = Field(0.0, ge=0, lt=1, description="leave out images whose highest probability is lower")
    pseudo_labels: bool = Field(False, description="list the predicted class as the hard label of each image")
    teachers: tuple[str, ...] | None = Field(
        None, description="teachers of the store whose mean counts; repeatable  [default: all]"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the probabilities")
    data: DataChoice | None = Field(None, description="data set  [default: the one the labels were made of]")
    data_dir: str | None = Field(None, description="where the data set lies")
    out: str = Field("pool.csv", description="file of the list, a data set: csv:FILE")


class DedupConfig(CommandConfig):
    """What `softlabels dedup` does."""

    LOCAL: ClassVar = CommandConfig.LOCAL | {"out"}

    data: DataChoice | None = Field(None, description="data set in which duplicates are looked for: the pool")
    against: DataChoice | None = Field(
        None, description="data set whose images the pool must not hold, such as the validation images: its test split"
    )
    data_dir: str | None = Field(None, description="where the data sets lie")
    split: Literal["train", "test", "val"] = Field("train", description="which part of `data`")
    confirm: Literal["sift", "hash"] = Field(
        "sift",
        description="what makes a candidate a duplicate: sift (matched keypoints; needs OpenCV), or its hashes alone",
    )
    max_distance: int | None = Field(
        None,
        ge=0,
        le=24,
        description="bits of 64 in which the hashes of a candidate differ at most  [default: 14, with confirm=hash 6]",
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image of the pool that cannot be read, or leave it out"
    )
    out: str = Field("report/", description="folder of the report: index.html, kept.csv, removed.csv")

    @property
    def distance(self) -> int:
        """`max_distance`, or its default."""
        return (14 if self.confirm == "sift" else 6) if self.max_distance is None else self.max_distance
