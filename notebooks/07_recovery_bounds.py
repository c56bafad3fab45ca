# %% [markdown]
# # 07 · How far from the truth can the estimate be?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/07_recovery_bounds.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/07_recovery_bounds.ipynb)
#
# Networks compute the formula, more or less. **And the formula, how wrong can it be?** Here that is proven, not
# measured. About 40 minutes:
#
# * [Why one image has all the weight](#Why-one-image-has-all-the-weight)
# * [An exact identity](#An-exact-identity)
# * [A bound in four lines](#A-bound-in-four-lines)
# * [A ridiculous bias](#A-ridiculous-bias)
# * [When recovery is hopeless](#When-recovery-is-hopeless)
# * [All bounds beside the error](#All-bounds-beside-the-error)
# * [Pixel by pixel](#Pixel-by-pixel)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown] tags=["predict"]
# ## Why one image has all the weight
#
# The estimate is a mean, $\hat x=\sum_dw_dx_d$ with $w_d\propto e^{-r_d^2/2\sigma^2}$ and $r_d=\|Ax_d-y\|$.
# $e^{H(w)}$ counts the images that take part.
#
# **Predict.** Of 1000 garments, how many take part in denoising a new one at $\sigma=0.5$, where you can hardly see it?

# %%
import math
import warnings
from itertools import pairwise

import torch

import lemmse as le
from lemmse.ui.explorables import recovery_bounds

torch.set_num_threads(1)  # for problems this small, threads would only wait for one another
garments, unseen = (le.data.fashion_mnist(split, count=1000).double() for split in ("train", "test"))
x, Id, moments_of = unseen[[58, 119, 45]], le.Denoising(), le.PosteriorMoments()
e = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)

# %% tags=["claim"] claim="07-weights-are-sparse"
# NBVAL_CHECK_OUTPUT
sigmas, taking_part = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0), {}
estimators = {f"D = {D} images of 784 pixels": le.MMSE(garments[:D], Id) for D in (10, 100, 1000)}
for name, estimator in estimators.items():
    found = [estimator(x + s * e, sigma=s, reduction=moments_of) for s in sigmas]
    taking_part[name] = torch.stack([le.explain.effective_sources(each).mean() for each in found])
    print(f"{name}:", *(f"{n:.1f} at σ = {s:g}" for n, s in zip(taking_part[name], sigmas)), sep="  ")
local = le.LocalEquivariantMMSE(garments[:100].float(), Id, patch_size=5)
found = [local((x + s * e)[:1].float(), sigma=s, reduction=moments_of) for s in sigmas]
windows = torch.stack([le.explain.effective_sources(each).median() for each in found])
assert taking_part["D = 1000 images of 784 pixels"][2] < 3 and windows[2] > 1000

# %% [markdown]
# Two. And for comparison, the windows of 100 garments that take part in one pixel of the local estimate:

# %%
figure = le.figures.figure(6.4, 3.0)
axes = figure.subplots()
for (name, n), marker in zip(taking_part.items(), "o^s"):
    axes.loglog(sigmas, n, f"{marker}-", label=name)
axes.loglog(sigmas, windows, "x:", label="100 images, windows of 25")
axes.set(xlabel="σ", ylabel="atoms that take part, exp H")
axes.legend(fontsize=8)
le.figures.picture(figure, alt="About one image takes part up to σ = 1, thousands of windows from σ = 0.5.")

# %% [markdown]
# High dimension does it: squared distances to two images differ by as much as the images do, and $2\sigma^2$ is
# small against that. Once the gap $r_2^2-r_1^2$ passes $2\sigma^2\ln D$ by some $\sigma^2$, all others *together* weigh
# next to nothing (S7.2). Windows of 25 pixels differ by less, and thousands take part.
#
# ## An exact identity
#
# By definition $r_d^2=-2\sigma^2(\ln w_d+L)$. Average with the weights, and subtract the nearest ($d=1$):
#
# $$E_w r^2=r_1^2+2\sigma^2\,\big(H(w)+\ln w_1\big).$$
#
# No inequality so far (S7.1). The bracket lies between 0 (one atom) and $W$, of which more below. On screen, with
# $r_1$ found by looking at all images:

