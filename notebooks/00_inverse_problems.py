# %% [markdown]
# # 00 · What does a perfectly trained network compute?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/00_inverse_problems.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/00_inverse_problems.ipynb)
#
# A network learns to turn bad pictures into good ones. Suppose that training succeeds completely: the loss is as small
# as it can be. **What does the network compute then?** For a finite training set the answer is an exact formula, to run
# and to poke at.
#
# *The map.* 00–02: a network that may learn any function. 03–04: a convolutional network, which treats all places alike
# and sees one window at a time. 05–06: trained networks against the formula. 07–08: guarantees, and an unknown blur.
# 09: everything on one page.
#
# This is the start. It takes about 35 minutes:
#
# * [A measurement](#A-measurement)
# * [What is lost](#What-is-lost)
# * [What could the image have been?](#What-could-the-image-have-been?)
# * [Mode or mean](#Mode-or-mean)
# * [Real images](#Real-images)
# * [A perfectly trained network](#A-perfectly-trained-network)
# * [In three lines](#What-we-saw), [exercises](#Exercises), [the paper](#Where-this-stands-in-the-paper)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown]
# ## A measurement
#
# No camera hands us the image $\bar x$ itself. It hands us
#
# $$y = A\bar x + e,\qquad e\sim\mathcal N(0,\sigma^2\,\mathrm{Id}),$$
#
# where the operator $A$ is known and the noise $e$ is not. Four operators, and what comes out of them for an image of
# shape $(c,h,w)$:

# %%
# NBVAL_CHECK_OUTPUT
import torch
import lemmse as le

x, other = le.data.photo_crops("train", size=72, count=441)[[218, 440]].split(1)
operators = {
    "denoising": le.Denoising(),
    "inpainting": le.Inpainting(le.center_mask(72, 72, side=25)),
    "deblurring": le.Blur(le.optics.gaussian_psf(1.0, size=9)),
    "downsampling": le.Downsampling(4, le.optics.gaussian_psf(2.0, size=13)),
}
print({name: tuple(A.A(x).shape[1:]) for name, A in operators.items()})

# %% [markdown]
# One photograph, measured four times with the same noise ($\sigma=0.05$; white is 1). Below each measurement is the
# classic cure: the pseudo-inverse $A^+y$, which among the images that explain $y$ best has the smallest norm.

# %%
generator = torch.Generator().manual_seed(0)
clean = {name: A.A(x) for name, A in operators.items()}
y = {name: c + 0.05 * torch.randn(c.shape, generator=generator) for name, c in clean.items()}
measured = le.figures.show({"x": x} | y)
cured = le.figures.show({"x": x} | {f"A⁺y, {name}": A.A_dagger(y[name]) for name, A in operators.items()})
le.figures.stack([measured.figure, cured.figure], alt=f"Above: {measured.alt} Below: {cured.alt}")

# %% [markdown] tags=["predict"]
# Above, four troubles: grain, a hole, softness, a sixteenth of the numbers. The cure cures none: grain and hole stay,
# the small picture comes back blotched, and deblurring ends in a storm.
#
# ## What is lost
#
# An operator can be *blind*: it misses the part $(\mathrm{Id}-A^+A)u$ of an image $u$. Or it is *short-sighted*: it
# sees a part so dimly that undoing $A$ blows up the noise.
#
# **Predict.** Could a different picture give *exactly* the same noise-free $y$ as our photograph? Under which of the
# four operators?

# %%
# NBVAL_CHECK_OUTPUT
for name, A in operators.items():
    print(f"{name:13} sees {le.operators.rank(A, x.shape[1:]):5} of {x.numel()} directions")
print(f"deblurring dims one of them {operators['deblurring'].gram_symbol(72, 72).min().rsqrt():.0f} times")


# %% tags=["claim"] claim="00-twins-measure-alike"
def twin(A):
    """Join what A sees of x and what A does not see of the other photograph."""
    return A.A_dagger(A.A(x)) + other - A.A_dagger(A.A(other))


twins = {name: twin(operators[name]) for name in ("inpainting", "downsampling")}
assert all(torch.allclose(operators[name].A(twins[name]), operators[name].A(x), atol=1e-4) for name in twins)
le.figures.show({"x": x, "other": other} | {f"twin, {name}": image for name, image in twins.items()})

