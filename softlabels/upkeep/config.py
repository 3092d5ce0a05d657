"""Settings of `softlabels verify`, `repair`, `convert` and `merge`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from softlabels.choices import CodecChoice
from softlabels.core.config import MOST
from softlabels.loading.settings import Caching, Reopening


class VerifyConfig(Reopening):
    """What `softlabels verify` does."""

    samples: int = Field(64, ge=0, le=MOST, description="random views on which each teacher is run again; 0 for none")
    largest_kl: float | None = Field(
        None,
        gt=0,
        description="mean KL in nats between the teacher's labels, encoded as the stored ones are, and these that is "
        "still accepted  [default: what rounding explains]",
    )
    shards_only: bool = Field(False, description="check the store's files alone, without images and teachers")


class RepairConfig(Reopening):
    """What `softlabels repair` does."""

    redump: bool = Field(False, description="dump the damaged shards again, instead of only removing them")
    batch_size: int = Field(64, ge=1, le=MOST, description="images per forward pass of the teacher")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="stop at an image that cannot be read, or record it as unlabelled"
    )


class ConvertConfig(Caching):
    """What `softlabels convert` does."""

    labels: str = Field(
        "shards/",
        description="label store to convert, a folder or a URL; it stays as it is",
        json_schema_extra={"argument": True},
    )
    out: str = Field(..., description="folder of the converted store, or a URL such as s3://bucket/shards")
    format: Literal["hdf5", "zarr"] | None = Field(None, description="format of the shards  [default: as they are]")
    compression: Literal["none", "zstd"] | None = Field(
        None, description="compression of the shards  [default: as they are]"
    )
    codec: CodecChoice | None = Field(
        None, description="how logits are stored: dense:fp32, topk:10, ...  [default: as they are]"
    )
    lossy: bool = Field(False, description="allow a codec that rounds the stored labels once more")
    teachers: tuple[str, ...] | None = Field(None, description="teachers to convert; repeatable  [default: all]")


class MergeConfig(Caching):
    """What `softlabels merge` does."""

    labels: tuple[str, ...] = Field(
        ...,
        min_length=1,
        description="label stores to merge, folders or URLs; repeatable",
        json_schema_extra={"argument": True},
    )
    out: str = Field(
        ..., description="folder or URL of the merged store; it may be there already, or be one of the merged"
    )
