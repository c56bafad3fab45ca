"""Training: what is learned, what a step is, and runs that are killed and go on."""

import math
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

import lemmse as le
from lemmse import training
from lemmse._soap import Soap
from lemmse.comparison import compare
from lemmse.networks import GlobalMLP, LocalResNet, PatchMLP, Preconditioning
from lemmse.training import RiskEstimate, learning_rate_at, train

C, H, W, D = 2, 5, 7, 11
STEPS = 8


def images(count=D, dtype=torch.float32):
    return torch.rand(count, C, H, W, generator=torch.Generator().manual_seed(3), dtype=dtype)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def small(kind=PatchMLP, p=3, **arguments):
    return kind(C, p, width=6, depth=1, generator=seeded(0), **arguments)


MASK = le.Inpainting(le.center_mask(H, W, side=3))
HOW = {"steps": STEPS, "batch_size": 4, "warmup": 3}


def run(net=None, **how):
    """Train a small network and return it with its records."""
    net = small() if net is None else net
    arguments = {"generator": seeded()} | HOW | how
    return net, list(train(net, images(), arguments.pop("physics", le.Denoising()), **arguments))


def adamw(net, lr):
    return torch.optim.AdamW(net.parameters(), lr=lr)


def same_weights(net, other):
    return all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


# ---- Killed and resumed ---------------------------------------------------------------------------------------------


