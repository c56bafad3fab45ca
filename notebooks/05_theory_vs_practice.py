# %% [markdown]
# # 05 · Does the formula predict a trained CNN?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/05_theory_vs_practice.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/05_theory_vs_practice.ipynb)
#
# Notebook 04 wrote down the best function of a window: a weighted mean of the centres of all training windows. That is
# what a CNN *should* compute, if training were perfect. Training is some hundred steps of gradient descent. **Does the
# formula predict what comes out?** About 40 minutes:
#
# * [Every answer pays for its distance](#Every-answer-pays-for-its-distance)
# * [A floor that needs no truth](#A-floor-that-needs-no-truth)
# * [Two curves](#Two-curves)
# * [Which is which?](#Which-is-which?)
# * [Is it this formula?](#Is-it-this-formula?)
# * [Networks that ship](#Networks-that-ship)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown] tags=["predict"]
# ## Every answer pays for its distance
#
# The formula $\hat x$ is the mean of the true pixel, given its window. So the error $\hat x-x$ is uncorrelated with
# whatever can be computed from that window, and for *every* function $f$ of windows
#
# $$\underbrace{E\,(f-x)^2}_{\text{training loss}}=\underbrace{E\,(\hat x-x)^2}_{\text{risk of the formula}}
# +\underbrace{E\,(f-\hat x)^2}_{\text{distance to the formula}}$$
#
# over training images and noise: Pythagoras (S5.3). Below are fifty garments, $\sigma=0.4$, and windows of $5\times5$.
#
# **Predict.** Of these functions, which loses least: the pixel as measured, the mean of its window, the median, or a
# network that never was trained?

# %%
import torch

import lemmse as le
from lemmse.networks import PatchMLP, Preconditioning

torch.set_num_threads(1)  # for problems this small, threads would only wait for one another


def seed(number):
    return torch.Generator().manual_seed(number)


def mse(a, b):
    return (a - b).square().mean().item()


# %% tags=["claim"] claim="05-excess-is-distance"
# NBVAL_CHECK_OUTPUT
images, unseen, Id = le.data.fashion_mnist("train", count=50), le.data.fashion_mnist("test", count=130), le.Denoising()
sigma, formula = 0.4, le.LocalEquivariantMMSE(images, Id, patch_size=5)
y = images + sigma * torch.randn(images.shape, generator=seed(0))
moments = formula(y, sigma=sigma, reduction=le.PosteriorMoments())
x_hat, risk, windows = moments.mean, mse(moments.mean, images), le.patches.extract_patches(y, 5)
net = PatchMLP(1, 5, width=64, depth=2, preconditioning=Preconditioning.of(images, Id), generator=seed(1)).eval()
le.networks.check_receptive_field(net, (1, 28, 28))  # 5 × 5, all of it and nothing else
answers = {"the pixel": windows[..., 12], "the mean": windows.mean(-1), "the median": windows.median(-1).values}
answers["untrained"] = net(y, sigma).detach()
for name, answer in answers.items():
    loss, distance = mse(answer.view(y.shape), images), mse(answer.view(y.shape), x_hat)
    print(f"{name:10}: loss {loss:.3f}, less the risk {loss - risk:.3f}; distance {distance:.3f}")
    assert abs(loss - risk - distance) < 0.03 * distance

# %% [markdown]
# What a function loses beyond the formula *is* its distance to the formula; the third digit is chance. There are two
# ways out. On images that it was not made from, the formula promises nothing; we shall see. And a function that sees
# *more* than the window may lose less, such as the formula of 02, which sees whole images:

# %% tags=["claim"] claim="05-seeing-more-loses-less"
# NBVAL_CHECK_OUTPUT
whole = le.MMSE(images, Id)(y, sigma=sigma).mean
print(f"sees the whole image: loss {mse(whole, images):.3f}, less the risk {mse(whole, images) - risk:.3f}")
assert mse(whole, images) < 0.1 * risk