# %% tags=["claim"] claim="07-identity"
# NBVAL_CHECK_OUTPUT
for s in (0.2, 1.0, 5.0):
    y = x + s * e
    moments = le.MMSE(garments, Id)(y, sigma=s, reduction=moments_of)
    excess = le.bounds.residual_excess(moments)
    r1 = torch.stack([(garments - each).flatten(1).norm(dim=1).min() for each in y])
    right = r1.square() + 2 * s**2 * excess
    print(f"σ = {s:g}:", *(f"{a:.2f} = {b:.2f}" for a, b in zip(moments.mean_squared_residual, right)), sep="  ")
    assert torch.allclose(moments.mean_squared_residual, right, rtol=1e-9)
    assert torch.allclose(le.bounds.nearest_squared_residual(moments, s), r1.square(), rtol=1e-9)
    assert (excess <= le.bounds.largest_excess(1000)).all()

# %% [markdown]
# ## A bound in four lines
#
# Let $\rho_d=\|A(x_d-\bar x)\|$, $r_*=\min\rho_d$, $\|e\|\le\varepsilon$, and let $\alpha$ be the least
# $\rho_d/\|x_d-\bar x\|$ over images other than $\bar x$. Then
#
# 1. $\|\hat x-\bar x\|\le E_w\|x_d-\bar x\|\le E_w\rho/\alpha$: a mean is no further than its parts, on average.
# 2. $\rho_d\le r_d+\varepsilon$, so $E_w\rho\le\sqrt{E_wr^2}+\varepsilon$: the **certificate** R4, given $\alpha$.
# 3. $E_wr^2\le r_1^2+2\sigma^2\ln D$, by the identity, as $H\le\ln D$ and $w_1\le1$.
# 4. $r_1\le r_*+\varepsilon$. Together, the **published bound** R1:
#
# $$\|\hat x-\bar x\|\le\tfrac1\alpha\big(r_*+2\varepsilon+\sigma\sqrt{2\ln D}\big).$$
#
# Three terms: no image is near, the measurement is noisy, the images are many. On real images at $\sigma=0.1$:


# %%
def measured(images, truths, A, s):
    """Return what the estimator, and what only a simulation, knows of noisy measurements."""
    clean = A.A(truths)
    noise = s * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=clean.dtype)
    moments = le.MMSE(images, A)(clean + noise, sigma=s, reduction=moments_of)
    error = (moments.mean - truths).flatten(1).norm(dim=1)
    return moments, error, le.bounds.restricted_injectivity(images, A, truths), noise.flatten(1).norm(dim=1)


# %% tags=["claim"] claim="07-three-terms"
# NBVAL_CHECK_OUTPUT
s, D = 0.1, 1000
cases = {name: measured(garments, x[:1], A, s) for name, A in recovery_bounds.OPERATORS.items()}
facts = ((error, known.alpha, known.nearest, noise) for _, error, known, noise in cases.values())
error, alpha, r, noise = (torch.cat(each) for each in zip(*facts))
terms = {"no image near": r / alpha, "noise": 2 * noise / alpha}
terms["many images"] = le.bounds.published_bias(s, D) / alpha
bound = sum(terms.values())
print(*(f"{name}: {e:.1f} ≤ {b:.1f}" for name, e, b in zip(cases, error, bound)), sep="; ")
assert torch.allclose(bound, le.bounds.published_bound(alpha, r, noise, s, D)) and (error <= bound).all()

# %% [markdown]
# As bars, with the true error as a diamond:

# %%
figure, left = le.figures.figure(7.4, 2.4), 0.0
axes = figure.subplots()
axes.set_axisbelow(True)
for (name, width), hatch, colour in zip(terms.items(), ("", "//", ".."), le.figures.COLOURS):
    axes.barh(list(cases), width, left=left, label=name, hatch=hatch, edgecolor="white", color=colour)
    left = left + width
axes.plot(error, list(cases), "kD", markeredgecolor="white", label="true error")
axes.set(xlabel="‖x̂ − x‖ and the terms of its bound")
axes.legend(fontsize=8)
le.figures.picture(figure, alt="The term of many images is a sliver. Noise and the nearest image share the rest.")

