"""Offline knowledge distillation of image classifiers: the promised names. Written by tests/make_stub.py."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel
from torch import nn
from torch.utils.data import Dataset

from softlabels import losses as losses
from softlabels.commands import check as check
from softlabels.datasets import Images as Images
from softlabels.datasets import open_images as open_images
from softlabels.dumping.dump import DumpReport
from softlabels.dumping.pack import PackReport
from softlabels.dumping.plan import Plan
from softlabels.dumping.writer import create_labels as create_labels
from softlabels.errors import ConfigError as ConfigError
from softlabels.errors import DataError as DataError
from softlabels.errors import ModelError as ModelError
from softlabels.errors import RunError as RunError
from softlabels.errors import SoftlabelsError as SoftlabelsError
from softlabels.errors import StoreError as StoreError
from softlabels.importing.attach import attach as attach
from softlabels.importing.projects import ImportReport
from softlabels.loading.batches import SoftLabelDataset as SoftLabelDataset
from softlabels.loading.labels import Labels as Labels
from softlabels.loading.labels import open_labels as open_labels
from softlabels.loading.loader import make_loader as make_loader
from softlabels.loading.samplers import OneViewEach as OneViewEach
from softlabels.loading.samplers import ShuffledShards as ShuffledShards
from softlabels.reporting.run_demo import DemoResult
from softlabels.reporting.run_sweep import SweepReport
from softlabels.selecting.run_dedup import Deduplication
from softlabels.selecting.select import Selection
from softlabels.training.export import Exported
from softlabels.training.result import TrainResult as TrainResult
from softlabels.training.run_eval import NetworkScore
from softlabels.training.student import Student as Student
from softlabels.training.student import load_student as load_student
from softlabels.upkeep.convert import CopyReport
from softlabels.upkeep.repair import RepairReport
from softlabels.upkeep.verify import Findings

__version__: str

Part = str | PathLike[str] | Mapping[str, Any] | BaseModel
Network = Part | nn.Module
Data = Part | Images | Dataset[Any]
Text = str | PathLike[str]

def available(
    kind: Literal[
        "teachers", "students", "losses", "blends", "recipes", "steps", "codecs", "datasets", "importers", "optimizers"
    ] = ...,
    pattern: Text | None = None,
    *,
    config: Text | None = None,
    quiet: bool = False,
) -> dict[str, str]:
    """Names of teachers, students, losses, recipes, codecs, data sets, ..., each with what it is.

    Networks of timm are listed by `timm:` and a pattern.

    Args:
        kind: what to list
        pattern: only names that hold this text, or fit a pattern such as 'resnet*'; timm:PATTERN for timm's networks
    """

def convert(
    labels: Text = "shards/",
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    out: Text = ...,
    format: Literal["hdf5", "zarr"] | None = None,
    compression: Literal["none", "zstd"] | None = None,
    codec: Part | None = None,
    lossy: bool = False,
    teachers: Text | Sequence[Text] | None = None,
) -> list[CopyReport]:
    """Copy a store into another format, bit by bit, or into another codec.

    A codec that rounds needs `lossy=True`. The same command goes on where a killed one stopped.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        labels: label store to convert, a folder or a URL; it stays as it is
        out: folder of the converted store, or a URL such as s3://bucket/shards
        format: format of the shards  [default: as they are]
        compression: compression of the shards  [default: as they are]
        codec: how logits are stored: dense:fp32, topk:10, ...  [default: as they are]
        lossy: allow a codec that rounds the stored labels once more
        teachers: teachers to convert; repeatable  [default: all]
    """

def dedup(
    *,
    config: Text | None = None,
    quiet: bool = False,
    data: Data | Sequence[Data] | None = None,
    against: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "train",
    confirm: Literal["sift", "hash"] = "sift",
    max_distance: int | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    out: Text = "report/",
) -> Deduplication:
    """List the images of a pool that are no copies of held-out ones, and show the copies.

    Candidates have nearly equal perceptual hashes, mirrored or not; SIFT matches confirm them. `kept.csv` in the report
    is a data set: `data=csv:report/kept.csv`.

    Args:
        data: data set in which duplicates are looked for: the pool
        against: data set whose images the pool must not hold, such as the validation images: its test split
        data_dir: where the data sets lie
        split: which part of `data`
        confirm: what makes a candidate a duplicate: sift (matched keypoints; needs OpenCV), or its hashes alone
        max_distance: bits of 64 in which the hashes of a candidate differ at most  [default: 14, with confirm=hash 6]
        on_bad_image: stop at an image of the pool that cannot be read, or leave it out
        out: folder of the report: index.html, kept.csv, removed.csv
    """

def demo(
    *,
    config: Text | None = None,
    quiet: bool = False,
    out: Text = "runs/demo",
    runs: int = 3,
) -> DemoResult:
    """Distil a small network in two minutes, without a download, and compare it with hard labels.

    Each command that it runs is printed: all of them can be typed, too.

    Args:
        out: folder of the demo's runs and labels
        runs: students of each kind, with seeds from 0 upward
    """

def dump(
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    teacher: Network | Sequence[Network] = (),
    weights: Text | Sequence[Text] = (),
    name: Text | Sequence[Text] = (),
    size: int | Sequence[int] = (),
    class_map: Text | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "train",
    limit: int | None = None,
    views: int = 8,
    recipe: Part = "crop-flip",
    seed: int = 0,
    codec: Part = "dense",
    output: Part | Sequence[Part] = (),
    format: Literal["hdf5", "zarr"] = "hdf5",
    compression: Literal["none", "zstd"] | None = None,
    out: Text = "shards/",
    batch_size: int | Literal["auto"] = 64,
    compile: bool = False,
    rows_per_shard: int = 4096,
    part: Text = "0/1",
    devices: Text | None = None,
    grow: bool = False,
    dry_run: bool = False,
    on_bad_image: Literal["fail", "skip"] = "fail",
    on_odd_logits: Literal["fail", "warn"] = "fail",
) -> list[DumpReport]:
    """Run teachers over numbered views of every image and keep their logits in shards.

    The same command goes on where a killed one stopped, does nothing when all is there, and adds views or teachers when
    asked for more.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        teacher: teacher: torchvision or small network, timm:NAME, file:PATH, module:function; repeatable
        weights: weights of the teacher: FILE or FILE:KEY, default, a name of torchvision's such as IMAGENET1K_V1, or
            random[:SEED]; one per `teacher`
        name: name of the teacher in the store, one per `teacher`  [default: of where it comes from]
        size: side of the images that the teacher sees, one per `teacher`  [default: its own]
        class_map: file of lines CLASS,COLUMN (or a JSON object): which column of a teacher of more classes is each
            class of the data set, by number or name  [default: found by name]
        data: imagenet, cifar10, cifar100, digits, digit-pairs, directory, folder:DIR, images:DIR, csv:FILE, pack:DIR,
            module:function; repeatable: several are one data set
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images, picked by the seed
        views: augmented views per image; 4 to 50 are usual
        recipe: augmentation recipe: words such as pad-flip-randaugment, or steps in a config file
        seed: seed of the views
        codec: how logits are stored: dense (2 bytes a class), topk:10, head_tail:10, quantized, ...
        output: what to store beside the logits: an entry of the mapping that the teacher returns or the path of a
            module, as avgpool, avgpool=int8 with a codec, or under a name of your own and pooled (mean, token,
            attention, gridN) as map=layer3:grid4=pca:64  [codec by default: dense:fp16-raw]; repeatable
        format: format of the shards
        compression: compression of the shards  [default: what the codec wants, mostly none]
        out: folder of the label store, or a URL such as s3://bucket/shards
        batch_size: images per forward pass of the teacher; auto: doubled while that is faster and fits into memory
        compile: compile the teacher with torch.compile, for passes of one size
        rows_per_shard: images per shard; one that is cut off is written again
        part: I/N: write every N-th shard only, from the I-th
        devices: devices of this machine that label together, a process each: all (every GPU), 0,1 (these GPUs) or cpu:2
            (two processes on the CPU)  [default: the one of `device`]
        grow: add images that the store does not have yet; its shards stay as they are
        dry_run: only say what would be done, as `softlabels plan` does
        on_bad_image: stop at an image that cannot be read, or record it as unlabelled
        on_odd_logits: refuse a teacher that gives probabilities instead of logits, or whose logits depend on the rest
            of the batch, or only say so
    """

def evaluate(
    student: Network = ...,
    *,
    config: Text | None = None,
    quiet: bool = False,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    weights: Text | None = None,
    size: int | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "test",
    limit: int | None = None,
    class_map: Text | None = None,
    batch_size: int = 256,
) -> NetworkScore:
    """Score a network on the clean view of each labelled image.

    Args:
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        student: a run's folder, file:PATH, or a network's name with `weights`
        weights: FILE or FILE:KEY of weights, default, a name of torchvision's, or random[:SEED]
        size: side of the images  [default: the network's own]
        data: data set to evaluate on  [default: that of the run]
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images
        class_map: file of lines CLASS,COLUMN (or a JSON object): which column of a network of more classes is each
            class of the data set, by number or name  [default: found by name]
        batch_size: images per forward pass
    """

def export(
    student: Text = ...,
    *,
    config: Text | None = None,
    quiet: bool = False,
    format: Literal["torch", "onnx", "int8"] = "torch",
    out: Text | None = None,
    function: Text | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "test",
    limit: int | None = None,
) -> Exported:
    """Write a student (a run's folder or its weights) for other programs, and check that it answers alike.

    safetensors that torchvision and timm load lie in the run's folder already.

    Args:
        student: a run's folder, or the weights of a student
        format: torch.export, ONNX, or ONNX with dynamic 8-bit quantisation
        out: file to write  [default: student.pt2, .onnx, .int8.onnx in the run]
        function: module:function that makes the student's network, where it is your own
        data: data set on which student and file are compared
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images
    """

def import_labels(
    from_: Part = ...,
    source: Text = ...,
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    data: Data | Sequence[Data] = ...,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "train",
    limit: int | None = None,
    seed: int = 0,
    views: int | None = None,
    name: Text | None = None,
    classes: int | None = None,
    codec: Part | None = None,
    order: Text | None = None,
    order_seed: int | None = None,
    input_size: int | None = None,
    temperature: float = 1.0,
    tail: Literal["uniform", "none"] = "uniform",
    values: Literal["fp16", "fp32"] | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    mixup_prob: float = 1.0,
    mixup_switch_prob: float = 0.5,
    labels_only: bool = False,
    allow_mismatch: bool = False,
    on_missing: Literal["fail", "skip"] = "fail",
    format: Literal["hdf5", "zarr"] = "hdf5",
    compression: Literal["none", "zstd"] | None = None,
    out: Text = "shards/",
    rows_per_shard: int = 4096,
    part: Text = "0/1",
) -> ImportReport:
    """Make a store of label files in SOURCE that FKD, TinyViT, dataset reinforcement (ml-dr), SRe2L, LPLD or LPQLD
    published, or another installed package reads.

    Nothing in the files is executed. Crops and changes that they record are replayed; labels whose views cannot be made
    here are paired with your own data set (docs/importing.md). The same command goes on where a killed one stopped.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        from_: whose label files they are
        source: folder of the label files; it stays as it is
        data: data set that was labelled: imagenet, directory, csv:FILE, ..., as `softlabels dump` takes it
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images, picked by the seed
        seed: seed of `limit`
        views: only the first so many views  [default: all]
        name: the teacher's name in the store  [default: the project's]
        classes: classes of the teacher  [default: those of the data set]
        codec: of files that hold logits: how they are stored: dense, topk:10, head_tail:10, quantized, ...  [default:
            dense]
        order: of sre2l, lpld, lpqld: JSON file that lists the images of each epoch, of lpqld of each batch, in their
            order, by key or number
        order_seed: of sre2l, lpld: seed of the order of images, their fkd_seed  [default: 42, or the order that lpld
            wrote]
        input_size: of sre2l, lpld, lpqld: side of the images that the teacher saw  [default: 224]
        temperature: temperature of the softmax that the files hold
        tail: classes that a label does not name share the rest of 1, or have nothing
        values: how probabilities are stored  [default: as in the files]
        mixup: of tinyvit: alpha of the mixup that was labelled, 0 for none
        cutmix: of tinyvit: alpha of the cutmix that was labelled, 0 for none
        mixup_prob: of tinyvit: how likely a pair was mixed
        mixup_switch_prob: of tinyvit: how likely by cutmix, where both alphas are above 0
        labels_only: import labels whose views cannot be made here, without images
        allow_mismatch: import labels that name other classes than the images have
        on_missing: refuse when images have no label, or record them as unlabelled
        format: format of the shards
        compression: compression of the shards  [default: none]
        out: folder of the label store, or a URL such as s3://bucket/shards
        rows_per_shard: images per shard; one that is cut off is written again
        part: I/N: write every N-th shard only, from the I-th
    """

def info(
    labels: Text = "shards/",
    *,
    config: Text | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Say what a label store holds.

    Args:
        labels: label store, a folder or a URL
    """

def merge(
    labels: Text | Sequence[Text] = ...,
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    out: Text = ...,
) -> list[CopyReport]:
    """Unite stores of the same images and views: parts from several machines, other teachers, more views.

    Labels that two of them hold must be equal. The same command goes on where a killed one stopped.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        labels: label stores to merge, folders or URLs; repeatable
        out: folder or URL of the merged store; it may be there already, or be one of the merged
    """

def pack(
    *,
    config: Text | None = None,
    quiet: bool = False,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "train",
    limit: int | None = None,
    max_side: int = 320,
    quality: int | Literal["raw"] = 90,
    format: Literal["hdf5", "zarr"] = "hdf5",
    out: Text = "pack/",
    rows_per_shard: int = 512,
    part: Text = "0/1",
    threads: int | Literal["auto"] = "auto",
    on_bad_image: Literal["fail", "skip"] = "fail",
    dry_run: bool = False,
    check: bool = False,
) -> PackReport:
    """Prepare images once for fast reading: shrunk, and kept raw or as JPEG in shards, for `data=pack:DIR`.

    The same command goes on where a killed one stopped. Teachers and students both see the packed pixels.

    Args:
        data: data set to pack: all that `data` takes elsewhere
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images, picked by seed 0
        max_side: longer sides are shrunk to this, never enlarged; 0 leaves them
        quality: of JPEG, 1 to 100, or raw: pixels that need no decoder
        format: format of the shards
        out: folder of the pack
        rows_per_shard: images per shard; one that is cut off is written again
        part: I/N: write every N-th shard only, from the I-th
        threads: threads that decode and encode; auto: one per core
        on_bad_image: stop at an image that cannot be read, or pack it as unreadable
        dry_run: only say how large the pack will be and how long it will take
        check: write nothing; read every byte of the pack at `out` and compare checksums
    """

def plan(
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    teacher: Network | Sequence[Network] = (),
    weights: Text | Sequence[Text] = (),
    name: Text | Sequence[Text] = (),
    size: int | Sequence[int] = (),
    class_map: Text | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    split: Literal["train", "test", "val"] = "train",
    limit: int | None = None,
    views: int = 8,
    recipe: Part = "crop-flip",
    seed: int = 0,
    codec: Part = "dense",
    output: Part | Sequence[Part] = (),
    format: Literal["hdf5", "zarr"] = "hdf5",
    compression: Literal["none", "zstd"] | None = None,
    out: Text = "shards/",
    batch_size: int | Literal["auto"] = 64,
    compile: bool = False,
    rows_per_shard: int = 4096,
    part: Text = "0/1",
    devices: Text | None = None,
    grow: bool = False,
    dry_run: bool = False,
    on_bad_image: Literal["fail", "skip"] = "fail",
    on_odd_logits: Literal["fail", "warn"] = "fail",
    codec_report: bool = False,
    codec_samples: int = 2000,
    for_temperature: float | None = None,
) -> list[Plan]:
    """Say what a dump will hold and cost: images, views, shards, bytes, and the time, from a few real batches.

    For images in files it also says what a pack of them would hold; `softlabels pack` with `dry_run=True` for other
    sizes.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        teacher: teacher: torchvision or small network, timm:NAME, file:PATH, module:function; repeatable
        weights: weights of the teacher: FILE or FILE:KEY, default, a name of torchvision's such as IMAGENET1K_V1, or
            random[:SEED]; one per `teacher`
        name: name of the teacher in the store, one per `teacher`  [default: of where it comes from]
        size: side of the images that the teacher sees, one per `teacher`  [default: its own]
        class_map: file of lines CLASS,COLUMN (or a JSON object): which column of a teacher of more classes is each
            class of the data set, by number or name  [default: found by name]
        data: imagenet, cifar10, cifar100, digits, digit-pairs, directory, folder:DIR, images:DIR, csv:FILE, pack:DIR,
            module:function; repeatable: several are one data set
        data_dir: where the data set lies
        split: which part of the data set
        limit: only so many images, picked by the seed
        views: augmented views per image; 4 to 50 are usual
        recipe: augmentation recipe: words such as pad-flip-randaugment, or steps in a config file
        seed: seed of the views
        codec: how logits are stored: dense (2 bytes a class), topk:10, head_tail:10, quantized, ...
        output: what to store beside the logits: an entry of the mapping that the teacher returns or the path of a
            module, as avgpool, avgpool=int8 with a codec, or under a name of your own and pooled (mean, token,
            attention, gridN) as map=layer3:grid4=pca:64  [codec by default: dense:fp16-raw]; repeatable
        format: format of the shards
        compression: compression of the shards  [default: what the codec wants, mostly none]
        out: folder of the label store, or a URL such as s3://bucket/shards
        batch_size: images per forward pass of the teacher; auto: doubled while that is faster and fits into memory
        compile: compile the teacher with torch.compile, for passes of one size
        rows_per_shard: images per shard; one that is cut off is written again
        part: I/N: write every N-th shard only, from the I-th
        devices: devices of this machine that label together, a process each: all (every GPU), 0,1 (these GPUs) or cpu:2
            (two processes on the CPU)  [default: the one of `device`]
        grow: add images that the store does not have yet; its shards stay as they are
        dry_run: only say what would be done, as `softlabels plan` does
        on_bad_image: stop at an image that cannot be read, or record it as unlabelled
        on_odd_logits: refuse a teacher that gives probabilities instead of logits, or whose logits depend on the rest
            of the batch, or only say so
        codec_report: compare codecs on a sample of the teacher's own labels
        codec_samples: labels in that sample, some views of each image
        for_temperature: of these codecs, recommend one for students that train at this temperature
    """

def repair(
    labels: Text = "shards/",
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    teacher: Network | Sequence[Network] = (),
    weights: Text | Sequence[Text] = (),
    name: Text | Sequence[Text] = (),
    size: int | Sequence[int] = (),
    redump: bool = False,
    batch_size: int = 64,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> list[RepairReport]:
    """Find damaged shards, by reading every byte, and remove them or dump them again.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        labels: label store, a folder or a URL such as s3://bucket/shards
        data: data set  [default: the one the labels were made of]
        data_dir: where the data set lies
        teacher: teacher to run again  [default: as the store describes it]; repeatable
        weights: weights of the teachers, one per `teacher`
        name: name of the teacher in the store, one per `teacher`  [default: of where it comes from]
        size: side of the images that the teacher sees, one per `teacher`  [default: its own]
        redump: dump the damaged shards again, instead of only removing them
        batch_size: images per forward pass of the teacher
        on_bad_image: stop at an image that cannot be read, or record it as unlabelled
    """

def report(
    root: Text = ...,
    out: Text | None = None,
    *,
    config: Text | None = None,
    quiet: bool = False,
    baseline: Text | None = None,
) -> pd.DataFrame:
    """Write table and plots of all finished runs under ROOT; runs that differ in their seed alone are averaged.

    Args:
        root: folder under which the runs are
        out: folder of the report  [default: ROOT/report]
        baseline: run that the others are compared with, as the table calls it  [default: the one student that learns
            from hard labels alone]
    """

def select(
    labels: Text = "shards/",
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    top_k_per_class: int = ...,
    min_confidence: float = 0.0,
    pseudo_labels: bool = False,
    teachers: Text | Sequence[Text] | None = None,
    temperature: float = 1.0,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    out: Text = "pool.csv",
) -> Selection:
    """Of each class, pick the images that the stored labels are surest of, and list them in a CSV file.

    The list is a data set, `data=csv:FILE`, under the keys of the store: train on it with the same labels.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        labels: label store of the pool, a folder or a URL
        top_k_per_class: images of each predicted class, at most
        min_confidence: leave out images whose highest probability is lower
        pseudo_labels: list the predicted class as the hard label of each image
        teachers: teachers of the store whose mean counts; repeatable  [default: all]
        temperature: temperature of the probabilities
        data: data set  [default: the one the labels were made of]
        data_dir: where the data set lies
        out: file of the list, a data set: csv:FILE
    """

def sweep(
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    epochs: int = 100,
    batch_size: int = 256,
    accumulate: int = 1,
    views_per_image: int = 1,
    shuffle_window: int | Text | None = None,
    optimizer: Text = "adamw",
    lr: float = 0.001,
    lr_scaling: Literal["none", "linear", "sqrt"] = "none",
    lr_base_batch: int = 256,
    min_lr: float = 0.0,
    lr_scale: str | Mapping[str, Any] = {},
    train_only: Text | Sequence[Text] = (),
    warmup_epochs: float | None = None,
    weight_decay: float = 0.05,
    momentum: float = 0.9,
    clip_grad: float | None = None,
    sync_bn: bool = False,
    ema: float | None = None,
    seed: int = 0,
    eval_every: int = 1,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    student: Network | None = None,
    init: Text | None = None,
    weights: Text | None = None,
    init_from: Network | None = None,
    init_from_weights: Text | None = None,
    layers: Text | Sequence[Text] = (),
    size: int | None = None,
    labels: Text | None = None,
    teachers: Text | Sequence[Text] | None = None,
    teacher: Network | Sequence[Network] = (),
    teacher_weights: Text | Sequence[Text] = (),
    class_map: Text | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    eval_data: Part | None = None,
    eval_size: int | None = None,
    limit: int | None = None,
    limit_seed: int | None = None,
    recipe: Part | None = None,
    unpaired: Part | None = None,
    loss: Part = "kl",
    alpha: float | None = None,
    alpha_end: float | None = None,
    term: Part | Sequence[Part] = (),
    aux_heads: Text | Sequence[Text] = (),
    aux_weight: float = 0.3,
    min_confidence: float = 0.0,
    wrong_teacher: Literal["keep", "hard"] = "keep",
    temperature: float = 1.0,
    temperature_end: float | None = None,
    temperature_schedule: Literal["linear", "cosine", "step"] = "linear",
    temperature_decay: float = 0.7,
    temperature_decay_epochs: int = 30,
    label_smoothing: float = 0.0,
    hard_logits: Literal["plain", "standardized"] = "plain",
    hard_temperature: float = 1.0,
    soft_warmup_epochs: float = 0.0,
    ignore_label: int | None = None,
    normalization: Literal["valid", "full", "batch-size", "none"] = "valid",
    blend: Part = "mean-probabilities",
    unlabelled: Literal["refuse", "leave-out"] = "refuse",
    pixels: Literal["same", "other"] = "same",
    incomplete: bool = False,
    compile: bool = False,
    channels_last: bool = False,
    compare: bool = True,
    track: Part | Sequence[Part] = (),
    out: Text | None = None,
    grid: Text | Sequence[Text] = (),
    runs: int = 1,
) -> SweepReport:
    """Train a grid of settings, several seeds each, and report mean and standard deviation.

    Every option of `softlabels train` is one here. The same command goes on where a killed one stopped, and a larger
    grid reuses what is done.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        epochs: times each image is seen (in another view each time)
        batch_size: total over all processes: images per forward pass
        accumulate: forward passes per optimizer step
        views_per_image: repeated augmentation: views of an image that come together, sharing one decode
        shuffle_window: shards shuffled together, or the memory their labels may take, such as 512MB; for stores beyond
            memory  [default: all]
        optimizer: any optimizer of timm's factory: sgd, adamw, lamb, ...
        lr: peak learning rate, before `lr_scaling`
        lr_scaling: scale the rate with the effective batch, of all passes and processes, over `lr_base_batch`
        lr_base_batch: effective batch that `lr` is meant for
        min_lr: learning rate at the end of the cosine
        lr_scale: multiplier of the rate by layer, as features=0.1,classifier=10; 0 holds a layer still
        train_only: layers to train while all others stay as they are, batch statistics too: classifier, norms, or
            names; repeatable
        warmup_epochs: epochs of linear warmup  [default: a tenth of the epochs, 5 at most]
        weight_decay: weight decay; norms and biases have none
        momentum: momentum of SGD
        clip_grad: largest norm of the gradient
        sync_bn: batch statistics of all processes together, not of each one's slice; on CUDA
        ema: decay of an exponential moving average that is evaluated
        seed: seed of the student's initialisation and of the order
        eval_every: epochs between evaluations; the last is always evaluated
        patience: early stopping: after so many evaluations without a better top-1  [default: never]
        checkpoint_every: optimizer steps between checkpoints  [default: ends of epochs, some seconds apart]
        student: student: torchvision or small network, timm:NAME, module:function  [default: mobilenetv3, or the one of
            `init`]
        init: run or file of softlabels to go on from, to fine-tune: network, size and weights are read
        weights: weights of the student to start from: FILE or FILE:KEY, default, a name of torchvision's such as
            IMAGENET1K_V1, or random  [default: random]
        init_from: network of which the student begins with copies of some layers, of whatever architecture: a run,
            file:PATH, or a network's name
        init_from_weights: weights of `init_from`: FILE, default, or a name of torchvision's  [default: published ones]
        layers: layers to copy from `init_from`: NAME, or STUDENT=OTHER where names differ; repeatable  [default: all
            whose names and shapes match]
        size: side of the student's images  [default: its own]
        labels: label store, a folder or a URL; without it: hard labels
        teachers: teachers of the store to learn from; repeatable  [default: all]
        teacher: teacher in the loop instead of stored labels (a control); repeatable
        teacher_weights: weights of the teachers in the loop, one per `teacher`
        class_map: file of lines CLASS,COLUMN (or a JSON object): which column of a `teacher` of more classes is each
            class of the data set, by number or name  [default: found by name]
        data: data set  [default: the one the labels were made of; without `labels` it must be named]
        data_dir: where the data set lies
        eval_data: data set to evaluate on, or none  [default: the test split of the data set]
        eval_size: side of the images evaluated on  [default: `size`]
        limit: only so many images, picked by `limit_seed`
        limit_seed: seed that picks the images of `limit`  [default: `seed`]
        recipe: augmentation recipe without labels  [default: crop-flip]
        unpaired: a control: show views of this recipe that no teacher saw, each with the stored label of another view
            of its image
        loss: soft loss: kl, ce, js, jeffreys, mse, l1, ...
        alpha: weight of the hard loss: loss = alpha * hard + (1 - alpha) * soft; DeiT's and timm's alpha is 1 - this
            one  [default: 0 with teachers, else 1]
        alpha_end: `alpha` at the last step; it changes linearly  [default: alpha]
        term: further term of the loss, WEIGHT*LOSS such as 0.5*relational-distance; repeatable
        aux_heads: layers of the student that get a classifier while it trains, which learns from the labels and from
            the student itself (self-distillation): layer1,layer2; repeatable
        aux_weight: how much such a classifier learns from the student, not from the labels
        min_confidence: leave out soft labels whose highest probability is lower
        wrong_teacher: where the teacher is wrong: keep its label, or learn from the hard one alone
        temperature: divides the logits of teachers and student: 1 with many views, 2 to 5 with clean labels; inf: match
            logits (with kl)
        temperature_end: `temperature` at the last step; it changes by `temperature_schedule`  [default: temperature]
        temperature_schedule: how the temperature goes to `temperature_end`: linear, cosine, or step, by
            `temperature_decay`
        temperature_decay: factor of the temperature every `temperature_decay_epochs`, with the schedule step
        temperature_decay_epochs: epochs between steps of the temperature, with the schedule step
        label_smoothing: smoothing of the hard labels
        hard_logits: the student's logits in the hard loss: as they are, or standardised row by row
        hard_temperature: divides the student's logits in the hard loss
        soft_warmup_epochs: epochs in which the soft loss rises to its weight, linearly
        ignore_label: images of this class number count in no part of the loss; -1: those without a label
        normalization: what the sum over images is divided by, as in Caffe: those that count, all of the batch, 1
        blend: how several teachers become one target: mean-probabilities, mean-logits, ...
        unlabelled: what to do with images that have no soft labels
        pixels: whether `data` shows what the teacher saw, or other pixels under the same keys (edges, grey, a second
            camera), which are then not compared with what it saw
        incomplete: train on the finished views of a store that is not complete
        compile: compile the student with torch.compile
        channels_last: use torch.channels_last, which convolutions on GPUs prefer
        compare: compare each student with its teacher on every training image
        track: where records go besides the run's folder: tensorboard, wandb (offline), mlflow; repeatable
        out: folder of the sweep  [default: runs/sweep]
        grid: SETTING=VALUE,VALUE,... of `softlabels train`; repeatable
        runs: runs of each combination, with seeds from `seed` upward
    """

def train(
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    epochs: int = 100,
    batch_size: int = 256,
    accumulate: int = 1,
    views_per_image: int = 1,
    shuffle_window: int | Text | None = None,
    optimizer: Text = "adamw",
    lr: float = 0.001,
    lr_scaling: Literal["none", "linear", "sqrt"] = "none",
    lr_base_batch: int = 256,
    min_lr: float = 0.0,
    lr_scale: str | Mapping[str, Any] = {},
    train_only: Text | Sequence[Text] = (),
    warmup_epochs: float | None = None,
    weight_decay: float = 0.05,
    momentum: float = 0.9,
    clip_grad: float | None = None,
    sync_bn: bool = False,
    ema: float | None = None,
    seed: int = 0,
    eval_every: int = 1,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    student: Network | None = None,
    init: Text | None = None,
    weights: Text | None = None,
    init_from: Network | None = None,
    init_from_weights: Text | None = None,
    layers: Text | Sequence[Text] = (),
    size: int | None = None,
    labels: Text | None = None,
    teachers: Text | Sequence[Text] | None = None,
    teacher: Network | Sequence[Network] = (),
    teacher_weights: Text | Sequence[Text] = (),
    class_map: Text | None = None,
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    eval_data: Part | None = None,
    eval_size: int | None = None,
    limit: int | None = None,
    limit_seed: int | None = None,
    recipe: Part | None = None,
    unpaired: Part | None = None,
    loss: Part = "kl",
    alpha: float | None = None,
    alpha_end: float | None = None,
    term: Part | Sequence[Part] = (),
    aux_heads: Text | Sequence[Text] = (),
    aux_weight: float = 0.3,
    min_confidence: float = 0.0,
    wrong_teacher: Literal["keep", "hard"] = "keep",
    temperature: float = 1.0,
    temperature_end: float | None = None,
    temperature_schedule: Literal["linear", "cosine", "step"] = "linear",
    temperature_decay: float = 0.7,
    temperature_decay_epochs: int = 30,
    label_smoothing: float = 0.0,
    hard_logits: Literal["plain", "standardized"] = "plain",
    hard_temperature: float = 1.0,
    soft_warmup_epochs: float = 0.0,
    ignore_label: int | None = None,
    normalization: Literal["valid", "full", "batch-size", "none"] = "valid",
    blend: Part = "mean-probabilities",
    unlabelled: Literal["refuse", "leave-out"] = "refuse",
    pixels: Literal["same", "other"] = "same",
    incomplete: bool = False,
    compile: bool = False,
    channels_last: bool = False,
    compare: bool = False,
    track: Part | Sequence[Part] = (),
    out: Text | None = None,
) -> TrainResult:
    """Train a student from stored labels, on exactly the pixels that the teachers saw.

    Without `labels` it trains on hard labels: that is the baseline, and how a teacher is made.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        epochs: times each image is seen (in another view each time)
        batch_size: total over all processes: images per forward pass
        accumulate: forward passes per optimizer step
        views_per_image: repeated augmentation: views of an image that come together, sharing one decode
        shuffle_window: shards shuffled together, or the memory their labels may take, such as 512MB; for stores beyond
            memory  [default: all]
        optimizer: any optimizer of timm's factory: sgd, adamw, lamb, ...
        lr: peak learning rate, before `lr_scaling`
        lr_scaling: scale the rate with the effective batch, of all passes and processes, over `lr_base_batch`
        lr_base_batch: effective batch that `lr` is meant for
        min_lr: learning rate at the end of the cosine
        lr_scale: multiplier of the rate by layer, as features=0.1,classifier=10; 0 holds a layer still
        train_only: layers to train while all others stay as they are, batch statistics too: classifier, norms, or
            names; repeatable
        warmup_epochs: epochs of linear warmup  [default: a tenth of the epochs, 5 at most]
        weight_decay: weight decay; norms and biases have none
        momentum: momentum of SGD
        clip_grad: largest norm of the gradient
        sync_bn: batch statistics of all processes together, not of each one's slice; on CUDA
        ema: decay of an exponential moving average that is evaluated
        seed: seed of the student's initialisation and of the order
        eval_every: epochs between evaluations; the last is always evaluated
        patience: early stopping: after so many evaluations without a better top-1  [default: never]
        checkpoint_every: optimizer steps between checkpoints  [default: ends of epochs, some seconds apart]
        student: student: torchvision or small network, timm:NAME, module:function  [default: mobilenetv3, or the one of
            `init`]
        init: run or file of softlabels to go on from, to fine-tune: network, size and weights are read
        weights: weights of the student to start from: FILE or FILE:KEY, default, a name of torchvision's such as
            IMAGENET1K_V1, or random  [default: random]
        init_from: network of which the student begins with copies of some layers, of whatever architecture: a run,
            file:PATH, or a network's name
        init_from_weights: weights of `init_from`: FILE, default, or a name of torchvision's  [default: published ones]
        layers: layers to copy from `init_from`: NAME, or STUDENT=OTHER where names differ; repeatable  [default: all
            whose names and shapes match]
        size: side of the student's images  [default: its own]
        labels: label store, a folder or a URL; without it: hard labels
        teachers: teachers of the store to learn from; repeatable  [default: all]
        teacher: teacher in the loop instead of stored labels (a control); repeatable
        teacher_weights: weights of the teachers in the loop, one per `teacher`
        class_map: file of lines CLASS,COLUMN (or a JSON object): which column of a `teacher` of more classes is each
            class of the data set, by number or name  [default: found by name]
        data: data set  [default: the one the labels were made of; without `labels` it must be named]
        data_dir: where the data set lies
        eval_data: data set to evaluate on, or none  [default: the test split of the data set]
        eval_size: side of the images evaluated on  [default: `size`]
        limit: only so many images, picked by `limit_seed`
        limit_seed: seed that picks the images of `limit`  [default: `seed`]
        recipe: augmentation recipe without labels  [default: crop-flip]
        unpaired: a control: show views of this recipe that no teacher saw, each with the stored label of another view
            of its image
        loss: soft loss: kl, ce, js, jeffreys, mse, l1, ...
        alpha: weight of the hard loss: loss = alpha * hard + (1 - alpha) * soft; DeiT's and timm's alpha is 1 - this
            one  [default: 0 with teachers, else 1]
        alpha_end: `alpha` at the last step; it changes linearly  [default: alpha]
        term: further term of the loss, WEIGHT*LOSS such as 0.5*relational-distance; repeatable
        aux_heads: layers of the student that get a classifier while it trains, which learns from the labels and from
            the student itself (self-distillation): layer1,layer2; repeatable
        aux_weight: how much such a classifier learns from the student, not from the labels
        min_confidence: leave out soft labels whose highest probability is lower
        wrong_teacher: where the teacher is wrong: keep its label, or learn from the hard one alone
        temperature: divides the logits of teachers and student: 1 with many views, 2 to 5 with clean labels; inf: match
            logits (with kl)
        temperature_end: `temperature` at the last step; it changes by `temperature_schedule`  [default: temperature]
        temperature_schedule: how the temperature goes to `temperature_end`: linear, cosine, or step, by
            `temperature_decay`
        temperature_decay: factor of the temperature every `temperature_decay_epochs`, with the schedule step
        temperature_decay_epochs: epochs between steps of the temperature, with the schedule step
        label_smoothing: smoothing of the hard labels
        hard_logits: the student's logits in the hard loss: as they are, or standardised row by row
        hard_temperature: divides the student's logits in the hard loss
        soft_warmup_epochs: epochs in which the soft loss rises to its weight, linearly
        ignore_label: images of this class number count in no part of the loss; -1: those without a label
        normalization: what the sum over images is divided by, as in Caffe: those that count, all of the batch, 1
        blend: how several teachers become one target: mean-probabilities, mean-logits, ...
        unlabelled: what to do with images that have no soft labels
        pixels: whether `data` shows what the teacher saw, or other pixels under the same keys (edges, grey, a second
            camera), which are then not compared with what it saw
        incomplete: train on the finished views of a store that is not complete
        compile: compile the student with torch.compile
        channels_last: use torch.channels_last, which convolutions on GPUs prefer
        compare: compare student and teacher on every training image after the last step
        track: where records go besides the run's folder: tensorboard, wandb (offline), mlflow; repeatable
        out: folder of the run  [default: runs/STUDENT, with `init` runs/STUDENT-tuned; -2, -3, ... where that holds
            another run]
    """

def verify(
    labels: Text = "shards/",
    *,
    config: Text | None = None,
    quiet: bool = False,
    cache_dir: Text | None = None,
    cache_size: int | None = None,
    device: Text = "auto",
    amp: Literal["fp16", "bf16"] | None = None,
    workers: int | Text = "auto",
    data: Data | Sequence[Data] | None = None,
    data_dir: Text | None = None,
    teacher: Network | Sequence[Network] = (),
    weights: Text | Sequence[Text] = (),
    name: Text | Sequence[Text] = (),
    size: int | Sequence[int] = (),
    samples: int = 64,
    largest_kl: float | None = None,
    shards_only: bool = False,
) -> Findings:
    """Check a store: completeness, checksums, the images' fingerprint, digests of rendered views, and the teachers, run
    again on random views.

    Args:
        cache_dir: where shards from a URL are copied to and compressed ones are unpacked  [default: $SOFTLABELS_CACHE,
            or the user's cache]
        cache_size: bytes of copies in that folder, such as 50GB; the longest unused go  [default: no limit]
        device: cpu, cuda, cuda:1, ...; auto takes a GPU when there is one
        amp: mixed precision; on the command line, without a value, the one that the device is made for
        workers: what loads the images: N processes, threads:N, or 0 for the main process; auto: threads on up to 4
            cores, else processes, one per core, divided among the processes of torchrun; 0 for images in memory
        labels: label store, a folder or a URL such as s3://bucket/shards
        data: data set  [default: the one the labels were made of]
        data_dir: where the data set lies
        teacher: teacher to run again  [default: as the store describes it]; repeatable
        weights: weights of the teachers, one per `teacher`
        name: name of the teacher in the store, one per `teacher`  [default: of where it comes from]
        size: side of the images that the teacher sees, one per `teacher`  [default: its own]
        samples: random views on which each teacher is run again; 0 for none
        largest_kl: mean KL in nats between the teacher's labels, encoded as the stored ones are, and these that is
            still accepted  [default: what rounding explains]
        shards_only: check the store's files alone, without images and teachers
    """
