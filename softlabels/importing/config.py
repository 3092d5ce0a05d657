"""Settings of `softlabels import`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from softlabels.choices import CodecChoice, DataChoice, ImporterChoice
from softlabels.core.config import MOST, Side
from softlabels.loading.settings import Caching, share_of


class ImportConfig(Caching):
    """What `softlabels import` does."""

    model_config = ConfigDict(populate_by_name=True)

    from_: ImporterChoice = Field(
        ...,
        alias="from",
        description="whose label files they are",
        json_schema_extra={"leading": True},
    )
    source: str = Field(
        ..., description="folder of the label files; it stays as it is", json_schema_extra={"argument": True}
    )
    data: DataChoice = Field(
        ...,
        description="data set that was labelled: imagenet, directory, csv:FILE, ..., as `softlabels dump` takes it",
    )
    data_dir: str | None = Field(None, description="where the data set lies")
    split: Literal["train", "test", "val"] = Field("train", description="which part of the data set")
    limit: int | None = Field(None, ge=1, le=MOST, description="only so many images, picked by the seed")
    seed: int = Field(0, ge=0, lt=1 << 64, description="seed of `limit`")
    views: int | None = Field(None, ge=1, le=MOST, description="only the first so many views  [default: all]")
    name: str | None = Field(None, description="the teacher's name in the store  [default: the project's]")
    classes: int | None = Field(
        None, ge=1, le=MOST, description="classes of the teacher  [default: those of the data set]"
    )
    codec: CodecChoice | None = Field(
        None,
        description="of files that hold logits: how they are stored: dense, topk:10, head_tail:10, quantized, ...  "
        "[default: dense]",
    )
    order: str | None = Field(
        None,
        description="of sre2l, lpld, lpqld: JSON file that lists the images of each epoch, of lpqld of each batch, in "
        "their order, by key or number",
    )
    order_seed: int | None = Field(
        None,
        ge=0,
        lt=1 << 63,
        description="of sre2l, lpld: seed of the order of images, their fkd_seed  [default: 42, or the order that lpld "
        "wrote]",
    )
    input_size: Side | None = Field(
        None, description="of sre2l, lpld, lpqld: side of the images that the teacher saw  [default: 224]"
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax that the files hold")
    tail: Literal["uniform", "none"] = Field(
        "uniform", description="classes that a label does not name share the rest of 1, or have nothing"
    )
    values: Literal["fp16", "fp32"] | None = Field(
        None, description="how probabilities are stored  [default: as in the files]"
    )
    mixup: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of tinyvit: alpha of the mixup that was labelled, 0 for none"
    )
    cutmix: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="of tinyvit: alpha of the cutmix that was labelled, 0 for none"
    )
    mixup_prob: float = Field(1.0, ge=0, le=1, description="of tinyvit: how likely a pair was mixed")
    mixup_switch_prob: float = Field(
        0.5, ge=0, le=1, description="of tinyvit: how likely by cutmix, where both alphas are above 0"
    )
    labels_only: bool = Field(False, description="import labels whose views cannot be made here, without images")
    allow_mismatch: bool = Field(False, description="import labels that name other classes than the images have")
    on_missing: Literal["fail", "skip"] = Field(
        "fail", description="refuse when images have no label, or record them as unlabelled"
    )
    format: Literal["hdf5", "zarr"] = Field("hdf5", description="format of the shards")
    compression: Literal["none", "zstd"] | None = Field(None, description="compression of the shards  [default: none]")
    out: str = Field("shards/", description="folder of the label store, or a URL such as s3://bucket/shards")
    rows_per_shard: int = Field(
        4096, ge=1, le=MOST, description="images per shard; one that is cut off is written again"
    )
    part: str = Field("0/1", description="I/N: write every N-th shard only, from the I-th")

    @property
    def project(self) -> str:
        """The project's name."""
        return self.from_.name

    @field_validator("part")
    @classmethod
    def _is_a_part(cls, text: str) -> str:
        share_of(text)
        return text