# %% [markdown]
# The true error is about that of copying the nearest image. The bound adds noise twice, although the estimate hardly
# saw any. What is left of the theory's surprise, that a *million* images cost only $5\sigma$, is the sliver.
#
# ## A ridiculous bias
#
# $\sigma\sqrt{2\ln D}$ is $5.3\sigma$ for a million images and $10.5\sigma$ for $10^{24}$. Can it be less? Given $w_1=q$,
# $H+\ln w_1$ is largest where all other weights are equal; over $q$, where $(t-1)e^t=D-1$ with
# $t=\ln\frac{q(D-1)}{1-q}$. There it is $t-1=W$, **Lambert's function** of $(D-1)/e$: $2W$ may replace $2\ln D$ (R2).
# And $\sqrt{r_1^2+2\sigma^2W}-r_1\le\sigma^2W/r_1$: where the residual is large, as with noise in $M$ numbers
# ($r_1\approx\sigma\sqrt M$), the bias **vanishes** (R3).

# %% tags=["claim"] claim="07-bias"
# NBVAL_CHECK_OUTPUT
print("in σ:   √(2 ln D)   √(2W)   reached   at r₁ = σ√784")
for D in (1e3, 1e6, 1e24):
    far = torch.linspace(0.01, 20, 20_000, dtype=torch.float64)  # one atom at the truth, all others so far away
    reached = (torch.sigmoid(math.log(D - 1) - far**2 / 2) * far).max()
    published, sharp = le.bounds.published_bias(1.0, D), le.bounds.bias(1.0, D)
    small = le.bounds.bias(1.0, D, nearest_residual=28.0)
    print(f"D = {D:.0e} {published:7.2f} {sharp:9.2f} {reached:8.2f} {small:12.2f}")
    assert reached <= sharp <= published and small < 1.8
assert reached > 0.99 * sharp

# %% [markdown]
# No bound in these terms can be much sharper: one image at the truth and all others in *one* place reach 99 % of it.
# Real images are nothing like that, and the bias is smaller still.
#
# Noise is what costs. If it is Gaussian and knows nothing of the images, $\langle A(x_d-\bar x),e\rangle$ is a number
# of standard deviation $\sigma\rho_d$, whatever the dimension: with $\tau=\sqrt{2\ln\frac{D+1}{2\delta}}$ and probability
# $1-\delta$, at most $\sigma\tau\rho_d$ for all $d$, and at least $-\sigma\tau r_*$ for the nearest. As
# $r_d^2-\|e\|^2=\rho_d^2-2\langle A(x_d-\bar x),e\rangle$, the average $m^2=E_w\rho^2$ satisfies
# $m^2-2\sigma\tau m\le r_*^2+2\sigma\tau r_*+2\sigma^2W$. Completing the square gives R5, in which **no $\varepsilon$
# occurs**:
#
# $$\|\hat x-\bar x\|\le\tfrac1\alpha\Big(\sigma\tau+\sqrt{(r_*+\sigma\tau)^2+2\sigma^2W}\Big).$$
#
# ## When recovery is hopeless
#
# All bounds divide by $\alpha$: what $A$ makes of the difference of two images, relative to it. Who says when that is
# nearly nothing? Two images that look alike to $A$:

# %% tags=["claim"] claim="07-alpha"
# NBVAL_CHECK_OUTPUT
worst = {name: le.bounds.set_injectivity(garments[:300], A) for name, A in recovery_bounds.OPERATORS.items()}
for (name, pair), (_, _, known, _) in zip(worst.items(), cases.values()):
    print(
        f"{name}: α = {known.alpha[0]:.2f} at this truth; {pair.alpha:.2f} for images {pair.atom}, {pair.nearest_atom}"
    )
assert worst["denoising"].alpha.isclose(torch.tensor(1.0).double())
pair = worst["downsampling by 2"]
both = garments[[int(pair.atom), int(pair.nearest_atom)]]
seen = recovery_bounds.OPERATORS["downsampling by 2"].A(both)
le.figures.show({"x": both[:1], "x'": both[1:], "A x": seen[:1], "A x'": seen[1:]}, reference=None)

