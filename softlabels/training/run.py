"""`softlabels train`."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from softlabels.choices import StudentChoice
from softlabels.codecs import SparseCodec
from softlabels.core.config import OBJECT, validated
from softlabels.core.files import write_json
from softlabels.core.progress import Terminal, duration, percent, plural, rate
from softlabels.core.types import LOGITS
from softlabels.datasets import Images, check_there, open_images, subset
from softlabels.datasets import notes as image_notes
from softlabels.errors import ConfigError, DataError, RunError, SoftlabelsError, StoreError
from softlabels.loading import opening
from softlabels.loading.batches import LabelledViews
from softlabels.loading.checks import check_classes, check_seen_views
from softlabels.loading.distributed import Ranks, process_group
from softlabels.loading.labels import Labels
from softlabels.loading.opening import alias, check_place, open_data, teacher_specs
from softlabels.loading.samplers import window_notes
from softlabels.loading.views import ViewDataset, image_spec
from softlabels.losses import Blend, ClassAccuracy, Objective
from softlabels.models import (
    Preprocessing,
    StudentSpec,
    are_numbers,
    first_difference,
    load_state,
    parameter_count,
    read_description,
    read_weights,
    try_learning,
    try_outputs,
)
from softlabels.training.checkpoints import newest_step
from softlabels.training.config import TrainConfig
from softlabels.training.evaluate import Evaluator, agreement_with_teachers, classifier, trained_on
from softlabels.training.first_layers import copy_layers
from softlabels.training.folder import RESULT, Record, begin, held, recorded
from softlabels.training.heads import Auxiliary, make_heads
from softlabels.training.loop import CHECKPOINTS, StepSampler, TrainReport, lengths, train
from softlabels.training.result import TrainResult
from softlabels.training.run_inputs import Inputs, check_first_layers
from softlabels.training.settings import TrainSettings
from softlabels.training.state import Runtime, check_optimizer, check_ranks, learning_rate, parameter_groups
from softlabels.training.targets import (
    Filter,
    LiveTargets,
    NoTargets,
    Targets,
    Task,
    check_offset,
    match_labels,
    stored_features,
    stored_targets,
)
from softlabels.training.temperatures import TemperatureSchedule
from softlabels.training.tracking import check_trackers, tracked
from softlabels.views import RECIPES

DEFAULT_STUDENT = "mobilenetv3"

CLASSIFIER = "classifier"
"""In `train_only`: the layer that tells the classes, whatever the network calls it."""


def run_train(config: TrainConfig, terminal: Terminal) -> TrainResult:
    """Train a student; returns the run's result, which is also written to its folder as the last thing.

    Under `torchrun` every process calls this; the first one talks and writes.
    """
    with process_group() as ranks:
        return _run(config, terminal if ranks.first else Terminal(quiet=True), ranks)


def check_settings(config: TrainConfig) -> None:
    """Raises SoftlabelsError where the settings alone are wrong; nothing is opened."""
    if not config.labels and config.data is None:
        raise ConfigError("there is nothing to learn from; give `labels=STORE`, or `data` for hard labels alone")

    if config.labels and config.teacher:
        raise ConfigError(
            "`labels` and `teacher` exclude each other: stored labels need no teacher in the loop; choose among the "
            "teachers of the store with `teachers`"
        )
    if config.shuffle_window is not None and not config.labels:
        raise ConfigError("`shuffle_window` needs the shards of a label store; give `labels=STORE`")
    if config.recipe is not None and config.labels:
        raise ConfigError(
            "`recipe` cannot be chosen with `labels`: the views are the ones that the teacher saw; `unpaired=RECIPE` "
            "shows others on purpose"
        )
    if config.unpaired is not None and not config.labels:
        raise ConfigError(
            "`unpaired` shows other views than the stored labels are of; give `labels=STORE`, or `recipe`"
        )
    for recipe in (config.recipe, config.unpaired):
        if recipe is not None:
            recipe.make()
    if config.patience is not None and config.eval_data is not None and config.eval_data.none:
        raise ConfigError("`patience` counts evaluations, and with `eval_data=none` there are none; leave one out")
    if config.normalization != "valid" and (config.min_confidence > 0 or config.wrong_teacher != "keep"):
        raise ConfigError(
            f"`normalization={config.normalization}` does not go with `min_confidence` and `wrong_teacher`, whose mean "
            f"is over the rows that count; leave it out"
        )
    if config.init_from is None and (config.layers or config.init_from_weights):
        given = "layers" if config.layers else "init_from_weights"
        raise ConfigError(f"`{given}` says what is copied from another network; name that with `init_from`")
    if config.init_from is not None and config.init is not None:
        raise ConfigError(
            "`init` and `init_from` exclude each other: `init` goes on with a whole network, `init_from` copies layers "
            "of another into `student`"
        )
    if config.pixels == "other" and (not config.labels or config.data is None):
        raise ConfigError("`pixels=other` is of images that a store's teacher did not see; give `labels` and `data`")
    config.check_parts()
    objective = _objective(config, 0.0 if config.labels or config.teacher else 1.0)
    if not config.labels and not config.teacher:
        _check_without_teacher(config, objective)
    _check_in_use(config, objective)
    _check_schedule(config)


def check_train_files(config: TrainConfig) -> None:
    """Raises SoftlabelsError where a file or package that the run begins with is not there; no data set is opened."""
    _student(config).check_weights(training=True)
    check_first_layers(config)
    teachers = teacher_specs(config.teacher, config.teacher_weights) if config.teacher else []
    opening.check_teacher_files(teachers, config.class_map)
    config.torch_device()
    check_trackers(each.make() for each in config.track)
    if config.eval_data is not None and not config.eval_data.none:
        check_there(config.eval_data.make(), config.data_dir)


def _run(config: TrainConfig, terminal: Terminal, ranks: Ranks) -> TrainResult:
    check_settings(config)
    folder, before = ranks.on_first(lambda: _place(config, terminal))
    check_place(folder, "run")
    if before is not None and before.result is not None and before.shorter(config) is None:
        ranks.on_first(lambda: _report_done(before, config, terminal))
        return TrainResult(before.result, folder)
    check_train_files(config)
    spec = _student(config)
    inputs = Inputs(config, spec)
    known = ranks.on_first(lambda: _known(inputs, before, config, terminal))
    inputs.views = None if before is None or before.inputs is None else before.inputs.get("views")
    with ExitStack() as stack:
        return TrainResult(_train(config, spec, folder, inputs, known, stack, terminal, ranks), folder)


def _place(config: TrainConfig, terminal: Terminal) -> tuple[Path, Record | None]:
    """The folder of this run, and what lies in it of the run.

    Where none is named that is the one of ``runs/STUDENT``, ``runs/STUDENT-2``, ... that holds this run, else the first
    that holds none.

    Raises:
        RunError: the folder that is named holds a run of other settings, or what is there is damaged.
    """
    if config.out is not None:
        found = recorded(Path(config.out))
        if found is not None:
            found.check_settings(config, longer=True)
        return Path(config.out), found
    usual = Path("runs", f"{_student(config).short_name}{'-tuned' if config.init else ''}")
    numbers = (path.name.removeprefix(f"{usual.name}-") for path in usual.parent.glob(f"{usual.name}-*"))
    taken = {1, *(int(number) for number in numbers if re.fullmatch(r"[1-9]\d{0,5}", number))}
    places = {number: usual if number == 1 else usual.with_name(f"{usual.name}-{number}") for number in taken}
    others: dict[int, list[str]] = {}
    for number, folder in sorted(places.items()):
        found = recorded(folder)
        if found is not None:
            others[number] = found.other_settings(config) or _other_inputs(found, config)
            if not others[number]:
                if number > 1:
                    terminal.say(f"goes on in {folder}, which holds this run")
                return folder, found
    if not others.get(1):
        return usual, None
    number = next(number for number in itertools.count(2) if number not in others)
    folder = usual.with_name(f"{usual.name}-{number}")
    terminal.say(f"{usual} holds another run ({'; '.join(others[1][:3])}); this one is in {folder}; `out` chooses")
    return folder, None


def _other_inputs(found: Record, config: TrainConfig) -> list[str]:
    """In words, what went into the run that was `found` and is another thing now; nothing where it is not there."""
    try:
        now = Inputs(config, _student(config))
        return found.other_inputs(now.known(_held_out(config, now.images, _unsaid)))
    except (SoftlabelsError, KeyError):
        return []


def _known(inputs: Inputs, before: Record | None, config: TrainConfig, terminal: Terminal) -> dict[str, Any]:
    """What goes into the run. Raises RunError when something else went into the one `before`."""
    known = inputs.known(_held_out(config, inputs.images, _unsaid))
    if before is not None:
        before.check_inputs(known)
        if before.inputs is None:
            terminal.say(f"{before.folder} does not say what went into the run so far; that is not compared")
    return known


def _report_done(done: Record, config: TrainConfig, terminal: Terminal) -> None:
    """Say that nothing is to do. Raises RunError when the run is of something else than there is now."""
    try:
        now = Inputs(config, _student(config))
        done.check_inputs(now.known(_held_out(config, now.images, _unsaid)))
    except RunError:
        raise
    except (SoftlabelsError, KeyError) as problem:
        reason = problem.args[0] if problem.args else problem
        terminal.say(f"{done.folder} is done already; what went into it is not there to be compared: {reason}")
        return
    unknown = "; what went into it was not recorded and is not compared" if done.inputs is None else ""
    terminal.say(f"{done.folder} is done already; nothing to do{unknown}")


def _train(
    config: TrainConfig,
    spec: StudentSpec,
    folder: Path,
    inputs: Inputs,
    known: Mapping[str, Any],
    stack: ExitStack,
    terminal: Terminal,
    ranks: Ranks,
) -> dict[str, Any]:
    """Make the steps that are left. The folder is held for this process within `stack`."""
    preprocessing = spec.preprocessing
    task, classes, notes = _task(config, preprocessing, inputs)
    if config.ignore_label is not None and config.ignore_label >= classes:
        raise ConfigError(f"`ignore_label={config.ignore_label}` is no class: there are {classes:,}, from 0 upward")
    images = task.samples.pictures.images
    _check_ignored(config, images)
    check_place(folder, "run", images)
    device = config.torch_device()
    names = task.samples.labels.class_names if task.samples.labels is not None else images.classes
    network = spec.build(classes, seed=config.seed)
    notes += _copied_layers(config, spec, network, inputs, names or images.classes)
    network = network.to(device)
    metadata = spec.metadata(classes, names or images.classes)
    notes += _kept_head(config, classes, names or images.classes)
    settings = _settings(config, spec)
    # Now, so that a mistyped layer leaves no folder behind that would refuse the corrected command.
    parameter_groups(network, settings.weight_decay, settings.lr_scale, settings.train_only)
    check_optimizer(settings)
    whose = f"student {spec.short_name}"
    used = try_learning(network, preprocessing, classes, device, whose, config.dtype)
    heads = None
    if task.student_outputs != (LOGITS,):
        shapes = try_outputs(network, preprocessing, device, whose, task.student_outputs)
        given = task.teacher_shapes()
        heads = make_heads(task.objective, task.auxiliary, shapes, given, classes, settings.seed)
    runtime = Runtime(
        device,
        config.dtype,
        config.helpers(images),
        config.compile,
        config.channels_last,
        ranks,
        # Code that is not known here may leave out layers now and then.
        all_parameters_used=used and spec.kind not in ("function", OBJECT),
    )
    check_ranks(settings, runtime)
    header = [
        f"student {spec.short_name}{alias(spec)}: {parameter_count(network):,} parameters, {classes} classes, images "
        f"of {preprocessing.size} px; {plural(len(images), 'image')}, {_batch(settings, ranks)}",
        *settings.describe(),
        *notes,
        *task.describe(),
        *([] if heads is None else [f"{parameter_count(heads):,} parameters are trained beside the student's own"]),
    ]
    evaluator = _evaluator(config, preprocessing, images, classes, names, runtime, header.append)

    def begin_run() -> dict[str, Any] | None:
        stack.enter_context(held(folder))
        found = recorded(folder)
        if found is not None:  # another process may have begun it since this one looked
            found.check_settings(config, longer=config.out is not None)
            if found.result is not None and found.shorter(config) is None:
                return found.result
        prolonged = _prolonged(found, config, settings, task, folder)
        header.extend(map(_prolonging, prolonged))
        begin(folder, config, {**known, "views": task.samples.label_views}, header, prolonged)
        return None

    done = ranks.on_first(begin_run)
    if done is not None:
        terminal.say(f"{folder} is done already; nothing to do")
        return {**done, "folder": str(folder)}
    for line in header:
        terminal.say(line)

    shown = config.model_dump(mode="json", exclude={"track"})
    with (
        tracked([each.make() for each in config.track if ranks.first], folder, shown, terminal) as trackers,
        _explained_interrupt(folder / CHECKPOINTS),
    ):
        report = train(
            network,
            preprocessing,
            task,
            settings,
            folder=folder,
            runtime=runtime,
            evaluator=evaluator,
            metadata=metadata,
            terminal=terminal,
            note=trackers.record,
            heads=heads,
        )
    result = _result(report, network, task, folder)
    if config.compare and not isinstance(task.targets, NoTargets):
        result |= _compared(network, preprocessing, task, config, runtime, folder)
    if ranks.first:
        write_json(folder / RESULT, result)
    return result


def train_text(result: Mapping[str, Any]) -> str:
    """What `run_train` returns, in one line for a person."""
    best, last, closeness = result["best"], result["last"], result.get("closeness")
    weights = Path(result["folder"]) / "best.safetensors"
    epochs = plural(result["epochs"], "epoch") if "epochs" in result else plural(result["steps"], "step")
    line = f"trained for {epochs}, not evaluated"
    if best and last:
        of = f", epoch {result['best_epoch']}" if result.get("best_epoch") else ""
        line = f"top-1 {percent(last['top1'])} after {epochs} (best {percent(best['top1'])}{of})"
    if closeness:
        line += f", agrees with teacher {percent(closeness['agreement'])}"
    speed = f", {rate(result['pictures_per_second'])} images/s" if result.get("pictures_per_second") else ""
    return f"{line}, {duration(result['seconds'])}{speed}; weights {weights}"


def _prolonged(
    found: Record | None, config: TrainConfig, settings: TrainSettings, task: Task, folder: Path
) -> list[Mapping[str, Any]]:
    """Each time that the run got more epochs, now included: from and to how many, at which step, and its rates.

    Raises:
        RunError: it is done, and has no checkpoint any more.
    """
    before = None if found is None else found.shorter(config)
    earlier = [] if found is None else [each for each in found.prolonged if each["to"] <= (before or config.epochs)]
    step = newest_step(folder / CHECKPOINTS)
    if before is not None and step is None and found is not None and found.result is not None:
        raise RunError(f"{folder} has no checkpoint left from which it could get more epochs; choose another `out`")
    if before is None or step is None:
        return earlier
    per_epoch = StepSampler(task.samples, settings).steps_per_epoch
    shorter = settings.model_copy(update={"epochs": before})
    rates = [learning_rate(each, *lengths(each, per_epoch), step) for each in (settings, shorter)]
    now = {"from": before, "to": config.epochs, "at_step": step, "lr": rates[0], "lr_before": rates[1]}
    return [*earlier, now]


def _prolonging(change: Mapping[str, Any]) -> str:
    """A line for the header."""
    return (
        f"prolonged from {change['from']} to {change['to']} epochs: the learning rate at step {change['at_step']:,} is "
        f"{change['lr']:.3g} where the earlier schedule had {change['lr_before']:.3g}"
    )


@contextmanager
def _explained_interrupt(checkpoints: Path) -> Iterator[None]:
    """Say in an interrupt what the same command does next."""
    try:
        yield
    except KeyboardInterrupt as stop:
        step = newest_step(checkpoints)
        next_time = "it begins anew: there is no checkpoint yet (`checkpoint_every`)"
        if step is not None:
            next_time = f"the same command goes on from the checkpoint of step {step:,}"
        raise type(stop)(f"{str(stop) or 'interrupted'}; {next_time}") from stop


def _batch(settings: TrainSettings, ranks: Ranks) -> str:
    """The images of an optimizer step, and how they are cut."""
    said = f"batch {settings.effective_batch}"
    if settings.accumulate > 1:
        said += f" in {settings.accumulate} passes of {settings.batch_size}"
    return said + (f" over {ranks.count} processes" if ranks.count > 1 else "")


def _student(config: TrainConfig) -> StudentSpec:
    """The student that is named, or the one of an earlier run."""
    if config.init is None:
        student = config.student or StudentChoice(DEFAULT_STUDENT)
        return student.make(config.weights, config.size)
    if config.weights is not None:
        raise ConfigError("`init` and `weights` exclude each other: `init` brings the network's weights")
    saved = read_description(config.init)
    if config.student is None and (saved is None or saved.own_code):
        # A file of weights must never choose code that is then run.
        own = saved.architecture.removeprefix("function:") if saved else "NAME"
        raise ConfigError(f"{config.init} does not name a network that is known here; name it with `student={own}`")
    student = config.student or StudentChoice(saved.architecture if saved else "")
    return student.make(config.init, config.size)


def _copied_layers(
    config: TrainConfig, spec: StudentSpec, network: nn.Module, inputs: Inputs, names: Sequence[str]
) -> list[str]:
    """Copy the layers that `init_from` brings into the student; lines about them."""
    source = inputs.layers_from
    if source is None:
        return []
    # The same tensors in the head of other classes match by chance.
    alike = bool(source.class_names) and first_difference(names, source.class_names) is None
    leave = () if alike else spec.head
    copied = copy_layers(network, source.network, config.layers, called=source.where, leave=leave)
    return [copied.describe(source.where)]


def _kept_head(config: TrainConfig, classes: int, names: Sequence[str]) -> list[str]:
    """In one line, that the head of an earlier run is gone on with, although its classes have other names.

    Raises:
        ConfigError: they are the same classes in another order.
    """
    saved = read_description(config.init) if config.init is not None else None
    differing = first_difference(names, saved.class_names) if saved is not None and saved.classes == classes else None
    if saved is None or differing is None:
        return []
    index, name, other = differing
    if set(names) == set(saved.class_names):
        raise ConfigError(
            f"class {name!r} is number {index} here and number {other} of {config.init}; give data with the same "
            f"classes in the same order"
        )
    before = saved.class_names[index]
    return [f"the head of {config.init} is gone on with: its class {index} was {before!r} and is {name!r} now"]


def _settings(config: TrainConfig, spec: StudentSpec) -> TrainSettings:
    """The settings of the steps, with the layer that is meant by `classifier` in its place."""
    settings = config.settings
    if CLASSIFIER not in settings.train_only:
        return settings
    if not spec.head:
        raise ConfigError(
            f"`train_only={CLASSIFIER}`: {spec.short_name} does not say which layer that is; name the layer"
        )
    layers = tuple(name for each in settings.train_only for name in (spec.head if each == CLASSIFIER else [each]))
    return settings.model_copy(update={"train_only": layers})


def _task(config: TrainConfig, preprocessing: Preprocessing, inputs: Inputs) -> tuple[Task, int, list[str]]:
    """What is learnt, the number of classes, and lines about it for the header."""
    if config.labels:
        return _stored_task(config, preprocessing, inputs)
    images = inputs.images
    recipe = inputs.recipe
    views = config.epochs * config.views_per_image  # a new view whenever an image comes
    pictures = ViewDataset(images, recipe, config.seed, views, image_spec(preprocessing))
    more = image_notes(images)
    note = f"views of recipe {RECIPES.spelled(recipe)}"
    if config.teacher:
        targets = _live_targets(config, pictures, inputs)
        classes = targets.teachers[0].classes
        names = [teacher.name for teacher in targets.teachers]
        task, lines = _with_teachers(config, LabelledViews(pictures), targets, names)
        return task, classes, [f"{note}, {', '.join(names)} live", *more, *inputs.notes, *lines]
    if not (images.labels >= 0).any():
        raise DataError(f"{images.name} has no hard labels to learn from; give `labels=STORE`")
    objective = _objective(config, 1.0)
    task = Task(
        LabelledViews(pictures), NoTargets(), objective, labelled=_labelled(pictures), auxiliary=_auxiliary(config)
    )
    return task, len(images.classes), [note, *more]


def _check_ignored(config: TrainConfig, images: Images) -> None:
    """Raises ConfigError where no image is left that counts."""
    if config.ignore_label is not None and (images.labels == config.ignore_label).all():
        has = "has a hard label" if config.ignore_label < 0 else "is of another class"
        raise ConfigError(
            f"`ignore_label={config.ignore_label}` leaves nothing to learn from: none of the {len(images):,} images of "
            f"{images.name} {has}; leave it out"
        )


def _hard_labels(images: Images, needed_by: str | None) -> list[str]:
    """A line about images without a hard label, where there are some.

    Raises:
        ConfigError: something needs hard labels, and no image has one.
    """
    labelled = int((images.labels >= 0).sum())
    if needed_by and not labelled:
        raise ConfigError(
            f"{needed_by} needs hard labels, and none of the {len(images):,} images of {images.name} has one; give "
            f"data that has, or learn from soft labels alone"
        )
    if labelled == len(images):
        return []
    return [f"{labelled:,} of {len(images):,} images have a hard label"]


def _with_teachers(
    config: TrainConfig, samples: LabelledViews, targets: Targets, teachers: Sequence[str]
) -> tuple[Task, list[str]]:
    """A task with teachers, and lines about it."""
    objective, notes = _objective(config, 0.0), []
    shares = (objective.alpha, objective.alpha if config.alpha_end is None else config.alpha_end)
    needing = {
        f"`alpha={shares[0]:g}`": shares[0] > 0,
        f"`alpha_end={shares[1]:g}`": shares[1] > 0,
        "`wrong_teacher=hard`": config.wrong_teacher == "hard",
        f"`ignore_label={config.ignore_label}`": config.ignore_label is not None and config.ignore_label >= 0,
        **{f"loss {loss.kind!r}": loss.needs_labels for loss in objective.losses},
    }
    notes += _hard_labels(samples.pictures.images, next((name for name, needs in needing.items() if needs), None))
    if len(teachers) > 1:
        blend = config.blend.make()
        first = "" if config.temperature_end is None else " at the first step"
        formula = blend.formula(config.temperature)
        notes.append(f"blend {blend.kind} of {', '.join(teachers)}: target = {formula}{first}")
    elif not _is_usual_blend(config):
        notes.append(f"blend {config.blend.make().kind} changes nothing: there is one teacher, {teachers[0]}")
    if config.soft_warmup_epochs > config.epochs:
        notes.append(
            f"the soft loss never reaches its weight: `soft_warmup_epochs={config.soft_warmup_epochs:g}` is more than "
            f"the {plural(config.epochs, 'epoch')} of the run"
        )
    if config.label_smoothing and min(shares) < 1:
        notes.append(f"label smoothing {config.label_smoothing:g} is off: soft labels are on, and are smooth already")
        objective = objective.model_copy(update={"label_smoothing": 0.0})
    row_filter = Filter(config.min_confidence, config.wrong_teacher)
    return Task(
        samples,
        targets,
        objective,
        config.alpha_end,
        row_filter,
        soft_warmup=config.soft_warmup_epochs,
        labelled=_labelled(samples.pictures),
        auxiliary=_auxiliary(config),
        temperatures=_temperatures(config),
    ), notes


def _labelled(pictures: ViewDataset) -> float:
    """The share of images that have a hard label; 0 where views are mixed, which have two."""
    return 0.0 if pictures.recipe.mixes else float((pictures.images.labels >= 0).mean())


def _auxiliary(config: TrainConfig) -> Auxiliary | None:
    return Auxiliary(config.aux_heads, config.aux_weight) if config.aux_heads else None


def _temperatures(config: TrainConfig) -> TemperatureSchedule | None:
    """How the temperature changes; None where it stays."""
    if config.temperature_end is None:
        return None
    return TemperatureSchedule(
        config.temperature,
        config.temperature_end,
        config.temperature_schedule,
        config.temperature_decay,
        config.temperature_decay_epochs,
        config.epochs,
    )


def _check_schedule(config: TrainConfig) -> None:
    """Raises ConfigError where the temperature cannot change as asked."""
    start, end = config.temperature, config.temperature_end
    if end is None:
        return
    for name, value in (("temperature", start), ("temperature_end", end)):
        if math.isinf(value):
            raise ConfigError(
                f"`{name}=inf` is no end of a schedule, which would have no number in between; give a finite one, or "
                f"leave `temperature_end` out"
            )
    _at_end(config, lambda: _objective(config, 0.0, temperature=end))
    if config.temperature_schedule == "step" and end >= start:
        raise ConfigError(
            f"`temperature_schedule=step` lowers the temperature, and `temperature_end={end:g}` is not below "
            f"`temperature={start:g}`; give a lower end, or choose linear"
        )


def _at_end(config: TrainConfig, check: Callable[[], Any]) -> None:
    """Make a check of the last step's temperature. Raises ConfigError, which names the setting."""
    try:
        check()
    except ConfigError as problem:
        raise ConfigError(f"`temperature_end={config.temperature_end:g}`: {problem}") from problem


