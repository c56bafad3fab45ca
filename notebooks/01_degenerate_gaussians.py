# %% [markdown]
# # 01 · What is a Gaussian that lives on a plane?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/01_degenerate_gaussians.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/01_degenerate_gaussians.ipynb)
#
# **Before:** [notebook 00](00_inverse_problems.ipynb) weighed every training image by a Gaussian density of what was
# measured. **Here:** a network often sees $By$ instead of $y$. If $B$ loses anything (a mask does), the noise in $By$ is
# squeezed onto a line or a plane, where the usual density is infinite or zero. What replaces it, and who wins when
# several such flat Gaussians meet? About 25 minutes.
#
# 1. [A cloud is squeezed](#A-cloud-is-squeezed)
# 2. [A density per unit length](#A-density-per-unit-length)
# 3. [What B does to the noise](#What-B-does-to-the-noise)
# 4. [Several planes: the lowest rank wins](#Several-planes:-the-lowest-rank-wins)
# 5. [Exercises](#Exercises), and [where it stands](#Where-it-stands)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %%
import math

import torch

import lemmse as le
from lemmse.gaussians import DegenerateNormal, MixtureOnSubspaces

torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(0)

# %% [markdown] tags=["predict"]
# ## A cloud is squeezed
#
# A Gaussian is a mean plus a factor times white noise: $z=\mu+Q\xi$, with covariance $\Sigma=QQ^\top$. Take a cloud of
# standard deviation 5 along one direction and `width` across it, and squeeze.
#
# **Predict.** As the width goes to 0, what becomes of the density at a point *on* the line, and at one *beside* it?

# %%
along, across = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])


def squeezed(width):
    return DegenerateNormal(torch.zeros(2), torch.stack([5 * along, width * across], dim=1))


drawing = le.figures.figure(7.2, 2.6)
for i, width in enumerate((2, 0.5, 0)):
    axes = drawing.add_subplot(1, 3, i + 1, aspect="equal", xlim=(-14, 14), ylim=(-14, 14), title=f"width {width}")
    axes.plot(*squeezed(width).sample((300,), generator=generator).T, ".", markersize=3)
le.figures.picture(drawing, alt="Three clouds of points of the same length and slope: a wide one, a thin one, a line.")

# %% tags=["claim"] claim="01-no-ordinary-density"
# NBVAL_CHECK_OUTPUT
points = torch.stack([5 * along, 5 * along + across])
for width in (1, 0.1, 0.01):
    on, beside = squeezed(width).log_prob(points).exp()
    print(f"width {width:<5} on the line {on:.3g}, beside it {beside:.2g}")
assert on > 99 * squeezed(1).log_prob(points[0]).exp() and beside == 0

# %% [markdown]
# Ten times thinner, ten times denser: on the line the density runs off to infinity, beside it to zero. Probability *per
# unit area* is the wrong question for something without area.
#
# ## A density per unit length
#
# On its own support a flat Gaussian is an ordinary one, of fewer dimensions. With respect to length (area, volume: the
# Hausdorff measure $\mathcal H^r$ of the support, $r$ the rank of $\Sigma$) its density is
#
# $$\mathcal N(z;\mu,\Sigma)=(2\pi)^{-r/2}\,|\Sigma|_+^{-1/2}\,\exp\big(-\tfrac12(z-\mu)^\top\Sigma^+(z-\mu)\big)
# \ \text{ if } z-\mu\in\operatorname{Im}\Sigma,\quad 0\ \text{ elsewhere.}$$
#
# Three things are new: the **support** $\mu+\operatorname{Im}\Sigma$; the **pseudo-inverse** $\Sigma^+$, which inverts on
# the support and is zero across it; the **pseudo-determinant** $|\Sigma|_+$, the product of the non-zero eigenvalues. The
# SVD $Q=USV^\top$ of the factor gives all three: $U$, $US^{-2}U^\top$ and $\prod_i s_i^2$.


