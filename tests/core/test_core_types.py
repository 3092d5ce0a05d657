"""Types that several parts share."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from softlabels.core.types import SparseLogits
from softlabels.errors import ConfigError

IDS, LOGITS, TAIL = (
    torch.tensor([[2, 0], [1, 3]]),
    torch.tensor([[5.0, 4.0], [0.0, -torch.inf]]),
    torch.tensor([1.0, 2.0]),
)


def test_sparse_logits_are_the_named_ones_and_the_tail_elsewhere() -> None:
    sparse = SparseLogits(IDS.to(torch.int16), LOGITS, TAIL, 4)
    assert sparse.shape == (2, 4)
    assert sparse.dense().tolist() == [[4.0, 1.0, 5.0, 1.0], [2.0, 0.0, 2.0, -torch.inf]]
    wide = sparse.map(lambda tensor: tensor.double())
    assert wide.dense().dtype == torch.float64
    assert wide.classes == 4


@pytest.mark.parametrize("wrong", [(IDS, LOGITS[:, :1], TAIL), (IDS, LOGITS, TAIL[:1]), (IDS[0], LOGITS[0], TAIL)])
def test_sparse_logits_whose_shapes_do_not_fit_are_refused(wrong: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ConfigError, match=r"ids and logits of shape \(n, K\) and a tail of shape \(n,\), got \(2"):
        SparseLogits(*wrong, 4)


def test_the_types_do_not_need_torch() -> None:
    code = "import sys, softlabels.core.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