def _check_in_use(config: TrainConfig, objective: Objective) -> None:
    """Raises ConfigError for a setting that would change nothing."""
    shares = (objective.alpha, objective.alpha if config.alpha_end is None else config.alpha_end)
    hard = max(shares) > 0 or config.wrong_teacher == "hard"
    softened = min(shares) < 1 or any(term.weight for term in objective.terms)
    changes, default = config.temperature_end is not None, TrainConfig.model_fields
    steps = changes and config.temperature_schedule == "step"
    for setting, given, used, wants in (
        ("limit_seed", config.limit_seed is not None, config.limit is not None, "picks the images of `limit`; give it"),
        (
            "aux_weight",
            config.aux_weight != TrainConfig.model_fields["aux_weight"].default,
            bool(config.aux_heads),
            "is of the classifiers that `aux_heads` names; give it",
        ),
        ("hard_logits", config.hard_logits != "plain", hard, "is of the hard loss; give an `alpha` above 0"),
        ("hard_temperature", config.hard_temperature != 1, hard, "is of the hard loss; give an `alpha` above 0"),
        ("temperature_end", changes, softened, "is of the soft loss; give an `alpha` below 1"),
        (
            "temperature_schedule",
            config.temperature_schedule != default["temperature_schedule"].default,
            changes,
            "is how the temperature goes to `temperature_end`; give it",
        ),
        *(
            (
                name,
                getattr(config, name) != default[name].default,
                steps,
                "is of `temperature_schedule=step` with a `temperature_end`; give them",
            )
            for name in ("temperature_decay", "temperature_decay_epochs")
        ),
        (
            "soft_warmup_epochs",
            config.soft_warmup_epochs > 0,
            min(shares) < 1,
            "is of the soft loss; give an `alpha` below 1",
        ),
    ):
        if given and not used:
            raise ConfigError(f"`{setting}` {wants}, or leave `{setting}` out")