# %%
def log_density(z, loc, factor):
    U, s, _ = torch.linalg.svd(factor, full_matrices=False)
    largest, kept = s.max(), s > 1e-10 * s.max()
    U, s = U[:, kept], s[kept]  # the directions that it fills, and how far
    c = (z - loc) @ U  # coordinates on the support
    off = (z - loc - c @ U.T).norm(dim=-1) > 1e-6 * largest
    log_p = -(c / s).square().sum(-1) / 2 - s.log().sum() - len(s) / 2 * math.log(2 * math.pi)
    return log_p.where(~off, -math.inf)


# %% tags=["claim"] claim="01-open-density-is-the-package"
# NBVAL_CHECK_OUTPUT
line = squeezed(0)
print(line, "with pseudo-determinant", round(line.log_pdet.exp().item(), 6))
print("Σ  =", line.covariance_matrix.round(decimals=4).tolist())
print("Σ⁺ =", line.precision_matrix.round(decimals=4).tolist())
print("log-density on and beside:", line.log_prob(points).round(decimals=4).tolist())
assert torch.allclose(line.log_prob(points), log_density(points, line.loc, line.factor))

# %% [markdown]
# The determinant of $\Sigma$ is $9\cdot16-12\cdot12=0$; its pseudo-determinant is $5^2=25$. The package agrees with the
# eight lines above.
#
# Two tests that this is *the* density. It integrates to one along the line. And it is the limit of fat Gaussians
# $\mathcal N(\mu,\Sigma+\varepsilon I)$, once the factor $(2\pi\varepsilon)^{(d-r)/2}$ takes out the $d-r$ directions that vanish.

# %% tags=["claim"] claim="01-density-integrates-to-one"
# NBVAL_CHECK_OUTPUT
t = torch.linspace(-50, 50, 2001)  # position along the line
integral = torch.trapezoid(line.log_prob(t[:, None] * along).exp(), t)
print(f"integral along the line {integral:.6f}")
assert abs(integral - 1) < 1e-9

# %% tags=["claim"] claim="01-density-is-the-limit"
# NBVAL_CHECK_OUTPUT
for epsilon in (10, 0.1, 0.001):
    fat = torch.distributions.MultivariateNormal(torch.zeros(2), line.covariance_matrix + epsilon * torch.eye(2))
    limit = fat.log_prob(points) + 0.5 * math.log(2 * math.pi * epsilon)  # d - r = 1
    print(f"ε = {epsilon:g}: density on the line {limit[0].exp():.6f}, beside it {limit[1].exp():.4f}")
assert abs(limit[0] - line.log_prob(points[0])) < 1e-4 and limit[1].exp() < 1e-9

# %% [markdown]
# ## What B does to the noise
#
# Let $x$ be an image of three pixels and $y=x+e$ with noise of standard deviation $\sigma$ on each. A linear image of a
# Gaussian is Gaussian, so $By$ given $x$ is $\mathcal N(Bx,\ \sigma^2BB^\top)$: its factor is $\sigma B$, its support
# the image of $B$. Here are four $B$, of rank 3, 2, 1 and 0.

# %% tags=["claim"] claim="01-x-itself-is-off-the-plane"
x, sigma = torch.tensor([0.8, 0.3, 0.5]), 0.1
keep_all, hide_one = torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
B = {"keep all": keep_all, "hide pixel 3": hide_one, "average": torch.full((3, 3), 1 / 3), "hide all": 0 * keep_all}
measured = DegenerateNormal(x, sigma * torch.eye(3))
laws = {name: measured.linear_image(matrix) for name, matrix in B.items()}
assert laws["keep all"].log_prob(x).isfinite() and laws["hide pixel 3"].log_prob(x) == -math.inf

drawing = le.figures.figure(7.6, 2.3, layout=None)
for i, (name, law) in enumerate(laws.items()):
    axes = drawing.add_axes((i / 4, 0, 0.2, 0.9), projection="3d", box_aspect=3 * [1], title=f"{name}: rank {law.rank}")
    axes.scatter(*law.sample((300,), generator=generator).T, s=3 if law.rank else 50, alpha=1)
    for n, axis in enumerate("xyz", 1):
        axes.set(**{f"{axis}lim": (0, 1), f"{axis}ticklabels": [], f"{axis}label": f"pixel {n}"})
        getattr(axes, f"{axis}axis").labelpad = -10
