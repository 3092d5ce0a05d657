"""Students that learn from features, from themselves and from labels of other pixels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.io import write_jpeg
from worlds import TINY, picture

import softlabels
from softlabels.errors import ConfigError, RunError, StoreError
from softlabels.losses import Objective, kl_divergence
from softlabels.training.checkpoints import load_checkpoint

DUMP: dict[str, Any] = {
    "teacher": ["cnn_small"], "weights": ["random"], "views": 2, "device": "cpu", "workers": 0, "quiet": True,
    "output": ["map=features.2:grid4=int8", "pooled=features:mean=int8", "look=features.2:attention"],
}  # fmt: skip
TERMS = {
    "hint": "0.5*hint@map:features.2",
    "cosine": "0.5*cosine@pooled:features:mean",
    "attention": "50*attention@map:features.2",
    "attention map": "50*attention@look:features.2:attention",
    "channel-map": "0.5*channel-map@map:features.2",
    "rkd-distance": "0.5*rkd-distance@pooled:features:mean",
    "rkd-angle": "0.5*rkd-angle@pooled:features:mean",
    "inherit-explore": "0.5*inherit-explore@pooled:features:mean",
}


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "s"
    softlabels.dump(data=str(photos), out=str(out), **DUMP)
    return out


def records(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TERMS)
def test_a_student_of_other_width_learns_from_stored_features(store: Path, tmp_path: Path, name: str) -> None:
    settings = {**TINY, "epochs": 6, "term": [TERMS[name]], "lr": 0.01, "eval_data": "none"}
    softlabels.train(labels=str(store), out=str(tmp_path / "run"), **settings)
    loss, _, output = TERMS[name].partition("*")[2].partition("@")
    column = f"{loss}@{output.partition(':')[0]}"
    first, last = (float(records(tmp_path / "run")[place][column]) for place in (0, -1))
    assert last < first


def test_a_student_learns_features_of_a_teacher_in_the_loop(photos: Path, tmp_path: Path) -> None:
    live = {"teacher": ["cnn_small"], "teacher_weights": ["random"], "data": str(photos), "eval_data": "none"}
    terms = ["0.5*hint@features.5:grid2:features.5", "50*attention@features.2"]
    softlabels.train(out=str(tmp_path / "run"), **{**TINY, **live, "epochs": 6, "lr": 0.01, "term": terms})
    for column in ("hint@features.5:grid2", "attention@features.2"):
        first, last = (float(records(tmp_path / "run")[place][column]) for place in (0, -1))
        assert last < first


def test_stored_features_are_read_in_their_shapes(store: Path) -> None:
    labels = softlabels.open_labels(store)
    shapes = {name: tuple(labels.output_shape(name)) for name in labels.outputs()}
    assert shapes["map"][1:] == (4, 4) and shapes["pooled"] == (96,) and len(shapes["look"]) == 2
    assert labels.output([0, 3], 1, "map").shape == (2, *shapes["map"])
    norms = labels.output(range(5), 0, "look").flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5), rtol=1e-3, atol=0)
    card = labels.of("cnn_small@map").card
    assert (card.source, card.address, card.codec["kind"]) == ("features.2:grid4", "features.2:grid4", "int8")


@pytest.mark.parametrize(
    "more",
    [
        {"term": [TERMS["hint"], TERMS["inherit-explore"]], "clip_grad": 1.0, "ema": 0.9},
        {"aux_heads": ["features.2", "dropout"], "term": [TERMS["cosine"]], "accumulate": 2},
    ],
)
def test_a_resumed_run_equals_a_whole_one_and_its_student_has_no_more_layers(
    store: Path, tmp_path: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "labels": str(store), "epochs": 3, "checkpoint_every": 1, **more}
    softlabels.train(out=str(tmp_path / "whole"), **settings)
    step, calls = torch.optim.Optimizer.zero_grad, []

    def interrupted(optimizer: Any, set_to_none: bool = True) -> None:
        step(optimizer, set_to_none)
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the power is off")

    with monkeypatch.context() as patch:
        patch.setattr("torch.optim.AdamW.zero_grad", interrupted, raising=False)
        patch.setattr("softlabels.training.state.check_optimizer", lambda _: None)
        patch.setattr("softlabels.training.run.check_optimizer", lambda _: None)
        with pytest.raises(RuntimeError, match="power"):
            softlabels.train(out=str(tmp_path / "cut"), **settings)
    found = load_checkpoint(tmp_path / "cut" / "checkpoints")
    assert found is not None and 0 < found[0] < 5 and found[1]["heads"]
    softlabels.train(out=str(tmp_path / "cut"), **settings)
    weights, again = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(each, again[name]) for name, each in weights.items())
    last = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    heads = [each[1]["heads"] for each in last if each is not None]
    assert len(heads) == 2 and all(torch.equal(each, heads[1][name]) for name, each in heads[0].items())
    assert not any("layers" in name or "heads" in name for name in weights)
    student = softlabels.load_student(tmp_path / "whole")
    assert student(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 3)


def test_first_weights_of_the_student_do_not_depend_on_its_heads(store: Path, tmp_path: Path) -> None:
    settings = {**TINY, "labels": str(store), "epochs": 1, "lr": 1e-30, "weight_decay": 0.0}
    for name, more in {"plain": {}, "hint": {"term": [TERMS["hint"]]}, "aux": {"aux_heads": "features.2"}}.items():
        softlabels.train(out=str(tmp_path / name), **settings, **more)
    plain, *others = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "hint", "aux"))
    for other in others:
        assert all(torch.equal(each, other[name]) for name, each in plain.items() if name.endswith("weight"))


def test_the_loss_of_classifiers_is_as_published() -> None:
    from softlabels.training.heads import Auxiliary

    draw = torch.Generator().manual_seed(0)
    deepest, one, two, teacher = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(4))
    labels, auxiliary = torch.arange(6) % 4, Auxiliary(("a", "b"), 0.3)
    deepest.requires_grad_()
    objective = Objective(alpha=0.4, temperature=3.0)
    outputs = {"logits": deepest, "auxiliary@a": one, "auxiliary@b": two}
    wanted = 0.0
    for logits in (one, two):
        hard = torch.nn.functional.cross_entropy(logits, labels)
        soft, own = (kl_divergence(logits, each, temperature=3.0) for each in (teacher, deepest))
        wanted += float(0.7 * (0.4 * hard + 0.6 * soft) + 0.3 * own)
    whole = auxiliary.loss(outputs, objective, labels, {"logits": teacher}, None, None, {})
    assert whole.item() == pytest.approx(wanted, rel=1e-9) and not whole.requires_grad
    counts = {**objective.counts(6, labels), "images": torch.tensor(6)}
    parts = [
        auxiliary.loss(
            {name: each[rows] for name, each in outputs.items()},
            objective, labels[rows], {"logits": teacher[rows]}, None, counts, {},
        )
        for rows in (slice(0, 4), slice(4, 6))
    ]  # fmt: skip
    assert sum(part.item() for part in parts) == pytest.approx(wanted, rel=1e-6)  # shares of rows are fp32


@pytest.mark.parametrize("labelled", [True, False])
def test_classifiers_at_layers_learn_beside_the_student(
    store: Path, photos: Path, tmp_path: Path, labelled: bool
) -> None:
    source = {"labels": str(store)} if labelled else {"data": str(photos)}
    result = softlabels.train(
        out=str(tmp_path / "run"), **source, **{**TINY, "epochs": 8, "lr": 0.01, "aux_heads": "features.2,features"}
    )
    found = [float(record["auxiliary"]) for record in records(tmp_path / "run")]
    assert found[-1] < found[0] and result["parameters"] == sum(
        each.numel()
        for name, each in load_file(tmp_path / "run" / "last.safetensors").items()
        if "running" not in name and "num_batches" not in name
    )
    assert "auxiliary = sum over classifiers at features.2, features" in (tmp_path / "run" / "header.txt").read_text()


@pytest.fixture(scope="module")
def two_views_of_a_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Colour images of 32 px, and the same in grey at 8 px, in another format, under the same keys."""
    root = tmp_path_factory.mktemp("modalities")
    for label in range(3):
        for number in range(8):
            image = torch.nn.functional.interpolate(picture(40 * label + number)[None].float(), (32, 32))[0]
            image[label] = 255  # the class is a colour channel
            place = Path(f"class-{label}", f"{number:03d}.jpg")
            for side, made in (("colour", image), ("grey", _grey(image))):
                (root / side / place).parent.mkdir(parents=True, exist_ok=True)
                write_jpeg(made.round().to(torch.uint8), str(root / side / place), quality=95)
    return root / "colour", root / "grey"


