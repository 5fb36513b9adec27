"""The kernels' sigmoid and tanh, tested through layers that compute nothing else.

In fp32 tanh's error is below LARGEST and sigmoid's below 4 ulp. bf16 adds at most 0.01 ulp to its rounding."""

import pytest
import torch

import lstmkern
from lstmkern import _extension

H = 64
LARGEST = 2.3 if _extension.cpu_capability() in ("baseline", "avx2") else 1.08  # ulp, tanh of any float


def probes() -> torch.Tensor:
    """fp32 values [n, H]: random finite bit patterns, a fine grid, and values around which the methods switch."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (64 * H,), generator=g, dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    values = values[values.isfinite() & (values.abs() < 1e30) & (values.abs() > 1e-30)]
    grid = torch.linspace(-40, 40, 512 * H)
    near = torch.cat([torch.linspace(-1e-3, 1e-3, 32 * H), torch.linspace(-87, -80, 32 * H)])
    # tanh's intervals with AVX-512 begin at multiples of a quarter of a power of two.
    edges = torch.tensor([2.0**k * (1 + part / 4) for k in range(-4, 4) for part in range(4)])
    around = (edges.view(torch.int32)[:, None] + torch.arange(-H, H, dtype=torch.int32)).view(torch.float32).flatten()
    x = torch.cat([values, grid, near, around, -around])
    return x[: len(x) // H * H].view(-1, H)


def ulps(result: torch.Tensor, exact: torch.Tensor) -> float:
    rounded = exact.to(result.dtype).abs()
    ulp = (torch.nextafter(rounded, torch.full_like(rounded, float("inf"))) - rounded).double()
    return float(((result.double() - exact).abs() / ulp).max())


def tanh(x: torch.Tensor) -> torch.Tensor:
    """h = tanh(x I^T + 0): the matrix product with the identity is exact."""
    rnn = lstmkern.RNN(H, H, bias=False).to(x.dtype)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.eye(H))
        rnn.weight_hh_l0.zero_()
        return rnn(x.unsqueeze(0))[0][0]


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """c = sigmoid(f) c_0 + sigmoid(0) tanh(0) with f = x and c_0 = 1."""
    lstm = lstmkern.LSTM(H, H, bias=False).to(x.dtype)
    ones, zeros = torch.ones(1, len(x), H, dtype=x.dtype), torch.zeros(1, len(x), H, dtype=x.dtype)
    with torch.no_grad():
        lstm.weight_ih_l0.zero_()
        lstm.weight_ih_l0[H : 2 * H] = torch.eye(H)
        lstm.weight_hh_l0.zero_()
        return lstm(x.unsqueeze(0), (zeros, ones))[1][1][0]


@pytest.mark.parametrize("rows", [slice(None), slice(0, 2)], ids=["packed weights", "weights in place"])
def test_tanh(rows):
    x = probes()[rows]
    found = tanh(x)
    assert ulps(found, x.double().tanh()) < LARGEST
    assert found.abs().max() == 1


@pytest.mark.parametrize("rows", [slice(None), slice(0, 2)], ids=["packed weights", "weights in place"])
def test_sigmoid(rows):
    x = probes()[rows]
    x = x.clamp_min(-87)  # only where the result is a normal number
    assert ulps(sigmoid(x), x.double().sigmoid()) < 4


def test_bf16():
    """Rounding to bf16 has an error of half an ulp; the functions add at most a hundredth."""
    x = probes().bfloat16()
    x = x[(x.abs() > 1e-30).all(-1)]
    assert len(x) > 500
    assert ulps(tanh(x), x.double().tanh()) < 0.51
    x = x.clamp_min(-87)
    assert ulps(sigmoid(x), x.double().sigmoid()) < 0.51


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saturation_and_nan(dtype):
    limits = torch.tensor([float("inf"), 1000.0, 100.0, 0.0, -0.0, -100.0, -1000.0, float("-inf"), float("nan")])
    # One value per sequence: in a matrix product with the identity, 0 * inf gives NaN in the other columns.
    for value in limits.to(dtype):
        x = torch.zeros(1, H, dtype=dtype)
        x[0, 0] = value if value.abs() < float("inf") else value.sign() * torch.finfo(dtype).max
        if value.isnan():
            assert tanh(x.fill_(value)).isnan().all() and sigmoid(x).isnan().all()
        else:
            torch.testing.assert_close(tanh(x)[0, 0], x[0, 0].tanh(), rtol=1e-6, atol=0)
            torch.testing.assert_close(sigmoid(x)[0, 0], x[0, 0].sigmoid(), rtol=1e-6, atol=2e-38)