le.figures.picture(drawing, alt="What B leaves of a ball of points: the ball, a flat disc, a segment, a point.")

# %% [markdown] tags=["predict"]
# The ball of noise becomes a disc where pixel 3 is hidden, a segment on the grey diagonal where all pixels are averaged,
# and a single point where everything is hidden: rank 0, a point mass, of density 1. The image $x$ itself lies off the disc's
# plane: its density there is 0.
#
# **Predict.** We now measure intensities from 0 to 255 instead of 0 to 1. Which of the densities below change, and is the
# larger one still the larger one?

# %% tags=["claim"] claim="01-densities-of-different-rank-have-different-units"
# NBVAL_CHECK_OUTPUT
peak = {}
for name, law in laws.items():
    grey = law.linear_image(255 * torch.eye(3))
    peak[name] = [each.log_prob(each.mean).exp().item() for each in (law, grey)]
    print(f"{name:<13} rank {law.rank}   peak density {peak[name][0]:<6.3g} in levels of 0 to 255: {peak[name][1]:.3g}")
assert peak["hide pixel 3"][0] > peak["average"][0] and peak["hide pixel 3"][1] < peak["average"][1]

# %% [markdown]
# The disc had the higher peak; in grey levels the segment has. One is a probability per unit area, the other per unit
# length: **densities of different rank cannot be compared**. Yet inpainting forces the question. A network with a 3×3
# window looks at a masked image, $v=By$: how many dimensions does each window of $v$ fill?

# %% tags=["claim"] claim="01-rank-of-a-window"
mask = le.center_mask(12, 12, side=5)
pixels = torch.eye(144).reshape(144, 1, 12, 12)
Q = le.extract_patches(le.Inpainting(mask).A_dagger(pixels), patch_size=3).permute(1, 2, 0)  # one factor per window
windows = DegenerateNormal(torch.zeros(9), Q)
visible = le.extract_patches(mask[None, None].double(), 3).sum(-1).flatten()
assert torch.equal(windows.rank.double(), visible) and windows.rank.unique().tolist() == [0, 3, 5, 6, 7, 8, 9]
rank = le.figures.HeatMap(windows.rank.double().reshape(12, 12))
le.figures.show({"mask": mask.double(), "rank of the 3×3 window": rank}, reference=None, size=200)

# %% [markdown] tags=["predict"]
# As many as it sees pixels: 9 far from the hole, 0 in its middle, 3 to 8 at its rim. Which windows may be
# compared with which?
#
# ## Several planes: the lowest rank wins
#
# Start with two: a round cloud that fills the plane, and our line through it. Nature draws from the line with probability
# 1 %, from the cloud with 99 %. We receive a point $z$ exactly on the line.
#
# **Predict.** How probable is it that the line made $z$? 1 %, about one half, or more?


# %%
def posterior(z, parts, prior):
    log_p = torch.stack([log_density(z, *part) for part in parts])
    rank = torch.tensor([torch.linalg.matrix_rank(factor) for _, factor in parts])
    lowest = rank[log_p.isfinite()].min()  # among the supports that hold z
    return (log_p + prior.log()).where(rank == lowest, -math.inf).softmax(0)


# %% tags=["claim"] claim="01-the-lowest-rank-wins"
# NBVAL_CHECK_OUTPUT
prior, cloud = torch.tensor([0.01, 0.99]), DegenerateNormal(torch.zeros(2), 3 * torch.eye(2))
pair = MixtureOnSubspaces(prior, DegenerateNormal(torch.zeros(2), torch.stack([line.factor, cloud.factor])))
for name, z in zip(("on the line", "beside it"), points, strict=True):
    by_hand = posterior(z, [(line.loc, line.factor), (cloud.loc, cloud.factor)], prior)
    print(f"{name}: line {pair.posterior(z)[0]:.0%}, cloud {pair.posterior(z)[1]:.0%}")
    assert torch.equal(pair.posterior(z), by_hand)