def _is_usual_blend(config: TrainConfig) -> bool:
    return config.blend.given in ("mean-probabilities", {"kind": "mean-probabilities"})


def _check_without_teacher(config: TrainConfig, objective: Objective) -> None:
    """Raises ConfigError for what only has a meaning beside a teacher."""
    needing = [f"term {term.name!r}" for term in objective.terms if term.loss.needs_teacher]
    for flag, given in (
        ("`alpha_end`", config.alpha_end is not None),
        ("`temperature_end`", config.temperature_end is not None),
        ("`soft_warmup_epochs`", config.soft_warmup_epochs > 0),
        ("`min_confidence`", config.min_confidence > 0),
        ("`wrong_teacher`", config.wrong_teacher != "keep"),
        ("`loss`", config.loss.given not in ("kl", {"kind": "kl"})),
        ("`teachers`", bool(config.teachers)),
        ("`blend`", not _is_usual_blend(config)),
        (f"`alpha={objective.alpha:g}`, below 1,", objective.alpha < 1),
        (needing[0] if needing else "", bool(needing)),
    ):
        if given:
            raise ConfigError(f"{flag} needs a teacher; give `labels=STORE` or `teacher=NAME`")


def _live_targets(config: TrainConfig, pictures: ViewDataset, inputs: Inputs) -> LiveTargets:
    teachers, outputs = inputs.teachers, _objective(config, 0.0).outputs
    if len(teachers) > 1 and isinstance(config.blend.make(), ClassAccuracy):
        raise ConfigError(
            "blend 'class-accuracy' is measured on stored labels; dump them and give `labels=STORE`, or give "
            "`per-class` weights"
        )
    if len(outputs) > 1 and len(teachers) > 1:
        raise ConfigError(f"output {outputs[1]!r} is compared with that of one teacher; name one with `teacher`")
    for loss in _objective(config, 0.0).losses if len(teachers) > 1 else ():
        check_offset(loss, config.blend.make())
    seen = [pictures.at(image_spec(teacher.preprocessing)) for teacher in teachers]
    return LiveTargets(teachers, seen, pictures.image_spec, config.blend.make(), config.temperature, outputs)