# %% [markdown]
# Wherever directions are missing, twins exist: a hole can hide another picture, downsampling all fine detail. No
# cleverness with $y$ alone can tell $x$ from its twins. We must know something about images.
#
# ## What could the image have been?
#
# All that training tells about images is the training set $x_1,\dots,x_D$. Take it literally: before measuring, each of
# the $D$ images is equally likely, and nothing else is possible. This is the *empirical prior*. After measuring, Bayes'
# rule gives image $d$ the weight
#
# $$w_d\propto e^{-r_d^2/2\sigma^2},\qquad r_d=\|y-Ax_d\|,\qquad \textstyle\sum_d w_d=1.$$
#
# One answer must be given. *MAP* takes the image with the largest weight, *MMSE* the mean $\hat x=\sum_dw_dx_d$.
#
# ## Mode or mean
#
# The smallest world: two images of one pixel, black ($-1$) and white ($+1$), and noise $\sigma=0.9$.
#
# **Predict.** We measure $y=0.3$. Which answer is right most often? Which has the smallest squared error on average?


# %%
# NBVAL_CHECK_OUTPUT
def posterior(images, physics, y, sigma):
    """Return the weights of all images, the mode (MAP) and the mean (MMSE)."""
    squared_distances = (physics.A(images) - y).flatten(1).square().sum(1)  # r_d², shape (D,)
    weights = torch.softmax(-squared_distances / (2 * sigma**2), dim=0)
    x_map = images[squared_distances.argmin()]
    x_mmse = torch.einsum("d,dchw->chw", weights, images)
    return weights, x_map, x_mmse


world, sigma = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), 0.9
weights, x_map, x_mmse = posterior(world, le.Denoising(), 0.3, sigma)
print(f"black {weights[0]:.3f}, white {weights[1]:.3f}; MAP {x_map.item():.0f}, MMSE {x_mmse.item():.3f}")

# %%
ys, guesses = torch.linspace(-3, 3, 240), torch.linspace(-1.3, 1.3, 261)
answers = torch.stack([torch.cat(posterior(world, le.Denoising(), y, sigma)[1:]).flatten() for y in ys])
price = weights[0] * (guesses + 1) ** 2 + weights[1] * (guesses - 1) ** 2
figure = le.figures.figure(7.6, 2.8)
left, right = figure.subplots(1, 2)
left.plot(ys, answers, label=["MAP, the mode", "MMSE, the mean"])
left.set(xlabel="measured y", ylabel="answer")
left.legend(loc="lower right", fontsize=8)
right.plot(guesses, price, color="black")
for answer, colour in zip((x_map, x_mmse), le.figures.COLOURS):
    right.plot(answer.item(), price[(guesses - answer.item()).abs().argmin()], "o", color=colour)
right.set(xlabel="answer to y = 0.3", ylabel="expected squared error", ylim=(0, None))
le.figures.picture(figure, alt="Left: MAP jumps from -1 to 1 at y = 0, MMSE glides. Right: a parabola, lowest at MMSE.")

# %% [markdown]
# Left: MAP jumps; MMSE glides between black and white and is almost never either. Right: the price is a parabola, and
# the mean is its lowest point, as for *any* weights. For two points the mean is $\tanh(y/\sigma^2)$. Averaged over all
# $y$:

# %% tags=["claim"] claim="00-map-and-mmse-risk"
# NBVAL_CHECK_OUTPUT
assert torch.allclose(answers, torch.stack([ys.sign(), torch.tanh(ys / sigma**2)], dim=1), atol=1e-5)
z = torch.linspace(-8, 8, 2001, dtype=torch.float64)[:, None]  # the noise is σz, with density p
p = torch.exp(-(z**2) / 2) / torch.exp(-(z**2) / 2).sum()


def average(h):
    """Average h(x, y) over x = -1 and +1 and over the noise, by quadrature."""
    return sum((p * h(x, x + sigma * z)).sum().item() / 2 for x in (-1, 1))


risk_mmse = average(lambda x, y: (torch.tanh(y / sigma**2) - x) ** 2)
risk_map = 4 * torch.special.ndtr(torch.tensor(-1 / sigma)).item()  # wrong by 2 whenever the noise crosses zero
print(f"mean squared error: MAP {risk_map:.4f}, MMSE {risk_mmse:.4f}")
assert risk_mmse < risk_map

# %% [markdown]
# ## Real images
#
# Now the training set holds 2000 pieces of clothing, and the truth is a printed T-shirt that is *not* among them. Only
# 49 noisy numbers of it are measured. The package's `le.MMSE` computes what we wrote above; `le.TopSources(k)` asks it
# for the $k$ heaviest images.

