"""flash-attention's packages are called by the names that their release knows."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from mudit_engine.backends.varlen import package_varlen, varlen_attention
from mudit_engine.kernels.attention import attention_reference
from mudit_engine.kernels.worklist import Segments


@pytest.mark.parametrize("form", ["tensor", "pair without lengths"])
def test_a_package_of_either_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None):
        assert (max_seqlen_q, max_seqlen_k) == (5, 5)
        return compute(q, k, v, cu_seqlens_q, softmax_scale)

    def four(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=None):
        return compute(q, k, v, cu_seqlens_q, softmax_scale), None

    def compute(q, k, v, cu, scale):
        lengths = cu.diff().tolist()
        return attention_reference(q, k, v, Segments.self_attention(lengths), scale=scale)

    name = f"flash_of_{len(form)}"
    module = ModuleType(name)
    module.flash_attn_varlen_func = two if form == "tensor" else four  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    q, k, v = torch.randn(3, 8, 2, 64, generator=torch.Generator().manual_seed(0)).unbind()
    segments = Segments.self_attention([3, 5])
    out = varlen_attention(q, k, v, segments, None, None, scale=0.2, kernel=package_varlen(name))
    assert torch.equal(out, attention_reference(q, k, v, segments, scale=0.2))