# %% [markdown]
# Certainty, whatever the prior and the densities. The cloud hits this line with probability zero, for a line has no
# area; the line always does. So among the supports that hold $z$, those of the **lowest rank** own it, and only they are
# compared by density, with $r$ and units in common:
#
# $$E[t\mid z]=\frac{\sum_{k\in K(z)}\pi_k\,\mathcal N(z;\mu_k,\Sigma_k)\,t_k}{\sum_{k\in K(z)}\pi_k\,\mathcal N(z;\mu_k,\Sigma_k)},
# \qquad K(z)=\{\text{components of lowest rank on whose support } z \text{ lies}\}.$$
#
# Give the line a width again to see how it comes about.

# %%
distance = torch.linspace(-0.15, 0.15, 1201)
axes = (drawing := le.figures.figure(6.4, 2.8)).subplots()
for width in (0.1, 0.01, 0.001):
    factor = torch.stack([squeezed(width).factor, cloud.factor])
    thick = MixtureOnSubspaces(prior, DegenerateNormal(torch.zeros(2), factor))
    axes.plot(distance, thick.posterior(distance[:, None] * across)[:, 0], label=f"width {width}")
axes.plot(0, 1, "o", color="black", label="width 0")
axes.set(xlabel="distance of z to the line", ylabel="P(line | z)")
axes.legend()
le.figures.picture(
    drawing, alt="As the line gets thinner, its posterior rises to 1 at distance 0, falls to 0 elsewhere."
)

# %% [markdown]
# A thinner line claims fewer points, each with more certainty. At width 0 it owns its own points and no other.
#
# Is the rule the best there is? Hide a value $t$ behind each of three components, two of them on the same line, and
# guess it from $z$. The best guess leaves an error without bias. The rival compares the densities of *all* supports
# that hold $z$.

# %% tags=["claim"] claim="01-the-rule-is-unbiased"
# NBVAL_CHECK_OUTPUT
factors = torch.stack([line.factor, 0.2 * line.factor, cloud.factor])
three = MixtureOnSubspaces(torch.tensor([0.2, 0.2, 0.6]), DegenerateNormal(torch.zeros(2), factors))
t, (z, k) = torch.tensor([0.0, 1.0, 2.0]), three.sample((20_000,), generator=generator)
bias, rival = {}, (three.probabilities.log() + three.components.log_prob(z[:, None])).softmax(-1)
for name, weights in {"lowest rank": three.posterior(z), "all densities": rival}.items():
    error = t[k] - weights @ t
    bias[name] = error.mean() / error.std() * math.sqrt(len(error))
    print(f"{name:<13} mean squared error {error.square().mean():.3f}, bias {bias[name]:+.1f} standard errors")
assert abs(bias["lowest rank"]) < 4 and abs(bias["all densities"]) > 10
assert torch.equal(three.admissible(z), three.same_support()[k])

# %% [markdown]
# The rival's error can be foretold, so it is not the best guess. The last line asserts one thing more, which makes the
# rule cheap: the components that a sample of $k$ admits are those with the **same support** as $k$. They can be grouped
# once, before any query is seen. For the windows of the mask, the
# groups are the visible patterns; the next cell counts them.
#
# Then play: turn the line off the query, lower its rank to 0, raise it to 2. Which rank puts the prior (under *More*)
# back into the game?

# %% tags=["claim"] claim="01-windows-group-by-visible-pattern"
# NBVAL_CHECK_OUTPUT
same = MixtureOnSubspaces(torch.ones(144), windows).same_support()
patterns = le.extract_patches(mask[None, None].double(), 3)[0]
print(f"{len(same)} windows, {len(same.unique(dim=0))} supports, largest group {same.sum(1).max()} windows")
assert torch.equal(same, (patterns[:, None] == patterns).all(-1))

# %% tags=["explorable"]
le.ui.explorables.degenerate_gaussians.who_owns_the_point()

