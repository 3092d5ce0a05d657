"""Where a config meets parts: each command has its settings here, and a function that makes parts and runs a stage.

The settings are imported without torch; a function is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softlabels._installed import loaded
from softlabels.runs._configs import (
    ConvertConfig,
    DumpConfig,
    EvalConfig,
    ImportConfig,
    Machine,
    MergeConfig,
    PackConfig,
    PlanConfig,
    RepairConfig,
    SweepConfig,
    TrainConfig,
    VerifyConfig,
)

if TYPE_CHECKING:
    from softlabels.runs._check import run_eval, run_verify
    from softlabels.runs._convert import run_convert, run_merge
    from softlabels.runs._dump import card, run_dump, run_plan
    from softlabels.runs._export import run_export
    from softlabels.runs._import import run_import
    from softlabels.runs._pack import run_pack
    from softlabels.runs._repair import run_repair
    from softlabels.runs._store import make_store
    from softlabels.runs._sweep import SweepReport, run_sweep
    from softlabels.runs._train import run_train

__all__ = [
    "ConvertConfig",
    "DumpConfig",
    "EvalConfig",
    "ImportConfig",
    "Machine",
    "MergeConfig",
    "PackConfig",
    "PlanConfig",
    "RepairConfig",
    "SweepConfig",
    "SweepReport",
    "TrainConfig",
    "VerifyConfig",
    "card",
    "make_store",
    "run_convert",
    "run_dump",
    "run_eval",
    "run_export",
    "run_import",
    "run_merge",
    "run_pack",
    "run_plan",
    "run_repair",
    "run_sweep",
    "run_train",
    "run_verify",
]

_HOMES = {
    "SweepReport": "_sweep",
    "card": "_dump",
    "make_store": "_store",
    "run_convert": "_convert",
    "run_dump": "_dump",
    "run_eval": "_check",
    "run_export": "_export",
    "run_import": "_import",
    "run_merge": "_convert",
    "run_pack": "_pack",
    "run_plan": "_dump",
    "run_repair": "_repair",
    "run_sweep": "_sweep",
    "run_train": "_train",
    "run_verify": "_check",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loaded(f"{__name__}.{_HOMES[name]}", name)