def _stored_task(config: TrainConfig, preprocessing: Preprocessing, inputs: Inputs) -> tuple[Task, int, list[str]]:
    labels = inputs.labels
    assert labels is not None
    teachers, objective = labels.select(config.teachers), _objective(config, 0.0)
    features = stored_features(labels, teachers, objective)
    folders = (*teachers, *features.values())
    views = labels.complete_views(folders)
    if config.views_per_image > views:
        raise ConfigError(
            f"`views_per_image={config.views_per_image}` is more than the {views} views that {labels.store.location} "
            f"holds; choose {views} or fewer, or dump more views"
        )
    for name in folders:
        _check_complete(labels, name, config.incomplete)
    for name in teachers:
        _check_temperatures(labels, name, objective, confidence=config.min_confidence > 0)
    if config.temperature_end is not None:
        # Every codec is valid at all temperatures between two at which it is.
        last = objective.model_copy(update={"temperature": config.temperature_end})
        for name in teachers:
            _at_end(config, functools.partial(_check_temperatures, labels, name, last, confidence=False))
    images, views = inputs.images, _views(labels, inputs, folders)
    matched = match_labels(images.keys, labels, folders, leave_out=config.unlabelled == "leave-out")
    notes = [
        f"labels {labels.store.location}: {plural(views, 'view')} of {plural(len(labels), 'image')} by "
        f"{', '.join(teachers)}, recipe {RECIPES.spelled(labels.recipe)}, seed {labels.seed}"
    ]
    more_views = {name: labels.of(name).views for name in teachers if labels.of(name).views > views}
    if more_views:
        counts = ", ".join(f"{name} has {count}" for name, count in more_views.items())
        notes.append(f"{plural(views, 'view')} are used, which all these teachers have ({counts})")
    notes += image_notes(images)
    gone = np.setdiff1d(np.arange(len(labels)), matched.label_rows)
    if len(gone) and config.limit is None:
        count, first = f"{len(gone):,} of the {len(labels):,}", labels.keys[int(gone[0])].as_py()
        notes.append(f"{count} labelled images are not in {images.name} (first: {first!r})")
    if matched.without:
        notes.append(f"{matched.without:,} images have no labels and are left out")
        images = subset(images, matched.rows)
    check_seen_views(labels, images, teachers, config.pixels)
    if config.pixels == "other":
        notes.append(f"{images.name} shows other pixels than the teacher saw, under the same keys (`pixels=other`)")
    if config.unpaired is None:
        pictures = ViewDataset.of_store(labels.store, images, views, image_spec(preprocessing))
    else:
        # Another seed than the labels', so that no view is one that a teacher saw.
        recipe, seed = config.unpaired.make(), (labels.seed + 1 + config.seed) % (1 << 64)
        drawn = config.epochs * config.views_per_image
        pictures = ViewDataset(images, recipe, seed, drawn, image_spec(preprocessing))
        notes.append(f"unpaired: the student sees new views, of recipe {RECIPES.spelled(recipe)}; no label is of them")
        if labels.recipe.mixes:
            sees = "mixes with others" if recipe.mixes else "one of them alone"
            notes.append(f"labels are of mixed views, of two images each; the student sees {sees}")
    samples = LabelledViews(pictures, labels, matched.label_rows, folders, label_views=views)
    notes += window_notes(samples, config.shuffle_window, config.views_per_image)
    blend, more_notes = _blend(config, labels, teachers, matched.label_rows, images, views)
    notes += more_notes
    targets = stored_targets(labels, matched.label_rows, teachers, features, blend, objective)
    task, more = _with_teachers(config, samples, targets, teachers)
    by_class = config.wrong_teacher == "hard" or config.ignore_label is not None
    if config.alpha or config.alpha_end or by_class or objective.needs_labels:
        check_classes(images, labels.class_names, f"the labels in {labels.store.location}")
    return task, labels.classes, notes + more


