"""The fast kernel gives the same numbers as the plain one, and is used only where it can be."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gpt2kit import linear as module
from gpt2kit.linear import linear

if not torch.backends.mkldnn.is_available():
    pytest.skip("torch was built without oneDNN", allow_module_level=True)


def test_torch_still_has_the_private_operator():
    """If this fails, a new torch has changed it: `linear` works, but more slowly on some CPUs."""
    assert module._ONEDNN


@pytest.mark.parametrize(
    "operators",
    [
        SimpleNamespace(),
        SimpleNamespace(_linear_pointwise=lambda x, weight, bias: x @ weight.T + bias),
        SimpleNamespace(_linear_pointwise=lambda x, weight, bias, *_: x @ weight.T),
    ],
    ids=["gone", "other parameters", "other meaning"],
)
def test_an_operator_that_has_changed_is_not_used(monkeypatch, operators):
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert not module._onednn_works()


def problem(rows, n_in, n_out, view):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn((n_out, n_in) if view else (n_in, n_out), generator=g)
    x, bias = torch.randn(*rows, n_in, generator=g), torch.randn(n_out, generator=g)
    return x, weight.T if view else weight, bias


@pytest.fixture(autouse=True, params=["Intel Xeon", "AMD EPYC"])
def processor(request, monkeypatch):
    named = {"cpu_name": request.param}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: named)
    module._on_intel.cache_clear()
    yield request.param
    module._on_intel.cache_clear()


@pytest.mark.parametrize(
    ("rows", "onednn"),
    [((1,), "AMD"), ((2, 7), "Intel AMD"), ((1, 32), "Intel AMD"), ((1, 130), "AMD")],
)
def test_which_kernel_depends_on_the_processor(processor, monkeypatch, rows, onednn):
    called = []
    spy = SimpleNamespace(_linear_pointwise=lambda *given: called.append(given))
    monkeypatch.setattr(torch.ops, "mkldnn", spy)
    with torch.inference_mode():
        linear(*problem(rows, 700, 800, True))
    assert bool(called) == (processor.split()[0] in onednn)


@pytest.mark.parametrize("rows", [(1,), (3,), (1, 1), (2, 7), (1, 130)])
@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_it_equals_torchs_own(rows, view, biased):
    x, weight, bias = problem(rows, 700, 800, view)
    assert weight.numel() >= module._LARGE
    bias = bias if biased else None
    with torch.inference_mode():
        got = linear(x, weight, bias)
    want = F.linear(x.double(), weight.T.double(), None if bias is None else bias.double())
    assert got.shape == want.shape
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_gradients_flow():
    x, weight, bias = problem((2, 3), 700, 800, True)
    x.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert torch.allclose(x.grad, weight.sum(1).expand_as(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs(dtype):
    x, weight, bias = (part.to(dtype) for part in problem((2, 3), 700, 800, True))
    with torch.inference_mode():
        assert torch.equal(linear(x, weight, bias), x @ weight + bias)