# %% [markdown]
# ## What we saw
#
# * A Gaussian of rank $r$ has a density on its support, per unit of $r$-dimensional volume: pseudo-inverse,
#   pseudo-determinant, and 0 elsewhere.
# * $By$ given $x$ is such a Gaussian, with factor $\sigma B$. Densities of different rank have different units.
# * Where supports meet, the lowest rank owns the point; only equal supports compete, and they can be grouped in advance.

# %% [markdown] tags=["exercise", "hint"] exercise="01-pseudo-determinant" minutes=4
# ## Exercises
#
# ### Exercise 1: the volume of something flat
#
# Write `log_pdet(factor)`: the logarithm of the pseudo-determinant of `factor @ factor.T`, for a factor of any shape and
# rank.
#
# <details><summary>Hint</summary>
#
# The eigenvalues of $QQ^\top$ are the squares of the singular values of $Q$. Which of them count?
#
# </details>

# %% tags=["exercise"] exercise="01-pseudo-determinant" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
import torch

from lemmse.exercises import Exercise
from lemmse.gaussians import DegenerateNormal

exercise = Exercise(
    "01-pseudo-determinant",
    expected=lambda factor: DegenerateNormal(factor[:, 0], factor).log_pdet,
    inputs=[(torch.tensor(q).double(),) for q in ([[3], [4]], [[2, 2], [2, 2]], [[1, 0], [0, 3], [0, 0]])],
    mistakes={
        "That is the determinant: a zero eigenvalue makes it 0. Leave the zeros out.": lambda q: torch.logdet(q @ q.T),
        "Those are the singular values of the factor; the eigenvalues of the covariance are their squares.": (
            lambda q: (s := torch.linalg.svdvals(q))[s > 1e-6 * s.max()].log().sum()
        ),
        "That is the pseudo-determinant; its logarithm is asked for.": (
            lambda q: (s := torch.linalg.svdvals(q))[s > 1e-6 * s.max()].square().prod()
        ),
    },
    why="The zeros are left out, and each singular value counts twice.",
)


# %% tags=["exercise"] exercise="01-pseudo-determinant"
def log_pdet(factor):
    return ...


exercise.check(log_pdet)

# %% [markdown] tags=["solution"] exercise="01-pseudo-determinant"
# <details><summary>Solution</summary>
#
# ```python
# def log_pdet(factor):
#     s = torch.linalg.svdvals(factor)
#     return 2 * s[s > 1e-10 * s.max()].log().sum()
# ```
# One cutoff, relative to the largest, decides what is zero; and the logarithm of an empty product is 0.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="01-pseudo-determinant"
# <details><summary>Three wrong turns</summary>
#
# The determinant itself:
# ```python
# def log_pdet(factor):
#     return (factor @ factor.T).det().log()
# ```
# The square forgotten:
# ```python
# def log_pdet(factor):
#     s = torch.linalg.svdvals(factor)
#     return s[s > 1e-10 * s.max()].log().sum()
# ```
# The logarithm forgotten:
# ```python
# def log_pdet(factor):
#     values = torch.linalg.eigvalsh(factor @ factor.T)
#     return values[values > 1e-5 * values.max()].prod()
# ```
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="01-dimension" minutes=3
# ### Exercise 2: how flat is inpainting?
#
# A 28×28 image is measured with noise on every pixel. $B$ keeps it, but sets the central 15×15 square to 0. How many
# dimensions has the support of $By$ given $x$?
#
# <details><summary>Hint</summary>
#
# In which directions can $By$ still move when the noise changes?
#
# </details>

# %% tags=["exercise"] exercise="01-dimension" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import lemmse as le
from lemmse.exercises import Exercise

visible = int(le.center_mask(28, 28, side=15).sum())
exercise = Exercise(
    "01-dimension",
    expected=visible,
    rtol=1e-6,
    mistakes={
        "The noise falls on all 784 pixels, but B erases it on the hidden ones.": 784,
        "That is how many directions are lost: the dimension of the kernel of B.": 784 - visible,
        "Each hidden pixel removes one dimension, so it is the area of the square that counts, not its side.": 784 - 15,
    },
    why="One dimension per visible pixel.",
)

