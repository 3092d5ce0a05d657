"""Settings of `softlabels select` and `dedup`."""

from __future__ import annotations

from typing import ClassVar

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
