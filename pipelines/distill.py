"""A whole story from one folder of configs: make a teacher, run it once, train students from its labels, report.

    python pipelines/distill.py configs/digits

The folder holds `story.yaml` (title, seeds, out), `teacher.yaml` (left out when the teacher is a pretrained one),
`dump.yaml`, and one file per way of training a student under `students/`, in order of their names: one may go on from
an earlier one's students (`init: .../seed-{seed}`). Stages that are done are passed over, and one that was cut off goes
on where it stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import yaml

import softlabels


def main(folder: Path) -> None:
    began = time.monotonic()
    story = yaml.safe_load((folder / "story.yaml").read_text(encoding="utf-8"))
    out = Path(story["out"])

    if (folder / "teacher.yaml").exists():
        print("== a teacher, from hard labels", flush=True)
        softlabels.train(config=folder / "teacher.yaml")

    print("== its labels, once", flush=True)
    softlabels.dump(config=folder / "dump.yaml")

    for arm in sorted((folder / "students").glob("*.yaml")):
        name = arm.stem
        print(f"== students: {name}", flush=True)
        earlier = yaml.safe_load(arm.read_text(encoding="utf-8")).get("init")
        for seed in story["seeds"]:
            init = {"init": earlier.format(seed=seed)} if earlier else {}
            done = softlabels.train(config=arm, seed=seed, out=str(out / name / f"seed-{seed}"), quiet=True, **init)
            top1 = f"top-1 {100 * done['last']['top1']:.1f} %, " if done["last"] else ""
            print(f"  seed {seed}: {top1}{done['seconds']:.0f} s", flush=True)

    table = softlabels.report(out, out / "report")
    print(f"\n{story['title']}\n")
    print((out / "report" / "table.md").read_text(encoding="utf-8"))
    print(f"table and curves in {out / 'report'}; {len(table)} arms, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python pipelines/distill.py FOLDER_OF_CONFIGS")
    try:
        main(Path(sys.argv[1]))
    except softlabels.SoftlabelsError as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as stop:
        print(
            f"{str(stop) or 'interrupted'}; what is done is passed over when this runs again",
            file=sys.stderr,
        )
        sys.exit(130)
