"""Draw replay.svg from the report of a study of which view a label is of.

    python docs/images/replay.py runs/cifar10-which-view/report/table.csv > docs/images/replay.svg

Bars are means over the seeds with their standard errors, from the table's accuracies; arms are called
AUGMENTATION-this-view, -another-view, -clean-image and -hard-label.
"""

from __future__ import annotations

import sys

import pandas as pd

LABELS = {
    "this-view": ("label of this view", "#2f6db3"),
    "another-view": ("of another view of the image", "#d08770"),
    "clean-image": ("of the clean image", "#e5c07b"),
    "hard-label": ("hard label", "#9aa0a6"),
}
NAMES = {
    "pad-flip": "pad, crop, flip",
    "cutmix": "+ CutMix",
    "strong": "CutMix, RandAugment, erasing",
    "crop": "random resized crops",
}
WIDTH, HEIGHT, LEFT, BOTTOM, BAR = 840, 330, 50, 270, 34


def main(path: str) -> str:
    table = pd.read_csv(path).set_index("arm")
    errors = table["accuracy_std"] / table["runs"] ** 0.5
    lowest = 5 * (table["accuracy_mean"].min() // 5) - 5
    highest = 5 * (table["accuracy_mean"].max() // 5) + 5
    scale = (BOTTOM - 60) / (highest - lowest)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-labelledby="t">',
        '<title id="t">Accuracy of students by what their labels are of, at four augmentation strengths</title>',
        "<style>text { font: 12px system-ui, sans-serif; fill: #1a1a1a } .s { fill: #555 }</style>",
    ]
    for tick in range(int(lowest), int(highest) + 1, 5):
        y = BOTTOM - scale * (tick - lowest)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        lines.append(f'<text class="s" x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{tick}</text>')
    lines.append(f'<text class="s" x="{LEFT - 38}" y="20">accuracy %</text>')
    step = (WIDTH - LEFT) / len(NAMES)
    for group, (name, shown) in enumerate(NAMES.items()):
        start = LEFT + group * step + (step - 4 * (BAR + 4)) / 2
        for place, (label, (_, colour)) in enumerate(LABELS.items()):
            mean, error = table["accuracy_mean"][f"{name}-{label}"], errors[f"{name}-{label}"]
            x, y = start + place * (BAR + 4), BOTTOM - scale * (mean - lowest)
            middle, high, low = x + BAR / 2, y - scale * error, y + scale * error
            lines.append(
                f'<rect x="{x:.0f}" y="{y:.1f}" width="{BAR}" height="{BOTTOM - y:.1f}" fill="{colour}"/>'
                f'<line x1="{middle:.0f}" x2="{middle:.0f}" y1="{high:.1f}" y2="{low:.1f}" stroke="#1a1a1a"/>'
                f'<text x="{middle:.0f}" y="{high - 5:.0f}" text-anchor="middle">{mean:.1f}</text>'
            )
        middle = LEFT + (group + 0.5) * step
        lines.append(f'<text x="{middle:.0f}" y="{BOTTOM + 20}" text-anchor="middle">{shown}</text>')
    for place, (shown, colour) in enumerate(LABELS.values()):
        x = LEFT + place * 190
        lines.append(f'<rect x="{x}" y="{HEIGHT - 24}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18}" y="{HEIGHT - 14}">{shown}</text>')
    return "\n".join([*lines, "</svg>"])


if __name__ == "__main__":
    print(main(sys.argv[1]))
