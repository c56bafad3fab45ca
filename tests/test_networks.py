"""Networks see the window that they declare, commute with shifts, and can be made anew from their config."""

import json
import warnings
from itertools import product

import pytest
import torch
from torch import nn

import lemmse as le
from lemmse import networks
from lemmse.networks import (
    GlobalCNN,
    GlobalMLP,
    LocalResNet,
    LocalUNet,
    PatchMLP,
    Preconditioning,
    check_receptive_field,
    leaks,
    rebuild,
)
from lemmse.patches import extract_patches, shift

C, H, W = 2, 11, 12  # an odd and an even side, both large enough for windows of 11
LOCAL = [LocalResNet, LocalUNet, PatchMLP]
SMALL = {
    LocalResNet: {"width": 7, "hidden": 9, "depth": 2},
    LocalUNet: {"width": 6},
    PatchMLP: {"width": 7, "depth": 2},
}
SMALL |= {GlobalMLP: {"width": 9, "depth": 1}, GlobalCNN: {"width": 6, "depth": 1}}


def made(kind, p=5, seed=0, size=(H, W), **arguments):
    """A small network with random weights, in eval mode."""
    arguments = SMALL[kind] | arguments | {"generator": torch.Generator().manual_seed(seed)}
    return kind(C, p if kind in LOCAL else size, **arguments).eval()


def images(count=3, seed=0, size=(H, W), dtype=torch.float32):
    return torch.rand(count, C, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- The receptive field --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("p", [5, 7, 11])
@pytest.mark.parametrize("kind", LOCAL)
def test_the_receptive_field_is_the_patch_size(kind, p, boundary):
    net = made(kind, p, boundary=boundary)
    assert net.receptive_field == p
    found = leaks(net, (C, H, W), pixels=6)
    assert found.exact, str(found)
    with pytest.raises(ValueError, match="leak in"):
        check_receptive_field(net, (C, H, W), p - 2)
    if p + 2 <= min(H, W):
        with pytest.raises(ValueError, match=f"{4 * p + 4} of its offsets are never used"):
            check_receptive_field(net, (C, H, W), p + 2)


@pytest.mark.parametrize("p", [1, 3, 13])
@pytest.mark.parametrize("kind", LOCAL)
def test_windows_of_one_pixel_and_large_ones(kind, p):
    check_receptive_field(made(kind, p), (C, 13, 14), pixels=1)


@pytest.mark.parametrize("kind", [GlobalMLP, GlobalCNN])
@pytest.mark.parametrize("size", [(5, 8), (9, 4), (1, 3)])
def test_a_global_network_sees_the_whole_image(kind, size):
    net = made(kind, size=size)
    assert net.receptive_field is None
    check_receptive_field(net, (C, *size), pixels=3)


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("kind", LOCAL)
def test_the_estimate_is_one_function_of_the_window(kind, boundary):
    """The output at a pixel is the answer to its window cut out, zeros beyond a zero boundary included (S5.1, S5.9)."""
    net, v = made(kind, boundary=boundary), images()
    windows = extract_patches(v, 5, boundary).unflatten(2, (C, 5, 5)).flatten(0, 1)
    alone = net.of_windows(windows, 0.2).reshape(len(v), H * W, C).transpose(1, 2).unflatten(2, (H, W))
    torch.testing.assert_close(net(v, 0.2), alone, rtol=0, atol=1e-5)


class Module(nn.Module):
    """A user's network around some layers."""

    receptive_field = 3

    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(C, 4, 3, padding=1, padding_mode="circular"), *layers, nn.Conv2d(4, C, 1))

    def forward(self, v, sigma):
        return self.layers(v) / (1 + torch.as_tensor(sigma, dtype=v.dtype).reshape(-1, 1, 1, 1))


def test_a_plain_module_can_be_checked():
    net = Module(nn.ReLU())
    net.layers[1].train()
    assert leaks(net, (C, H, W)).exact
    assert net.training
    assert net.layers[0].training


