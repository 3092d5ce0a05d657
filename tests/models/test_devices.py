"""Devices: which is meant, what happens when memory is full, and how a GPU is kept from waiting."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving import shard_bytes
from torch import Tensor

import softlabels
from softlabels.dumping import dump as dumping
from softlabels.errors import ConfigError, ModelError
from softlabels.models import NetworkTeacher, devices
from softlabels.models.devices import Passes, best_batch, find_device

SMALL = ("--teacher", "cnn_tiny", "--weights", "random", "--device", "cpu", "--workers", 0)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8.00 GiB.\nSee the manual.")


# --- which device is meant -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cuda:99", "cuda:300", "cuda:-1", "nonsense", "", "CUDA", "cpu:7", "meta", "vulkan", "xpu", "hpu", "mps:9"]
)
def test_a_device_that_is_not_there_is_refused_in_one_line_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_device(name)
    said = str(refused.value)
    assert said.startswith(f"device {name!r} cannot be used: ")
    assert "; there is cpu" in said
    assert "\n" not in said and len(said) < 400


@pytest.mark.parametrize(
    ("built", "version", "said"),
    [(True, "13.0", "built for CUDA 13.0 and finds no GPU"), (False, None, "without CUDA")],
)
def test_it_is_said_whether_torch_or_the_driver_lacks_cuda(
    monkeypatch: pytest.MonkeyPatch, built: bool, version: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=said):
        find_device("cuda")
    assert find_device("auto") == torch.device("cpu")


def test_gpus_that_are_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")
    with pytest.raises(ConfigError, match=r"there are 2 GPUs; there is cpu, cuda:0 \(Card 0\), cuda:1 \(Card 1\)"):
        find_device("cuda:9")


@pytest.mark.parametrize("command", [("dump", *SMALL[:4]), ("train", "--student", "cnn_tiny"), ("verify",), ("eval",)])
@pytest.mark.parametrize("device", ["cuda:9", "mps"])
def test_every_command_refuses_a_device_in_one_line(
    softlabels_command: Callable, photos: Path, shards: Path, command: tuple[str, ...], device: str
) -> None:
    given = {
        "verify": ("--labels", shards),
        "eval": ("--student", "cnn_tiny", "--weights", "random", "--data", photos),
    }.get(command[0], ("--data", photos))
    refused = softlabels_command(*command, *given, "--device", device)
    assert refused.exit_code in (1, 2)
    assert refused.output.rstrip().count("\n") == 0
    assert f"device {device!r} cannot be used" in refused.output
    assert len(refused.output) < 400


# --- memory ----------------------------------------------------------------------------------------------------------


def limited(most: int, problem: BaseException = FULL) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """A function that holds `most` rows at most, and the sizes of the calls that succeeded."""
    sizes: list[int] = []

    def double(rows: Tensor) -> Tensor:
        if len(rows) > most:
            raise problem
        sizes.append(len(rows))
        return 2 * rows

    return double, sizes


@pytest.mark.parametrize(
    "problem",
    [
        FULL,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_passes_are_halved_until_they_fit_and_stay_so(problem: BaseException) -> None:
    function, sizes = limited(5, problem)
    said: list[int] = []
    passes = Passes(function, 32, reduced=lambda size, _: said.append(size))
    rows = torch.arange(40.0)[:, None]
    assert torch.equal(passes(rows), 2 * rows)
    assert torch.equal(passes(rows[:7]), 2 * rows[:7])
    assert said == [16, 8, 4]
    assert max(sizes) == 4


def test_other_errors_are_not_taken_for_full_memory() -> None:
    function, _ = limited(5, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        Passes(function, 32)(torch.zeros(32, 1))


def test_one_picture_that_does_not_fit_is_told_in_a_line() -> None:
    function, _ = limited(0)
    with pytest.raises(ModelError, match=r"not even one image fits into memory \(CUDA out of memory") as refused:
        Passes(function, 32)(torch.zeros(3, 1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 24])
def test_padded_passes_have_one_size_and_answer_for_the_rows_alone(rows: int) -> None:
    sizes = []

    def mean(part: Tensor) -> Tensor:
        sizes.append(part.shape)
        return part.float().mean((1, 2, 3))[:, None]

    given = torch.randint(0, 256, (rows, 3, 4, 4), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(Passes(mean, 8, padded=True)(given), mean(given))
    assert set(sizes[:-1]) == {(8, 3, 4, 4)}


def test_the_best_batch_is_the_smallest_beyond_which_doubling_gains_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(devices.time, "perf_counter", lambda: clock[0])

    def run(size: int, most: int, overhead: float) -> None:
        if size > most:
            raise FULL
        clock[0] += overhead + size / 1000

    cpu = torch.device("cpu")
    assert best_batch(lambda size: run(size, 999, 0.02), cpu, most=512)[0] == 256  # 512 gains 4 %
    assert best_batch(lambda size: run(size, 999, 0.0), cpu, most=512)[0] == 16
    assert best_batch(lambda size: run(size, 999, 1.0), cpu, most=96)[0] == 96
    found, tried = best_batch(lambda size: run(size, 100, 1.0), cpu, most=512)
    assert found == 64 and tried[-1] == "128: out of memory"
    assert best_batch(lambda size: run(size, 3, 1.0), cpu, most=512)[0] == 2
    with pytest.raises(ModelError, match="not even one image"):
        best_batch(lambda size: run(size, 0, 1.0), cpu, most=512)


def hold(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Teachers hold so many images at most from now on; the sizes of their passes."""
    sizes: list[int] = []
    whole = NetworkTeacher.outputs

    def outputs(teacher: NetworkTeacher, pictures: Tensor, *names: Any, **named: Any) -> Any:
        if len(pictures) > most:
            raise FULL
        sizes.append(len(pictures))
        return whole(teacher, pictures, *names, **named)

    monkeypatch.setattr(NetworkTeacher, "outputs", outputs)
    return sizes