# %% [markdown] tags=["predict"]
# ## A floor that needs no truth
#
# **Predict.** So the risk is a floor under every training loss. Can it be known before any network is trained, from
# measurements alone, without looking at the truth?

# %% tags=["claim"] claim="05-floor-is-posterior-variance"
# NBVAL_CHECK_OUTPUT
print(f"posterior variance {moments.variance.mean():.3f}, risk {risk:.3f}")
assert abs(moments.variance.mean().item() / risk - 1) < 0.05
squares = {"posterior variance": moments.variance[:4], "squared error": (x_hat - images)[:4].square()}
maps = {name: le.figures.HeatMap(values, low=0, high=0.1) for name, values in squares.items()}
le.figures.show({"x": images[:4], "y": y[:4], "x_hat": x_hat[:4]} | maps, size=112)

# %% [markdown] tags=["predict"]
# It can: the weights that average the colours also say how much these disagree. Where they do, at edges and prints, the
# formula errs, and so will anyone who sees one window.
#
# ## Two curves
#
# Now train: each step draws 2048 windows with fresh noise and minimises the squared error. The network is never shown
# the formula. Every now and then we stop and measure, on the same fifty noisy images, its loss and its distance to the
# formula.
#
# **Predict.** After which step would you say, from the loss alone, that training is over?

# %%
new = unseen[:12]
y_new = new + sigma * torch.randn(new.shape, generator=seed(3))
marks, curves, early = (1, 3, 10, 30, 60, 100, 200, 300, 400), [], {}
how = {"steps": 400, "batch_size": 2048, "crop": 1, "sigmas": (sigma, sigma), "generator": seed(2)}
for record in le.training.train(net, images, Id, **how):
    if record.step + 1 in marks:
        with torch.no_grad():
            answer, early[record.step + 1] = record.network(y, sigma), record.network(y_new, sigma)
        curves.append((mse(answer, images), mse(answer, x_hat)))
losses, distances = torch.tensor(curves).T

# %% tags=["claim"] claim="05-two-curves-are-one"
# NBVAL_CHECK_OUTPUT
excess = losses - risk
figure = le.figures.figure(7.0, 3.6)
axes = figure.add_subplot()
axes.loglog(marks, losses, "o-", color="black", label="training loss")
axes.axhline(risk, color="black", linestyle=":", label="risk of the formula")
axes.loglog(marks, distances, "-", color=le.figures.COLOURS[1], linewidth=5, alpha=0.4, label="distance to the formula")
axes.loglog(marks, excess, "o", color=le.figures.COLOURS[0], label="training loss less risk")
axes.set(xlabel="steps", ylabel="mean square")
axes.legend()
assert ((excess - distances).abs() < 0.15 * distances).all()
assert distances[-1] < min(distances[0] / 30, 0.75 * distances[5])  # and after step 100 a quarter more is gone
alt = "The loss falls and flattens at the risk. Loss less risk and distance fall together, and go on falling."
le.figures.picture(figure, alt=alt)

# %% [markdown]
# One curve, drawn twice: the dots know truth and risk, the band knows only the formula. From the loss alone, training
# seems over after a hundred steps. It is not: what is left above the floor goes on shrinking, and now we know towards
# *what*. This is the use of a formula: it tells "not trained enough" from "cannot be done better".

# %% [markdown] tags=["predict"]
# ## Which is which?
#
# Garments that neither has seen.
#
# **Predict.** A and B: one is the trained network, one the formula. Which?

# %% tags=["claim"] claim="05-nearer-to-one-another-than-to-the-truth"
# NBVAL_CHECK_OUTPUT
psnr, by_net, x_hat_new = le.metrics.psnr, early[400], formula(y_new, sigma=sigma).mean
match, truth = psnr(by_net, x_hat_new), psnr(x_hat_new, new)
assert (match > truth + 4).all() and match.mean() > 25
print(f"nearer to one another than the formula is to the truth: {(match > truth).sum()} of {len(new)} garments")
le.figures.show(x=new[:4], y=y_new[:4], A=by_net[:4], B=x_hat_new[:4], size=112, notes={"y": "", "A": "", "B": ""})