# %% tags=["claim"] claim="00-package-agrees"
# NBVAL_CHECK_OUTPUT
images = le.data.fashion_mnist("train", count=2000)
shirt = le.data.fashion_mnist("test", count=1)
estimator = le.MMSE(images, operators["downsampling"])
y = operators["downsampling"].A(shirt) + 0.2 * torch.randn(1, 1, 7, 7, generator=generator.manual_seed(1))
x_hat = estimator(y, sigma=0.2).mean
heaviest = estimator(y, sigma=0.2, reduction=le.TopSources(5))
_, mode, mean = posterior(images, operators["downsampling"], y, 0.2)
torch.testing.assert_close(x_hat[0], mean, atol=1e-4, rtol=0)
torch.testing.assert_close(images[heaviest.image[0, 0]], mode)
print("the five heaviest weights:", [round(w, 2) for w in heaviest.weight[0].tolist()])
print(
    f"PSNR: MAP {le.metrics.psnr(mode[None], shirt).item():.1f} dB, MMSE {le.metrics.psnr(x_hat, shirt).item():.1f} dB"
)

# %%
le.figures.show({"x": shirt, "y": y, "x_hat MAP": mode, "x_hat MMSE": x_hat})

# %% [markdown] tags=["predict"]
# MAP is sharp, and wrong: it shows another shirt's print, with the full confidence of a photograph. MMSE bets on
# several shirts at once: softer, and nearer to the truth.
#
# **Predict.** What becomes of MMSE when the noise fades? When it drowns everything? Move the noise level and see. Then
# change the operator: which one makes the estimator hesitate first?

# %% tags=["explorable"]
explorable = le.ui.explorables.inverse_problems.inverse_problems()
explorable

# %% tags=["claim"] claim="00-little-noise-copies-much-noise-averages"
# NBVAL_CHECK_OUTPUT
sigmas = torch.tensor([0.01, 0.05, 0.2, 1.0, 1000.0])
moments = estimator(y.expand(5, -1, -1, -1), sigma=sigmas, reduction=le.PosteriorMoments())
print("effective number of images:", [round(n) for n in moments.entropy.exp().tolist()])
torch.testing.assert_close(moments.mean[0], mode, atol=1e-5, rtol=0)
torch.testing.assert_close(moments.mean[-1], images.mean(0), atol=1e-4, rtol=0)
names = explorable.controls["operator"].options
counts = {A: round(explorable.view(A, 0.2, "T-shirt").numbers["effective number of images"], 1) for A in names}
print("at σ = 0.2:", counts)
assert max(counts, key=counts.get) == "downsampling"

# %% [markdown] tags=["predict"]
# With little noise one image takes all the weight and MMSE *is* MAP: a copy of a training image. With much noise all
# weights become equal, and MMSE is the mean of the training set whatever was measured. The less $A$ sees, the sooner
# the weights spread: downsampling hesitates first.
#
# ## A perfectly trained network
#
# Training draws $x$ from the training set, makes $y=Ax+e$ with fresh noise, and lowers the loss
# $\mathbb E\|\varphi(y)-x\|^2$. For *every* function $\varphi$
#
# $$\mathbb E\|\varphi(y)-x\|^2=\mathbb E\|\hat x(y)-x\|^2+\mathbb E\|\varphi(y)-\hat x(y)\|^2 ,$$
#
# because $\hat x(y)$ is the mean of $x$ given $y$, so that the cross term vanishes. The middle term knows nothing of
# $\varphi$: the loss is smallest exactly where $\varphi=\hat x$. **A perfectly trained network that may be any function
# computes $\sum_dw_dx_d$.**
#
# **Predict.** A small network sees noisy black and white pixels and lowers its squared error. Nobody tells it of Bayes.
# Which of the two curves will it draw?

# %%
import copy

torch.set_num_threads(1)  # a network this small gains nothing from a second one
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).double()
optimiser, snapshots = torch.optim.Adam(network.parameters(), lr=0.005), {}
for step in range(1001):
    if step in (0, 20, 1000):
        snapshots[step] = copy.deepcopy(network)
    x = 2.0 * torch.randint(2, (256, 1), generator=generator).double() - 1
    y = x + sigma * torch.randn(256, 1, generator=generator)
    optimiser.zero_grad()
    (network(y) - x).square().mean().backward()
    optimiser.step()