def test_a_convolution_too_wide_is_named_by_its_pixel():
    net = Module(nn.ReLU())
    with torch.no_grad():
        wide = nn.Conv2d(4, 4, 5, padding=2, padding_mode="circular", bias=False)
        wide.weight.zero_()
        wide.weight[:, :, 2, 2], wide.weight[0, 0, 2, 4] = torch.eye(4), 1e-4
    net.layers.append(nn.Conv2d(C, C, 1))
    net.layers.insert(1, wide)
    found = leaks(net, (C, H, W))
    assert {offset for _, offset, _ in found.outside} == {(row, column) for row in (-1, 0, 1) for column in (2, 3)}
    assert not found.unused
    assert 0 < found.outside[0][2] < 1e-2
    with pytest.raises(ValueError, match=r"6 offsets beyond it leak in: pixel \(\d+, \d+\) of the output depends on"):
        check_receptive_field(net, (C, H, W))


def test_the_leak_of_a_group_norm_is_seen():
    found = leaks(Module(nn.GroupNorm(2, 4), nn.ReLU()), (C, H, W))
    assert len({offset for _, offset, _ in found.outside}) == H * W - 9
    assert not found.exact
    assert "GroupNorm" in str(found)


def test_a_batch_norm_leaks_only_in_training():
    net = Module(nn.BatchNorm2d(4))
    assert leaks(net, (C, H, W)).exact
    net.layers[1].eval = lambda: net.layers[1]
    net.layers[1].train = lambda mode=True: net.layers[1]
    found = leaks(net, (C, H, W))
    assert found.other_image > 0
    assert "other images of the batch" in str(found)


def test_zero_padding_is_no_leak_but_a_wrap_is():
    net = Module(nn.ReLU())
    found = leaks(net, (C, H, W), boundary="zero")
    border = {(row, column) for row, column in product(range(H), range(W)) if row in (0, H - 1) or column in (0, W - 1)}
    assert found.outside
    assert {pixel for pixel, _, _ in found.outside} <= border
    net.layers[0].padding_mode = "zeros"
    assert leaks(net, (C, H, W), boundary="zero").exact


def test_rounding_is_forgiven_where_it_is_asked_for():
    net = Module(nn.ReLU())
    inner = net.forward
    net.forward = lambda v, sigma: inner(torch.fft.irfft2(torch.fft.rfft2(v), s=v.shape[2:]), sigma)
    assert not leaks(net, (C, H, W)).exact
    assert leaks(net, (C, H, W), tolerance=1e-5).exact


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match="declares no receptive field"):
        leaks(nn.Identity(), (C, H, W))
    net = Module()
    net.layers = nn.Flatten()
    with pytest.raises(ValueError, match="must return images"):
        leaks(net, (C, H, W))