# %% [markdown]
# Two pullovers that differ in seams and sleeves, much finer than the grid: whoever wants to know the seams is told by
# $\alpha$ what it would take. At a given truth $\alpha$ is larger: it depends on $\bar x$. At 0 no bound is left,
# and it says which image is to blame:

# %% tags=["claim"] claim="07-collision"
# NBVAL_CHECK_OUTPUT
hole = recovery_bounds.OPERATORS["inpainting"]
printed = garments[:1] + 0.5 * (1 - le.center_mask(28, 28, side=15))  # image 0 with something in the hole
collision = le.bounds.restricted_injectivity(garments, hole, printed)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    bound = le.bounds.certificate(collision, 0.0, 0.0)
print(bound.tolist(), told[0].message)
assert bound.isinf().all() and int(collision.atom) == 0

# %% [markdown]
# ## All bounds beside the error
#
# Garments and colour crops, 1000 each, three test images, four operators, $\sigma=0.1$. Each bound over the true
# error, a mean; R5 with $\delta=0.05$:


# %%
def ratios(images, truths, A):
    """Return the mean error, and all bounds over the error."""
    moments, error, known, noise = measured(images, truths, A, s)
    r1, D = le.bounds.nearest_squared_residual(moments, s).sqrt(), len(images)
    R = [f(known, known.nearest, noise, s, D) for f in (le.bounds.published_bound, le.bounds.sharp_bound)]
    R += [le.bounds.residual_bound(known, r1, noise, s, D)]
    R += [le.bounds.certificate(known, moments.mean_squared_residual, noise)]
    assert all((a >= b * (1 - 1e-9)).all() for a, b in pairwise(R))
    R += [le.bounds.gaussian_bound(known, known.nearest, s, D, 0.05)]
    return error.mean(), torch.stack(R) / error


crops = le.data.photo_crops("train", size=32, count=1000).double()
others = le.data.photo_crops("test", size=32, count=3).double()

# %% tags=["claim"] claim="07-all-bounds"
# NBVAL_CHECK_OUTPUT
fine = {**recovery_bounds.OPERATORS, "inpainting": le.Inpainting(le.center_mask(32, 32, side=15))}
rows = [("garments", garments, x, recovery_bounds.OPERATORS), ("crops", crops, others, fine)]
for data, images, truths, operators in rows:
    for name, A in operators.items():
        error, found = ratios(images, truths, A)
        told = (f"R{i} {r:.2f}" for i, r in enumerate(found.mean(1), 1))
        print(f"{data + ', ' + name:28s} error {error:5.2f}  ", *told)
        assert (found >= 1).all()

# %% [markdown]
# R1 ≥ R2 ≥ R3 ≥ R4, as proven. R5 is within 1.8 of the truth everywhere, within 1.2 for denoising: a bound worth
# having. But $\alpha$ and $r_*$ are known to a simulation alone. From $y$ one observes $r_d$, $w$, $E_wr^2$ and, if
# $\sigma$ is known, $\varepsilon$ (`noise_radius`): for denoising, where $\alpha\ge1$ always, R4 is then a certificate
# that needs no truth. Move everything:

# %% tags=["explorable"]
explorable = le.ui.explorables.recovery_bounds.all_bounds()
explorable

# %% [markdown]
# **Try.** Ten images instead of a thousand: which part of the bars grows? At which $\sigma$ does the published bound
# become useless, and does R5?
#
# ## Pixel by pixel
#
# All this holds for the local estimator at every pixel $n'$, with $Q_n^+$ of windows in the place of $A$, and
# $K=D|\mathcal S(n')|$ atoms instead of $D$ (S8.7). The proofs carry over word by word; R5 and $W$ need that $Q_nQ_n^T$
# is the same in the stratum: noise then has one length, $\|Q_n^+Q_{n'}e\|$, for all $n$. For $\alpha$ something is known without the truth:
# the centre belongs to the window, so **for denoising, and at visible pixels of a mask with $B=A^+$, $\alpha\ge1$**. In
# a hole that windows do not see through it is 0.