def stored(store: Path | str, views: int = 3) -> Tensor:
    labels = softlabels.open_labels(store)
    return torch.cat([labels.logits(range(len(labels)), view) for view in range(views)])


def dump(photos: Path, out: str, **settings: Any) -> None:
    given = {"views": 3, "codec": "dense:fp32", "batch_size": 16, "rows_per_shard": 7, "workers": 0, "device": "cpu"}
    softlabels.dump(teacher=["cnn_tiny"], weights=["random"], data=str(photos), out=out, quiet=True, **given | settings)


def test_a_dump_out_of_memory_goes_on_with_smaller_batches_and_says_so(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("dump", *SMALL, "--data", photos, "--views", 3, "--codec", "dense:fp32", "--batch-size", 16)
    assert softlabels_command(*command, "--out", "whole").exit_code == 0
    sizes = hold(monkeypatch, 5)
    done = softlabels_command(*command, "--out", "halved")
    assert done.exit_code == 0, done.output
    assert "out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8.00 GiB.; going on with 4 images" in done.output
    assert sizes and max(sizes) == 4
    torch.testing.assert_close(stored("halved"), stored("whole"), atol=1e-5, rtol=1e-5)


def test_a_dump_and_a_plan_find_their_batches(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, 20)
    for command in ("plan", "dump"):
        done = softlabels_command(command, *SMALL, "--data", photos, "--views", 3, "--batch-size", "auto")
        assert done.exit_code == 0, done.output
        assert "teacher cnn_tiny: batches of 16 images (16: " in done.output
    again = softlabels_command("dump", *SMALL, "--data", photos, "--views", 3, "--batch-size", "auto")
    assert "nothing to do" in again.output and "batches of" not in again.output


@pytest.mark.parametrize("size", ["0", "-3", "all", "1.5"])
def test_a_batch_is_auto_or_a_number(softlabels_command: Callable, photos: Path, size: str) -> None:
    refused = softlabels_command("dump", *SMALL, "--data", photos, "--batch-size", size)
    assert refused.exit_code == 2
    assert "--batch-size must be from 1 to 16,777,216, or auto, not " in refused.output
    assert not Path("shards").exists()


def test_an_evaluation_out_of_memory_goes_on_with_smaller_batches(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval", "--student", "cnn_tiny", "--weights", "random", "--size", 16, "--data", photos)
    before = softlabels_command(*command, "--device", "cpu")
    sizes = hold(monkeypatch, 5)
    after = softlabels_command(*command, "--device", "cpu")
    assert (after.exit_code, after.output) == (0, before.output)
    assert max(sizes) <= 5


def test_a_training_out_of_memory_says_which_settings_make_as_large_steps(
    softlabels_command: Callable, shards: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr("softlabels.training.state.TrainState.forward", full)
    command = (
        "train",
        "--labels",
        shards,
        "--data",
        photos,
        "--student",
        "cnn_tiny",
        "--device",
        "cpu",
        "--workers",
        0,
    )
    refused = softlabels_command(*command, "--batch-size", 8, "--accumulate", 3, "--out", "run")
    assert refused.exit_code == 1
    assert "--batch-size 4 --accumulate 6 makes steps of as many images" in refused.output.splitlines()[-1]
    assert "Traceback" not in refused.output


# --- a GPU does not wait ---------------------------------------------------------------------------------------------


def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode and write in threads, as beside a GPU."""
    worker = dumping._Worker
    monkeypatch.setattr(dumping, "_Worker", lambda _: worker(True))


@pytest.mark.parametrize("codec", ["dense", "topk:2", "quantized"])
def test_threads_beside_the_teacher_write_the_same_shards(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    dump(photos, str(tmp_path / "alone"), codec=codec)
    beside(monkeypatch)
    dump(photos, str(tmp_path / "beside"), codec=codec)
    assert shard_bytes(tmp_path / "alone") == shard_bytes(tmp_path / "beside")


def test_images_that_fail_are_counted_beside_the_teacher_too(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "class-1" / "002.jpg").write_bytes(b"no image")
    beside(monkeypatch)
    (report,) = softlabels.dump(
        teacher=["cnn_tiny"], weights=["random"], data=str(tmp_path / "photos"), out=str(tmp_path / "s"), views=3,
        rows_per_shard=4, workers=0, device="cpu", on_bad_image="skip", quiet=True,
    )  # fmt: skip
    assert list(report.skipped) == ["class-1/002.jpg"]
    assert report.labels == 17 * 3


def failing(monkeypatch: pytest.MonkeyPatch, step: str, at: int) -> None:
    """The `at`-th encoding or writing fails."""
    calls, whole = [], getattr(dumping.ShardBuilder, step)

    def call(builder: Any, *given: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise ModelError("broken here")
        whole(builder, *given, **named)

    monkeypatch.setattr(dumping.ShardBuilder, step, call)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(("step", "at"), [("enter", 1), ("enter", 4), ("enter", 9), ("write", 1), ("write", 4)])
def test_a_shard_of_which_a_batch_failed_is_never_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool, step: str, at: int
) -> None:
    """Shards hold 5 images in 3 views and are entered in 3 batches of up to 6; the last holds 3 images."""
    out = tmp_path / "s"
    with monkeypatch.context() as patched:
        if threads:
            beside(patched)
        failing(patched, step, at)
        with pytest.raises(ModelError, match="broken here"):
            dump(photos, str(out), batch_size=6, rows_per_shard=5)
    labels = softlabels.open_labels(out).of("cnn_tiny") if (out / "cnn_tiny").exists() else None
    whole = (at - 1) // 3 if step == "enter" else at - 1
    assert len(labels.shards if labels else ()) == whole
    dump(photos, str(out), batch_size=6, rows_per_shard=5)
    dump(photos, str(tmp_path / "whole"), batch_size=6, rows_per_shard=5)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_a_compiled_teacher_sees_batches_of_one_size(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, made = [], []

    def compile(function: Callable[[Tensor], Tensor], **given: object) -> Callable[[Tensor], Tensor]:
        made.append(given)

        def call(pictures: Tensor) -> Tensor:
            sizes.append(tuple(pictures.shape))
            return function(pictures)

        return call

    dump(photos, str(tmp_path / "plain"))
    monkeypatch.setattr(torch, "compile", compile)
    dump(photos, str(tmp_path / "compiled"), compile=True)
    assert made == [{"dynamic": False}]
    assert set(sizes) == {(16, 3, 32, 32)}
    torch.testing.assert_close(stored(tmp_path / "compiled"), stored(tmp_path / "plain"), atol=1e-5, rtol=1e-5)


def test_a_teacher_that_cannot_be_compiled_is_refused_in_a_line(
    softlabels_command: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(function: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
        def fail(pictures: Tensor) -> Tensor:  # noqa: ARG001
            raise torch._inductor.exc.CppCompileError(["c++", "-O3"], "no such file")

        return fail

    import torch._inductor.exc

    monkeypatch.setattr(torch, "compile", compile)
    refused = softlabels_command("dump", *SMALL, "--data", photos, "--compile")
    assert refused.exit_code == 1
    assert "cnn_tiny cannot be compiled (" in refused.output.splitlines()[-1]
    assert refused.output.splitlines()[-1].endswith("leave out --compile")


@pytest.mark.slow
def test_a_teacher_compiled_in_earnest_gives_the_labels_of_a_plain_one(photos: Path, tmp_path: Path) -> None:
    dump(photos, str(tmp_path / "plain"))
    dump(photos, str(tmp_path / "compiled"), compile=True)
    torch.testing.assert_close(stored(tmp_path / "compiled"), stored(tmp_path / "plain"), atol=1e-4, rtol=1e-4)
    assert np.isfinite(stored(tmp_path / "compiled").numpy()).all()