# %% [markdown]
# A is the network. It shares even the mistakes: prints that the formula loses, the network loses too, and where one
# tears a hole, so does the other. Who is nearer to the *truth* of these unseen garments? Here Pythagoras is silent, and
# what sets the network apart from its formula may help or hurt:

# %% tags=["claim"] claim="05-on-unseen-images-either-may-win"
# NBVAL_CHECK_OUTPUT
gains = psnr(by_net, new) - truth
assert gains.min() < 0 < gains.max() and gains.abs().max() < 1
print("on some garments the network is nearer to the truth, on others the formula, by less than 1 dB")

# %% [markdown]
# How did the network get there? One of the garments, as averaged weights draw it after 10, 30, 60 and 400 steps, with
# the PSNR *against the formula*, and what differs at last:

# %%
shown = {"formula": x_hat_new[2:3]} | {f"{step} steps": early[step][2:3] for step in (10, 30, 60, 400)}
shown["400 steps − formula"] = le.figures.SignedMap((by_net - x_hat_new)[2], limit=0.3)
le.figures.show(shown, reference="formula")

# %% [markdown] tags=["predict"]
# ## Is it this formula?
#
# Perhaps any good denoiser would have been as near. Rivals: the formula with other windows, or made from 50 other
# garments; the global formulas of 02 and 03; the truth itself.
#
# **Predict.** Which rival comes nearest?

# %% tags=["claim"] claim="05-its-own-formula-predicts-it-best"
# NBVAL_CHECK_OUTPUT
others = le.data.fashion_mnist("train", count=100)[50:]
rivals = {f"windows of {p} × {p}": le.LocalEquivariantMMSE(images, Id, patch_size=p) for p in (3, 5, 7)}
rivals["5 × 5, other garments"] = le.LocalEquivariantMMSE(others, Id, patch_size=5)
rivals |= {"whole images, shifted (03)": le.EquivariantMMSE(images, Id), "whole images (02)": le.MMSE(images, Id)}
near = {name: psnr(by_net, rival(y_new, sigma=sigma).mean).mean().item() for name, rival in rivals.items()}
near["the truth"] = psnr(by_net, new).mean().item()
ranked = sorted(near, key=near.get, reverse=True)
print("nearest first:", *ranked, sep="\n  ")
assert ranked[0] == "windows of 5 × 5"

# %%
figure = le.figures.figure(7.0, 2.8)
axes = figure.add_subplot()
axes.plot([near[name] for name in ranked[::-1]], ranked[::-1], "o")
axes.set(xlabel="PSNR of the network against it (dB), unseen garments")
le.figures.picture(figure, alt=f"From the nearest on: {', '.join(f'{name} {near[name]:.0f} dB' for name in ranked)}.")

# %% [markdown]
# Its own formula comes nearest. Another *window* costs more than five decibels, other *garments* only one: fifty garments
# hold most windows that fifty others hold. What a network sees decides more than what it has seen. (With large windows
# that is different: 06.)
#
# ## Networks that ship
#
# All this was one window, one operator, one noise level. The package brings networks that were trained for minutes and
# are told the noise level. Each has a card: the images, operator and pre-inverse it was trained for (1000 images, unless
# a D in its name says otherwise), and from them its formula is rebuilt. PSNR of network against formula, in dB, on test
# images, by noise level:

# %%
cards = le.pretrained.cards()
print(f"{'':52}", *(f"{s:5g}" for s in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)))
for card in cards:
    measured = card.psnr.get("test", {}).values()
    print(f"{card.name:52}", *(f"{db:5.1f}" for db in measured), "" if measured else "not measured yet")

