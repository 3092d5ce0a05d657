"""Where a config meets parts: each command has its settings here, and a function that makes parts and runs a stage."""

from softlabels.runs._check import run_eval, run_verify
from softlabels.runs._configs import DumpConfig, EvalConfig, Machine, TrainConfig, VerifyConfig
from softlabels.runs._dump import card, make_store, run_dump, run_plan
from softlabels.runs._train import run_train

__all__ = [
    "DumpConfig",
    "EvalConfig",
    "Machine",
    "TrainConfig",
    "VerifyConfig",
    "card",
    "make_store",
    "run_dump",
    "run_eval",
    "run_plan",
    "run_train",
    "run_verify",
]
