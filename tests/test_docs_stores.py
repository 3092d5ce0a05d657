"""Every command of docs/stores.md is run, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import softlabels

PAGE = (Path(__file__).parents[1] / "docs/stores.md").read_text(encoding="utf-8")


def test_the_page_does_what_it_says(softlabels_command: Callable) -> None:
    said = {}
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            done = softlabels_command(*shlex.split(line)[1:], *(("--device", "cpu") if " dump " in line else ()))
            assert done.exit_code == 0, (line, done.output)
            said[line] = done.output
    grown, whole = softlabels.open_labels("shards"), softlabels.open_labels("whole")
    assert (len(grown), grown.views, grown.teachers) == (400, 4, ("cnn_small", "cnn_tiny"))
    assert (len(whole), whole.views) == (400, 2)
    assert softlabels.open_labels("zarr").logits([399], 1).equal(whole.logits([399], 1))
    assert "KL(teacher || stored)" in next(iter(said.values()))