# %% [markdown]
# Read it along the lines: more noise, more windows that share the weight, a smoother function, a closer match. The hard
# cases are little noise, where the answer jumps from one window to another, and windows with holes for $B=\mathrm{Id}$.
# Notebook 06 asks why. Three architectures, one formula, at $\sigma=0.2$:

# %% tags=["claim"] claim="05-shipped-networks-match"
# NBVAL_CHECK_OUTPUT
prefix, x, e = "fashion_mnist-denoising-", unseen[[58, 120]], torch.randn(2, 1, 28, 28, generator=seed(4))
names = [card.name for card in cards if card.name.startswith(prefix) and card.name.endswith("-p5")]
nets = [le.pretrained.load(name)[0] for name in names]
thousand = le.pretrained.load(names[0])[1].estimator(memory_limit=2**26)
matches = {}
for s in (1.0, 0.2):
    best = thousand(x + s * e, sigma=s).mean
    with torch.no_grad():
        found = [net(x + s * e, s) for net in nets]
    matches[s] = torch.stack([psnr(each, best).mean() for each in found])
    assert (matches[s] > 25).all() and (matches[s] > psnr(best, x).mean() + 2).all()
    print(f"σ = {s:g}: every architecture has 25 dB or more, and is nearer to the formula than that is to the truth")
assert (matches[1.0] > matches[0.2]).all()
del thousand  # what it prepared from 1000 images

# %%
shown = {"x": x[:1], "y": x[:1] + s * e[:1], "formula": best[:1]}
kinds = [name.removeprefix(prefix).removesuffix("-p5") for name in names]
shown |= {kind: each[:1] for kind, each in zip(kinds, found)}
shown |= {f"{kind} − formula": le.figures.SignedMap((each - best)[0], limit=0.2) for kind, each in zip(kinds, found)}
le.figures.show(shown, reference="formula", columns=3, notes={"x": "", "y": ""})

# %% [markdown]
# Now all others. Below the comparison, ask for the sources of any pixel of the formula: no window of the network is
# stored anywhere, and yet it answers with their mean.

# %% tags=["explorable"]
explorable = le.ui.explorables.theory_vs_practice.theory_vs_practice()
explorable

# %% [markdown]
# ## What we saw
#
# * Whatever sees windows loses the formula's risk *plus* its squared distance to the formula: training can only go to the
#   formula, and the loss above the floor says how far it still is.
# * A small network trained in seconds is nearer to its formula than either is to the truth, on images that neither has
#   seen, and it shares the formula's mistakes.
# * The match is with *this* formula, with the network's own window. It is closer where there is more noise, and it is
#   not perfect: the table says where.
#
# ## Where this stands in the paper
#
# The experiment of arXiv 2601.10334 that tests its theorem: networks and formulas agree to about 25 dB or more. The
# identity is S5.3, the protocol S11 in the package's docstrings; `python scripts/theory_vs_practice.py` writes all
# tables, with intervals. Next, in 06: where does it stop?
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="05-two-losses" minutes=3
# ### Exercise 1: from two losses
#
# A CNN has a training loss of 0.016 at some noise level; the formula of its window has a risk of 0.015. What is the
# PSNR of network against formula, in dB, on the noisy training images?
#
# <details><summary>Hint</summary>
#
# PSNR is $-10\log_{10}$ of a mean square. Of which?
#
# </details>

# %% tags=["exercise"] exercise="05-two-losses" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
from lemmse.exercises import Exercise

exercise = Exercise(
    "05-two-losses",
    expected=30.0,
    mistakes={
        "That is the PSNR of the network against the truth.": 17.959,
        "That compares the excess with the risk; the peak is 1.": 11.761,
        "A PSNR takes 10, not 20, times the logarithm of a mean square.": 60.0,
        "A small difference is a high PSNR: mind the sign.": -30.0,
        "That is the difference of two PSNRs.": lambda answer: 0.2 < abs(answer) < 0.35,
    },
    why="The distance is 0.016 − 0.015 = 0.001.",
)