# %% tags=["claim"] claim="07-pixels"
# NBVAL_CHECK_OUTPUT
for operator in ("denoising", "inpainting, B = A⁺"):
    for s in (0.02, 0.1):
        found = recovery_bounds.certified(operator, s)
        bound, error = found.bounds.least[0], found.error
        covered, useful = (error <= bound).double().mean(), (bound < 1).double().mean()
        by_r4 = (found.bounds.certificate[0] <= bound)[bound.isfinite()].double().mean()
        print(f"{operator}, σ = {s:g}: {covered:.0%} below their bound, which is below 1 at {useful:.0%};")
        print(f"    the middle pixel errs by {error[14, 14]:.3f}, and has the bound {bound[14, 14]:.2f}")
        assert covered == 1 and by_r4 > 0.9
small = le.LocalEquivariantMMSE(garments[:2], Id, patch_size=5)
assert (le.bounds.window_alpha_floor(small) == 1).all()

# %% tags=["explorable"]
explorable = le.ui.explorables.recovery_bounds.pixel_certificates()
explorable

# %% [markdown]
# No pixel breaks its bound, but one pixel is little to set against the noise of 25: $\varepsilon\approx5\sigma$. Bounds
# are a hundred times the middle pixel's error at $\sigma=0.1$, and above 1 they tell nothing of intensities. They are
# tightest inside the bag, where windows that differ in their centre differ elsewhere, too ($\alpha\approx1.5$), and
# loose in the black background: $\alpha=1$ there, though hardly a pixel errs.
#
# ## What we saw
#
# * In high dimension one image has all the weight; $E_wr^2=r_1^2+2\sigma^2(H+\ln w_1)$ says exactly how nearly.
# * The number of images costs at most $\sigma\sqrt{2W}$, and almost nothing where the residual is large. Noise and the
#   distance of the nearest image are what an error is made of.
# * With Gaussian noise the bound is within a factor 2 of the true error on all we tried. For single pixels it is true,
#   and rarely of use.
#
# ## Where this stands in the paper
#
# R1 is the paper's (arXiv 2601.10334). R2 to R5 and the bounds of pixels are this project's own: statements S7 and S8,
# proven above, and tried on 13 000 random problems by `tests/test_bounds.py`. Next, in 08: and if $A$ is unknown, too?
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="07-gap" minutes=4
# ### Exercise 1: alone at last
#
# A million images, $\sigma=0.1$. How large must $r_2^2-r_1^2$ be, so that all images but the nearest weigh less than 1 %
# of it together, whatever their distances?
#
# <details><summary>Hint</summary>
#
# In the worst case all others are as far as the second.
#
# </details>

# %% tags=["exercise"] exercise="07-gap" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
import math

from lemmse.exercises import Exercise

exercise = Exercise(
    "07-gap",
    expected=2 * 0.1**2 * math.log((1e6 - 1) / 0.01),
    mistakes={
        "That is one image among the others: there are a million of them.": 2 * 0.1**2 * math.log(100),
        "They weigh as much as the nearest then, together: 1 % was asked for.": 2 * 0.1**2 * math.log(1e6),
        "The exponent is (r_2² - r_1²)/2σ²: a factor 2 is missing.": 0.1**2 * math.log((1e6 - 1) / 0.01),
        "σ is squared in the exponent.": 2 * 0.1 * math.log((1e6 - 1) / 0.01),
    },
    why="(D - 1) exp(-gap/2σ²) = 0.01.",
)

# %% tags=["exercise"] exercise="07-gap"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="07-gap"
# <details><summary>Solution</summary>
#
# ```python
# answer = 2 * 0.1**2 * math.log((1e6 - 1) / 0.01)
# ```
# 0.37, little beside the squared distances of images, which are about 50.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="07-gap"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 2 * 0.1**2 * math.log(100)
# ```
# silences one image. And
#
# ```python
# answer = 0.1**2 * math.log((1e6 - 1) / 0.01)
# ```
# loses the 2 of $2\sigma^2$.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="07-alpha" minutes=8
# ### Exercise 2: alpha
#
# Write `alpha(A, atoms, x)`: the restricted injectivity at `x`, (n,), of a matrix `A`, (m, n), on `atoms`, (D, n), some of
# which may equal `x`; infinity if all do.
#
# <details><summary>Hint</summary>
#
# Atoms that equal `x` are left out before anything is divided.
#
# </details>

