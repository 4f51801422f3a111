"""Transposed attention against eq. 4 and what it means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skt_components.ops import reference
from skt_components.ops.attention import transposed_attention

every_head_count = pytest.mark.parametrize("num_heads", [1, 2, 4])
both_forms = pytest.mark.parametrize("normalize", [True, False])


def features(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Query, key and value, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    # Small enough that unnormalized logits, sums over the pixels, leave the softmax unsaturated.
    return [0.4 * torch.randn(shape, dtype=dtype, generator=generator) for _ in range(4)]


def values_and_gradients(attend, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream)]


# matches_reference


@every_head_count
@both_forms
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_values_and_every_gradient_match_eq4(num_heads, normalize, size, dtype, tolerance):
    *inputs, upstream = features(2, 8, *size, dtype=dtype)
    temperature = torch.linspace(0.5, 2.0, num_heads, dtype=dtype).view(num_heads, 1, 1)

    def fast(q, k, v, t):
        return transposed_attention(q, k, v, temperature=t, num_heads=num_heads, normalize=normalize)

    def literal(q, k, v, t):
        return reference.eq4_prior_fusion(q, k, v, t, num_heads, normalize)

    got = values_and_gradients(fast, [*inputs, temperature], upstream)
    wanted = values_and_gradients(literal, [x.double() for x in (*inputs, temperature)], upstream.double())
    assert got[0].dtype == dtype
    one_pixel = size == (1, 1)  # normalized to a sign, whose gradient is zero
    assert one_pixel or all(x.abs().max() > 1e-4 for x in wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= tolerance * (upstream.norm() if one_pixel else b.norm())


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed"])
def test_non_contiguous_features_match_eq4(layout):
    change = {
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "strided": lambda x: x[:, ::2, :, 1::3],
        "transposed": lambda x: x.transpose(2, 3),
    }[layout]
    *inputs, upstream = (change(x) for x in features(2, 8, 6, 10))
    assert not any(x.is_contiguous() for x in inputs)
    got = values_and_gradients(lambda q, k, v: transposed_attention(q, k, v, num_heads=2), inputs, upstream)
    wanted = values_and_gradients(
        lambda q, k, v: reference.eq4_prior_fusion(q, k, v, 1.0, 2, True), [x.contiguous() for x in inputs], upstream
    )
    torch.testing.assert_close(got, wanted)


@both_forms
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_the_temperature_is_a_divisor(normalize, temperature):
    q, k, v, _ = features(1, 4, 5, 5)
    got = transposed_attention(q, k, v, temperature=temperature, normalize=normalize)
    torch.testing.assert_close(got, reference.eq4_prior_fusion(q, k, v, temperature, 1, normalize))
    as_tensor = torch.tensor(temperature, dtype=torch.float64)
    assert torch.equal(transposed_attention(q, k, v, temperature=as_tensor, normalize=normalize), got)


# gradcheck


@every_head_count
@both_forms
def test_gradcheck(num_heads, normalize):
    *inputs, _ = features(2, 8, 2, 3)
    temperature = torch.linspace(0.7, 1.5, num_heads, dtype=torch.float64).view(-1, 1, 1)
    leaves = [x.requires_grad_() for x in (*inputs, temperature)]

    def attend(q, k, v, t):
        return transposed_attention(q, k, v, temperature=t, num_heads=num_heads, normalize=normalize)

    gradients = torch.autograd.grad(attend(*leaves).square().sum(), leaves)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients)
    assert torch.autograd.gradcheck(attend, leaves)


# invariants


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.floats(0.05, 20), st.floats(1e-3, 1e3))
def test_normalized_attention_ignores_the_scale_of_query_and_key(seed, num_heads, temperature, scale):
    q, k, v, _ = features(1, 4, 3, 5, seed=seed)
    options = {"num_heads": num_heads, "temperature": temperature}
    wanted = transposed_attention(q, k, v, **options)
    torch.testing.assert_close(transposed_attention(scale * q, k / scale, v, **options), wanted)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.booleans())
def test_permuting_the_pixels_permutes_the_output_alike(seed, num_heads, normalize):
    inputs = features(2, 4, 3, 5, seed=seed)[:3]
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))

    def permuted(x):
        return x.flatten(2)[..., order].view_as(x)

    options = {"num_heads": num_heads, "normalize": normalize}
    got = transposed_attention(*(permuted(x) for x in inputs), **options)
    torch.testing.assert_close(got, permuted(transposed_attention(*inputs, **options)))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.booleans(), st.floats(0.01, 100))
def test_the_output_lies_in_the_hull_of_the_value_channels_of_its_head(seed, num_heads, normalize, temperature):
    q, k, v, _ = features(2, 8, 3, 5, seed=seed)
    out = transposed_attention(q, k, v, num_heads=num_heads, normalize=normalize, temperature=temperature)
    groups = v.unflatten(1, (num_heads, -1))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    out = out.unflatten(1, (num_heads, -1))
    assert ((out >= low - 1e-12) & (out <= high + 1e-12)).all()
    # The weights sum to one: what all value channels have in common passes unchanged.
    common = torch.randn(2, 1, 3, 5, dtype=torch.float64).expand_as(v)
    same = transposed_attention(q, k, common, num_heads=num_heads, normalize=normalize, temperature=temperature)
    torch.testing.assert_close(same, common)


def test_heads_and_pictures_do_not_see_each_other():
    q, k, v, _ = features(2, 8, 4, 4)
    out = transposed_attention(q, k, v, num_heads=2)
    halves = [transposed_attention(q[:, p], k[:, p], v[:, p]) for p in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(out, torch.cat(halves, dim=1))
    torch.testing.assert_close(out[1:], transposed_attention(q[1:], k[1:], v[1:], num_heads=2))


def test_a_hot_temperature_averages_and_a_cold_one_selects():
    q, k, v, _ = features(1, 4, 5, 5)
    hot = transposed_attention(q, k, v, temperature=1e9)
    torch.testing.assert_close(hot, v.mean(1, keepdim=True).expand_as(v))
    cold = transposed_attention(k, k, v, temperature=1e-4)  # each channel is most like itself
    torch.testing.assert_close(cold, v)


def test_a_silent_channel_attends_to_all_alike():
    q, k, v, _ = features(1, 4, 5, 5)
    q[:, 1] = 0
    out = transposed_attention(q, k, v)
    torch.testing.assert_close(out[:, 1], v.mean(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("silent", [False, True])
def test_half_precision_neither_overflows_nor_divides_by_zero(dtype, silent):
    # The plain sum over 300 x 300 pixels is about 9 * 90000, far above the largest float16.
    q, k, v, _ = (x.to(dtype) for x in features(1, 4, 300, 300, dtype=torch.float32))
    q, k = 3 + q, 3 + k
    if silent:
        q[:, 0] = 0
    out = transposed_attention(q, k, v, temperature=0.1)
    assert out.dtype == dtype
    wanted = transposed_attention(q.double(), k.double(), v.double(), temperature=0.1)
    assert (out - wanted).norm() <= (5e-3 if dtype == torch.float16 else 5e-2) * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_under_autocast(dtype):
    q, k, v, _ = features(1, 4, 300, 300, dtype=torch.float32)
    q, k = 3 + q, 3 + k  # sums beyond the largest float16
    wanted = transposed_attention(q, k, v)
    with torch.autocast("cpu", dtype):
        out = transposed_attention(q, k, v)
    assert (out - wanted).norm() <= 2e-2 * wanted.norm()


def test_work_and_memory_are_linear_in_the_pixels():
    class LargestResult(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.largest = max(self.largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    for side in (16, 64):
        q, k, v, upstream = features(1, 8, side, side, dtype=torch.float32)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        with LargestResult() as seen:
            transposed_attention(*leaves, num_heads=2).backward(upstream)
        assert seen.largest == 8 * side**2  # a (pixels x pixels) matrix would be side^4


# rejects_bad_input


def test_rejects_what_does_not_fit():
    x = torch.zeros(2, 6, 4, 4)
    with pytest.raises(ValueError, match=r"query and key must have the same shape, got \(2, 6, 4, 4\) and \(2, 6"):
        transposed_attention(x, x[..., :2], x)
    with pytest.raises(ValueError, match="key and value must have the same shape"):
        transposed_attention(x, x, x[:, :3])
    with pytest.raises(ValueError, match=r"query must have 4 axes \(B, C, H, W\), got shape \(6, 4, 4\)"):
        transposed_attention(x[0], x, x)
    for num_heads in (0, -1, 2.0, True, "2"):
        with pytest.raises(ValueError, match=f"num_heads must be a whole number >= 1, got {num_heads!r}"):
            transposed_attention(x, x, x, num_heads=num_heads)
    for num_heads in (4, 7):
        with pytest.raises(ValueError, match=f"num_heads must divide the 6 channels, got {num_heads}"):
            transposed_attention(x, x, x, num_heads=num_heads)
    for arguments, name in (((x.int(), x, x), "query"), ((x, [1], x), "key"), ((x, x, x > 0), "value")):
        with pytest.raises(TypeError, match=f"^{name} must be"):
            transposed_attention(*arguments)


def nan_in(*shape: int) -> Tensor:
    temperature = torch.ones(shape)
    temperature.view(-1)[-1] = float("nan")
    return temperature


@pytest.mark.parametrize(
    ("temperature", "num_heads", "error", "message"),
    [
        (0, 1, ValueError, "must be neither 0 nor NaN, got 0"),
        (float("nan"), 1, ValueError, "must be neither 0 nor NaN, got nan"),
        (torch.zeros(2, 1, 1), 2, ValueError, "must be neither 0 nor NaN, got tensor"),
        (nan_in(2, 1, 1), 2, ValueError, "must be neither 0 nor NaN, got tensor"),
        (torch.ones(2), 2, ValueError, r"must broadcast to \(num_heads, 1, 1\) = \(2, 1, 1\), got shape \(2,\)"),
        (torch.ones(6), 1, ValueError, r"must broadcast to .* = \(1, 1, 1\), got shape \(6,\)"),
        (torch.ones(3, 1, 1), 2, ValueError, r"must broadcast to .* got shape \(3, 1, 1\)"),
        (torch.ones(2, 2, 1, 1), 2, ValueError, r"must broadcast to .* got shape \(2, 2, 1, 1\)"),
        (torch.ones((), dtype=torch.int64), 1, TypeError, r"must be a floating-point tensor, got torch\.int64"),
        ("1", 1, TypeError, "must be a number or a floating-point tensor, got str"),
        (None, 1, TypeError, "must be a number or a floating-point tensor, got NoneType"),
    ],
)
def test_rejects_a_bad_temperature(temperature, num_heads, error, message):
    x = torch.ones(2, 6, 4, 4)
    with pytest.raises(error, match=f"^temperature {message}"):
        transposed_attention(x, x, x, temperature=temperature, num_heads=num_heads)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (2, 1, 1)])
def test_a_temperature_may_have_any_shape_that_broadcasts_and_other_signs(shape):
    q, k, v, _ = features(1, 4, 3, 3, dtype=torch.float32)
    wanted = transposed_attention(q, k, v, temperature=-2.0, num_heads=2)
    assert torch.equal(transposed_attention(q, k, v, temperature=torch.full(shape, -2.0), num_heads=2), wanted)


def test_the_temperature_is_looked_at_only_where_that_is_free():
    x = torch.rand(2, 4, 3, 3)
    out = torch.vmap(lambda t: transposed_attention(x, x, x, temperature=t))(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(out[1], transposed_attention(x, x, x, temperature=2.0))
    meta = x.to("meta")
    assert transposed_attention(meta, meta, meta, temperature=torch.ones(1, device="meta")).shape == x.shape


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
def test_query_and_key_have_one_dtype_unless_autocast_makes_it_one(dtypes):
    x = torch.rand(2, 4, 3, 3)
    query, key = (x.to(dtype) for dtype in dtypes)
    message = f"^query and key must have one dtype, got {dtypes[0]} and {dtypes[1]}"
    with pytest.raises(TypeError, match=message):
        transposed_attention(query, key, x)
    with torch.autocast("cpu", torch.bfloat16):
        if torch.float64 not in dtypes:
            assert transposed_attention(query, key, x).shape == x.shape
        else:
            with pytest.raises(TypeError, match=message):
                transposed_attention(query, key, x)


# compiles


@both_forms
def test_compiles(normalize):
    *inputs, upstream = features(2, 4, 5, 7)
    temperature = torch.ones(2, 1, 1, dtype=torch.float64)

    def attend(q, k, v, t):
        return transposed_attention(q, k, v, temperature=t, num_heads=2, normalize=normalize)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    wanted = values_and_gradients(attend, [*inputs, temperature], upstream)
    torch.testing.assert_close(values_and_gradients(compiled, [*inputs, temperature], upstream), wanted)
