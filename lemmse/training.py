"""Training on fresh noise: a generator that yields a record per step.

The loss is the plain one, E ‖net(B (A x + σ e), σ) - x‖² over training images x: no network is shown the formula. By
S5.3 its excess over the formula's risk is the squared distance of the two, at each σ separately, so any positive weight
on each σ leaves the minimiser as it is. Left unweighted, the sum over σ is dominated by large noise: the risk at
σ = 1 is some hundred times that at σ = 0.05, and gradients from small noise drown in the sampling noise of the others.
Each image's loss is therefore divided by a running estimate of the loss at its own σ (``RiskEstimate``), which is the
formula's risk plus what is still to be learned: losses of size one at all σ, as the precision that a mean of draws
with a variance in proportion to the squared risk asks for.

What makes a run is in its arguments and one ``torch.Generator``. A run that is killed goes on from its last checkpoint
and ends with bitwise the weights of one that was not, on the same machine with the same versions and number of threads.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from ._checks import checked_measured, checked_pre_inverted, checked_sample, positive_integer
from ._progress import progress
from ._soap import Soap
from .operators import apply_in_float64, as_operator
from .patches import shift_each

__all__ = ["Record", "RiskEstimate", "learning_rate_at", "train"]

RISK_BINS = 16
"""Classes of ln σ with an estimate of the loss each: the risk changes by about a third from one to the next."""

RISK_MEMORY = 100
"""Batches with images of a class over which its loss is averaged."""

LARGEST_GRADIENT = 1.0
"""Gradients are clipped to this norm; the losses are of size one."""

CHECKPOINT_FORMAT = 1


# ---- The parts of a step --------------------------------------------------------------------------------------------


@final
class RiskEstimate:
    """A running estimate of the mean loss as a function of σ, over equal classes of ln σ in [low, high].

    Each class holds an exponential average over RISK_MEMORY batches, at first the plain mean of what came. An estimate
    is read before the batch's own losses enter it, so that it does not depend on their noise; only a class that no
    image fell into before takes its first batch's mean. ``state`` (2, RISK_BINS), averages and counts, is all it knows.
    """

    def __init__(self, low: float, high: float):
        self.low, self.high = math.log(low), math.log(high)
        self.state = torch.zeros(2, RISK_BINS, dtype=torch.float64)

    def classes(self, sigma: Float64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return the class of each sigma."""
        share = (sigma.log() - self.low) / max(self.high - self.low, 1e-12)
        return (share * RISK_BINS).long().clamp(0, RISK_BINS - 1)

    def __call__(self, sigma: Float64[Tensor, " b"], losses: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Return the estimate at each sigma as it was before these losses, and let them enter it."""
        (averages, counts), classes = self.state, self.classes(sigma)
        hits = torch.bincount(classes, minlength=RISK_BINS)
        sums = torch.zeros(RISK_BINS, dtype=torch.float64).index_add_(0, classes, losses)
        means = sums / hits.clamp_min(1)
        before = torch.where(counts == 0, means, averages)[classes]
        counts += hits > 0
        averages += torch.where(hits > 0, (means - averages) / counts.clamp(1, RISK_MEMORY), 0.0)
        return before.clamp_min(torch.finfo(torch.float64).tiny)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a step, counted from 0: up to the peak over ``warmup`` steps, cosine to 0 over all.

    The rate is peak · min(1, (step + 1)/warmup) · ½ (1 + cos(π step/steps)).

    >>> [round(learning_rate_at(step, 4, 1.0, 2), 3) for step in range(4)]
    [0.5, 0.854, 0.5, 0.146]
    """
    return peak * min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _soap(net: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return Soap(net.parameters(), lr=learning_rate, weight_decay=weight_decay)


@torch.no_grad()
def _average_in(average: nn.Module, net: nn.Module, step: int, decay: float) -> None:
    """Let weights enter their exponential average, corrected for its start: Σ decayᵏ w_{t-k} / Σ decayᵏ at step t."""
    share = (1 - decay) / (1 - decay ** (step + 1))
    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(weight, share)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)


class _Batch(NamedTuple):
    """Clean images or crops x, what the network sees of them with the border that it needs, and the noise levels."""

    x: Float[Tensor, "b c h w"]
    v: Float[Tensor, "b c h2 w2"]
    sigma: Float64[Tensor, " b"]


@final
class _Draws:
    """Where batches come from: images, operators and noise levels."""

    def __init__(
        self,
        images: Float[Tensor, "D c h w"],
        physics: Any,
        pre_inverse: Any,
        sigmas: tuple[float, float],
        batch_size: int,
        shifted: bool,
    ):
        self.images, self.physics, self.pre_inverse = images, physics, pre_inverse
        self.sigmas, self.batch_size, self.shifted = sigmas, batch_size, shifted
        self.measurement_shape = tuple(physics.A(images[:1]).shape[1:])

    def batch(self, generator: torch.Generator) -> _Batch:
        """Draw images, their noise levels and fresh noise, and return what a step needs."""
        x = self.images[self._integers(len(self.images), generator)]
        if self.shifted:
            x = shift_each(x, self._integers(x.shape[2] * x.shape[3], generator))
        sigma = self._noise_levels(generator)
        noise = self._noise(self.batch_size, generator)
        y = self.physics.A(x) + noise * sigma.to(x.dtype).reshape(-1, *(1,) * (noise.ndim - 1))
        return _Batch(x, self._pre_inverted(y), sigma)

    def _integers(self, below: int, generator: torch.Generator) -> Int64[Tensor, " b"]:
        on = generator.device
        return torch.randint(below, (self.batch_size,), generator=generator, device=on).to(self.images.device)

    def _noise_levels(self, generator: torch.Generator) -> Float64[Tensor, " b"]:
        low, high = map(math.log, self.sigmas)
        share = torch.rand(self.batch_size, dtype=torch.float64, generator=generator, device=generator.device)
        return (low + (high - low) * share).exp().to(self.images.device)

    def _noise(self, count: int, generator: torch.Generator) -> Float[Tensor, "k ..."]:
        shape, of = (count, *self.measurement_shape), {"generator": generator, "device": generator.device}
        return torch.randn(shape, dtype=self.images.dtype, **of).to(self.images.device)

    def _pre_inverted(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        return y if self.pre_inverse is None else apply_in_float64(self.pre_inverse.A, y).to(y.dtype)


@final
class _CropDraws:
    """Batches of crops, each of an image, a place and a noise level of its own: many looks a step at the cost of few.

    As B is linear, v = B A x + σ B e: the first is computed once for all images. The second is cut at the crop's own
    place, where B e has its own law, from as few noise images as hold as many pixels as the crops; crops that share one
    are weakly dependent, and each is drawn from the right law.
    """

    def __init__(self, whole: _Draws, side: int, patch_size: int, boundary: str):
        self.whole, self.side, self.patch_size, self.boundary = whole, side, patch_size, boundary
        self.images, self.sigmas = whole.images, whole.sigmas
        self.signal = whole._pre_inverted(whole.physics.A(self.images))
        window = (side + patch_size - 1) ** 2
        pixels = self.images.shape[2] * self.images.shape[3]
        self.noise_images = min(whole.batch_size, -(-whole.batch_size * window // pixels))

    def batch(self, generator: torch.Generator) -> _Batch:
        """Draw crops, their noise levels and fresh noise, and return what a step needs."""
        whole, (h, w) = self.whole, self.images.shape[2:]
        image, sigma = whole._integers(len(self.images), generator), whole._noise_levels(generator)
        row, column = whole._integers(h, generator), whole._integers(w, generator)
        noise = whole._pre_inverted(whole._noise(self.noise_images, generator))
        of_noise = torch.arange(len(image), device=image.device) % self.noise_images
        signal = self._windows(self.signal, image, row, column)
        v = signal + sigma.to(signal.dtype)[:, None, None, None] * self._windows(noise, of_noise, row, column)
        return _Batch(_cut(self.images, image, row, column, self.side, 0, "circular"), v, sigma)

    def _windows(self, x: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Float[Tensor, "b c h2 w2"]:
        return _cut(x, image, row, column, self.side, self.patch_size // 2, self.boundary)


def _cut(
    x: Float[Tensor, "k c h w"],
    image: Int64[Tensor, " b"],
    row: Int64[Tensor, " b"],
    column: Int64[Tensor, " b"],
    side: int,
    border: int,
    boundary: str,
) -> Float[Tensor, "b c s s"]:
    """Return the squares from pixels (row, column) of images on, with a border that finds what windows find there."""
    steps = torch.arange(-border, side + border, device=x.device)
    rows, columns = row[:, None] + steps, column[:, None] + steps
    h, w = x.shape[2:]
    cut = x[image[:, None, None], :, (rows % h)[:, :, None], (columns % w)[:, None, :]]
    if boundary == "zero":
        inside = (rows == rows % h)[:, :, None] & (columns == columns % w)[:, None, :]
        cut = cut * inside[..., None]
    return cut.permute(0, 3, 1, 2)


# ---- A run ----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Record:
    """What a step was.

    ``step`` counts from 0; ``loss`` is relative to the estimated risk, about one; ``sigma`` and ``losses``, (b,), are
    the noise level and the mean squared error of each image of the batch; ``seconds`` is the time that steps took so
    far, those before an interruption included. ``network`` holds the averaged weights so far, in eval mode: the same
    object at every step, to be evaluated, not kept.
    """

    step: int
    loss: float
    sigma: Float64[Tensor, " b"]
    losses: Float64[Tensor, " b"]
    learning_rate: float
    seconds: float
    network: nn.Module


def train(
    net: nn.Module,
    images: Float[Tensor, "D c h w"],
    physics: Any,
    *,
    pre_inverse: Any = None,
    steps: int,
    batch_size: int = 32,
    sigmas: tuple[float, float] = (0.03, 1.2),
    learning_rate: float = 1e-2,
    warmup: int = 100,
    weight_decay: float = 0.0,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    average: float | None = None,
    crop: int | None = None,
    shifted: bool = False,
    weighted: bool = True,
    autocast: torch.dtype | None = None,
    generator: torch.Generator,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    device: torch.device | str | None = None,
) -> Iterator[Record]:
    """Train ``net(v, sigma)`` to estimate images x from v = B (A x + σ e), and return an iterator of a record per step.

    Every step draws ``batch_size`` images (D, c, h, w), noise levels log-uniform in ``sigmas`` and fresh noise from the
    generator, and nothing else is random. With ``crop`` the step looks at one random square of so many pixels a side
    of each image, by windows that are whole: many images a step, at the cost of few (local networks of
    ``lemmse.networks``). ``shifted`` shifts each image by a random cyclic shift (augmentation, S4.3). ``weighted``
    divides each loss by the estimated risk at its sigma. Gradients are clipped to norm one and handed to SOAP (arXiv
    2409.11321), or to what ``optimizer`` makes of the net, such as ``lambda net: torch.optim.AdamW(net.parameters(),
    lr=3e-3)``; rates follow ``learning_rate_at``. ``autocast`` (``torch.bfloat16``) has matrix products in a lower
    precision, weights and their average in their own.

    ``average`` is the decay of the exponential average of the weights (``None``: 1 - 50/steps, at most 0.999, a memory
    of the last fiftieth of the run, where the rate is small). When the iterator ends, the averaged weights are in
    ``net``, in eval mode, with ``sigma_range`` set; broken off, ``net`` has the last step's.

    With ``checkpoint``, a file, the state of the run is kept there every so many steps and at the end; called again
    with the same arguments, it goes on from there, and a finished run yields nothing and fills ``net``. The run is told
    by its arguments, the images, and the seed of the generator. ``device`` is where it computes, that of ``net`` unless
    given. Deterministic algorithms are asked for within each step only.

    Raises ``ValueError`` for bad arguments before the first step, and for a checkpoint that is damaged or of another
    run; ``FloatingPointError`` with the step and the noise levels where a loss or a gradient is not finite, with the
    checkpoint left as it last was.
    """
    device = _device_of(net) if device is None else torch.device(device)
    net.to(device)
    physics = as_operator(physics)
    pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
    images = _checked_images(images, physics, pre_inverse, device)
    options = {
        "steps": positive_integer(steps, "steps counts those of the whole run"),
        "batch_size": positive_integer(batch_size, "batch_size counts images"),
        "sigmas": list(_checked_sigmas(sigmas)),
        "learning_rate": _checked_positive(learning_rate, "learning_rate"),
        "warmup": warmup,
        "weight_decay": weight_decay,
        "average": _checked_decay(average, steps),
        "crop": _checked_crop(crop, net, images),
        "shifted": shifted,
        "weighted": weighted,
        "autocast": None if autocast is None else str(autocast),
    }
    positive_integer(checkpoint_every, "checkpoint_every counts steps")
    draws = _Draws(images, physics, pre_inverse, tuple(options["sigmas"]), batch_size, shifted)
    if crop is not None:
        draws = _CropDraws(draws, crop, net.receptive_field, net.boundary)
    if optimizer is None:
        optimizer = partial(_soap, learning_rate=learning_rate, weight_decay=weight_decay)
    optimizer = optimizer(net)
    run = _Run(net, draws, options, optimizer, autocast, generator)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        run.load(path)
    return _steps_of(run, path, checkpoint_every)


class _Run:
    """The state of a run: weights, their average, the optimiser's moments, the estimate of the risk, the generator."""

    def __init__(
        self,
        net: nn.Module,
        draws: _Draws | _CropDraws,
        options: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        autocast: torch.dtype | None,
        generator: torch.Generator,
    ):
        self.net, self.draws, self.options, self.autocast, self.generator = net, draws, options, autocast, generator
        self.average = deepcopy(net).eval().requires_grad_(False)
        _set_range(self.average, draws.sigmas)
        self.parameters = dict(net.named_parameters())
        self.optimizer = optimizer
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.risk = RiskEstimate(*draws.sigmas)
        self.step, self.seconds = 0, 0.0
        self.identity = _identity(net, draws, options, optimizer, generator)

    def advance(self) -> Record:
        """Take one step and return its record."""
        started = time.perf_counter()
        share = learning_rate_at(self.step, self.options["steps"], 1.0, self.options["warmup"])
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self.net.train()
        with _deterministic(self.draws.images.device):
            batch = self.draws.batch(self.generator)
            losses = self._losses(batch)
            found, sigma = losses.detach().double().cpu(), batch.sigma.cpu()
            self._check(found, sigma, "loss")
            scale = self.risk(sigma, found) if self.options["weighted"] else torch.ones_like(found)
            loss = (losses / scale.to(losses)).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), LARGEST_GRADIENT)
            self._check(norm.detach().cpu(), sigma, "gradient")
            self.optimizer.step()
            _average_in(self.average, self.net, self.step, self.options["average"])
        self.seconds += time.perf_counter() - started
        self.step += 1
        return Record(self.step - 1, loss.item(), sigma, found, self.peaks[0] * share, self.seconds, self.average)

    def _losses(self, batch: _Batch) -> Float[Tensor, " b"]:
        """Return the mean squared error of each image."""
        called = self.net.of_windows if isinstance(self.draws, _CropDraws) else self.net
        with torch.autocast(batch.v.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            x_hat = called(batch.v, batch.sigma)
        return (x_hat.to(batch.x.dtype) - batch.x).square().flatten(1).mean(1)

    def _check(self, values: Tensor, sigma: Float64[Tensor, " b"], what: str) -> None:
        if values.isfinite().all():
            return
        bad = sigma if values.ndim == 0 else sigma[~values.isfinite()]
        levels = ", ".join(f"{level:.3g}" for level in bad[:5].tolist()) + (" …" if len(bad) > 5 else "")
        raise FloatingPointError(
            f"The {what} of step {self.step} is not finite, at sigma = {levels}. A smaller learning_rate "
            "or a longer warmup may mend it; the last checkpoint, if there is one, is from before."
        )

    def finish(self) -> None:
        """Put the averaged weights into the network, ready for use."""
        self.net.load_state_dict(self.average.state_dict())
        _set_range(self.net, self.draws.sigmas)
        self.net.eval()

    def save(self, path: Path) -> None:
        """Write the state to a file of its own and move it into place: whoever opens it finds a whole one."""
        from safetensors.torch import save_file  # not at the top: `import lemmse` stays as light as torch

        tensors = {name: value.detach().cpu().contiguous() for name, value in self._tensors().items()}
        state = {
            "format": CHECKPOINT_FORMAT,
            "run": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "sha256": _digest(tensors),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, part, metadata={"lemmse": json.dumps(state)})
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Take the state from a checkpoint; raises ``ValueError``, before any change, unless it is one of this run."""
        tensors, state = _read(path)
        differing = [key for key in self.identity if state["run"].get(key) != self.identity[key]]
        if differing:
            raise ValueError(
                f"The checkpoint {path} is of another run: it differs in {_differences(state['run'], self.identity)}. "
                "Give this run a file of its own, or delete that one to start anew."
            )
        self._take(tensors)
        self.step, self.seconds = state["step"], state["seconds"]

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.parameters.items():
            kept = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in kept.items()}
        return tensors | {"risk": self.risk.state, "generator": self.generator.get_state()}

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Put the tensors of a checkpoint where they belong."""
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = value
        self.net.load_state_dict(parts["net"])
        self.average.load_state_dict(parts["average"])
        for name, value in parts["optimizer"].items():
            of, _, key = name.rpartition(".")
            on = value if key == "step" else value.to(self.parameters[of])
            self.optimizer.state[self.parameters[of]][key] = on
        self.risk.state = tensors["risk"]
        self.generator.set_state(tensors["generator"])


def _steps_of(run: _Run, path: Path | None, every: int) -> Iterator[Record]:
    """Yield the records of what remains of a run; at its end the network is ready for use."""
    remaining = range(run.step, run.options["steps"])
    for _ in progress(remaining, description=f"training {type(run.net).__name__}", unit="step"):
        record = run.advance()
        last = run.step == run.options["steps"]
        if path is not None and (last or run.step % every == 0):
            run.save(path)
        if last:
            run.finish()
        yield record
    run.finish()


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


def _identity(
    net: nn.Module,
    draws: _Draws | _CropDraws,
    options: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Return what tells a run from others, as JSON values."""
    whole = draws.whole if isinstance(draws, _CropDraws) else draws
    told = {
        **options,
        "optimizer": f"{type(optimizer).__name__} {optimizer.defaults}",
        "network": type(net).__name__,
        "config": {key: value for key, value in getattr(net, "config", {}).items() if key != "sigma_range"},
        "shapes": {name: list(value.shape) for name, value in net.state_dict().items()},
        "images": _digest({"images": whole.images.detach().cpu().contiguous()}),
        "physics": repr(whole.physics),
        "pre_inverse": repr(whole.pre_inverse),
        "seed": generator.initial_seed(),
    }
    return json.loads(json.dumps(told))


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Say in which entries two runs differ, with the values where they are short."""
    said = []
    for key in wanted:
        if found.get(key) != wanted[key]:
            values = f"{found.get(key)!r} there, {wanted[key]!r} here"
            said.append(f"{key} ({values})" if len(values) < 90 else key)
    return ", ".join(said)


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, names and shapes included."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state of a checkpoint; raises ``ValueError`` for a file that is not a whole one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["lemmse"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if state["format"] != CHECKPOINT_FORMAT or state["sha256"] != _digest(tensors):
            raise ValueError("its content does not fit its checksum")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no whole checkpoint of a training run: {error}. Delete it to start anew, or name another file."
        ) from error
    return tensors, state


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Ask for deterministic algorithms for the while, and put everything back.

    On a GPU, cuBLAS is deterministic with the workspace that an environment variable names; it is set unless it was.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    was, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


# ---- Checks ---------------------------------------------------------------------------------------------------------


def _device_of(net: nn.Module) -> torch.device:
    parameter = next(net.parameters(), None)
    if parameter is None:
        raise ValueError(f"{type(net).__name__} has no parameters: there is nothing to train.")
    return parameter.device


def _set_range(net: nn.Module, sigmas: tuple[float, float]) -> None:
    net.sigma_range = tuple(sigmas)


def _checked_images(images: Any, physics: Any, pre_inverse: Any, device: torch.device) -> Float[Tensor, "D c h w"]:
    if not isinstance(images, Tensor):
        raise ValueError(f"train draws from a tensor of images (D, c, h, w): got {type(images).__name__}.")
    checked_sample(images)
    images = images.to(device)
    measured = checked_measured(physics, images[:1])
    v = measured if pre_inverse is None else checked_pre_inverted(pre_inverse, measured)
    if v.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"a network sees v = B y, which must have the shape of images, {tuple(images.shape[1:])}: got "
            f"{tuple(v.shape[1:])}. A pre-inverse such as Adjoint(physics) gives images."
        )
    return images


def _checked_sigmas(sigmas: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, sigmas)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"sigmas is the range of noise, (low, high) with 0 < low <= high: got {sigmas!r}.")
    return low, high


def _checked_positive(value: float, name: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is a positive number: got {value!r}.")
    return float(value)


def _checked_decay(average: float | None, steps: int) -> float:
    if average is None:
        return min(0.999, max(0.0, 1 - 50 / steps))
    if not 0 <= average < 1:
        raise ValueError(f"average is the decay of the weights' average, in [0, 1): got {average!r}.")
    return float(average)


def _checked_crop(crop: int | None, net: nn.Module, images: Tensor) -> int | None:
    if crop is None:
        return None
    crop, most = positive_integer(crop, "crop counts pixels a side"), min(images.shape[2:])
    if crop > most or not hasattr(net, "of_windows") or getattr(net, "receptive_field", None) is None:
        raise ValueError(
            f"crop={crop} needs a local network of lemmse.networks and images of at least that side: got "
            f"{type(net).__name__} and a side of {most}. crop=None looks at whole images."
        )
    if crop > 1 and net.boundary != "circular":
        raise ValueError(
            f"crop={crop} wraps around the border, so that all pixels are seen equally often, and a network with a "
            f"{net.boundary} boundary does not: use crop=1, or None for whole images."
        )
    return crop
