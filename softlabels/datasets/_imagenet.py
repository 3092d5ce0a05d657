"""ImageNet-1k as it is usually unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from softlabels.core.config import Part
from softlabels.datasets._folder import class_folders
from softlabels.datasets._images import FileImages, Split
from softlabels.datasets._roots import data_root
from softlabels.datasets._scan import has_pictures, subfolders
from softlabels.errors import DataError


class ImageNet(Part):
    """``imagenet``: ``train/`` and ``val/`` with one folder per wnid, below `data_dir` or ``$IMAGENET_DIR``.

    Labels count the sorted wnids, which is the order of every published classifier.
    """

    shorthand: ClassVar[str] = "data_dir"
    kind: Literal["imagenet"] = "imagenet"
    data_dir: str | None = None
    split: Split = "train"

    def open(self) -> FileImages:
        """The data set; keys are posix paths below ``train/`` or ``val/``: ``n01440764/n01440764_18.JPEG``.

        Raises:
            DataError: a folder is missing or has no wnid folders; it is named.
        """
        root = data_root(self.data_dir, "imagenet", "IMAGENET_DIR", "train/ and val/ with one folder per wnid")
        side = "train" if self.split == "train" else "val"
        tops = (root, root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC")
        folder = str(next((top for top in tops if (top / side).is_dir()), root) / side)
        if not Path(folder).is_dir():
            raise DataError(f"no such directory: {folder}; imagenet needs train/ and val/ below {root}")
        if not subfolders(folder) and has_pictures(folder):
            raise DataError(
                f"{folder} holds images but no wnid folders, so their classes are unknown; move each into the folder "
                f"of its wnid, or open them without labels as images:{folder}"
            )
        name = "imagenet" if side == "train" else "imagenet (val)"
        return class_folders(folder, name, {**self.model_dump(), "data_dir": str(root)})