# ---- Laws of all networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LOCAL, GlobalCNN])
def test_shifts_commute_with_a_circular_network(kind):
    net, v, sigma = made(kind), images(), torch.tensor([0.05, 0.3, 2.0])
    for g in [(1, 0), (4, -5), (-3, 6)]:
        torch.testing.assert_close(net(shift(v, g), sigma), shift(net(v, sigma), g), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_images_of_a_batch_do_not_meet(kind):
    net, v, sigma = made(kind), images(), torch.tensor([0.05, 0.3, 2.0])
    together = net(v, sigma)
    for i in range(len(v)):
        torch.testing.assert_close(net(v[i : i + 1], float(sigma[i])), together[i : i + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_the_noise_level_matters_and_so_does_every_parameter(kind):
    net, v = made(kind).train(), images()
    assert (net(v, 0.1) - net(v, 0.12)).abs().max() > 1e-5
    net(v, torch.tensor([0.1, 0.5, 1.0])).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", SMALL)
def test_double_precision_is_kept(kind):
    net, v = made(kind), images()
    double = made(kind).double()(v.double(), 0.3)
    assert double.dtype == torch.float64
    torch.testing.assert_close(net(v, 0.3).double(), double, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_a_config_makes_the_same_network(kind):
    net = made(kind, activation="relu", preconditioning=Preconditioning(noise_gain=2.5), sigma_range=(0.05, 1.5))
    again = rebuild(json.loads(json.dumps(net.config))).eval()
    assert again.config == net.config
    assert again.sigma_range == (0.05, 1.5)
    again.load_state_dict(net.state_dict())
    assert torch.equal(net(images(), 0.3), again(images(), 0.3))


@pytest.mark.parametrize("kind", SMALL)
def test_weights_come_from_the_generator_alone(kind):
    before = torch.get_rng_state()
    first, again, other = made(kind), made(kind), made(kind, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert name.endswith("bias") or not torch.equal(weight, other.state_dict()[name])


def test_the_repr_tells_what_the_network_sees():
    assert "receptive field 5×5" in repr(made(PatchMLP))
    assert "receptive field the whole image" in repr(made(GlobalCNN))


# ---- The scales of input and output ---------------------------------------------------------------------------------


def problems():
    mask = le.Inpainting(le.center_mask(H, W, side=5))
    blur = le.Blur(le.optics.gaussian_psf(1.0, size=5))
    return {
        "denoising": (le.Denoising(), None),
        "inpainting": (mask, None),
        "inpainting, pseudo-inverse": (mask, le.PseudoInverse(mask)),
        "blur, Tikhonov": (blur, le.Tikhonov(blur, weight=0.01)),
    }


@pytest.mark.parametrize("name", problems())
@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_layers_meet_inputs_and_targets_of_variance_one(name, sigma, generator):
    physics, pre_inverse = problems()[name]
    x = images(400, seed=1, dtype=torch.float64)  # other numbers than those that the noise is made of
    x = (x + 2 * x.mean((2, 3), keepdim=True)) / 3
    scales = Preconditioning.of(x, physics, pre_inverse)
    y = physics.A(x) + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    u = (y if pre_inverse is None else pre_inverse.A(y)) - scales.v_mean
    c_skip, c_out, c_in = scales.scales(torch.tensor([sigma], dtype=torch.float64))
    target = (x - scales.x_mean - c_skip * u) / c_out
    assert (c_in * u).square().mean().item() == pytest.approx(1, abs=0.03)
    assert target.square().mean().item() == pytest.approx(1, abs=0.03)
    assert (target * u).mean().abs() < 0.03 * u.square().mean().sqrt(), "the skip is the best linear guess"


def test_scales_of_denoising_are_those_of_karras_et_al():
    s, sigma = 0.3, torch.tensor([1e-4, 0.1, 3.0], dtype=torch.float64)
    c_skip, c_out, c_in = Preconditioning(x_std=s, v_std=s, covariance=s * s).scales(sigma)
    total = s * s + sigma**2
    torch.testing.assert_close(c_skip, s * s / total)
    torch.testing.assert_close(c_out, sigma * s / total.sqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(c_in, 1 / total.sqrt())


def test_measurements_that_are_no_images_need_a_pre_inverse():
    physics = le.FourierSampling(torch.ones(H, W))
    with pytest.raises(ValueError, match=r"Adjoint\(physics\)"):
        Preconditioning.of(images(), physics)
    assert Preconditioning.of(images(), physics, le.Adjoint(physics)).noise_gain > 0


# ---- Bad input ------------------------------------------------------------------------------------------------------


def test_noise_outside_the_range_of_training_warns_with_the_range():
    net = made(PatchMLP, sigma_range=(0.1, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(images(), 0.1)
        net(images(), torch.tensor([0.1, 0.5, 1.0]))
        made(PatchMLP)(images(), 7.0)  # nobody knows its range
    for sigma in (0.05, 1.1):
        with pytest.warns(UserWarning, match=r"leaves the range \[0.1, 1\] that this PatchMLP was trained on"):
            net(images(), sigma)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_refused():
    net = made(LocalResNet)
    for v in (images()[0], images()[:, :1]):
        with pytest.raises(ValueError, match=r"v must be \(b, 2, h, w\)"):
            net(v, 0.1)
    with pytest.raises(ValueError, match="would meet themselves around images of 4×12"):
        net(images(size=(4, 12)), 0.1)
    with pytest.raises(ValueError, match=r"v must be \(b, 2, 11, 12\)"):
        made(GlobalMLP)(images(size=(12, 11)), 0.1)
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive and finite"):
            net(images(), sigma)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 4}, "odd"),
        ({"patch_size": 5, "boundary": "reflect"}, "boundary is one of"),
        ({"patch_size": 5, "activation": "tanh"}, "activation is one of"),
        ({"patch_size": 5, "width": 0}, "width counts features"),
        ({"patch_size": 5, "depth": -1}, "depth counts blocks"),
        ({"patch_size": 5, "channels": 0}, "channels counts"),
    ],
)
def test_bad_constructions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchMLP(**({"channels": C} | arguments))


def test_a_config_of_something_else_is_refused():
    with pytest.raises(ValueError, match="names its architecture"):
        rebuild({"architecture": "Transformer"})
    with pytest.raises(ValueError, match="does not fit PatchMLP"):
        rebuild(networks.PatchMLP(C, 5, width=3).config | {"heads": 8})