def _grey(image: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.interpolate(image.mean(0, keepdim=True)[None], (8, 8), mode="area")[0]
    return small.expand(3, 8, 8).contiguous()


def test_a_grey_student_learns_the_colour_teachers_labels_of_the_same_views(
    two_views_of_a_world: tuple[Path, Path], tmp_path: Path
) -> None:
    colour, grey = two_views_of_a_world
    out = str(tmp_path / "s")
    settings = {**DUMP, "recipe": "crop-flip", "output": []}
    softlabels.dump(data=f"folder:{colour}", out=out, **settings)
    given = {**TINY, "labels": out, "data": f"folder:{grey}", "size": 8, "epochs": 2}
    with pytest.raises(StoreError, match=r"the view is not the one that cnn_small saw.*`pixels=other`"):
        softlabels.train(out=str(tmp_path / "no"), **given)
    assert not (tmp_path / "no").exists()
    softlabels.train(out=str(tmp_path / "run"), pixels="other", **given)
    assert "other pixels than the teacher saw" in (tmp_path / "run" / "header.txt").read_text()
    with pytest.raises(RunError, match="pixels"):
        softlabels.train(out=str(tmp_path / "run"), **given)
    labels = softlabels.open_labels(out)
    dataset = softlabels.SoftLabelDataset(labels, f"folder:{grey}", size=8, pixels="other")
    teachers = softlabels.SoftLabelDataset(labels, f"folder:{colour}", size=32)
    rows, views = np.divmod(np.arange(len(dataset)), dataset.views)
    boxes = []
    for pictures, side in ((dataset.pictures, 8), (teachers.pictures, 32)):
        params = pictures.source.params(rows, views)
        boxes.append(pictures.recipe.boxes(params, np.full(len(rows), side), np.full(len(rows), side)) / side)
    # A pixel of the smaller image; rounded to these, now and then another of a crop's attempts is the first to fit.
    near = np.abs(boxes[0] - boxes[1]).max(1) <= 1 / 8
    assert near.mean() > 0.9
    for number in np.flatnonzero(near).tolist():
        (small, _, ours), (large, _, theirs) = dataset[number], teachers[number]
        assert torch.equal(ours, theirs)
        shrunk = torch.nn.functional.interpolate(large[None].float().mean(1, keepdim=True), (8, 8), mode="area")[0, 0]
        apart, flipped = (float((small.float().mean(0) - each).abs().mean()) for each in (shrunk, shrunk.flip(-1)))
        assert apart < flipped
    with pytest.raises(StoreError, match="pixels"):
        softlabels.SoftLabelDataset(labels, f"folder:{grey}", size=8)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"term": ["1*hint@map:featuress.2"]}, r"no module or output 'featuress\.2'.*did you mean 'features\.2'"),
        ({"term": ["1*hint@mop:features.2"]}, r"output 'mop' is not in .*did you mean 'map'"),
        ({"term": ["1*hint@map:features.2:mean"]}, "no layer leads from the student's shape"),
        ({"term": ["1*attention@pooled:features.2"]}, "teacher's features have shape"),
        ({"term": ["1*attention"]}, "compares features; name an output"),
        ({"term": ["1*hint@map:features.2:token"]}, "pooling token takes tokens"),
        ({"term": ["1*hint@map:features.2:men"]}, "names more than the teacher's output"),
        ({"aux_heads": "featuress"}, "no module or output 'featuress'.*'features'"),
        ({"aux_heads": "features,features"}, "a layer is named twice"),
        ({"aux_heads": "features,logits"}, "the student's own classifier gives.*; name a layer before it"),
        ({"pixels": "other"}, "give `labels` and `data`"),
        ({"term": ["1*hint@map:features.2:grid99"]}, r"grid99 has more cells than the map of \d+x\d+.*choose grid\d+"),
        ({"term": ["0.5*hnit@map:features.2"]}, "unknown loss 'hnit'; did you mean 'hint'"),
        ({"loss": "hint"}, r"loss 'hint' compares features; write it as `term=WEIGHT\*hint@OUTPUT:LAYER`"),
        ({"term": ["-1*hint@map:features.2"]}, "weight -1 drives features apart"),
        (
            {"term": ["1*hint@map:features.2", "2*hint@map:features.5"]},
            r"two terms are 'hint@map'; [^(]*; give the output a second name in the store",
        ),
        (
            {"term": ["1*mse@pooled:features.2"]},
            "of the student's features.2 with 96 of the teacher's pooled, and loss 'mse' takes .*`hint`",
        ),
        ({"term": ["1*hint@map:features.2:mean"]}, "; leave :mean out"),
        ({"term": ["1*hint@pooled:features.2"]}, "; add a pooling to the student's"),
        ({"teachers": ["cnn_small@pooled"]}, "is the output 'pooled' of teacher 'cnn_small' .*; name 'cnn_small'"),
        ({"teachers": ["foo"]}, "has no teacher 'foo'; known: cnn_small$"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_run_is_begun(
    store: Path, tmp_path: Path, more: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(softlabels.errors.SoftlabelsError, match=wanted):
        softlabels.train(labels=str(store), out=str(tmp_path / "no"), **{**TINY, **more})
    assert not (tmp_path / "no").exists()


def test_a_selection_is_by_teachers_and_not_by_other_outputs(store: Path, tmp_path: Path) -> None:
    given = {"labels": str(store), "teachers": ["cnn_small@pooled"], "out": str(tmp_path / "x.csv"), "quiet": True}
    with pytest.raises(StoreError, match="is the output 'pooled' of teacher 'cnn_small'"):
        softlabels.select(top_k_per_class=1, **given)
    assert softlabels.open_labels(store).complete_views(["cnn_small", "cnn_small@pooled"]) == 2


def test_what_a_module_gives_has_to_be_a_tensor_of_one_shape(
    softlabels_command: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\n"
        "class Pair(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x, x\n"
        "class Grows(torch.nn.Module):\n"
        "    calls = 0\n"
        "    def forward(self, x):\n"
        "        Grows.calls += len(x) > 1\n"
        "        return x.repeat(1, 1 + min(Grows.calls, 3))\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.pair, self.grows, self.unused = Pair(), Grows(), torch.nn.Identity()\n"
        "        self.head = torch.nn.Linear(3, 3)\n"
        "    def forward(self, x):\n"
        "        x = self.pair(x)[0].mean((2, 3))\n"
        "        self.grows(x)\n"
        "        return 4 * self.head(x)\n"
        "def net():\n"
        "    return Net(), {'size': 16}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for output, wanted in (
        ("pair", "gives a tuple and no tensor as its output 'pair'"),
        ("unused", "does not run its layer 'unused'"),
        ("grows", "is stored  tip: name one whose shape is always the same"),
        ("headd", "did you mean 'head'"),
        ("own=head:mean", "pooling mean takes maps"),
    ):
        done = softlabels_command(
            *("dump", "--teacher", "odd:net", "--data", photos, "--also", output, "--device", "cpu", "--workers", 0),
            *("--out", tmp_path / output.partition("=")[0], "--quiet"),
        )
        assert done.exit_code == 1 and wanted in done.output, done.output
        assert len(done.output.strip().splitlines()) == 1


def test_a_plan_says_what_each_output_costs_and_loses(
    softlabels_command: Callable[..., Any], photos: Path, store: Path
) -> None:
    settings = {name: value for name, value in DUMP.items() if name != "output"}
    (plan,) = softlabels.plan(data=str(photos), output=DUMP["output"][:1], **settings)
    chosen, *others = plan.outputs
    assert (chosen.output, chosen.codec, chosen.chosen, others) == ("map", "int8", True, [])
    labels, values = softlabels.open_labels(store), int(np.prod(chosen.shape))
    assert chosen.bytes_per_label == values + 4 and chosen.bytes == 2 * 18 * (values + 4)
    assert tuple(labels.output_shape("map")) == chosen.shape and 1e-4 < chosen.error < 0.02
    done = softlabels_command(
        *("plan", "--teacher", "cnn_small", "--weights", "random", "--data", photos, "--views", 2, "--codec-report"),
        *("--also", "map=features.2:grid4", "--device", "cpu", "--workers", 0),
    )
    assert done.exit_code == 0 and "outputs on 36 of this teacher's labels" in done.output
    assert "dense:fp16-raw" in done.output and "int8" in done.output and "(not chosen)" in done.output


def test_int8_is_not_for_logits_and_definitions_of_an_output_are_kept(photos: Path, store: Path) -> None:
    with pytest.raises(ConfigError, match="output=NAME=int8"):
        softlabels.dump(data=str(photos), out=str(store) + "-8", **{**DUMP, "codec": "int8"})
    again = {**DUMP, "output": [{"name": "map", "module": "features.2", "pool": "grid4", "codec": "int8"}]}
    (report,) = softlabels.dump(data=str(photos), out=str(store), **again)
    assert report.shards == 0
    with pytest.raises(StoreError, match=r"other labels under the name cnn_small@map.*source"):
        softlabels.dump(data=str(photos), out=str(store), **{**DUMP, "output": ["map=features.5:grid4=int8"]})
