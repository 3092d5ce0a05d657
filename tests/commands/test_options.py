"""Names and options as people guess them: objects by place, short flags, other spellings, help, and what is said."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome

import softlabels
from softlabels import next_commands
from softlabels.cli import main
from softlabels.commands import COMMANDS
from softlabels.core.config import CommandConfig
from softlabels.errors import split_advice
from softlabels.loading.settings import Machine
from softlabels.options import ALIASES, ALIASES_IN, PAGES, SHORT
from softlabels.training.config import TrainConfig
from softlabels.training.folder import Record
from softlabels.training.settings import TrainSettings

Command = Callable[..., Outcome]
HERE = ("--device", "cpu", "--workers", 0)
RANDOM = ("--teacher", "cnn_tiny", "--weights", "random", "--limit", 20, "--recipe", "pad", "--views", 1)
STUDENT = ("train", "--student", "cnn_tiny", "--data", "digits")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that are both called seed-0, of other settings; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    for number, run in enumerate(("x", "y")):
        softlabels.train(
            student="cnn_tiny", size=8, data="digits", limit=20, recipe="pad", epochs=1, seed=number,
            out=root / run / "seed-0", device="cpu", workers=0, quiet=True, eval_every=1,
        )  # fmt: skip
    return root


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_examples_then_the_options_that_people_use_and_help_all_the_others(
    name: str, softlabels_command: Command
) -> None:
    page, fields = PAGES[name], COMMANDS[name].settings().model_fields
    assert page.group and 10 < len(page.summary) <= 60
    shown, everything = (softlabels_command(name, flag).output for flag in ("--help", "--help-all"))
    for example in page.examples:
        assert f"  {example}\n" in shown
        assert shown.index(example) < shown.index("--config")
    used = {each for _, names in page.groups(every=False) for each in names}
    named = [each for _, names in page.groups(every=True) for each in names]
    assert set(named) <= fields.keys() and len(named) == len(set(named))
    for setting in fields:
        option = re.compile(rf"^  (-\w, )?--(no-)?{setting.strip('_').replace('_', '-')}\b(?!-)", re.M)
        assert bool(option.search(shown)) == (setting in used), setting
        assert option.search(everything), setting


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_examples_of_the_help_are_commands_with_right_settings(
    name: str, softlabels_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[CommandConfig] = []
    kind = type(COMMANDS[name])
    monkeypatch.setattr(kind, "__call__", lambda command, settings, terminal: ran.append(settings))  # noqa: ARG005
    monkeypatch.setattr(kind, "shown", lambda command, outcome: "")  # noqa: ARG005
    monkeypatch.setattr(next_commands, "next_commands", lambda name, settings, outcome: [])  # noqa: ARG005
    Path("runs/mobilenetv3").mkdir(parents=True)
    for example in PAGES[name].examples:
        program, *words = shlex.split(example)
        done = softlabels_command(*words)
        assert (program, words[0], done.exit_code) == ("softlabels", name, 0), done.output
    assert len(ran) == len(PAGES[name].examples) > 0


def test_the_list_of_commands_has_whole_lines_in_groups(softlabels_command: Command) -> None:
    shown = softlabels_command("--help").output
    places = [shown.index(f"\n{group}:") for group in dict.fromkeys(page.group for page in PAGES.values())]
    assert places == sorted(places)
    assert all(re.search(rf"^  {name} +{re.escape(page.summary)}$", shown, re.M) for name, page in PAGES.items())
    assert PAGES.keys() == COMMANDS.keys()
    assert softlabels_command().output == shown


def test_a_store_or_run_is_given_by_place_or_by_option(softlabels_command: Command, shards: Path, seeds: Path) -> None:
    assert softlabels_command("verify", shards, "--shards-only").exit_code == 0
    assert softlabels_command("verify", shards, "--labels", shards, "--shards-only").exit_code == 0
    assert softlabels_command("info", "--labels", shards).output == softlabels_command("info", shards).output
    twice = softlabels_command("verify", shards, "--labels", "other", "--shards-only")
    assert twice.exit_code == 2
    assert twice.output == f"error: --labels is given twice, as {shards} and as other  tip: give it once\n"
    assert "no damage" in softlabels_command("repair", shards).output
    assert softlabels_command("convert", shards, "-o", "z", "--format", "zarr").exit_code == 0
    assert softlabels_command("merge", "z", shards, "--out", "m").exit_code == 0
    scored = softlabels_command("eval", seeds / "x/seed-0", "--limit", 20, *HERE)
    assert scored.exit_code == 0 and "on 20 images" in scored.output
    assert softlabels.verify(shards, shards_only=True, quiet=True).ok
    assert softlabels.evaluate(seeds / "x/seed-0", limit=20, device="cpu", workers=0, quiet=True).images == 20
    assert "takes 1 value without an option, and got 'b' besides" in softlabels_command("info", "a", "b").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dump", "--batch-size", 0), "--batch-size must be from 1 to 16,777,216, or auto, not 0"),
        (("train", "--batch-size", 0), "--batch-size must be 1 or more, not 0"),
        (("train", "--epochs", "many"), "--epochs must be a whole number, not 'many'"),
        (("train", "--seed", "1.5"), "--seed must be a whole number, not 1.5"),
        (("train", "--lr", "fast"), "--lr must be a number, not 'fast'"),
        (("dump", "--format", "parquet"), "--format must be 'hdf5' or 'zarr', not 'parquet'"),
        (("dump", "--out"), "--out needs a value"),
        (("eval", "--data", "digits"), "eval needs --student"),
        (("import", "x", "--data", "digits"), "import needs --from"),
        (("dump", "--model", "x"), "softlabels dump has no --model: --teacher names the network"),
        (("train", "--modle", "x"), "softlabels train has no --modle: --student names the network"),
        (
            ("train", "--resume"),
            "softlabels train has no --resume: resuming is automatic: run the same command with the same --out",
        ),
        (("train", "--epoch", 3), "softlabels train has no --epoch  tip: did you mean --epochs?"),
        (("train", "--hard-wieght", 3), "softlabels train has no --hard-wieght  tip: did you mean --hard-weight or"),
        (("train", "--on-bad-image", "skip"), "train has no --on-bad-image, only plan, pack, dump, dedup, repair have"),
        (("dump", "--zzz"), "softlabels dump has no --zzz  tip: see softlabels dump --help"),
        (("--zzz",), "softlabels has no --zzz  tip: see softlabels --help"),
        (("dmp",), "there is no command 'dmp'  tip: did you mean 'dump'?"),
        (("dump", "photos/"), "softlabels dump takes no values without an option, and got 'photos/' besides"),
        (("list", "codecs", "topq"), "none of the 10 codecs fits 'topq'  tip: did you mean 'topk'?"),
        (("train", "--pretrained", "--weights", "w.pt"), "--pretrained stands for --weights default, and"),
        (("train", "--torchcompile", "--no-compile"), "contradict each other"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_what_to_do(
    softlabels_command: Command, arguments: tuple[object, ...], said: str
) -> None:
    outcome = softlabels_command(*arguments)
    assert outcome.exit_code == 2
    (line,) = outcome.output.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        *((("train", f"--{each}"), name) for name, words in ALIASES.items() for each in words if name != "largest_kl"),
        *((("train", f"--{each}"), name) for name, words in ALIASES_IN["train"].items() for each in words),
        *((("train", flag), name) for name, flag in SHORT.items()),
        (("verify", "--max-kl"), "largest_kl"),
        (("dump", "--images-per-shard"), "rows_per_shard"),
        (("dump", "--img-size"), "size"),
    ],
)
def test_other_spellings_mean_the_same_setting(given: tuple[str, str], setting: str) -> None:
    name, option = given
    if setting not in COMMANDS[name].settings().model_fields:
        name = "dump"
    flag = setting == "compile"
    context = main.commands[name].make_context(name, [option] if flag else [option, "1"])
    assert context.params[setting] in (True, 1, "1", ("1",), (1,))


def test_python_is_told_of_settings_and_not_of_options() -> None:
    with pytest.raises(softlabels.ConfigError, match=r"^`batch_size` must be 1 or more, not 0$"):
        softlabels.train(student="cnn_tiny", data="digits", batch_size=0)
    with pytest.raises(softlabels.ConfigError, match=r"^dump has no setting 'techer'; did you mean 'teacher'\?$"):
        softlabels.dump(techer="cnn_tiny")  # type: ignore[call-arg]
    with pytest.raises(softlabels.ConfigError, match=r"^evaluate needs `student`$"):
        softlabels.evaluate(data="digits")


def test_a_wrong_setting_of_a_file_is_said_with_the_file(softlabels_command: Command) -> None:
    Path("c.yaml").write_text("epochs: 0\n")
    said = softlabels_command(*STUDENT, "-c", "c.yaml").output
    assert said == "error: train (with c.yaml): --epochs must be 1 or more, not 0\n"
    Path("c.yaml").write_text("hard_weight: 0.5\n")
    assert "has no setting 'hard_weight'" in softlabels_command(*STUDENT, "-c", "c.yaml").output


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.needs])
def test_a_command_that_is_given_nothing_says_what_it_needs_and_shows_examples(
    name: str, softlabels_command: Command
) -> None:
    outcome = softlabels_command(name)
    first, *others = outcome.output.splitlines()
    assert outcome.exit_code == 2
    assert first.startswith(f"error: {name} needs ") and "`" not in first
    assert others == [f"  {example}" for example in PAGES[name].examples]


def test_advice_is_what_follows_the_last_semicolon_where_it_is_an_instruction() -> None:
    assert split_advice("x is empty; give a value, or leave it out") == ("x is empty", "give a value, or leave it out")
    assert split_advice("unknown codec 'a'; known: b, c") == ("unknown codec 'a'", "known: b, c")
    assert split_advice("a; give b; it is late") == ("a; give b; it is late", "")
    assert split_advice("two; given twice") == ("two; given twice", "")


def test_mixed_precision_without_a_value_is_the_one_of_the_device(softlabels_command: Command) -> None:
    dump = ("dump", *RANDOM, "--data", "digits", *HERE)
    assert softlabels_command(*dump, "--amp", "--out", "s").exit_code == 0
    assert json.loads(Path("s/cnn_tiny/teacher.json").read_text())["precision"] == "bf16"
    assert "must be 'fp16' or 'bf16', not 'fp8'" in softlabels_command(*dump, "--amp", "fp8").output


def test_teachers_that_share_a_name_get_names_of_their_own_and_keep_them(
    softlabels_command: Command, seeds: Path
) -> None:
    both = ("--teacher", f"file:{seeds}/x/seed-0", "--teacher", f"file:{seeds}/y/seed-0")
    dump = ("dump", "--data", "digits", "--limit", 20, "--recipe", "pad", "--views", 1, *HERE)
    done = softlabels_command(*dump, *both)
    assert done.exit_code == 0, done.output
    assert softlabels.open_labels("shards").teachers == ("x-seed-0", "y-seed-0")
    assert softlabels_command(*dump, *both).output.count("nothing to do") == 2
    verified = softlabels_command("verify", "shards", *both, *HERE)
    assert verified.exit_code == 0, verified.output
    files = ("--teacher", f"file:{seeds}/y/seed-0/last.safetensors", "--teacher", f"file:{seeds}/x/seed-0")
    assert softlabels_command(*dump, *files, "--out", "files").exit_code == 0
    assert softlabels.open_labels("files").teachers == ("x-seed-0", "y-seed-0")
    # A teacher that the store has under the shared name keeps it.
    assert softlabels_command(*dump, *both[:2], "--out", "grown").exit_code == 0
    for _ in range(2):
        assert softlabels_command(*dump, *both, "--out", "grown").exit_code == 0
        assert softlabels.open_labels("grown").teachers == ("seed-0", "y-seed-0")


def test_seeds_and_libraries_of_one_network_are_told_apart(softlabels_command: Command, seeds: Path) -> None:
    dump = ("dump", "--data", "digits", "--limit", 20, "--recipe", "pad", "--views", 1, *HERE)
    two = ("--teacher", "cnn_tiny", "--teacher", "cnn_tiny", "--weights", "random:1", "--weights", "random:2")
    assert softlabels_command(*dump, *two).exit_code == 0
    assert softlabels.open_labels("shards").teachers == ("cnn_tiny-random-1", "cnn_tiny-random-2")
    assert softlabels_command(*dump, *two, "--name", "a", "--name", "b", "--out", "named").exit_code == 0
    assert softlabels.open_labels("named").teachers == ("a", "b")
    sizes = ("--teacher", f"file:{seeds}/x/seed-0", "--teacher", f"file:{seeds}/x/seed-0", "--size", 8, "--size", 16)
    assert softlabels_command(*dump, *sizes, "--out", "sizes").exit_code == 0
    labels = softlabels.open_labels("sizes")
    assert labels.teachers == ("seed-0-16", "seed-0-8")
    assert [labels.of(name).card.preprocessing["size"] for name in labels.teachers] == [16, 8]


def test_names_that_cannot_be_are_refused_before_a_teacher_is_run(softlabels_command: Command) -> None:
    dump = ("dump", "--data", "digits", "--limit", 20, "--recipe", "pad", "--views", 1, *HERE)
    same = ("--teacher", "cnn_tiny", "--teacher", "cnn_tiny", "--weights", "random", "--weights", "random")
    refused = softlabels_command(*dump, *same)
    assert refused.exit_code == 2
    assert "two teachers are called 'cnn_tiny'  tip: give each a name of its own with --name" in refused.output
    assert "2 --teacher but 1 --name  tip: give one for each" in softlabels_command(*dump, *same, "--name", "a").output
    assert not Path("shards").exists()
    assert softlabels_command(*dump, "--teacher", "cnn_tiny", "--weights", "random:1").exit_code == 0
    new = ("--teacher", "cnn_small", "--teacher", "cnn_tiny", "--weights", "random", "--weights", "random:2")
    refused = softlabels_command(*dump, *new)
    assert refused.exit_code == 1
    assert "holds other labels under the name cnn_tiny" in refused.output and "another --name" in refused.output
    assert softlabels.open_labels("shards").teachers == ("cnn_tiny",)


def test_names_are_listed_with_what_they_are() -> None:
    assert set(softlabels.available("codecs", "*k")) == {"topk"}
    assert "KL(teacher || student)" in softlabels.available("losses")["kl"]
    assert all(
        what for kind in ("losses", "blends", "steps", "datasets") for what in softlabels.available(kind).values()
    )
    assert {"resnet18", "resnet8_cifar"} <= set(softlabels.available("students", "resnet"))
    assert "timm:resnet18" in softlabels.available("teachers", "timm:resnet1*")
    assert "timm:resnet18" not in softlabels.available("teachers")
    assert softlabels.available("recipes")["crop-flip"] == "random-resized-crop, horizontal-flip"


def test_warmup_is_a_tenth_of_the_run_and_five_epochs_at_most(tmp_path: Path) -> None:
    assert [TrainSettings(epochs=epochs).warmup for epochs in (1, 16, 50, 300)] == [0.1, 1.6, 5.0, 5.0]
    assert TrainSettings(epochs=16, warmup_epochs=5).warmup == 5
    # What a run named, or was given by default, is what it is known by.
    for epochs, same in ((100, True), (16, False)):
        now = TrainConfig(student="cnn_tiny", data="digits", epochs=epochs)
        before = {**now.model_dump(mode="json"), "warmup_epochs": 5.0}
        record = Record(tmp_path, before, {}, None, None)
        record.check_settings(now.model_copy(update={"warmup_epochs": 5.0}))
        if same:
            record.check_settings(now)
        else:
            with pytest.raises(softlabels.RunError, match=r"warmup_epochs: 5\.0 there, 1\.6 now"):
                record.check_settings(now)


def test_processes_of_one_machine_share_its_cores(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = softlabels.open_images(photos)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr("softlabels.loading.batches.shared_memory", lambda: None)
    assert Machine().helpers(images) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert Machine().helpers(images) == 8
    assert Machine(workers=3).helpers(images) == 3


def test_a_low_rate_for_sgd_is_noted() -> None:
    assert any("low rate for sgd" in line for line in TrainSettings(optimizer="sgd").describe())
    assert not any("low rate" in line for line in TrainSettings(optimizer="sgd", lr=0.1).describe())
    assert not any("low rate" in line for line in TrainSettings().describe())
