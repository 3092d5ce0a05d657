"""Prints the lowest version that pyproject.toml admits of every package that softlabels uses, as pip constraints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("digits", "plots", "zstd")
"""Extras whose lowest versions are tried too; the others bring frameworks with demands of their own."""


def lowest() -> list[str]:
    """``package==version`` of each dependency with a lower bound."""
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for name in EXTRAS for each in project["optional-dependencies"][name]]
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", each) for each in [*project["dependencies"], *extras]]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(lowest()))
