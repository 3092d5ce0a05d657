"""Teachers answer in inference alone, and say what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softlabels import models
from softlabels.errors import ConfigError, ModelError
from softlabels.models import TEACHERS, Description, Preprocessing, teacher_spec


def pictures(count: int = 5, side: int = 16) -> Tensor:
    """Noise, the same each time."""
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that trained cnn_small for 8x8 images of three classes, with telling BatchNorms."""
    network = models.build("cnn_small", 3, seed=1)
    with torch.no_grad():
        network.train()(torch.randn(32, 3, 8, 8) * 3 + 1)
    told = Description(
        architecture="small:cnn_small",
        classes=3,
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(size=8, mean=(0.4, 0.5, 0.6)),
    )
    models.write_weights(tmp_path / "teacher" / "best.safetensors", network.state_dict(), told.to_metadata())
    return tmp_path / "teacher"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of its own, for modules of the user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(folder: Path, name: str, body: str) -> None:
    """Write a module of the user's."""
    (folder / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + body)


# --- what stands on the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "kind", "slug", "resolved"),
    [
        ("resnet18", "torchvision", "resnet18", "torchvision:resnet18"),
        ("torchvision:resnet18", "torchvision", "resnet18", "torchvision:resnet18"),
        ("resnext101", "torchvision", "resnext101", "torchvision:resnext101_32x8d"),
        ("torchvision:resnext101", "torchvision", "resnext101", "torchvision:resnext101_32x8d"),
        ("cnn_small", "small", "cnn_small", "small:cnn_small"),
        ("timm:resnet50.a1_in1k", "timm", "resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("file:runs/My Teacher/best.safetensors", "file", "My-Teacher", "file:runs/My Teacher/best.safetensors"),
        ("file:weights/net.v2.safetensors", "file", "net.v2", "file:weights/net.v2.safetensors"),
        ("json:loads", "function", "json-loads", "function:json:loads"),
    ],
)
def test_a_name_says_kind_folder_and_network(typed: str, kind: str, slug: str, resolved: str) -> None:
    part = teacher_spec(typed)
    assert (part.kind, part.short_name, part.resolved) == (kind, slug, resolved)


@pytest.mark.parametrize("typed", ["resnet18", "resnext101", "cnn_small", "timm:resnet18", "file:a/b.pt", "json:loads"])
def test_a_part_is_the_same_after_json(typed: str) -> None:
    part = teacher_spec(typed, size=96, mean=(0.1, 0.2, 0.3), name="mine")
    again = TEACHERS.make(json.loads(json.dumps(part.model_dump(mode="json"))))
    assert again == part and again.short_name == "mine" and teacher_spec(part) == part


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("resnet81", "'resnet18'"),
        ("torchvison:resnet18", "'torchvision'"),
        ("hf:microsoft/resnet-50", "torchvision"),
        ("nomodule:make", "module:function"),
    ],
)
def test_an_unknown_teacher_is_answered_with_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(ModelError) as raised:
        teacher_spec(typed)
    assert hint in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "x" * 101])
def test_a_name_that_is_no_safe_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        teacher_spec("resnet18", name=name)


def test_settings_that_make_no_sense_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave `weights` out"):
        teacher_spec("file:best.safetensors", "other.pt")
    with pytest.raises(ConfigError, match="no setting 'sise'"):
        teacher_spec("resnet18", sise=3)
    with pytest.raises(ConfigError, match="as a mapping"):
        teacher_spec({"kind": "torchvision", "architecture": "resnet18"}, "w.pt")


# --- weights ------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_all_a_teacher_needs(run: Path) -> None:
    for path in (run, run / "best.safetensors"):
        teacher = teacher_spec(f"file:{path}").open(classes=3)
        assert (teacher.name, teacher.classes, teacher.class_names) == ("teacher", 3, ("a", "b", "c"))
        assert teacher.preprocessing == Preprocessing(size=8, mean=(0.4, 0.5, 0.6))
        assert teacher.weights_sha256 == models.read_weights(run).sha256