# %%
figure = le.figures.figure(5.6, 3.0)
axes = figure.subplots()
axes.plot(ys, answers[:, 1], linewidth=6, alpha=0.35, color=le.figures.COLOURS[1], label="MMSE, the formula")
for (step, phi), style in zip(snapshots.items(), (":", "--", "-")):
    axes.plot(ys, phi(ys[:, None].double()).detach(), style, color="black", label=f"network, step {step}")
axes.set(xlabel="measured y", ylabel="answer")
axes.legend()
le.figures.picture(figure, alt="The network starts anywhere and ends on the MMSE curve after 1000 steps of training.")

# %% [markdown]
# It finds $\tanh(y/\sigma^2)$. And at every step the excess of its loss is its squared distance to the formula:

# %% tags=["claim"] claim="00-excess-loss-is-distance"
# NBVAL_CHECK_OUTPUT
for step, phi in snapshots.items():
    loss = average(lambda x, y, phi=phi: (phi(y) - x) ** 2)
    distance = average(lambda x, y, phi=phi: (phi(y) - torch.tanh(y / sigma**2)) ** 2)
    print(f"step {step:4}: loss {loss:.2f} = {risk_mmse:.2f} + squared distance {distance:.2f}")
    assert abs(loss - risk_mmse - distance) < 1e-6

# %% [markdown]
# Now the catch. Take denoising with very little noise, and two printed T-shirts: one from the training set, and the new
# one.

# %% tags=["claim"] claim="00-a-new-image-is-replaced"
# NBVAL_CHECK_OUTPUT
x = torch.cat([images[[230]], shirt])
y = x + 0.05 * torch.randn(x.shape, generator=generator)
perfect = le.MMSE(images, le.Denoising())(y, sigma=0.05).mean
(seen, new), (_, noisy) = le.metrics.psnr(perfect, x), le.metrics.psnr(y, x)
print(f"the new one: measured at {noisy:.1f} dB, returned at {new:.1f} dB")
assert seen > 60 and new < noisy - 10

# %%
notes = {"a perfect network": ["the same", f"PSNR {new:.1f} dB"]}
le.figures.show({"x": x, "y": y, "a perfect network": perfect}, notes=notes)

# %% [markdown]
# The image that it was trained on comes back flawless. The new one is thrown away and a plain one comes back, though
# its print was there to see; doing nothing would have been far better. That is what the lowest possible training loss
# asks for. The convolutional networks of this series do not do this. They cannot: a network that sees small windows, and
# treats all of them alike, cannot be this formula. The series is about the one that takes its place.
#
# ## What we saw
#
# * $A$ loses information, by blindness or by noise; only knowledge about images can replace it, and here that knowledge
#   is the training set.
# * MAP is the nearest training image, MMSE the weighted mean of all of them; the mean is the one best answer to squared
#   error.
# * A network with the smallest training loss computes that mean: with little noise, a copy of a training image.
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="00-duplicates" minutes=4
# ### Exercise 1: duplicates vote
#
# The black pixel ($-1$) is in the training set three times, the white one ($+1$) once; the noise is $\sigma=0.9$. So
# black has three votes. From which $y$ on is white the mode?
#
# <details><summary>Hint</summary>
#
# Black has the weight $3e^{-(y+1)^2/2\sigma^2}$. Where is it equal to that of white?
#
# </details>

# %% tags=["exercise"] exercise="00-duplicates" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
import math

from lemmse.exercises import Exercise

exercise = Exercise(
    "00-duplicates",
    expected=0.9**2 * math.log(3) / 2,
    mistakes={
        "That is where both are equally near; the three votes of black are missing.": 0.0,
        "Twice too far: (y + 1)² - (y - 1)² is 4y.": 0.9**2 * math.log(3),
        "σ enters squared.": 0.9 * math.log(3) / 2,
    },
    why="σ² ln(3) / 2: the votes shift the threshold, and the more so the less the measurement says.",
)