def _blend(
    config: TrainConfig, labels: Labels, teachers: Sequence[str], rows: NDArray[np.int64], images: Images, views: int
) -> tuple[Blend, list[str]]:
    """The blend, with its weights where they are measured, and a line about these."""
    blend = config.blend.make()
    if not isinstance(blend, ClassAccuracy) or len(teachers) == 1:
        return blend, []
    check_classes(images, labels.class_names, f"the labels in {labels.store.location}")
    right, counted = labels.class_counts(teachers, rows, images.labels, views)
    made, share = blend.measured(right, counted), right.sum(1) / counted.sum(1)
    each = [
        f"{name} {np.mean(weights):.3f} (top-1 {percent(accuracy)})"
        for name, weights, accuracy in zip(teachers, made.weights, share, strict=True)
    ]
    return made, [f"mean weights, from accuracy per class on {counted[0].sum():,} labels: {', '.join(each)}"]


def _views(labels: Labels, inputs: Inputs, teachers: Sequence[str]) -> int:
    """How many views are learnt from: as many as when the run was begun, whatever has been added since.

    Raises:
        StoreError: some of them are not there any more.
    """
    there = labels.complete_views(teachers)
    if inputs.views is None:
        return there
    if inputs.views > there:
        raise StoreError(
            f"the run was begun with {plural(inputs.views, 'view')} of {labels.store.location}, which has "
            f"{there} now; dump the others again, or choose another `out`"
        )
    return inputs.views


