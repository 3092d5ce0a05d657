"""Label files in the layouts of other projects, written as their own code writes them, for tests of importers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

from softlabels.datasets import Images

BILINEAR = InterpolationMode.BILINEAR
STEPS = ("ShearX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize")
STRENGTHS = (0.09, -12.3, 9.0, 0.27, -0.27, 0.27, -0.27, 6.0, 178.5)


def softmaxes(images: Images, views: int, classes: int, seed: int = 0) -> NDArray[np.float64]:
    """What a teacher that is mostly right says of each view: (images, views, classes)."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((len(images), views, classes))
    logits[np.arange(len(images)), :, images.labels] += 6
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


def highest(shares: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids = np.argsort(-shares, axis=-1)[..., :k]
    return ids, np.take_along_axis(shares, ids, -1)


def boxes(images: Images, views: int, seed: int = 1) -> NDArray[np.int64]:
    """Top, left, height, width in pixels: (images, views, 4)."""
    rng = np.random.default_rng(seed)
    made = np.zeros((len(images), views, 4), np.int64)
    for row in range(len(images)):
        sides = np.array(images.decode(row).shape[-2:])
        for view in range(views):
            size = rng.integers(sides // 3, sides + 1)
            made[row, view] = [*rng.integers(0, sides - size + 1), *size]
    return made


def flips(images: Images, views: int) -> NDArray[np.bool_]:
    return np.random.default_rng(2).random((len(images), views)) < 0.5


def write_fkd(
    root: Path, images: Images, *, views: int = 3, k: int = 2, half: bool = False, kind: str = "marginal"
) -> NDArray[np.float64]:
    """``root/train/CLASS/NAME.tar`` for each image; the softmaxes of which the labels are."""
    shares = softmaxes(images, views, len(images.classes))
    crops, mirrored = boxes(images, views), flips(images, views)
    for row, key in enumerate(images.keys.to_pylist()):
        height, width = images.decode(row).shape[-2:]
        coords = (torch.tensor(crops[row]) / torch.tensor([height, width, height, width])).float()
        ids, values = (torch.tensor(each) for each in highest(shares[row], 1 if kind != "marginal" else k))
        if kind == "hard":
            output = ids[:, 0]
        else:
            output = torch.stack([ids.float(), values.float()], dim=1)
            output = output[:, :, 0] if kind == "smoothing" else output
        state: list[Any] = [coords.numpy(), mirrored[row], output.numpy()]
        if half:
            state = [np.float16(coords.numpy()), mirrored[row], np.float16(output.numpy())]
        file = root / "train" / (key.rpartition(".")[0] + ".tar")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file)
    return shares


def write_tinyvit(
    root: Path, images: Images, *, epochs: int = 2, k: int = 2, ranks: int = 2, names: bool = False
) -> NDArray[np.float64]:
    """``root/logits_topK_epochE/rankR-*``; an image of the first rank is in all, drawn anew, as from padding."""
    shares = softmaxes(images, epochs, len(images.classes))
    keys = [str(row) for row in range(len(images))]
    if names:
        keys = [key.rpartition("/")[2].rpartition(".")[0] for key in images.keys.to_pylist()]
    for epoch in range(epochs):
        folder = root / f"logits_top{k}_epoch{epoch}"
        folder.mkdir(parents=True)
        order = np.random.default_rng(epoch).permutation(len(images))
        for rank in range(ranks):
            rows = [*order[rank::ranks], *([order[0]] if rank else [])]
            lines, data = [], b""
            for place, row in enumerate(rows):
                ids, values = highest(shares[row, epoch], k)
                seed = np.int32(1000 * epoch + row + 500 * (place >= len(order[rank::ranks])))
                data += seed.tobytes() + ids.astype(np.int16).tobytes() + values.astype(np.float16).tobytes()
                lines.append(keys[row] + "\n")
            (folder / f"rank{rank}-keys.txt").write_text("".join(lines))
            (folder / f"rank{rank}-values.bin").write_bytes(data)
    return shares


def write_mixed_tinyvit(
    root: Path, images: Images, *, epochs: int = 2, k: int = 3, ranks: int = 1, mixup: float = 0.8, cutmix: float = 1.0
) -> list[list[list[tuple[int, int]]]]:
    """As `write_tinyvit`, of images mixed in pairs; (row, seed) of every image of every rank of every epoch.

    The sampler fills up the last pair of each rank from the beginning, and what a rank has written it does not write
    again.
    """
    shares, drawn = softmaxes(images, epochs, len(images.classes)), np.random.default_rng(11)
    said = []
    for epoch in range(epochs):
        folder = root / f"logits_top{k}_epoch{epoch}"
        folder.mkdir(parents=True)
        order = np.random.default_rng(epoch).permutation(len(images))
        order = np.concatenate([order, order[: -len(order) % (2 * ranks)]]).reshape(-1, 2)
        said.append([])
        for rank in range(ranks):
            shown = [(int(row), int(drawn.integers(1 << 31))) for row in order[rank::ranks].flat]
            said[-1].append(shown)
            written: dict[int, bytes] = {}
            for place, (row, seed) in enumerate(shown):
                partner, other = shown[place ^ 1]
                own = mixed_share(seed ^ other, mixup, cutmix)
                label = own * shares[row, epoch] + (1 - own) * shares[partner, epoch]
                ids, values = highest(label, k)
                record = np.int32(seed).tobytes() + ids.astype(np.int16).tobytes() + values.astype(np.float16).tobytes()
                written.setdefault(row, record)
            (folder / f"rank{rank}-keys.txt").write_text("".join(f"{row}\n" for row in written))
            (folder / f"rank{rank}-values.bin").write_bytes(b"".join(written.values()))
    return said


def pair_chance(seed: int, mixup: float, cutmix: float, sides: tuple[int, int]) -> tuple[float, tuple[int, ...] | None]:
    """The share of a mixup, or the rows and columns (first, last + 1 each) that a cutmix exchanges."""
    chance = np.random.Generator(np.random.PCG64(seed=seed))
    assert chance.random() < 1.0  # whether the pair is mixed at all: always, in the default config
    boxed = cutmix > 0 and (mixup == 0 or chance.random() < 0.5)
    share = float(chance.beta(*[cutmix if boxed else mixup] * 2))
    if not boxed:
        return share, None
    edges: list[int] = []
    for side in sides:
        length, centre = int(side * (1 - share) ** 0.5), int(chance.random() * side)
        edges += [max(centre - length // 2, 0), min(centre + length // 2, side)]
    return share, tuple(edges)


def mixed_share(seed: int, mixup: float, cutmix: float, side: int = 224) -> float:
    share, box = pair_chance(seed, mixup, cutmix, (side, side))
    return share if box is None else 1 - (box[1] - box[0]) * (box[3] - box[2]) / side**2


def mixed_pair(first: torch.Tensor, second: torch.Tensor, seed: int, mixup: float, cutmix: float) -> list[torch.Tensor]:
    """Both images of a pair as the teacher saw them."""
    share, box = pair_chance(seed, mixup, cutmix, (first.shape[-2], first.shape[-1]))
    if box is None:
        return [a * share + b * (1 - share) for a, b in ((first, second), (second, first))]
    inside = torch.zeros(first.shape[-2:], dtype=torch.bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    return [torch.where(inside, b, a) for a, b in ((first, second), (second, first))]


def write_ml_dr(
    root: Path,
    images: Images,
    *,
    views: int = 3,
    k: int = 2,
    size: int = 24,
    compress: bool = True,
    mixing: bool = False,
    augment: dict[str, Any] | None = None,
) -> tuple[NDArray[np.float64], list[list[dict[str, Any]]]]:
    """``root/I.pth.tar`` and ``root/config.pth.tar``; the softmaxes, and the parameters before they were compressed."""
    shares = softmaxes(images, views, len(images.classes))
    chosen: dict[str, Any] = {
        "uint8": {"enable": True},
        "random_resized_crop": {"enable": True, "size": size},
        "random_horizontal_flip": {"enable": True, "p": 0.5},
        "rand_augment": {"enable": True, "p": 1.0},
        "to_tensor": {"enable": True},
        "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "random_erase": {"enable": True, "p": 0.25},
        "mixup": {"enable": mixing, "alpha": 1.0, "div_by": 2.0, "p": 0.5},
        "cutmix": {"enable": mixing, "alpha": 1.0, "p": 0.5},
        **(augment or {}),
    }
    every = drawn_params(images, views, size, mixing)
    root.mkdir(parents=True, exist_ok=True)
    for row in range(len(images)):
        ids, values = highest(shares[row], k)
        entries = []
        for view in range(views):
            params = every[row][view]
            prob = (values[view].astype(np.float32).tolist()[::-1], ids[view].tolist()[::-1])
            entries.append({"params": compressed(params, mixing) if compress else params, "prob": prob})
        torch.save((row, entries), root / f"{row}.pth.tar", pickle_protocol=4)
    config = {"dataset": "imagenet", "reinforce": {"num_samples": views, "topk": k, "compress": compress}}
    config["reinforce"]["image_augmentation"] = chosen  # type: ignore[index]
    torch.save(config, root / "config.pth.tar")
    return shares, every


def drawn_params(images: Images, views: int, size: int, mixing: bool) -> list[list[dict[str, Any]]]:
    """Parameters of each view, each the pair of the image's and its partner's."""
    rng = np.random.default_rng(5)
    crops, mirrored = boxes(images, views), flips(images, views)

    def operations() -> list[tuple[str, float]] | None:
        if rng.random() < 0.2:
            return None
        picked = rng.integers(0, len(STEPS), 2)
        return [(STEPS[each], float(np.float32(STRENGTHS[each]))) for each in picked]

    def erased() -> tuple[int, ...] | None:
        if rng.random() < 0.5:
            return None
        top, left = rng.integers(0, size // 2, 2).tolist()
        return (top, left, *rng.integers(1, size // 2, 2).tolist())

    every = []
    for row in range(len(images)):
        every.append([])
        for view in range(views):
            other, there = int(rng.integers(len(images))), int(rng.integers(views))
            params: dict[str, Any] = {
                "random_resized_crop": (tuple(crops[row, view].tolist()), tuple(crops[other, there].tolist())),
                "random_horizontal_flip": (bool(mirrored[row, view]), bool(mirrored[other, there])),
                "rand_augment": (operations(), operations()),
                "random_erase": (erased(), erased()),
            }
            if mixing:
                blend = float(rng.random() / 2) if rng.random() < 0.5 else None
                top, left = rng.integers(0, size // 2, 2).tolist()
                bottom, right = top + int(rng.integers(1, size // 2)), left + int(rng.integers(1, size // 2))
                cut = (0.5, (top, left, bottom, right)) if rng.random() < 0.5 else None
                params |= {"id2": other, "mixup": blend, "cutmix": cut}
            every[row].append(params)
    return every


def compressed(params: dict[str, Any], mixing: bool) -> list[Any]:
    """The list that stands for the mapping in compressed files."""
    paired = params.get("mixup") is not None or params.get("cutmix") is not None
    made: list[Any] = [params["id2"] if paired else None] if mixing else []
    for name in ("random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase"):
        pair = [numbered(each) if name == "rand_augment" else each for each in params[name]]
        made.append(pair if paired else pair[0])
    if mixing:
        cut = params["cutmix"]
        made += [params["mixup"], None if cut is None else [cut[0], *cut[1]]]
    return made


def numbered(operations: list[tuple[str, float]] | None) -> list[tuple[int, float]] | None:
    names = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"]
    names += ["Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"]
    return None if operations is None else [(names.index(name), strength) for name, strength in operations]


# ---- distilled data sets: SRe2L, LPLD, LPQLD


def write_coloured(root: Path, *, classes: int = 8, each: int = 15) -> Path:
    """An ImageFolder of PNG files of several sizes, each class of a colour that a mixture of two does not hide."""
    rng = np.random.default_rng(3)
    for label in range(classes):
        (root / f"c{label}").mkdir(parents=True)
        colour = np.array([215 if label >> bit & 1 else 40 for bit in range(3)])
        for number in range(each):
            height, width = ((40, 48), (52, 36), (37, 37))[number % 3]
            noise = torch.from_numpy(rng.uniform(-40, 40, (1, 3, 5, 6)))
            smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].permute(1, 2, 0)
            Image.fromarray(np.uint8(np.clip(colour + smooth.numpy(), 0, 255))).save(
                root / f"c{label}/{number:02d}.png"
            )
    return root


def colour_teacher(classes: int = 8) -> torch.nn.Module:
    """A network that names the class whose colour is nearest to the mean of an image in 0..1."""
    colours = torch.tensor([[215 if label >> bit & 1 else 40 for bit in range(3)] for label in range(classes)]) / 255
    last = torch.nn.Linear(3, classes)
    with torch.no_grad():
        last.weight.copy_(20 * colours)
        last.bias.copy_(-10 * colours.square().sum(1))
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), last).eval()


@dataclass(frozen=True)
class Shown:
    """A batch as its teacher saw it: numbers of its images, mixed images (n, 3, S, S) in 0..1, and its logits."""

    rows: list[int]
    images: torch.Tensor
    logits: torch.Tensor


def write_batches(
    root: Path,
    photos: Path,
    project: str = "sre2l",
    *,
    epochs: int = 3,
    batch_size: int = 24,
    seed: int = 42,
    mix: str | None = "cutmix",
    size: int = 32,
    k: int | None = None,
    batches: int | None = None,
) -> list[Shown]:
    """What the projects write: a pass over the images by torch's own sampler and loader for each epoch.

    `batches` is how many LPLD and LPQLD keep; with it they leave out the last batch of an epoch where it is not full.
    """
    folder, teacher, chance = ImageFolder(photos), colour_teacher(), np.random.default_rng(seed + 1)
    crop = RandomResizedCrop(size, scale=(0.3, 1.0))

    class Drawn(Dataset):
        def __len__(self) -> int:
            return len(folder)

        def __getitem__(self, number: int) -> tuple[Any, ...]:
            picture = folder[number][0]
            wide, high = picture.size
            top, left, height, width = crop.get_params(picture, list(crop.scale), list(crop.ratio))
            flip = bool(torch.rand(1) < 0.5)
            shown = functional.resized_crop(picture, top, left, height, width, [size, size], BILINEAR)
            shown = functional.to_tensor(functional.hflip(shown) if flip else shown)
            return shown, flip, torch.FloatTensor((top / high, left / wide, height / high, width / wide)), number

    torch.manual_seed(seed + 2)
    sampler = RandomSampler(folder, generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(Drawn(), batch_size=batch_size, sampler=sampler, drop_last=batches is not None)
    written: list[Shown] = []
    orders: dict[str, list[int]] = {}
    for epoch in range(epochs):
        for number, (images, flips, coords, rows) in enumerate(loader):
            index, lam, box = None, None, None
            if mix is not None:
                index, lam = torch.randperm(len(images)), float(chance.beta(1.0, 1.0))
            if mix == "mixup":
                images = lam * images + (1 - lam) * images[index]
            elif mix == "cutmix":
                side = int(size * np.sqrt(1 - lam))
                x, y = chance.integers(size), chance.integers(size)
                box = [np.clip(each, 0, size) for each in (x - side // 2, y - side // 2, x + side // 2, y + side // 2)]
                images[:, :, box[0] : box[2], box[1] : box[3]] = images[index, :, box[0] : box[2], box[1] : box[3]]
            with torch.no_grad():
                logits = teacher(images).half()
            written.append(Shown(rows.tolist(), images, logits))
            content: list[Any] = [coords, flips, index, lam, box, logits]
            if project == "lpqld":
                content[0] = coords.half()
                content[2] = None if index is None else index.to(torch.uint8)
                content[4] = None if box is None else [torch.tensor(edge, dtype=torch.uint8) for edge in box]
                if k is not None:
                    highest = logits.float().topk(k, dim=1)
                    content[5:] = [highest.values.half(), highest.indices.short()]
                file = root / f"batch_{len(written) - 1}.tar"
                orders[str(len(written) - 1)] = rows.tolist()
            else:
                file = root / f"epoch_{epoch}" / f"batch_{number}.tar"
                orders[str(epoch)] = [*orders.get(str(epoch), []), *rows.tolist()]
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, file)
            if len(written) == batches:
                break
        if len(written) == batches:
            break
    if project != "sre2l":
        unit = "batch" if project == "lpqld" else "epoch"
        (root / f"sampler_indices_{unit}.json").write_text(json.dumps(orders))
    return written
