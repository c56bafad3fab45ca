"""What the weights of an estimate tell: which images its pixels come from, how many, how surely, and why (S5 to S7).

Most of it reads results that an estimate computes anyway, and costs nothing beside it. ``residual_parts`` and the two
maps of S6 say why weights are as they are: η, the whitened distance of two windows, is a difference of signals plus
noise. η alone makes no weight: atoms outside the stratum have none, however small η is, and inside it weights are
proportional to |Q_n Q_nᵀ|₊^{-1/2} exp(-η²/2σ²) (S6.1).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._checks import checked_moments, checked_sigma
from ._progress import progress
from .estimators import Estimator, LocalEquivariantMMSE
from .patches import centre_pixels, windows_at
from .reductions import Layout, Moments, Posterior, Sources, Term, TopImages
from .strata import Selection, Stratum, WindowClass

__all__ = [
    "OWNERSHIP_MARGIN",
    "Contributions",
    "Discrimination",
    "LogDensity",
    "Patchwork",
    "ResidualParts",
    "amplification",
    "amplification_map",
    "contributions",
    "discrimination_map",
    "effective_sources",
    "log_density_map",
    "patchwork",
    "posterior_variance",
    "residual_parts",
]

OWNERSHIP_MARGIN = 1e-4
"""An image owns a pixel when its share exceeds one half by this: far above what rounding makes of two equal halves."""


# ------------------------------------------------------------------------------------------------------ maps of weights


@dataclass(frozen=True)
class Patchwork:
    """The image with the largest total weight and its share in (0, 1], each shaped like ``log_partition``."""

    image: Int64[Tensor, "b ..."]
    share: Float[Tensor, "b ..."]

    @property
    def owner(self) -> Int64[Tensor, "b ..."]:
        """Return the image where it has more than half of the mass, and -1 where none has."""
        return self.image.where(self.share > 0.5 + OWNERSHIP_MARGIN, -1)


def patchwork(estimator: Estimator, y: Float[Tensor, "b ..."], *, sigma: float | Tensor) -> Patchwork:
    """Find the image that has the largest weight in every pixel and return it with its share: ``Patchwork``.

    The share of image d in pixel n' is Σ_n w_{d,n}; (b, h, w) for the local estimator, (b,) for the others. Arguments
    and errors are those of a call of the estimator. Source: S5.4.

    >>> images = torch.tensor([[0.0, 0.0, 0.1], [1.0, 1.0, 0.1]]).reshape(2, 1, 1, 3)
    >>> estimator = LocalEquivariantMMSE(images, Denoising(), patch_size=1)
    >>> patchwork(estimator, torch.tensor([0.0, 1.0, 0.1]).reshape(1, 1, 1, 3), sigma=0.01).owner
    tensor([[[ 0,  1, -1]]])
    """
    sources = estimator(y, sigma=sigma, reduction=TopImages(1))
    return Patchwork(sources.image[..., 0], sources.weight[..., 0])


def effective_sources(moments: Moments) -> Float[Tensor, "b ..."]:
    """Return the effective number of atoms that an estimate averages: exp H(w), between 1 and their number (S7.2).

    ``moments`` come from ``PosteriorMoments``, else ``TypeError``; shaped like ``log_partition``. For a fixed y and
    equal pseudo-determinants it never falls as sigma grows.
    """
    return checked_moments(moments, "effective_sources").entropy.exp()


def posterior_variance(moments: Moments) -> Float[Tensor, "b h w"]:
    """Return the posterior variance of every pixel, averaged over channels, in squared units of intensity (S5.10).

    Σ w |x_d(n)|² - |x̂(n')|². Its mean over pixels and training measurements is the training risk. ``moments`` come
    from ``PosteriorMoments``, else ``TypeError``; ``moments.variance`` has the channels apart.
    """
    return checked_moments(moments, "posterior_variance").variance.mean(1)


@dataclass(frozen=True)
class LogDensity:
    """The log-density of every window, ``nats`` (b, h, w), on an image space of dimension ``rank`` (h, w)."""

    nats: Float[Tensor, "b h w"]
    rank: Int64[Tensor, "h w"]

    @property
    def per_rank(self) -> Float[Tensor, "b h w"]:
        """Return nats per dimension, by which windows of different ranks compare; NaN where the rank is 0."""
        return self.nats / self.rank.where(self.rank > 0, math.nan).to(self.nats)


def log_density_map(estimator: LocalEquivariantMMSE, posterior: Posterior, sigma: float | Tensor) -> LogDensity:
    """Return how likely every measured window is under the training set: ``LogDensity`` (S5.10).

    ln p(v[ω_n']) = L - ln DN - (r/2) ln 2πσ² with respect to the Hausdorff measure of Im Q_n', of dimension r, the
    rank. Densities of different ranks have different units: compare ``nats`` within a rank only, else ``per_rank``.
    ``posterior`` is a ``Posterior`` or ``Moments`` of this estimator at this ``sigma``; else ``TypeError``.
    """
    _check_local(estimator, "log_density_map")
    return LogDensity(estimator.log_density(posterior, sigma), estimator.ranks)


# --------------------------------------------------------------------------------------------------- sources of a pixel


@dataclass(frozen=True)
class Contributions:
    """What the k best sources give to one output pixel: Σ weight · colour + the remainder's share = the pixel.

    ``mean`` (b, c) is the pixel; ``image``, ``pixel`` (row-major) and ``weight`` (b, k) are those of ``Sources``,
    heaviest first, and ``remainder`` (b,) the mass that is not listed. ``colour`` (b, k, c) is x_d(n). ``window``
    (b, c, p, p) is v[ω_n'], what the estimator sees around the pixel; ``measured`` (b, k, c, p, p) the windows
    (B A x_d)[ω_n] that it is compared with, and ``stored`` the same windows of the images themselves, x_d[ω_n]. Where
    a list ends early (image -1), weight, colour and windows are 0.
    """

    mean: Float[Tensor, "b c"]
    image: Int64[Tensor, "b k"]
    pixel: Int64[Tensor, "b k"]
    weight: Float[Tensor, "b k"]
    remainder: Float[Tensor, " b"]
    colour: Float[Tensor, "b k c"]
    window: Float[Tensor, "b c_v p p"]
    measured: Float[Tensor, "b k c_v p p"]
    stored: Float[Tensor, "b k c p p"]

    @property
    def contribution(self) -> Float[Tensor, "b k c"]:
        """Return w_{d,n} x_d(n) of every source."""
        return self.weight[..., None] * self.colour

    @property
    def running_sum(self) -> Float[Tensor, "b k c"]:
        """Return the sums of the contributions of the first 1, 2, ... k sources."""
        return self.contribution.cumsum(1)

    @property
    def remainder_share(self) -> Float[Tensor, "b c"]:
        """Return what all sources that are not listed give together: the pixel less the last running sum."""
        return self.mean - self.contribution.sum(1)


def contributions(
    estimator: LocalEquivariantMMSE,
    y: Float[Tensor, "b ..."],
    posterior: Posterior,
    sources: Sources,
    pixel: tuple[int, int],
) -> Contributions:
    """Look up the sources of one output pixel (row, column) and return what they give to it: ``Contributions``.

    ``posterior`` and ``sources`` (from ``TopSources(k)``) are this estimator's answers to this ``y``, at one sigma, for
    all pixels, which serve every look-up, or for this one alone (``at_pixels``). No weight is computed here.

    Raises ``TypeError`` for an estimator that is not local or for other results, ``ValueError`` for shapes that do not
    fit each other and for a pixel outside the image. Source: S5.2.
    """
    _check_local(estimator, "contributions")
    at = estimator.flat_index(pixel)
    if not isinstance(posterior, Posterior) or not isinstance(sources, Sources) or sources.pixel is None:
        raise TypeError(
            "contributions needs a Posterior or Moments, and the Sources of TopSources(k), which name pixels: got "
            f"{type(posterior).__name__} and {type(sources).__name__}{' of TopImages' * _lacks_pixels(sources)}."
        )
    _check_shape("y", y, (len(y), *estimator.measurement_shape), estimator)
    whole, alone = (len(y), *estimator.images.shape[2:]), (len(y), 1)
    place = {whole: at, alone: 0}
    for name, result in (("posterior", posterior.log_partition), ("sources", sources.remainder)):
        if tuple(result.shape) not in place:
            raise ValueError(
                f"y asks for results of shape {whole}, (b, h, w), or {alone} of one pixel: these {name} have "
                f"{tuple(result.shape)}. Hand over what this estimator made of this y."
            )
    in_posterior, in_sources = (place[tuple(x.shape)] for x in (posterior.log_partition, sources.remainder))
    image, source, weight = (x.flatten(1, -2)[:, in_sources] for x in (sources.image, sources.pixel, sources.weight))
    index, listed = estimator.window_index, image >= 0
    atoms, which = _images(estimator, image.clamp_min(0))
    keys, source_windows = estimator.pre_inverted(estimator.physics.A(atoms)), index[source.clamp_min(0)]
    measured, stored = (_windows_of_each(each, which, source_windows) for each in (keys, atoms))
    colour = centre_pixels(atoms)[which, source.clamp_min(0)]
    side = (-1, estimator.patch_size, estimator.patch_size)
    return Contributions(
        mean=posterior.mean.flatten(2)[:, :, in_posterior],
        image=image,
        pixel=source,
        weight=weight,
        remainder=sources.remainder.flatten(1)[:, in_sources],
        colour=colour * listed[..., None],
        window=windows_at(estimator.pre_inverted(y), index[at][None])[:, 0].unflatten(1, side),
        measured=(measured * listed[..., None]).unflatten(2, side),
        stored=(stored * listed[..., None]).unflatten(2, side),
    )


# ----------------------------------------------------------------------------------------------------------- parts of η


@dataclass(frozen=True)
class ResidualParts:
    """The two parts of the whitened residuals of k pairs of windows: they add, and η = ‖discrimination + noise‖.

    Both (b, k, r), in units of y: coordinates in an orthonormal basis of Im Q_nᵀ, which leaves lengths and angles as
    they are in the space of measurements; r is the rank of the stratum. ``half_log_pdet`` (b, k), ½ ln |Q_n Q_nᵀ|₊.
    """

    discrimination: Float64[Tensor, "b k r"]
    noise: Float64[Tensor, "b k r"]
    half_log_pdet: Float64[Tensor, "b k"]

    @property
    def squared_residual(self) -> Float64[Tensor, "b k"]:
        """Return η², the estimator's own r²."""
        return (self.discrimination + self.noise).square().sum(2)

    def log_weights(self, sigma: float | Tensor) -> Float64[Tensor, "b k"]:
        """Return -η²/2σ² - ½ ln |Q_n Q_nᵀ|₊, the unnormalised log-weights of the pairs."""
        sigma = checked_sigma(sigma, len(self.noise), self.noise.device)[:, None]
        return -self.squared_residual / (2 * sigma.square()) - self.half_log_pdet


def residual_parts(
    estimator: LocalEquivariantMMSE,
    x: Float[Tensor, "b c h w"],
    e: Float[Tensor, "b ..."],
    pixel: tuple[int, int],
    image: Int64[Tensor, "b k"],
    source: Int64[Tensor, "b k"],
) -> ResidualParts:
    """Split the residuals of an output pixel and some sources into signal and noise and return ``ResidualParts``.

    For y = A x + e, both known (a simulation), the window of the pixel n' (row, column) and that of the source n
    (row-major) in image d differ by discrimination + noise, Q_n⁺(Q_n' A x - Q_n A x_d) + Q_n⁺Q_n' e. Vectors add; so do
    mean squares, as the noise has mean zero: E η² = ‖discrimination‖² + σ² r · ``amplification``. Squares of one draw
    do not. ``image`` and ``source`` are such as ``TopSources`` names for the pixel.

    Raises ``ValueError`` for a source outside the stratum of the pixel, whose weight is 0 although ‖Q_n⁺·‖ is finite;
    for shapes that do not fit, an image that is not there, or a pixel outside the image. Source: S6.1.
    """
    _check_local(estimator, "residual_parts")
    at = estimator.flat_index(pixel)
    stratum, _ = _whereabouts(estimator, at)
    _check_shape("x", x, (len(x), *estimator.images.shape[1:]), estimator)
    _check_shape("e", e, (len(x), *estimator.measurement_shape), estimator)
    _check_pairs(estimator, stratum, pixel, image, source, len(x))
    index = estimator.window_index
    seen, noise = (
        windows_at(estimator.pre_inverted(each, torch.float64), index[at][None]) for each in (estimator.physics.A(x), e)
    )
    atoms, which = _images(estimator, image)
    keys = estimator.pre_inverted(estimator.physics.A(atoms), torch.float64)
    keys = _windows_of_each(keys, which, index[source])
    differences = torch.stack([seen - keys, noise.expand_as(keys)])
    parts = differences.new_zeros(*differences.shape[:3], stratum.rank)
    half_log_pdet = parts.new_zeros(image.shape)
    for member in stratum.classes:
        here = torch.isin(source, member.pixels.to(source.device))
        parts[:, here] = member.whitener(differences[:, here])
        half_log_pdet[here] = member.whitener.log_pdet / 2
    return ResidualParts(*parts, half_log_pdet)


class _Sums(NamedTuple):
    squares: Float[Tensor, " q"]
    alike: Float[Tensor, " q"]
    atoms: Float[Tensor, " q"]


@dataclass(frozen=True)
class _Differences:
    """Reduce to the mean squared distance of all atoms, each counted once, and the share of those within reach."""

    images: int
    variance: float
    honours_tolerance = False

    def start(self, layout: Layout) -> _Sums:
        return _Sums(layout.full(0), layout.full(0), layout.full(0))

    def update(self, state: _Sums, term: Term) -> _Sums:
        d2 = term.squared_distances
        reach = 2 * self.variance * math.log(self.images * term.atoms_per_image)
        sums = _Sums(d2.sum(1), (d2 < reach).sum(1).to(d2), torch.full_like(d2[:, 0], d2.shape[1]))
        return self.merge(state, sums)

    def merge(self, state_1: _Sums, state_2: _Sums) -> _Sums:
        return _Sums(*(a + b for a, b in zip(state_1, state_2, strict=True)))

    def finish(self, state: _Sums, layout: Layout) -> tuple[Tensor, Tensor]:
        return layout.per_query(state.squares / state.atoms), layout.per_query(state.alike / state.atoms)


@dataclass(frozen=True)
class Discrimination:
    """How well B tells the windows of a stratum apart, two maps (b, h, w).

    ``ratio`` is the mean of ‖Q_n⁺Δ‖²/σ²r over all atoms of the stratum: 1 is where signals differ as much as white
    noise does. ``confusable`` is the share of atoms with ‖Q_n⁺Δ‖² < 2σ² ln K, of K: near enough to weigh something.
    Where nothing is visible (rank 0) nothing is told apart: ratio 0, and confusable 1 (0 where K = 1).
    """

    ratio: Float[Tensor, "b h w"]
    confusable: Float[Tensor, "b h w"]


def discrimination_map(estimator: LocalEquivariantMMSE, x: Float[Tensor, "b c h w"], *, sigma: float) -> Discrimination:
    """Measure how far the windows of known images x are from those of the training images: ``Discrimination``.

    Δ = Q_n' A x - Q_n A x_d, without noise (a simulation), whitened as the estimator does; over all atoms (d, n) of
    the stratum of n', each counted once. Atoms outside it count nowhere, and pseudo-determinants, which weigh atoms at
    equal distance, are left out: where they differ (``EpsilonInverse``, phases of a downsampling) the map is not the
    whole story. Costs what one estimate costs.

    Raises ``TypeError`` for an estimator that is not local, ``ValueError`` for an x that is no batch of its images or a
    sigma that is no positive number. Source: S6 (arXiv 2601.10334).
    """
    _check_local(estimator, "discrimination_map")
    _check_shape("x", x, (len(x), *estimator.images.shape[1:]), estimator)
    if torch.as_tensor(sigma).numel() != 1:
        raise ValueError(f"discrimination_map takes one sigma: got {sigma!r}. Ratios of another scale with 1/sigma².")
    variance = float(checked_sigma(sigma, 1, x.device).square())
    reduction = _Differences(estimator.images.shape[0], variance)
    squares, confusable = estimator(estimator.physics.A(x), sigma=sigma, reduction=reduction)
    return Discrimination(squares / (variance * estimator.ranks.clamp_min(1)), confusable)


def amplification(
    estimator: LocalEquivariantMMSE, pixel: tuple[int, int], source: Int64[Tensor, " k"]
) -> Float64[Tensor, " k"]:
    """Return tr((Q_n Q_nᵀ)⁺ Q_n' Q_n'ᵀ)/r for an output pixel n' (row, column) and sources n (row-major) (S6.2).

    E‖Q_n⁺Q_n' e‖² = σ² r times this. It depends on B alone, and is 1 where Q_n Q_nᵀ is the same for both, and where r
    is 0: there is no noise to amplify. Raises ``TypeError`` for an estimator that is not local, ``ValueError`` for a
    source outside the stratum of the pixel and for a pixel outside the image.
    """
    _check_local(estimator, "amplification")
    stratum, own = _whereabouts(estimator, estimator.flat_index(pixel))
    _check_sources(stratum, pixel, source)
    found = torch.ones(source.shape, dtype=torch.float64, device=source.device)
    if stratum.rank == 0:
        return found
    root = own.whitener.root(estimator.window_entries)
    for member in stratum.classes:
        if member is not own:
            gain = member.whitener(root.T).square().sum() / stratum.rank
            found[torch.isin(source, member.pixels.to(source.device))] = gain.to(found.device)
    return found


def amplification_map(estimator: LocalEquivariantMMSE) -> Float64[Tensor, "h w"]:
    """Return how much B amplifies the noise of every pixel: the mean ``amplification`` over the sources of its stratum.

    tr((Q_n Q_nᵀ)⁺ Q_n' Q_n'ᵀ)/r, averaged over n in the stratum of n'. It needs no data. It is 1 where B Bᵀ is
    circulant and for masks, whose whitening cancels what B does to noise: there B acts through discrimination only.
    Raises ``TypeError`` for an estimator that is not local. Source: S6.2 (arXiv 2601.10334).
    """
    _check_local(estimator, "amplification_map")
    size = estimator.window_entries
    return _map_of_strata(estimator, [_mean_amplification(stratum, size) for stratum in estimator.strata])


def _mean_amplification(stratum: Stratum, size: int) -> Float64[Tensor, " m"]:
    """Return the mean over sources, for every pixel of a stratum."""
    classes, count = stratum.classes, len(stratum.pixels)
    if len(classes) == 1 or stratum.rank == 0:
        return torch.ones(count, dtype=torch.float64)  # tr(G⁺G) = r
    shares = torch.tensor([len(member.pixels) / count for member in classes], dtype=torch.float64)
    if all(isinstance(member.whitener, Selection) for member in classes):
        inverses = torch.stack([member.whitener.scale for member in classes]).square()
        gains = inverses.reciprocal() @ (shares @ inverses)
    else:
        gains = _mean_gains(classes, shares, size)
    place = torch.cat([member.pixels for member in classes]).argsort()
    repeats = torch.tensor([len(member.pixels) for member in classes])
    return (gains / stratum.rank).repeat_interleave(repeats)[place]


def _mean_gains(classes: tuple[WindowClass, ...], shares: Float64[Tensor, " k"], size: int) -> Float64[Tensor, " k"]:
    """Return Σ_j share_j ‖Q_j⁺Q_i‖² of every class i.

    The triangular factor C of all whiteners, CᵀC = Σ_j share_j (Q_j Q_jᵀ)⁺, takes one class at a time: no loop over
    pairs of classes, and no condition number is squared.
    """
    identity = torch.eye(size, dtype=torch.float64)
    factor = torch.zeros(0, size, dtype=torch.float64)
    for member, share in progress(list(zip(classes, shares, strict=True)), description="amplification", unit="class"):
        rows = torch.cat([factor, share.sqrt() * member.whitener(identity).T])
        factor = torch.linalg.qr(rows, mode="r").R
    return torch.stack([(factor @ member.whitener.root(size)).square().sum() for member in classes])


# -------------------------------------------------------------------------------------------------------------- helpers


def _images(
    estimator: LocalEquivariantMMSE, image: Int64[Tensor, "b k"]
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, "b k"]]:
    """Return the images that are named, each once, and which of them each name means."""
    named, which = image.unique(return_inverse=True)
    return torch.cat([estimator.images[d : d + 1] for d in named.tolist()]), which


def _windows_of_each(
    v: Float[Tensor, "n c h w"], which: Int64[Tensor, "b k"], index: Int64[Tensor, "b k p2"]
) -> Float[Tensor, "b k d"]:
    """Return one window of one image for every pair, ordered as ``windows_at`` does."""
    padded = torch.nn.functional.pad(v.flatten(2), (0, 1))  # pixel h·w, beyond a boundary, is zero
    channels = torch.arange(v.shape[1], device=v.device)[:, None]
    return padded[which[..., None, None], channels, index[..., None, :]].flatten(2)


def _map_of_strata(estimator: LocalEquivariantMMSE, values: list[Tensor]) -> Tensor:
    """Return values of the pixels of every stratum as a map (h, w)."""
    found = torch.cat(values)[torch.cat([stratum.pixels for stratum in estimator.strata]).argsort()]
    return found.unflatten(0, tuple(estimator.images.shape[2:])).to(estimator.device)


def _whereabouts(estimator: LocalEquivariantMMSE, at: int) -> tuple[Stratum, WindowClass]:
    """Return the stratum of a pixel, and its class in it."""
    return next((s, member) for s in estimator.strata for member in s.classes if bool((member.pixels == at).any()))


def _lacks_pixels(sources: Any) -> bool:
    return isinstance(sources, Sources) and sources.pixel is None


def _check_local(estimator: Any, asked: str) -> None:
    if not isinstance(estimator, LocalEquivariantMMSE):
        raise TypeError(f"{asked} explains pixels of a LocalEquivariantMMSE: got {type(estimator).__name__}.")


def _check_shape(name: str, given: Tensor, wanted: tuple[int, ...], estimator: LocalEquivariantMMSE) -> None:
    if tuple(given.shape) != wanted or given.dtype != estimator.dtype or given.device != estimator.device:
        raise ValueError(
            f"{name} must be {wanted} of {estimator.dtype} on {estimator.device}: got {tuple(given.shape)} of "
            f"{given.dtype} on {given.device}."
        )


def _check_pairs(
    estimator: LocalEquivariantMMSE, stratum: Stratum, pixel: tuple[int, int], image: Tensor, source: Tensor, b: int
) -> None:
    if image.shape != source.shape or image.ndim != 2 or len(image) != b:
        raise ValueError(
            f"image and source name k atoms for each of {b} queries, ({b}, k): got {tuple(image.shape)} and "
            f"{tuple(source.shape)}."
        )
    count = estimator.images.shape[0]
    if not ((image >= 0) & (image < count)).all():
        raise ValueError(
            f"image counts the {count} training images from 0: got {int(image.min())} to {int(image.max())}. "
            "Leave out the entries of image -1 that fill up a short list of sources."
        )
    _check_sources(stratum, pixel, source)


def _check_sources(stratum: Stratum, pixel: tuple[int, int], source: Tensor) -> None:
    outside = source[~torch.isin(source, stratum.pixels.to(source.device))]
    if len(outside):
        raise ValueError(
            f"source {int(outside[0])} is outside the stratum of pixel {tuple(pixel)}, {len(stratum.pixels)} pixels: "
            "its window has another image space, and its weight is 0 whatever the distance (S6.1). TopSources names "
            "sources of the stratum."
        )