WAYS = {
    "whole images": {},
    "crops": {"crop": 2, "batch_size": 9, "pre_inverse": le.PseudoInverse(MASK), "physics": MASK},
    "shifted": {"shifted": True, "net": (GlobalMLP, (H, W))},
    "convolutions in bfloat16": {"autocast": torch.bfloat16, "net": (LocalResNet, 5)},
    "another optimiser": {"optimizer": lambda net: torch.optim.RMSprop(net.parameters(), lr=1e-3, momentum=0.5)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("killed_after", [1, 4, STEPS])
def test_a_killed_run_ends_with_bitwise_the_same_weights(way, killed_after, tmp_path):
    how = dict(WAYS[way])
    kind = how.pop("net", (PatchMLP, 3))
    uninterrupted, records = run(small(*kind), **how)
    how |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 3}
    arguments = HOW | how | {"generator": seeded()}
    for _ in islice(train(small(*kind), images(), arguments.pop("physics", le.Denoising()), **arguments), killed_after):
        pass
    resumed, rest = run(small(*kind), **how)
    kept = (
        killed_after if killed_after == STEPS else killed_after // 3 * 3
    )  # a checkpoint every third step and at the end
    assert [record.step for record in rest] == list(range(kept, STEPS))
    assert same_weights(resumed, uninterrupted)
    assert [record.loss for record in rest] == [record.loss for record in records[len(records) - len(rest) :]]


def test_a_finished_run_fills_the_network_without_a_step(tmp_path):
    first, records = run(checkpoint=tmp_path / "run.safetensors")
    again, none = run(checkpoint=tmp_path / "run.safetensors")
    assert len(records) == STEPS
    assert none == []
    assert same_weights(first, again)
    assert not again.training
    assert again.sigma_range == (0.03, 1.2)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_the_same_network_goes_on_after_a_break(tmp_path):
    """As in a notebook: a cell is interrupted and run again, with the network and the generator that have moved on."""
    net, generator, how = small(), seeded(), HOW | {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 2}
    for _ in islice(train(net, images(), le.Denoising(), generator=generator, **how), 5):
        pass
    for _ in train(net, images(), le.Denoising(), generator=generator, **how):
        pass
    assert same_weights(net, run()[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-4}, r"learning_rate \(0.01 there, 0.0001 here\)"),
        ({"generator": seeded(6)}, r"seed \(5 there, 6 here\)"),
        ({"physics": MASK}, "physics"),
        ({"net": lambda: small(activation="relu")}, "config"),
        ({"steps": STEPS + 1}, r"steps \(8 there, 9 here\)"),
        ({"optimizer": lambda net: torch.optim.SGD(net.parameters(), lr=0.1)}, "optimizer"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(change, named, tmp_path):
    run(checkpoint=tmp_path / "run.safetensors")
    change = dict(change)
    net = change.pop("net", small)()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"another run: it differs in .*{named}"):
        run(net, checkpoint=tmp_path / "run.safetensors", **change)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"", lambda _: b"PK\x03\x04 of another kind"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    path = tmp_path / "run.safetensors"
    run(checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"no whole checkpoint of a training run: .* Delete it to start anew"):
        run(checkpoint=path)


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, monkeypatch):
    """Killed while it writes, a run leaves the last checkpoint and nothing else."""
    import safetensors.torch

    path, save_file = tmp_path / "run.safetensors", safetensors.torch.save_file

    def killed(tensors, part, **_):
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    steps = train(small(), images(), le.Denoising(), generator=seeded(), checkpoint=path, checkpoint_every=2, **HOW)
    for _ in islice(steps, 3):
        pass
    monkeypatch.setattr(safetensors.torch, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    resumed, rest = run(checkpoint=path)
    assert rest[0].step == 2
    assert same_weights(resumed, run()[0])


# ---- The parts of a step --------------------------------------------------------------------------------------------


def test_everything_comes_from_the_generator():
    before = torch.get_rng_state()
    (first, records), (again, _), (other, _) = run(), run(), run(generator=seeded(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert len({record.losses[0].item() for record in records}) == STEPS, "noise is fresh every step"


def test_deterministic_algorithms_are_asked_for_within_a_step_only(monkeypatch):
    seen, net = [], small()
    net.register_forward_hook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    for _ in islice(train(net, images(), le.Denoising(), generator=seeded(), **HOW), 2):
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, True]


def test_the_schedule_is_stepped_as_meant():
    _, records = run(learning_rate=0.01)
    wanted = [0.01 * min(1, (k + 1) / 3) * 0.5 * (1 + math.cos(math.pi * k / STEPS)) for k in range(STEPS)]
    assert [record.learning_rate for record in records] == pytest.approx(wanted)
    assert learning_rate_at(999, 1000, 1.0, 10) < 1e-5


def test_the_optimiser_takes_the_scheduled_rate():
    """Plain gradient descent moves a bias by rate times gradient, in each group at its own scale."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def two_groups(net):
        weights = list(net.parameters())
        return Spy([{"params": weights[:1], "lr": 0.2}, {"params": weights[1:], "lr": 0.1}])

    _, records = run(optimizer=two_groups)
    assert seen == [[record.learning_rate, pytest.approx(record.learning_rate / 2)] for record in records]


def descent(optimizer, parameter, loss, steps=25):
    """The values of a parameter on its way down."""
    way = []
    for k in range(steps):
        optimizer.zero_grad()
        loss(parameter, k).backward()
        optimizer.step()
        way.append(parameter.detach().clone())
    return torch.stack(way)


def test_soap_does_not_depend_on_the_axes():
    """The way down of a rotated problem is the rotated way, O W Pᵀ, which Adam's is not.

    For square matrices: where the first gradient leaves directions out, the first basis is any basis of them.
    """
    numbers = torch.randn(28, 5, 5, generator=seeded(), dtype=torch.float64)
    start, targets = numbers[0], numbers[3:]  # another one every step, as batches are
    turn, other = torch.linalg.qr(numbers[1:3])[0]
    scale = torch.logspace(0, 2, 25, dtype=torch.float64).view(5, 5)

    def loss(w, k):
        return (scale * (w - targets[k]) ** 2).sum()

    def rotated_loss(w, k):
        return loss(turn.T @ w @ other, k)

    def ways(kind):
        plain, rotated = nn.Parameter(start.clone()), nn.Parameter(turn @ start @ other.T)
        return descent(kind([plain], lr=0.1), plain, loss), descent(kind([rotated], lr=0.1), rotated, rotated_loss)

    plain, rotated = ways(Soap)
    torch.testing.assert_close(turn @ plain @ other.T, rotated, rtol=0, atol=1e-6)
    plain, rotated = ways(torch.optim.Adam)
    assert (turn @ plain @ other.T - rotated).abs().max() > 0.1


def test_soap_is_adam_for_vectors():
    target = torch.randn(7, generator=seeded())
    soap, adam = (nn.Parameter(torch.zeros(7)) for _ in range(2))
    ours = Soap([soap], lr=0.1, betas=(0.8, 0.9), vector_rate=0.5, eps=1e-8)
    theirs = torch.optim.Adam([adam], lr=0.05, betas=(0.8, 0.9), eps=1e-8)
    ways = [descent(*pair, lambda w, _: (w - target).pow(4).sum()) for pair in ((ours, soap), (theirs, adam))]
    torch.testing.assert_close(*ways, rtol=0, atol=1e-5)


def test_soap_leaves_long_sides_as_they_are():
    weight = nn.Parameter(torch.zeros(3, 1030))
    soap = Soap([weight])
    descent(soap, weight, lambda w, _: (w - 1).square().sum(), steps=2)
    assert soap.state[weight]["basis0"].shape == (3, 3)
    assert "basis1" not in soap.state[weight]
    assert weight.isfinite().all()


def test_the_average_is_that_of_a_slow_reference():
    net, decay, weights, last = small(), 0.8, [], None
    for record in train(net, images(), le.Denoising(), generator=seeded(), average=decay, **HOW):
        if record.step < STEPS - 1:  # at the last the average is in the net already
            weights.append([weight.detach().double().clone() for weight in net.parameters()])
            factors = torch.tensor([decay**age for age in reversed(range(len(weights)))], dtype=torch.float64)
            for i, averaged in enumerate(record.network.parameters()):
                stack = torch.stack([step[i] for step in weights])
                wanted = torch.einsum("k,k...->...", factors / factors.sum(), stack)
                torch.testing.assert_close(averaged.double(), wanted, rtol=0, atol=1e-6)
        assert not record.network.training
        last = record.network
    assert same_weights(net, last)
    assert not net.training


def test_noise_levels_fill_the_range_in_its_logarithm():
    _, records = run(steps=60, batch_size=20, sigmas=(0.02, 2.0))
    logs = torch.cat([record.sigma for record in records]).log()
    share = (logs - math.log(0.02)) / math.log(100)
    assert (share.clamp(0, 1) == share).all()
    assert torch.histc(share, 4, 0, 1).min() > 240, "a quarter of 1200 each, within four standard deviations"


@pytest.mark.parametrize(("crop", "boundary"), [(None, "circular"), (1, "circular"), (2, "circular"), (1, "zero")])
def test_batches_have_the_law_of_the_problem(crop, boundary):
    """v is a window of B A x plus noise with the covariance of B at that place, x its middle; all places come alike."""
    blur = le.Blur(le.optics.gaussian_psf(0.7, size=3))
    for physics, B in [(MASK, None), (MASK, le.PseudoInverse(MASK)), (blur, le.Tikhonov(blur, 0.1))]:
        one = images(1, torch.float64)
        draws = training._Draws(one, physics, B, (0.5, 0.5), 4000, False)
        signal, of_noise = draws._pre_inverted(physics.A(one)), draws._pre_inverted
        if crop is None:
            batch, p = draws.batch(seeded()), 1
        else:
            batch, p = training._CropDraws(draws, crop, 3, boundary).batch(seeded()), 3
        noise = of_noise(torch.randn(4000, C, H, W, generator=seeded(8), dtype=torch.float64)).square().mean(0)
        mean = _every_window(signal, batch.x.shape[-1], p, boundary)
        power = _every_window(0.25 * noise[None], batch.x.shape[-1], p, boundary)
        places = _every_window(one, batch.x.shape[-1], 1, boundary)
        at = torch.cdist(batch.x.flatten(1), places.flatten(1)).argmin(1)
        assert torch.equal(batch.x, places[at]), "every crop is one of the image"
        often, expected = torch.bincount(at, minlength=len(places)).double(), len(at) / len(places)
        assert ((often - expected).abs() <= 4.5 * math.sqrt(expected)).all(), "borders are seen as often as the middle"
        for place in at.unique():
            drawn = batch.v[at == place]
            spread = (power[place] / len(drawn)).sqrt()
            assert ((drawn.mean(0) - mean[place]).abs() <= 4.5 * spread + 1e-9).all()
            found = (drawn - mean[place]).square().mean(0)
            assert ((found - power[place]).abs() <= power[place] * 4.5 * math.sqrt(4 / len(drawn)) + 1e-12).all()


def _every_window(x, side, p, boundary):
    """All crops of a side, row-major by place, with the border of windows; the whole image where it is a crop."""
    if side == W:
        return x
    before, after, size = p // 2, p // 2 + side - 1, side + p - 1
    mode = "circular" if boundary == "circular" else "constant"
    around = torch.nn.functional.pad(x, (before, after, before, after), mode=mode)
    return torch.cat([around[..., r : r + size, c : c + size] for r in range(H) for c in range(W)])


def test_estimates_of_the_risk_follow_losses_and_are_read_before_them():
    risk, sigma = RiskEstimate(0.01, 1.0), torch.tensor([0.011, 0.9, 0.95], dtype=torch.float64)
    losses = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    assert risk(sigma, losses).tolist() == [0.5, 3.0, 3.0], "a class without a past takes the mean of its batch"
    assert risk(sigma, 3 * losses).tolist() == [0.5, 3.0, 3.0]
    assert risk(sigma, losses).tolist() == pytest.approx([1.0, 6.0, 6.0]), "the plain mean of two batches"
    for _ in range(2000):
        risk(sigma, losses)
    assert risk(sigma, losses).tolist() == pytest.approx([0.5, 3.0, 3.0], rel=1e-3)
    assert risk.state[1].sum() == 2 * 2004


class Table(nn.Module):
    """One number of each of three noise levels: the minimiser of its loss is known, whatever the levels weigh."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(3))

    def forward(self, v, sigma):
        level = torch.bucketize(sigma.float(), torch.tensor([0.1, 0.5]))
        return self.values[level][:, None, None, None] + 0 * v


@pytest.mark.parametrize("weighted", [True, False])
def test_weights_on_losses_leave_the_minimiser(weighted):
    """Without a use of v the best answer is the mean of the images, at every noise level."""
    net = Table()
    how = {"steps": 200, "batch_size": 32, "sigmas": (0.02, 2.0), "weighted": weighted, "generator": seeded()}
    for _ in train(net, images(), le.Denoising(), optimizer=partial(adamw, lr=0.05), **how):
        pass
    torch.testing.assert_close(net.values.detach(), images().mean().expand(3), rtol=0, atol=0.01)


def test_losses_of_all_noise_levels_count_alike():
    _, records = run(steps=120, batch_size=16)
    late = records[60:]
    sigma, losses = (torch.cat([getattr(record, name) for record in late]) for name in ("sigma", "losses"))
    assert losses[sigma > 0.8].mean() > 10 * losses[sigma < 0.05].mean(), "unweighted they do not"
    assert torch.tensor([record.loss for record in late]).mean() == pytest.approx(1, abs=0.1)


# ---- What is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [None, 3])
def test_a_tiny_network_comes_close_to_the_formula(crop):
    x = images(2)
    net = PatchMLP(C, 1, width=32, depth=1, preconditioning=Preconditioning.of(x, le.Denoising()))
    formula = le.LocalEquivariantMMSE(x.double(), le.Denoising(), patch_size=1)
    drawn = x[torch.randint(len(x), (60,), generator=seeded(8))].double()
    before = compare(net, formula, drawn, sigmas=0.3, generator=seeded(9))
    how_to = {"steps": 150, "batch_size": 16 if crop is None else 60, "crop": crop, "warmup": 10}
    for _ in train(net, x, le.Denoising(), generator=seeded(), sigmas=(0.1, 0.6), **how_to):
        pass
    after = compare(net, formula, drawn, sigmas=0.3, generator=seeded(9))
    assert after.network_formula.mean() < 0.03 * before.network_formula.mean()
    assert after.network_formula.mean() < 0.1 * after.formula_truth.mean()


def test_a_plain_module_is_trained_with_its_buffers():
    net = nn.Sequential()
    net.layer, net.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
    net.forward = lambda v, sigma: net.norm(net.layer(v))
    for record in train(net, images(), le.Denoising(), generator=seeded(), **HOW):
        assert record.network.norm.num_batches_tracked == record.step + 1
    assert not net.norm.training
    assert net.norm.running_mean.abs().sum() > 0


# ---- Bad input ------------------------------------------------------------------------------------------------------


class Poisoned(nn.Module):
    """A network whose output, or whose gradient, is not a number where noise is large, from some call on."""

    def __init__(self, after, how):
        super().__init__()
        self.weight, self.after, self.how, self.calls = nn.Parameter(torch.ones(())), after, how, 0

    def forward(self, v, sigma):
        self.calls += 1
        x_hat = self.weight * v
        if self.calls <= self.after:
            return x_hat
        if self.how == "loss":
            return x_hat.where((sigma < 0.1)[:, None, None, None], torch.nan)
        return x_hat + (self.weight - self.weight.detach()).abs().sqrt()  # zero, with an infinite slope


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(how, tmp_path):
    path = tmp_path / "run.safetensors"
    steps = train(
        Poisoned(5, how), images(), le.Denoising(), generator=seeded(), checkpoint=path, checkpoint_every=2, **HOW
    )
    for _ in islice(steps, 5):
        pass
    kept = path.read_bytes()
    with pytest.raises(FloatingPointError, match=f"The {how} of step 5 is not finite, at sigma = ") as stopped:
        next(steps)
    named = [float(part) for part in str(stopped.value).split("sigma = ")[1].split(". A")[0].rstrip(" …").split(", ")]
    assert how == "gradient" or min(named) >= 0.1
    assert path.read_bytes() == kept


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sigmas": (0.5, 0.1)}, "sigmas is the range of noise"),
        ({"sigmas": (0.0, 0.1)}, "sigmas is the range of noise"),
        ({"steps": 0}, "steps counts"),
        ({"batch_size": 2.5}, "batch_size counts images"),
        ({"learning_rate": -1}, "learning_rate is a positive number"),
        ({"average": 1.0}, r"in \[0, 1\)"),
        ({"crop": 9}, "crop=9 needs a local network"),
        ({"checkpoint_every": 0}, "checkpoint_every counts steps"),
        ({"physics": le.Downsampling(5)}, "multiples of 5"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_step(how, message):
    arguments = {"physics": le.Denoising()} | HOW | how
    with pytest.raises(ValueError, match=message):
        train(small(), images(), arguments.pop("physics"), generator=seeded(), **arguments)


@pytest.mark.usefixtures("unchecked_shapes")
def test_networks_and_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a tensor of images"):
        train(small(), images().numpy(), le.Denoising(), generator=seeded(), **HOW)
    with pytest.raises(ValueError, match="nothing to train"):
        train(nn.Identity(), images(), le.Denoising(), generator=seeded(), **HOW)
    with pytest.raises(ValueError, match="crop=2 needs a local network"):
        train(small(GlobalMLP, (H, W)), images(), le.Denoising(), generator=seeded(), crop=2, **HOW)
    with pytest.raises(ValueError, match=r"crop=2 wraps around the border.*use crop=1"):
        train(PatchMLP(C, 3, boundary="zero"), images(), le.Denoising(), generator=seeded(), crop=2, **HOW)