def _check_complete(labels: Labels, teacher: str, incomplete: bool) -> None:
    each = labels.of(teacher)
    begun = max((shard.stop_view for shard in each.shards), default=0)
    if each.views < begun and not incomplete:
        raise StoreError(
            f"{labels.store.location} is incomplete: {teacher} has {each.views} of {begun} views for all images; "
            f"run the dump again to go on, or train on the finished ones: `incomplete=True`"
        )


def _check_temperatures(labels: Labels, teacher: str, objective: Objective, *, confidence: bool) -> None:
    codec = labels.codec(teacher)
    codec.check_temperature(objective.temperature)
    if confidence:
        try:
            codec.check_temperature(1.0)
        except ConfigError as problem:
            raise ConfigError(f"`min_confidence` is of probabilities at temperature 1: {problem}") from problem
    for loss in objective.losses:
        # Of labels without logits it is refused for that, with what helps.
        for factor in getattr(loss, "factors", ()) if codec.has_logits else ():
            codec.check_temperature(factor * objective.temperature)
            if factor != 1 and isinstance(codec, SparseCodec):
                raise ConfigError(
                    f"loss {loss.kind!r} compares at several temperatures, and {codec.kind} labels are read at one; "
                    f"dump with `codec=dense`, or choose another loss"
                )
    for term in objective.terms:
        if term.loss.needs_teacher and term.temperature not in (None, objective.temperature):
            codec.check_temperature(term.temperature)
            if isinstance(codec, SparseCodec):
                raise ConfigError(
                    f"term {term.loss.kind!r} has temperature {term.temperature:g} and the objective "
                    f"{objective.temperature:g}, but {codec.kind} labels are read at one; leave the term's out, or "
                    f"dump with `codec=dense`"
                )