# %% tags=["exercise"] exercise="00-duplicates"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="00-duplicates"
# <details><summary>Solution</summary>
#
# ```python
# from math import log
#
# answer = 0.9**2 * log(3) / 2
# ```
# The squared distances differ by $4y$, so white wins once $4y/2\sigma^2>\ln 3$.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="00-duplicates"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 0.0
# ```
# forgets the votes. And
#
# ```python
# import math
#
# answer = 0.9**2 * math.log(3)
# ```
# loses a factor 2 in the difference of squares.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="00-another-loss" minutes=4
# ### Exercise 2: another loss
#
# Train with the *absolute* error $\mathbb E|\varphi(y)-x|$ instead. A world of three grey pixels, 0, 0.5 and 1; some
# $y$ gives them the weights 0.4, 0.35 and 0.25. What does a perfectly trained network answer now?
#
# <details><summary>Hint</summary>
#
# Move the answer a little to the right: the error grows for all the weight on its left and shrinks for all the weight
# on its right.
#
# </details>

# %% tags=["exercise"] exercise="00-another-loss" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
from lemmse.exercises import Exercise

exercise = Exercise(
    "00-another-loss",
    expected=0.5,
    mistakes={
        "That is the mean, which answers the squared error.": 0.425,
        "That is the mode, which is right most often.": 0.0,
        "That is the mean of the three pixels; their weights are missing, and the mean answers the squared error.": 1.0,
    },
    why="The median: as much weight on either side as can be.",
)

# %% tags=["exercise"] exercise="00-another-loss"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="00-another-loss"
# <details><summary>Solution</summary>
#
# ```python
# answer = 0.5
# ```
# The median. Change the loss and a perfect network computes something else: "the" solution of an inverse problem is a
# choice.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="00-another-loss"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 0.35 * 0.5 + 0.25 * 1
# ```
# is the mean. And
#
# ```python
# answer = 0.0
# ```
# is the mode.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="00-tweedie" minutes=6
# ### Exercise 3: a denoiser is a gradient
#
# In the black and white world, `score(y, sigma)` is the derivative of $\ln p_y(y)$, the log-density of the
# measurements. Write the MMSE denoiser with `y`, `sigma` and `score` alone: no image appears. (Diffusion models live on
# this formula, Tweedie's.)
#
# <details><summary>Hint</summary>
#
# The score of one Gaussian around $x_d$ is $(x_d-y)/\sigma^2$. The score of the mixture is the weighted mean of these.
#
# </details>

# %% tags=["exercise"] exercise="00-tweedie" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
import torch
from lemmse.exercises import Exercise


def score(y, sigma):
    """Return the derivative of the log-density of y, by automatic differentiation."""
    y = y.detach().requires_grad_()
    log_density = torch.logsumexp(-((y[:, None] - torch.tensor([-1.0, 1.0])) ** 2) / (2 * sigma**2), dim=1)
    return torch.autograd.grad(log_density.sum(), y)[0]


y = torch.tensor([-1.5, -0.2, 0.3, 0.8])
exercise = Exercise(
    "00-tweedie",
    expected=lambda y, sigma: torch.tanh(y / sigma**2),
    inputs=[(y, 0.9), (y, 1.5)],
    mistakes={
        "The step is missing a factor: compare the units of y and of the score.": lambda y, s: y + score(y, s),
        "The factor is the variance, not the standard deviation.": lambda y, s: y + s * score(y, s),
        "Downhill: the estimate climbs to where measurements are likelier.": lambda y, s: y - s**2 * score(y, s),
    },
    why="x̂ = y + σ² ∇ ln p(y).",
)


# %% tags=["exercise"] exercise="00-tweedie"
def denoise(y, sigma):
    return ...


exercise.check(denoise)

# %% [markdown] tags=["solution"] exercise="00-tweedie"
# <details><summary>Solution</summary>
#
# ```python
# def denoise(y, sigma):
#     return y + sigma**2 * score(y, sigma)
# ```
# The score is $\sum_dw_d(x_d-y)/\sigma^2=(\hat x-y)/\sigma^2$.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="00-tweedie"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def denoise(y, sigma):
#     return y + score(y, sigma)
# ```
# adds quantities of different units. And
#
# ```python
# def denoise(y, sigma):
#     return y - sigma**2 * score(y, sigma)
# ```
# walks downhill.
#
# </details>

# %% [markdown]
# ## Where this stands in the paper
#
# The theory follows arXiv 2601.10334, where $\sum_dw_dx_d$ is the estimator that an MLP would be ([S1 and
# S3](../docs/statements.md) in the package's docstrings). Its estimators for convolutional networks answer the same question, with the same loss and the
# same training set, over fewer functions. Next: 01 asks what becomes of the Gaussian noise when a map $B$ squeezes $y$
# before the network sees it.