# %% tags=["exercise"] exercise="07-alpha" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import math

import torch

from lemmse.exercises import Exercise


def ratios(A, atoms, x):
    """Return ρ/distance of the atoms that differ from x."""
    difference = (atoms - x)[(atoms != x).any(1)]
    return (difference @ A.T).norm(dim=1) / difference.norm(dim=1)


draw = torch.Generator().manual_seed(0)
cases = []
for m, n, count in ((3, 5, 4), (6, 2, 9)):
    A, atoms = torch.randn(m, n, generator=draw), torch.randn(count, n, generator=draw)
    cases += [(A, atoms, atoms[1]), (A, atoms, torch.ones(n))]
cases.append((torch.eye(2), torch.ones(1, 2), torch.ones(2)))
exercise = Exercise(
    "07-alpha",
    expected=lambda A, atoms, x: min([math.inf, *ratios(A, atoms, x).tolist()]),
    inputs=cases,
    mistakes={
        "That is the mean over atoms: a bound needs the worst of them.": (
            lambda A, atoms, x: ratios(A, atoms, x).mean().item() if len(ratios(A, atoms, x)) else math.inf
        ),
        "That is the least ρ: divide each by its own distance first.": (
            lambda A, atoms, x: min([math.inf, *((atoms - x) @ A.T).norm(dim=1).tolist()])
        ),
        "That is the smallest singular value: α asks only for differences from atoms.": (
            lambda A, atoms, x: float(torch.linalg.svdvals(A).min())
        ),
    },
    why="The infimum is over atoms that differ from x; of no atoms it is infinite.",
)


# %% tags=["exercise"] exercise="07-alpha"
def alpha(A, atoms, x):
    return ...


exercise.check(alpha)

# %% [markdown] tags=["solution"] exercise="07-alpha"
# <details><summary>Solution</summary>
#
# ```python
# def alpha(A, atoms, x):
#     difference = atoms[(atoms != x).any(1)] - x
#     ratio = (difference @ A.T).norm(dim=1) / difference.norm(dim=1)
#     return min([math.inf, *ratio.tolist()])
# ```
# A matrix may be singular and $\alpha$ large: what it kills is no difference of atoms.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="07-alpha"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def alpha(A, atoms, x):
#     return float(torch.linalg.svdvals(A).min())
# ```
# is for all images there could be. And
#
# ```python
# def alpha(A, atoms, x):
#     return min([math.inf, *((atoms - x) @ A.T).norm(dim=1).tolist()])
# ```
# is $r_*$.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="07-what-helps" minutes=3
# ### Exercise 3: what helps
#
# Denoising at $\sigma=0.05$, $D=1000$. Which change lowers R5 most? `"a"`: a tenth of the images, the nearest one among
# them. `"b"`: half the noise. `"c"`: ten thousand images, one of them half as far. `"d"`: the exact number of measurements.
#
# <details><summary>Hint</summary>
#
# Look at the bar of R5 in the first explorable: which part is long?
#
# </details>

# %% tags=["exercise"] exercise="07-what-helps" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "07-what-helps",
    expected="c",
    choices=("a", "b", "c", "d"),
    mistakes={
        "ln D moves the sliver alone.": "a",
        "Noise is a small part of R5 at this σ: 0.4 of 7.": "b",
        "The number of measurements does not occur in R5.": "d",
    },
    why="r_*/α is nearly all of it.",
)

# %% tags=["exercise"] exercise="07-what-helps"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="07-what-helps"
# <details><summary>Solution</summary>
#
# ```python
# answer = "c"
# ```
# More images cost a sliver, and bring what counts: one that is near.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="07-what-helps"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = "a"
# ```
# saves the logarithm of ten. And
#
# ```python
# answer = "b"
# ```
# saves a fifth of a unit.
#
# </details>