def _objective(config: TrainConfig, alpha: float, *, temperature: float | None = None) -> Objective:
    given = {
        "alpha": alpha if config.alpha is None else config.alpha,
        "loss": config.loss.make(),
        "temperature": config.temperature if temperature is None else temperature,
        "label_smoothing": config.label_smoothing,
        "hard_logits": config.hard_logits,
        "hard_temperature": config.hard_temperature,
        "ignore_label": config.ignore_label,
        "normalization": config.normalization,
        "terms": tuple(each.make() for each in config.term),
    }
    return validated(Objective, given, "training objective")


def _evaluator(
    config: TrainConfig,
    preprocessing: Preprocessing,
    images: Images,
    classes: int,
    names: Sequence[str],
    runtime: Runtime,
    say: Callable[[str], None],
) -> Evaluator | None:
    """What evaluates the student: on the held-out side of the data set, or what the user names; None without either."""
    tested = _held_out(config, images, say)
    if tested is None:
        return None
    if not (tested.labels >= 0).any():
        if config.eval_data is not None:
            raise DataError(f"{tested.name} has no hard labels to score against; choose `eval_data`")
        say(f"no evaluation: {tested.name} has no hard labels; name images with `eval_data`")
        return None
    check_classes(tested, names, "the student")
    # Numbers of classes, of which the last happen not to be there, are numbers of the student's classes all the same.
    fewer = len(tested.classes) < classes and bool(names) and are_numbers(names) and are_numbers(tested.classes)
    if len(tested.classes) != classes and not fewer:
        raise ConfigError(f"{tested.name} has {len(tested.classes)} classes, the student {classes}; choose `eval_data`")
    for line in image_notes(tested):
        say(line)
    preprocessing = preprocessing.changed("`eval_size`", size=config.eval_size)
    pictures = ViewDataset(tested, RECIPES.make("clean"), 0, 1, image_spec(preprocessing))
    if config.eval_size is not None:
        say(f"evaluated on images of {config.eval_size} px")
    return Evaluator(pictures, preprocessing, max(config.batch_size, 256), config.helpers(tested), runtime)