def test_a_described_file_brings_its_preprocessing_unless_it_is_overridden(run: Path) -> None:
    weights = str(run / "best.safetensors")
    assert teacher_spec("cnn_small", weights).open().preprocessing.mean == (0.4, 0.5, 0.6)
    overridden = teacher_spec("cnn_small", weights, size=16, mean=(0.1, 0.1, 0.1)).open().preprocessing
    assert (overridden.size, overridden.mean) == (16, (0.1, 0.1, 0.1))


def test_a_plain_file_has_the_preprocessing_of_the_published_weights(tmp_path: Path) -> None:
    network = models.build("resnet18", 4, seed=5)
    torch.save({"state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "w.pt")
    teacher = teacher_spec("resnet18", str(tmp_path / "w.pt")).open(classes=4)
    assert teacher.classes == 4 and teacher.preprocessing == models.preprocessing("resnet18")
    assert teacher.weights_sha256 == models.digest(network.state_dict())
    shrunk = teacher_spec("resnet18", str(tmp_path / "w.pt"), size=64).open()
    assert (shrunk.preprocessing.size, shrunk.preprocessing.resize) == (64, 73)
    network.eval()
    with torch.inference_mode():
        expected = network(shrunk.preprocessing.normalise(pictures(side=64)))
    torch.testing.assert_close(shrunk.logits(pictures(side=64)), expected, rtol=1e-4, atol=1e-4)


def test_random_weights_are_their_seed(run: Path) -> None:
    shas = [teacher_spec("cnn_small", w).open(classes=3).weights_sha256 for w in ("random", "random:0", "random:1")]
    assert shas[0] == shas[1] != shas[2]
    assert teacher_spec("cnn_small", "random").open().classes == 10
    assert teacher_spec(f"file:{run}").open().weights_sha256 not in shas


def test_a_small_network_without_weights_says_what_is_missing() -> None:
    with pytest.raises(ModelError, match="`weights=FILE`"):
        teacher_spec("cnn_small").open()


def test_other_class_counts_are_refused_with_both(run: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher teacher .* has 3 classes, the data set 10"):
        teacher_spec(f"file:{run}").open(classes=10)


def test_a_file_without_description_is_told_how_to_be_used(tmp_path: Path) -> None:
    torch.save(models.build("cnn_tiny", 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not say its architecture"):
        teacher_spec(f"file:{tmp_path / 'w.pt'}").open()


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"'{device}' cannot be used"):
        teacher_spec("cnn_tiny", "random").open(device)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16 or bf16"):
        teacher_spec("cnn_tiny", "random").open(amp="fp8")  # type: ignore[arg-type]


# --- inference ----------------------------------------------------------------------------------------------------


def test_logits_leave_batchnorm_as_it_was_and_dropout_off_even_in_train_mode(run: Path) -> None:
    teacher = teacher_spec(f"file:{run}").open()
    before = models.digest(teacher.network.state_dict())
    first = teacher.logits(pictures(side=8))
    teacher.network.train()
    assert torch.equal(teacher.logits(pictures(side=8)), first)
    assert models.digest(teacher.network.state_dict()) == before == teacher.weights_sha256


def test_logits_of_a_picture_do_not_depend_on_its_neighbours(run: Path) -> None:
    teacher = teacher_spec(f"file:{run}").open()
    together = teacher.logits(pictures(7, 8))
    alone = torch.cat([teacher.logits(picture[None]) for picture in pictures(7, 8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_logits_are_ordinary_float32_tensors_without_gradients(run: Path) -> None:
    teacher = teacher_spec(f"file:{run}").open()
    answer = teacher.logits(pictures(side=8))
    assert answer.dtype == torch.float32 and answer.shape == (5, 3)
    assert not answer.requires_grad and not answer.is_inference()
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    student = torch.zeros(5, 3, requires_grad=True)
    nn.functional.mse_loss(student, answer).backward()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_gives_nearly_the_same_logits_in_float32(run: Path, amp: str) -> None:
    exact = teacher_spec(f"file:{run}").open().logits(pictures(side=8))
    mixed = teacher_spec(f"file:{run}").open(amp=amp).logits(pictures(side=8))  # type: ignore[arg-type]
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_layout_in_memory_does_not_change_the_logits(run: Path) -> None:
    teacher = teacher_spec(f"file:{run}").open()
    given = pictures(side=8)
    assert torch.equal(teacher.logits(given.contiguous(memory_format=torch.channels_last)), teacher.logits(given))


# --- every kind ---------------------------------------------------------------------------------------------------

EXAMPLES = {
    "torchvision": {"architecture": "mobilenet_v3_small", "weights": "random", "size": 32},
    "small": {"architecture": "resnet8_cifar", "weights": "random:2"},
    "timm": {"architecture": "resnet10t", "weights": "random", "size": 32},
    "file": {"path": "best.safetensors"},
    "function": {"function": "teachers_every:make"},
    "columns": {
        "of": teacher_spec("resnet8_cifar", "random:2").model_dump(mode="json"),  # type: ignore[attr-defined]
        "columns": [9, 0, 8, 1, 7, 2, 6, 3, 5, 4],
    },
}


@pytest.mark.parametrize("kind", sorted(TEACHERS.kinds.keys() - {"object"}))  # which no file describes
def test_every_kind_keeps_the_promises_of_a_teacher(kind: str, here: Path) -> None:
    told = Description(architecture="small:cnn_tiny", classes=10, preprocessing=Preprocessing(size=8))
    models.write_weights(here / "best.safetensors", models.build("cnn_tiny", 10).state_dict(), told.to_metadata())
    module(
        here,
        "teachers_every",
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), dict(size=8)\n",
    )
    part = TEACHERS.make({"kind": kind, **EXAMPLES[kind]})
    teacher = part.open("cpu", None, 10)
    assert teacher.name == part.short_name and teacher.spec == json.loads(json.dumps(part.model_dump(mode="json")))
    assert len(teacher.weights_sha256) == 64 and teacher.licence is None
    answer = teacher.logits(pictures(4, teacher.preprocessing.size))
    assert answer.shape == (4, 10) and answer.dtype == torch.float32
    assert torch.equal(part.open(classes=10).logits(pictures(4, teacher.preprocessing.size)), answer)


# --- functions ----------------------------------------------------------------------------------------------------

LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))"


def test_a_function_in_the_current_directory_is_a_teacher(here: Path) -> None:
    module(here, "teachers_a", f"def make():\n    return {LINEAR}, dict(size=8, mean=(0, 0, 0), std=(1, 1, 1))\n")
    part = teacher_spec("teachers_a:make")
    teacher = part.open(classes=4)
    assert (teacher.name, teacher.classes, teacher.preprocessing.size) == ("teachers_a-make", 4, 8)
    assert teacher.logits(pictures(side=8)).shape == (5, 4)
    assert part.open().weights_sha256 == teacher.weights_sha256


def test_a_function_may_return_a_network_alone(here: Path) -> None:
    module(here, "teachers_b", f"def make():\n    return {LINEAR}\n")
    assert teacher_spec("teachers_b:make", size=8).open().preprocessing.mean == models.IMAGENET_MEAN
    with pytest.raises(ModelError, match="does not run on 224x224 images"):
        teacher_spec("teachers_b:make").open()


def test_a_functions_network_takes_weights_from_a_file(here: Path) -> None:
    module(here, "teachers_c", f"def make():\n    return {LINEAR}, dict(size=8)\n")
    state = {"1.weight": torch.ones(4, 192), "1.bias": torch.arange(4.0)}
    torch.save(state, here / "w.pt")
    assert teacher_spec("teachers_c:make", "w.pt").open().weights_sha256 == models.digest(state)
    with pytest.raises(ConfigError, match="comes with its own weights"):
        teacher_spec("teachers_c:make", "random")


def test_a_teacher_answers_with_outputs_by_name(here: Path) -> None:
    module(
        here,
        "teachers_named",
        "class Net(nn.Module):\n    def forward(self, p):\n"
        "        return dict(features=p.double().flatten(2), logits=p.mean((2, 3)), count=3)\n"
        "def make():\n    return Net(), dict(size=8)\n",
    )
    teacher = teacher_spec("teachers_named:make").open()
    shown = pictures(side=8)
    found = teacher.outputs(shown, ("features", "logits"))
    assert [*found] == ["features", "logits"] and found["features"].shape == (5, 3, 64)
    assert found["features"].dtype == torch.float32 and torch.equal(found["logits"], teacher.logits(shown))
    assert torch.equal(found["features"].view(5, 3, 64).mean(2), found["logits"])
    assert [*teacher.outputs(shown)] == ["logits"]
    some = models.chosen(teacher, (2, 0)).outputs(shown, ("features", "logits"))
    assert torch.equal(some["features"], found["features"]) and torch.equal(some["logits"], found["logits"][:, [2, 0]])
    with pytest.raises(ModelError, match=r"make has no module or output 'featurs'; did you mean 'features'"):
        teacher.outputs(shown, ("featurs",))


@pytest.mark.parametrize(
    ("wrap", "taken"),
    [("dict(logits=x, hidden=0)", True), ("(x, 0)", True), ("[x]", True), ("dict(out=x)", False), ("x[0]", False)],
)
def test_the_logits_are_taken_from_what_a_network_returns(here: Path, wrap: str, taken: bool) -> None:
    name = f"teachers_d{abs(hash(wrap))}"
    module(
        here,
        name,
        f"class Net(nn.Module):\n    def forward(self, p):\n        x = p.mean((2, 3))\n        return {wrap}\n"
        f"def make():\n    return Net(), dict(size=8)\n",
    )
    if taken:
        assert teacher_spec(f"{name}:make").open().logits(pictures(side=8)).shape == (5, 3)
    else:
        with pytest.raises(ModelError, match="teacher"):
            teacher_spec(f"{name}:make").open()


@pytest.mark.parametrize(
    ("body", "function", "message"),
    [
        ("def make():\n    return 3\n", "make", "must return a torch.nn.Module"),
        ("def make():\n    return nn.Linear(1, 1), 3\n", "make", "must return a torch.nn.Module"),
        ("def make():\n    return nn.Linear(1, 1), dict(sise=3)\n", "make", "no setting 'sise'"),
        ("def make():\n    raise ValueError('no\\nfile')\n", "make", "failed with ValueError: no file"),
        ("def make():\n    pass\n", "mace", "did you mean 'make'"),
        ("raise RuntimeError('at import')\n", "make", "RuntimeError: at import"),
        (
            "def make():\n    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), dict(size=8)\n",
            "make",
            "no running statistics",
        ),
    ],
)
def test_a_function_that_gives_no_teacher_is_explained(here: Path, body: str, function: str, message: str) -> None:
    name = f"teachers_e{abs(hash(body + function))}"
    module(here, name, body)
    with pytest.raises((ModelError, ConfigError)) as raised:
        teacher_spec(f"{name}:{function}").open()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_network_whose_answers_change_shape_is_refused(here: Path) -> None:
    module(
        here,
        "teachers_f",
        "class Net(nn.Module):\n    def forward(self, p):\n        return p.flatten(1)[:, : 4 + len(p)]\n"
        "def make():\n    return Net(), dict(size=8)\n",
    )
    teacher = teacher_spec("teachers_f:make").open()
    with pytest.raises(ModelError, match=r"answers 5 images with shape \(5, 9\)"):
        teacher.logits(pictures(side=8))
