"""Where a config meets parts: each command has its settings here, and a function that makes parts and runs a stage."""

from softlabels.runs._check import run_eval, run_verify
from softlabels.runs._configs import (
    ConvertConfig,
    DumpConfig,
    EvalConfig,
    ImportConfig,
    Machine,
    MergeConfig,
    PlanConfig,
    RepairConfig,
    TrainConfig,
    VerifyConfig,
)
from softlabels.runs._convert import run_convert, run_merge
from softlabels.runs._dump import card, run_dump, run_plan
from softlabels.runs._export import run_export
from softlabels.runs._import import run_import
from softlabels.runs._pack import PackConfig, run_pack
from softlabels.runs._repair import run_repair
from softlabels.runs._store import make_store
from softlabels.runs._sweep import SweepConfig, SweepReport, run_sweep
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