def _unsaid(line: str) -> None:
    """Where nobody reads what `_held_out` says."""


def _held_out(config: TrainConfig, images: Images, say: Callable[[str], None]) -> Images | None:
    """What the student is evaluated on; None where there is nothing.

    Images that are trained on are left out of a side that was found, and counted where the user named the images.
    """
    if config.eval_data is not None and config.eval_data.none:
        say("not evaluated, as asked")
        return None
    if config.eval_data is not None:
        tested = open_data(config.eval_data, config.data_dir, "test")
        known = trained_on(tested, images)
        if len(known):
            say(
                f"warning: {len(known):,} of the {len(tested):,} images of {tested.name} are trained on; of these the "
                f"score tells what was memorised"
            )
        return tested
    try:
        tested = open_images(dict(images.spec), data_dir=config.data_dir, split="test")
    except DataError as problem:
        say(f"no evaluation: {problem}; name images with `eval_data`")
        return None
    known = trained_on(tested, images)
    # What `limit` or a missing label leaves out of the one side that there is makes no held-out side.
    if len(known) in (len(tested), len(images)):
        say(f"no evaluation: {images.name} has no held-out side; name images with `eval_data`")
        return None
    if not len(known):
        return tested
    say(f"{len(known):,} of the {len(tested):,} images of {tested.name} are trained on, the others evaluated")
    return subset(tested, np.setdiff1d(np.arange(len(tested)), known))


def _result(report: TrainReport, network: nn.Module, task: Task, folder: Path) -> dict[str, Any]:
    labels = task.samples.labels
    return {
        "best": asdict(report.best) if report.best else None,
        "last": asdict(report.last) if report.last else None,
        "parameters": parameter_count(network),
        "images": len(task.samples.pictures.images),
        "steps": report.steps,
        "seconds": report.seconds,
        "pictures_per_second": report.pictures_per_second,
        "epochs": report.epochs,
        "best_epoch": report.best_epoch,
        "label_bytes": sum(labels.of(name).nbytes for name in task.samples.teachers) if labels is not None else 0,
        "folder": str(folder),
    }


def _compared(
    network: nn.Module, preprocessing: Preprocessing, task: Task, config: TrainConfig, runtime: Runtime, folder: Path
) -> dict[str, Any]:
    """How near the student that was kept last has come to its teacher."""
    state = read_weights(folder / "last.safetensors").state if runtime.ranks.first else {}
    load_state(network, runtime.ranks.broadcast(state), str(folder / "last.safetensors"), "its student")
    classify = classifier(network.to(runtime.device), preprocessing, runtime)
    agreement = agreement_with_teachers(
        classify,
        task,
        batch_size=max(config.batch_size, 256),
        workers=runtime.workers,
        ranks=runtime.ranks,
    )
    return {"closeness": asdict(agreement)}