# %% tags=["exercise"] exercise="05-two-losses"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="05-two-losses"
# <details><summary>Solution</summary>
#
# ```python
# answer = 30.0
# ```
# The loss above the risk is the mean square of the difference, $10^{-3}$.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="05-two-losses"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 17.959
# ```
# is network against truth. And
#
# ```python
# answer = 0.28
# ```
# is the difference of two PSNRs, 18.24 and 17.96 dB: squares add up, decibels do not.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="05-floor" minutes=6
# ### Exercise 2: the floor of one pixel
#
# The formula answers a pixel with the mean of colours `c`, (k,), under weights `w`, (k,), which add up to 1. Write
# `floor(w, c)`: the mean squared error that it expects of itself there.
#
# <details><summary>Hint</summary>
#
# The true colour is `c[j]` with probability `w[j]`. What is answered, and how far is that off?
#
# </details>

# %% tags=["exercise"] exercise="05-floor" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import torch

from lemmse.exercises import Exercise

draw = torch.Generator().manual_seed(0)
cases = [(torch.rand(k, generator=draw).softmax(0), torch.rand(k, generator=draw)) for k in (3, 8)]
cases.append((torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.7])))
exercise = Exercise(
    "05-floor",
    expected=lambda w, c: (w * (c - (w * c).sum()).square()).sum(),
    inputs=cases,
    mistakes={
        "That is the standard deviation; the floor is a mean square.": (
            lambda w, c: (w * (c - (w * c).sum()).square()).sum().sqrt()
        ),
        "All colours count the same there: weigh them.": lambda w, c: c.var(correction=0),
        "That is the second moment: the answer is the mean, not black.": lambda w, c: (w * c.square()).sum(),
        "That is the answer itself, not its error.": lambda w, c: (w * c).sum(),
        "Deviations from the mean cancel; square them before you add.": lambda w, c: (w * (c - (w * c).sum())).sum(),
    },
    why="It is the variance of the colours under the weights.",
)


# %% tags=["exercise"] exercise="05-floor"
def floor(w, c):
    return ...


exercise.check(floor)

# %% [markdown] tags=["solution"] exercise="05-floor"
# <details><summary>Solution</summary>
#
# ```python
# def floor(w, c):
#     return (w * c.square()).sum() - (w * c).sum().square()
# ```
# The mean over all pixels is the risk.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="05-floor"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def floor(w, c):
#     return c.var(correction=0)
# ```
# forgets the weights. And
#
# ```python
# def floor(w, c):
#     return (w * c.square()).sum()
# ```
# is the error of answering black.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="05-another-goal" minutes=4
# ### Exercise 3: another goal?
#
# Which change makes a perfectly trained network compute *another* function of its windows? `"a"`: losses at small noise
# count ten times. `"b"`: absolute instead of squared errors. `"c"`: another optimiser. `"d"`: three times as many
# weights.
#
# <details><summary>Hint</summary>
#
# Pythagoras holds at each noise level by itself. For which loss is the mean the best answer?
#
# </details>

# %% tags=["exercise"] exercise="05-another-goal" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "05-another-goal",
    expected="b",
    choices=("a", "b", "c", "d"),
    mistakes={
        "The network is told σ, and at each σ the formula is best: weights change the way, not the goal.": "a",
        "An optimiser changes how fast, and whether, the goal is reached.": "c",
        "More weights come nearer to the goal; it is the best of all functions of a window already.": "d",
    },
    why="Absolute errors ask for the median of the colours under the weights, squared ones for their mean.",
)

# %% tags=["exercise"] exercise="05-another-goal"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="05-another-goal"
# <details><summary>Solution</summary>
#
# ```python
# answer = "b"
# ```
# The best answer would be the weighted *median*.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="05-another-goal"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = "a"
# ```
# changes the loss, not where it is smallest. And
#
# ```python
# answer = "d"
# ```
# helps to get there.
#
# </details>
