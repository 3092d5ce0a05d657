"""How the command line shows its commands and spells their settings: groups, examples, short flags, other spellings.

A setting that no group of its command names is shown by ``--help-all`` alone. Nothing here is known below the command
line: config files and Python know settings by their own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

START, LABEL, TRAIN, STORES = "Start here", "1 Label", "2 Train", "Label stores"
"""The groups of commands, in their order."""


@dataclass(frozen=True)
class Page:
    """The help of a command.

    `summary` is its line in the list of commands. `needs` is what it cannot do without, for who gives nothing at all.
    `options` has the settings of each group in their order: those before a ``|`` are what people use, the others are
    shown by ``--help-all``.
    """

    group: str
    summary: str
    examples: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""

    def groups(self, *, every: bool) -> Iterator[tuple[str, list[str]]]:
        """Each group with its settings; those that people use, or `every` one."""
        for group, text in self.options.items():
            used, _, others = text.partition("|")
            yield group, [*used.split(), *(others.split() if every else ())]


_TEACHER = "teacher weights name size | class_map compile on_odd_logits"
_DATA = "data data_dir split limit | on_bad_image grow"
_STORE = "out codec format | output compression rows_per_shard"
_CACHE = "cache_dir cache_size"

_DUMP = {
    "Teacher": _TEACHER,
    "Images": _DATA,
    "Views": "views recipe seed",
    "Label store": _STORE,
    "Speed": "batch_size device devices amp workers part",
    "Run": f"dry_run | {_CACHE}",
}
_TRAINING = {
    "Student": "student weights init size | init_from init_from_weights layers compile channels_last train_only",
    "Learn from": "labels data data_dir teachers limit | teacher teacher_weights class_map recipe limit_seed unpaired "
    "unlabelled incomplete pixels",
    "Loss": "alpha temperature loss label_smoothing | alpha_end temperature_end temperature_schedule temperature_decay "
    "temperature_decay_epochs soft_warmup_epochs blend term aux_heads aux_weight hard_logits hard_temperature "
    "ignore_label normalization min_confidence wrong_teacher",
    "Steps": "epochs batch_size lr warmup_epochs optimizer weight_decay ema seed | accumulate views_per_image "
    "shuffle_window lr_scaling lr_base_batch min_lr lr_scale momentum clip_grad sync_bn",
    "Evaluation": "eval_data eval_size | eval_every patience compare",
    "Run": f"out device amp workers | checkpoint_every track {_CACHE}",
}
_REOPENED = {
    "Images and teachers": "data data_dir | teacher weights name size",
    "Run": f"device workers | amp {_CACHE}",
}

PAGES: Mapping[str, Page] = {
    "demo": Page(
        START,
        "Distil a small network in two minutes, with no download",
        ("softlabels demo",),
        {"Demo": "out runs"},
    ),
    "list": Page(
        START,
        "Names of teachers, students, losses, recipes, codecs, ...",
        (
            "softlabels list losses",
            "softlabels list teachers resnet",
            "softlabels list students 'timm:mobilenet*'",
        ),
        {"What": "kind pattern"},
        needs="what to list: teachers, students, losses, recipes, codecs, ...",
    ),
    "plan": Page(
        LABEL,
        "Estimate the size and time of a dump; compare codecs",
        (
            "softlabels plan --teacher resnet50 --data photos/",
            "softlabels plan --teacher resnet50 --data photos/ --codec-report",
        ),
        {**_DUMP, "Codecs": "codec_report for_temperature | codec_samples"},
        needs="a teacher and a data set: `teacher` and `data`",
    ),
    "pack": Page(
        LABEL,
        "Shrink images once for fast reading (optional)",
        (
            "softlabels pack --data photos/ --out pack/ --dry-run",
            "softlabels pack --data imagenet --data-dir /data/imagenet --max-side 320",
        ),
        {
            "Images": "data data_dir split limit | on_bad_image",
            "Pack": "out max_side quality format | rows_per_shard",
            "Run": "threads part dry_run check",
        },
        needs="a data set: `data`",
    ),
    "dedup": Page(
        LABEL,
        "Find copies of held-out images in a pool (optional)",
        ("softlabels dedup --data images:crawl/ --against imagenet --data-dir /data/imagenet",),
        {
            "Images": "data against data_dir split | on_bad_image",
            "Duplicates": "confirm max_distance",
            "Run": "out",
        },
        needs="the pool, and images that it must not hold: `data` and `against`",
    ),
    "dump": Page(
        LABEL,
        "Store a teacher's logits for augmented views of every image",
        (
            "softlabels dump --teacher file:runs/teacher --data photos/ --views 8",
            "softlabels dump --teacher timm:convnext_tiny --data imagenet --data-dir /data/imagenet --codec topk:10",
        ),
        _DUMP,
        needs="a teacher and a data set: `teacher` and `data`",
    ),
    "train": Page(
        TRAIN,
        "Train a student from stored labels, or from hard ones",
        (
            "softlabels train --student mobilenetv3 --labels shards/",
            "softlabels train --student resnet50 --weights default --data photos/ --out runs/teacher",
        ),
        _TRAINING,
        needs="something to learn from: `labels`, or `data` for hard labels alone",
    ),
    "sweep": Page(
        TRAIN,
        "Train a grid of settings with several seeds",
        ("softlabels sweep --student cnn_tiny --labels shards/ --grid temperature=1,2,4 --runs 3",),
        {"Grid": "grid runs", **_TRAINING},
        needs="something to learn from: `labels`, or `data` for hard labels alone",
    ),
    "eval": Page(
        TRAIN,
        "Accuracy of any network",
        (
            "softlabels eval runs/mobilenetv3",
            "softlabels eval resnet50 --weights default --data imagenet --split val",
        ),
        {
            "Network": "student weights size | class_map",
            "Images": "data data_dir split limit",
            "Run": "batch_size device amp workers",
        },
        needs="a run's folder, or another network",
    ),
    "report": Page(
        TRAIN,
        "Table and plots of finished runs",
        ("softlabels report runs/",),
        {"Report": "root out baseline"},
        needs="the folder that holds the runs",
    ),
    "export": Page(
        TRAIN,
        "Write a student as torch.export, ONNX or int8",
        ("softlabels export runs/mobilenetv3 --format onnx --data photos/",),
        {"Student": "student function", "File": "format out", "Comparison": "data data_dir split limit"},
        needs="a run's folder, or the weights of a student",
    ),
    "select": Page(
        STORES,
        "Pick the images of each class that the labels are surest of",
        (
            "softlabels select --labels shards/ --top-k-per-class 4000",
            "softlabels select --labels shards/ --top-k-per-class 500 --min-confidence 0.5 --pseudo-labels",
        ),
        {
            "Images": "labels top_k_per_class min_confidence | teachers temperature data data_dir",
            "List": "out pseudo_labels",
            "Run": f"| {_CACHE}",
        },
        needs="a number of images of each class: `top_k_per_class`",
    ),
    "info": Page(
        STORES,
        "Content, size and completeness of a label store",
        ("softlabels info shards/",),
        {"Label store": "labels"},
    ),
    "verify": Page(
        STORES,
        "Check files, images and teachers of a label store",
        ("softlabels verify shards/", "softlabels verify shards/ --shards-only"),
        {"Label store": "labels samples shards_only largest_kl", **_REOPENED},
    ),
    "repair": Page(
        STORES,
        "Remove damaged shards, or dump them again",
        ("softlabels repair shards/", "softlabels repair shards/ --redump"),
        {"Label store": "labels redump | batch_size on_bad_image", **_REOPENED},
    ),
    "convert": Page(
        STORES,
        "Copy a label store to another format or codec",
        (
            "softlabels convert shards/ --out zarr/ --format zarr",
            "softlabels convert shards/ --out small/ --codec topk:10 --lossy",
        ),
        {"Label store": "labels out format codec lossy teachers compression", "Run": f"| {_CACHE}"},
        needs="a label store and a folder for the new one: `labels` and `out`",
    ),
    "merge": Page(
        STORES,
        "Unite label stores of the same images and views",
        ("softlabels merge part-a/ part-b/ --out shards/",),
        {"Label stores": "labels out", "Run": f"| {_CACHE}"},
        needs="label stores and a folder for all of them: `labels` and `out`",
    ),
    "import": Page(
        STORES,
        "Read label files of FKD, TinyViT, ml-dr, SRe2L, ...",
        (
            "softlabels import --from fkd FKD_soft_label_500_crops/ --data imagenet --data-dir /data/imagenet",
            "softlabels import --from sre2l FKD_cutmix_fp16/ --data distilled/ --codec topk:100",
        ),
        {
            "Files": "source from_ | classes temperature tail mixup cutmix mixup_prob mixup_switch_prob order "
            "order_seed input_size",
            "Images": "data data_dir split limit | labels_only allow_mismatch on_missing seed",
            "Label store": "out views name codec format | values compression rows_per_shard",
            "Run": f"part | {_CACHE}",
        },
        needs="label files and the images they are of: `from`, `source` and `data`",
    ),
}
"""The help of each command, in the order of the list."""


SHORT: Mapping[str, str] = {"out": "-o", "batch_size": "-b", "workers": "-j"}
"""Flags of one letter, wherever a command has the setting."""


ALIASES: Mapping[str, tuple[str, ...]] = {
    "accumulate": ("grad-accum-steps",),
    "alpha": ("hard-weight",),
    "amp": ("precision",),
    "checkpoint_every": ("checkpoint-every-steps",),
    "compile": ("torchcompile",),
    "ema": ("model-ema-decay",),
    "eval_every": ("val-interval",),
    "label_smoothing": ("smoothing",),
    "largest_kl": ("max-kl",),
    "lr": ("learning-rate",),
    "optimizer": ("opt",),
    "output": ("also",),
    "out": ("output-dir",),
    "recipe": ("augment",),
    "rows_per_shard": ("images-per-shard",),
    "size": ("img-size",),
    "track": ("logger",),
    "views_per_image": ("aug-repeats",),
    "workers": ("num-workers",),
}
"""Spellings of other tools, which the command line takes as well."""


ALIASES_IN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    name: {"teacher": ("live-teacher",), "teachers": ("use-teachers",), "weights": ("initial-checkpoint",)}
    for name in ("train", "sweep")
}
"""As `ALIASES`, of some commands alone; the first two are clearer, and shown."""


SHOWN_ALIASES = frozenset({"also", "live-teacher", "use-teachers"})
"""Spellings that ``--help`` shows beside the option."""


PRETRAINED = "pretrained"
"""A flag that stands for the published weights: ``--weights default``."""


NEIGHBOURS: Mapping[str, Mapping[str, str]] = {
    "model": {
        "dump": "`teacher` names the network",
        "plan": "`teacher` names the network",
        "train": "`student` names the network",
        "sweep": "`student` names the network",
        "eval": "the network is given by place: softlabels eval runs/x",
        "export": "the student is given by place: softlabels export runs/x",
    },
    "resume": {"": "resuming is automatic: run the same command with the same `out`"},
    "v": {"": "nothing more can be shown; --quiet shows less"},
    "verbose": {"": "nothing more can be shown; --quiet shows less"},
    "kd-model-name": {"train": "labels come from a store: `labels`; a teacher in the loop is `teacher`"},
    "dataset": {"": "`data` names the data set"},
    "gpus": {"train": "start one process per GPU: torchrun --nproc-per-node N -m softlabels train"},
}
"""Words for what goes by another name here: what to write, by command ("": in all others)."""


METAVARS: Mapping[str, str] = {
    "against": "DATA",
    "blend": "BLEND",
    "cache_dir": "DIR",
    "cache_size": "BYTES",
    "class_map": "FILE",
    "codec": "CODEC",
    "config": "FILE",
    "data": "DATA",
    "data_dir": "DIR",
    "device": "DEVICE",
    "eval_data": "DATA",
    "function": "MODULE:FUNCTION",
    "grid": "SETTING=VALUES",
    "init": "RUN",
    "input_size": "N",
    "init_from": "NETWORK",
    "init_from_weights": "WEIGHTS",
    "layers": "LAYER",
    "kind": "KIND",
    "labels": "STORE",
    "loss": "LOSS",
    "optimizer": "NAME",
    "out": "DIR",
    "output": "NAME[=CODEC]",
    "order": "FILE",
    "part": "I/N",
    "name": "NAME",
    "pattern": "PATTERN",
    "recipe": "RECIPE",
    "unpaired": "RECIPE",
    "root": "ROOT",
    "source": "SOURCE",
    "student": "NAME",
    "teacher": "NAME",
    "teachers": "NAME",
    "term": "WEIGHT*LOSS",
    "track": "TRACKER",
    "weights": "WEIGHTS",
    "teacher_weights": "WEIGHTS",
}
"""What the help calls the value of an option, where its type does not say it."""


def spellings(command: str, setting: str) -> tuple[str, ...]:
    """Other spellings of a command's option, without the hyphens before them."""
    return (*ALIASES.get(setting, ()), *ALIASES_IN.get(command, {}).get(setting, ()))
