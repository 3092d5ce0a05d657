"""`softlabels info` and `softlabels report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabels.core.progress import Terminal
from softlabels.reporting.config import InfoConfig, ReportConfig
from softlabels.reporting.info import describe_store, info_lines
from softlabels.reporting.report import report

if TYPE_CHECKING:
    import pandas as pd


def run_info(config: InfoConfig, terminal: Terminal) -> dict[str, Any]:  # noqa: ARG001
    """What a store holds, as JSON values."""
    return describe_store(config.labels)


def info_text(described: dict[str, Any]) -> str:
    """What `run_info` found, for a person."""
    return "\n".join(info_lines(described)) + "\n"


def run_report(config: ReportConfig, terminal: Terminal) -> pd.DataFrame:
    """Write table and plots of all finished runs; the table, a row for each arm."""
    out = Path(config.out) if config.out else Path(config.root) / "report"
    table = report(Path(config.root), out, terminal, config.baseline)
    terminal.say(f"table and plots in {out}")
    return table