# %% tags=["exercise"] exercise="01-dimension"
dimensions = ...

exercise.check(dimensions)

# %% [markdown] tags=["solution"] exercise="01-dimension"
# <details><summary>Solution</summary>
#
# ```python
# dimensions = 28**2 - 15**2
# ```
# That is 559: the support is the subspace of images that vanish in the hole.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="01-dimension"
# <details><summary>Two wrong turns</summary>
#
# The noise fills everything:
# ```python
# dimensions = 28 * 28
# ```
# The hole instead of the rest:
# ```python
# dimensions = 15 * 15
# ```
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="01-who-owns-the-origin" minutes=4
# ### Exercise 3: who owns the origin?
#
# Five components in space: 0, a point mass at (1, 0, 0); 1, a Gaussian on the first axis; 2, one on the second axis; 3, one on
# the plane of both; 4, one that fills space. The query is the origin. Which are admissible? Answer with a set, such as
# `{0, 4}`.
#
# <details><summary>Hint</summary>
#
# First strike out the supports that do not hold the origin. Then look for the lowest rank among the rest.
#
# </details>

# %% tags=["exercise"] exercise="01-who-owns-the-origin" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
import torch

from lemmse.exercises import Exercise
from lemmse.gaussians import DegenerateNormal, MixtureOnSubspaces

e = torch.eye(3)
factors = [0 * e, torch.diag(e[0]), torch.diag(e[1]), torch.diag(e[0] + e[1]), e]
parts = DegenerateNormal(torch.stack([e[0], *4 * [0 * e[0]]]), torch.stack(factors))
admissible = MixtureOnSubspaces(torch.ones(5), parts).admissible(torch.zeros(3))
exercise = Exercise(
    "01-who-owns-the-origin",
    expected=set(admissible.nonzero().flatten().tolist()),
    mistakes={
        "All four supports hold the origin, but the plane and space hit the axes with probability 0.": {1, 2, 3, 4},
        "A point mass has the lowest rank of all, but the origin is not its point.": lambda a: 0 in a,
        "The two axes have the same rank, and both hold the origin.": lambda a: set(a) in ({1}, {2}),
        "The plane holds it, but so do the axes, of lower rank.": {3},
        "Both axes hold it, and their rank is the lowest there: nothing of higher rank is admitted beside them.": (
            lambda a: set(a) & {1, 2} and set(a) & {3, 4}
        ),
        "The highest rank holds the most points, and gives each of them the least.": lambda a: set(a) in ({4}, {3, 4}),
    },
    why="Both axes hold it, with rank 1; they share it by prior and density.",
)

# %% tags=["exercise"] exercise="01-who-owns-the-origin"
admitted = ...

exercise.check(admitted)

# %% [markdown] tags=["solution"] exercise="01-who-owns-the-origin"
# <details><summary>Solution</summary>
#
# ```python
# admitted = {1, 2}
# ```
# A query at a crossing is the exception: no sample of either axis falls there, almost surely. That is why grouping by
# equal supports is enough in practice.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="01-who-owns-the-origin"
# <details><summary>Three wrong turns</summary>
#
# Everything that holds the origin:
# ```python
# admitted = {1, 2, 3, 4}
# ```
# The lowest rank, wherever it is:
# ```python
# admitted = {0}
# ```
# The largest support:
# ```python
# admitted = {4}
# ```
#
# </details>

# %% [markdown]
# ## Where it stands
#
# In the paper (arXiv 2601.10334) this is the ground under all three estimators: $By$ given a training image is the flat
# Gaussian of section 2, and the best estimator is the conditional mean of section 4. In the code it is
# [S2](../docs/statements.md), in `lemmse.gaussians`. [Notebook 02](02_mlp_memorization.ipynb) needs one support only, the image of $B$. Small windows
# bring back the many supports of the mask, in notebook 04.
