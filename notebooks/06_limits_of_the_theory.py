# %% [markdown]
# # 06 · Where does the formula stop predicting networks?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/06_limits_of_the_theory.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/06_limits_of_the_theory.ipynb)
#
# Notebook 05 found that a trained network is near its formula, mostly. **Where is it not, and who is right there?**
# About 45 minutes:
#
# * [Where windows are rare](#Where-windows-are-rare)
# * [Three regimes](#Three-regimes)
# * [How many images, how large a window?](#How-many-images,-how-large-a-window?)
# * [Who is nearer to the truth?](#Who-is-nearer-to-the-truth?)
# * [Stairs and ramps](#Stairs-and-ramps)
# * [Knowing the physics](#Knowing-the-physics)
# * [What was not there](#What-was-not-there)
# * [On a GPU](#On-a-GPU)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown] tags=["predict"]
# ## Where windows are rare
#
# In training, a network meets noisy windows of training images. Their density $p(v[\omega])$ is the denominator of the
# formula (S5.10). Where it is low, training has asked nothing.
#
# **Predict.** Three networks that ship, made from the same 1000 garments: a patch MLP, a ResNet, a U-Net. At which
# pixels of a new garment do they leave the formula? Each at its own?

# %%
import torch

import lemmse as le
from lemmse.comparison import compare, interval, rank_correlation
from lemmse.networks import PatchMLP, Preconditioning

torch.set_num_threads(1)  # for problems this small, threads would only wait for one another
psnr, Id, prefix = le.metrics.psnr, le.Denoising(), "fashion_mnist-denoising-"


def seed(number):
    return torch.Generator().manual_seed(number)


# %%
garments, unseen = (le.data.fashion_mnist(split, count=300) for split in ("train", "test"))
greys = le.data.photo_crops("test", size=28, count=3).mean(1, keepdim=True)
asked = {"training garments": garments[[3, 119]], "test garments": unseen[[58, 120]], "photographs": greys[[0, 2]]}
asked["random pixels"] = torch.rand(1, 1, 28, 28, generator=seed(0))
x, e = torch.cat(list(asked.values())), torch.randn(7, 1, 28, 28, generator=seed(1))
nets = {kind: le.pretrained.load(f"{prefix}{kind}-p5") for kind in ("PatchMLP", "LocalResNet", "LocalUNet")}
formula = nets["PatchMLP"][1].estimator(memory_limit=2**26)
by_formula, by_net, density = {}, {}, {}
for s in (0.2, 0.05):
    by_formula[s] = formula(x + s * e, sigma=s, reduction=le.PosteriorMoments())
    density[s] = le.explain.log_density_map(formula, by_formula[s], s).nats
    with torch.no_grad():
        by_net[s] = {kind: net(x + s * e, s) for kind, (net, _) in nets.items()}
del formula  # what it prepared from 1000 images

# %% [markdown]
# A shirt that none has seen, at $\sigma=0.2$; below, how rare its windows are, and where each network differs:

# %%
best = by_formula[0.2].mean
shown = {"x": x[[3]], "y": (x + 0.2 * e)[[3]], "formula": best[[3]], "PatchMLP": by_net[0.2]["PatchMLP"][[3]]}
shown["−ln p"] = le.figures.HeatMap(-density[0.2][3])
differences = {f"|{kind} − formula|": (each - best)[3].abs() for kind, each in by_net[0.2].items()}
shown |= {name: le.figures.HeatMap(values, low=0, high=0.2) for name, values in differences.items()}
le.figures.show(shown, columns=4)

# %% tags=["claim"] claim="06-errors-follow-density"
# NBVAL_CHECK_OUTPUT
for s in (0.2, 0.05):
    rare, unsure = -density[s][:4], by_formula[s].variance[:4, 0]  # four garments
    off = torch.stack([(each - by_formula[s].mean)[:4, 0] for each in by_net[s].values()])
    by_density, by_variance = ([rank_correlation(each.abs(), a) for each in off] for a in (rare, unsure))
    alike = torch.corrcoef(off.flatten(1))
    print(f"σ = {s:g}: rank correlation of differences with −ln p", *(f"{rho:.1f}" for rho in by_density))
    print("     with the formula's own variance", *(f"{rho:.1f}" for rho in by_variance))
    print(f"     of one network's differences with another's: above 0.9 is {bool(alike.min() > 0.9)}")
    assert min(by_density) > 0.55 and alike.min() > 0.9
assert max(by_variance) < 0.3

# %% [markdown]
# All three leave it at the same pixels, in the same direction: what the formula misses is not one architecture's
# doing. Rare windows tell where. At $\sigma=0.05$ the formula's own posterior variance does not: where a single far
# window has all the weight, the formula is alone, and sure.
#
# ## Three regimes
#
# Now for all we asked: training garments (*interpolation*), new ones (*local generalisation*), grey photographs, and
# pixels drawn at random. Every dot is a pixel, rare windows to the right:

# %%
figure, parts = le.figures.figure(8.6, 3.4), [len(each) * 784 for each in asked.values()]
for axes, s in zip(figure.subplots(1, 2, sharey=True), (0.2, 0.05)):
    rare = (density[s].max() - density[s] + 1).flatten().split(parts)
    off = (by_net[s]["PatchMLP"] - by_formula[s].mean).abs().flatten().split(parts)
    for name, at, height, colour in zip(asked, rare, off, le.figures.COLOURS):
        axes.loglog(at, height, ".", color=colour, markersize=2, alpha=0.2)
        bins = at.argsort().chunk(6)
        middles, heights = [at[b].median() for b in bins], [height[b].square().mean().sqrt() for b in bins]
        axes.loglog(middles, heights, "o-", color=colour, markeredgecolor="white", label=name)
    axes.set(title=f"σ = {s:g}", xlabel="nats below the likeliest window, plus 1", xlim=(3, 600), ylim=(3e-4, 1))
axes.legend(fontsize=8)
le.figures.picture(figure, alt="The difference rises by two decades as windows become rarer, for all kinds of images.")

# %% tags=["claim"] claim="06-three-regimes"
# NBVAL_CHECK_OUTPUT
names = ("network–formula", "formula–truth", "network–truth")
for s in (0.2, 0.05):
    net, best = by_net[s]["PatchMLP"], by_formula[s].mean
    match, truth, own = table = torch.stack([psnr(net, best), psnr(best, x), psnr(net, x)])
    print(f"σ = {s:<5g}     ", *(f"{name:>17}" for name in asked))
    for name, row in zip(names, table):
        print(f"{name:15}", *(f"{part.mean():14.0f} dB" for part in row.split([2, 2, 2, 1])))
    assert (match[4:6] > truth[4:6] + 2).all()  # photographs
assert truth[:2].min() > 38 and own[:2].max() < 35 and own[6] > match[6] + 10

# %% [markdown] tags=["predict"]
# Photographs, to a network that knows nothing but garments, are no foreign country: in windows of $5\times5$ they hold
# edges and flat patches. Their formula predicts it far better than the truth does, better even than on garments.
# Random pixels are foreign: at $\sigma=0.05$ the formula answers with the nearest garments, at 13 dB, while the network
# hands back what it is given (26 dB). That *full generalisation* no formula of training windows can capture.
#
# Density is not all. At $\sigma=0.05$ training garments lie above the others: the formula knows each of them again
# (43 dB), as no network does.
#
# ## How many images, how large a window?
#
# **Predict.** With more training images, do network and formula come closer on *new* garments, or drift apart? With
# larger windows?

# %% tags=["claim"] claim="06-more-images-spread-the-density"
# NBVAL_CHECK_OUTPUT
nats, match = [], []
for D in (10, 100, 1000):
    card = le.pretrained.load(f"{prefix}PatchMLP-p5{'' if D == 1000 else f'-D{D}'}")[1]
    match.append([card.psnr["test"][s] for s in ("0.05", "0.2")])
    if D < 1000:
        few = card.estimator(memory_limit=2**26)
        found = le.explain.log_density_map(few, few((x + 0.05 * e)[2:4], sigma=0.05), 0.05).nats
    else:
        found = density[0.05][2:4]
    nats.append(found.mean().item())
    at = "at σ = 0.05 {:.0f} dB, at 0.2 {:.0f} dB".format(*match[-1])
    print(f"D = {D:4}: mean ln p of new windows {nats[-1]:3.0f}; network–formula {at}")
assert nats[0] + 10 < nats[1] < nats[2] - 3 and (torch.tensor(match).diff(dim=0) > 1).all()

# %% tags=["claim"] claim="06-large-windows-remember-images"
# NBVAL_CHECK_OUTPUT
apart = []
for p in (3, 5, 7, 11):
    halves = [le.LocalEquivariantMMSE(half, Id, patch_size=p, memory_limit=2**26) for half in garments[:100].split(50)]
    apart.append(psnr(*(half((x + 0.2 * e)[2:4], sigma=0.2).mean for half in halves)).mean().item())
print("formulas of 50 garments and of 50 others, p = 3, 5, 7, 11:", *(f"{db:.0f} dB" for db in apart))
assert apart[0] > apart[1] > apart[2] > apart[3]

# %% [markdown]
# More images spread $p$: fewer windows are rare, and the match improves. Larger windows undo that. For $p=3$ any 50
# garments give nearly the same function; for $p=11$ it depends on which, so a network has single images to remember.
# Below are the networks of both curves; choose a point for its pictures.

# %% tags=["explorable"]
explorable = le.ui.explorables.limits_of_the_theory.curves()
explorable

# %% [markdown] tags=["predict"]
# At $\sigma=0.2$ the match falls from 43 dB for $p=3$ to 22 dB for $p=11$. And what a network gains from a larger window
# is not what the formula says: of the formulas, $p=5$ is nearest to the truth, of the networks, $p=11$.
#
# ## Who is nearer to the truth?
#
# **Predict.** On *training* images the formula cannot be beaten: 05's Pythagoras. On new ones? At which noise level?

# %% tags=["claim"] claim="06-nearer-to-the-truth-at-small-noise"
hundred, card = le.pretrained.load(f"{prefix}PatchMLP-p5-D100")
few, levels, gains = card.estimator(memory_limit=2**26), (0.05, 0.1, 0.2, 0.4), []
figure = le.figures.figure(6.4, 3.0)
axes = figure.add_subplot(xlabel="noise level σ", ylabel="network less formula, dB to the truth")
for name, images, colour in zip(("new", "training"), (unseen, garments), le.figures.COLOURS):
    found = compare(hundred, few, images[:8], sigmas=levels, generator=seed(2))
    gains.append(interval(found.psnr_network_truth - found.psnr_formula_truth))
    axes.errorbar(levels, *gains[-1], fmt="o-", capsize=3, color=colour, label=f"{name} images")
new, training = gains
assert (new.mean - new.half_width)[:2].min() > 1 and (training.mean + training.half_width)[:3].max() < 0
axes.axhline(0, color="black", linewidth=1)
axes.set_xticks(levels)
axes.legend()
le.figures.picture(figure, alt="At σ = 0.05 the network is 8 dB nearer on new images, 14 dB farther on training ones.")

# %% [markdown] tags=["predict"]
# A network made from 100 garments. At little noise the formula finds a training image again and copies it; on a new one
# it copies windows just the same, and errs. The network, which failed to become its formula, has learned something
# better. With 1000 images this is the +6.5 dB of
# [the table](https://github.com/lemmse/lemmse/blob/v0.1.0/docs/theory_vs_practice.md).
#
# ## Stairs and ramps
#
# What has it learned? Nudge one measured pixel $y(n)$. A weight $w_k$ changes by $w_k(x_k-\hat x(n))/\sigma^2$, as the
# centre of window $k$ *is* $x_k$, so that, on the diagonal of the Jacobian $\operatorname{Cov}A^\top/\sigma^2$ (S1.3),
#
# $$\frac{\partial\hat x(n)}{\partial y(n)}=\sum_k x_k\,w_k\,\frac{x_k-\hat x(n)}{\sigma^2}
# =\frac{\text{posterior variance}}{\sigma^2}.$$
#
# **Predict.** Of the network, the same derivative: at $\sigma=0.2$? At $\sigma=0.05$?

# %% tags=["claim"] claim="06-diagonal-is-variance"
# NBVAL_CHECK_OUTPUT
few = le.LocalEquivariantMMSE(garments[:20].double(), Id, patch_size=5)
y, nudge = (x + 0.4 * e)[[3]].double(), torch.zeros(1, 1, 28, 28, dtype=torch.float64)
nudge[..., 14, 14] = 1e-5
up, down = (few(y + sign * nudge, sigma=0.4).mean[..., 14, 14].item() for sign in (1, -1))
variance = few(y, sigma=0.4, reduction=le.PosteriorMoments()).variance[..., 14, 14].item()
print(f"derivative {(up - down) / 2e-5:.4f}, variance / σ² {variance / 0.4**2:.4f}")
assert abs((up - down) / 2e-5 - variance / 0.4**2) < 1e-6


# %% tags=["claim"] claim="06-stairs-and-ramps"
def own_derivative(net, y, sigma, teeth=7):
    """Return ∂x̂(n)/∂y(n) at all pixels: those 7 apart, more than a window's side, share a backward pass."""
    y, own = y.clone().requires_grad_(), torch.zeros_like(y)
    x_hat, combs = net(y, sigma), [slice(i, None, teeth) for i in range(teeth)]
    for comb in ((..., rows, columns) for rows in combs for columns in combs):
        own[comb] = torch.autograd.grad(x_hat[comb].sum(), y, retain_graph=True)[0][comb]
    return own


maps = {}
for s in (0.2, 0.05):
    both = by_formula[s].variance[2:4] / s**2, own_derivative(nets["PatchMLP"][0], (x + s * e)[2:4], s)
    for who, each in zip(("formula", "network"), both):
        maps[f"{who}, σ = {s:g}, up to {each.max():.0f}"] = le.figures.HeatMap(each[1], low=0, high=2)
    r = torch.corrcoef(torch.stack(both).flatten(1))[0, 1]
    assert r > 0.75 if s == 0.2 else r < 0.4 and both[0].max() > 4 * both[1].max()
le.figures.show(maps, size=196)

# %% [markdown]
# Drawn for the same shirt. At $\sigma=0.2$ both listen alike. At $\sigma=0.05$ the formula is a staircase: flat where
# one window has all the weight, and at the edges of the steps a nudge is answered many times over. The network is a
# ramp, which lets the shirt's own pixels pass, with some of their noise. This is why it is worse on training images,
# and better on new ones.
#
# ## Knowing the physics
#
# A pre-inverse $B$ that knows the operator is not always better. From the cards of two pairs of networks, PSNR to the
# truth with such a $B$ less that with $B=\mathrm{Id}$, from $\sigma=0.05$ to 1:

# %% tags=["claim"] claim="06-aware-wins-and-loses"
# NBVAL_CHECK_OUTPUT
pairs = {"hole": ("inpainting", "inpainting-pseudo-inverse"), "blur": ("blur", "blur-tikhonov")}
levels, gain = ("0.05", "0.1", "0.2", "0.3", "0.5", "1"), {}
for name, tasks in pairs.items():
    cards = [le.pretrained.load(f"fashion_mnist-{task}-PatchMLP-p5")[1] for task in tasks]
    for split in ("test", "train"):
        blind, aware = (torch.tensor([c.psnr_to_truth[split]["network"][s] for s in levels]) for c in cards)
        gain[name, split] = aware - blind
        print(f"{name}, {split:5}: aware less blind", *(f"{db:+.1f}" for db in gain[name, split]), "dB")
assert min(gain["hole", "test"].min(), gain["hole", "train"].min()) > 1 and gain["blur", "test"].max() < 0

# %% tags=["claim"] claim="06-why-aware-wins-and-loses"
# NBVAL_CHECK_OUTPUT
shown, hole, alike = {"x": unseen[[120]]}, (..., slice(11, 16), slice(11, 16)), []  # windows there see nothing
for name in pairs["hole"]:
    net, card = le.pretrained.load(f"fashion_mnist-{name}-PatchMLP-p5")
    y = card.problem.physics.A(unseen[[120]]) + 0.2 * e[[3]]
    x_hat = net(card.problem.pre_inverted(y), 0.2).detach()
    shown |= {"y": y, "network, B = A⁺" if card.problem.B else "network, B = Id": x_hat}
print("in the hole:", *(f"{name} {each[hole].mean():.1f}," for name, each in shown.items() if name != "y"))
for B in ("identity", "tikhonov"):
    blur = le.pretrained.Problem("fashion_mnist", 50, "blur", B)
    phi = le.LocalEquivariantMMSE(blur.images(), blur.physics, patch_size=5, pre_inverse=blur.B)
    alike.append(le.explain.discrimination_map(phi, unseen[[120]], sigma=0.5).confusable.mean().item())
assert shown["network, B = Id"][hole].mean() < 0.3 < shown["network, B = A⁺"][hole].mean() and alike[0] < alike[1] - 0.1
print(f"blur, σ = 0.5: windows that look alike, B = Id {alike[0]:.1f}, Tikhonov {alike[1]:.1f}")
le.figures.show(shown)

# %% [markdown] tags=["predict"]
# For $B=\mathrm{Id}$ a black window may lie in the hole or in the background, and the answer is one grey for both; $A^+$
# knows which (S6.3). A blur hides nothing, and there Tikhonov's sharpened windows, their noise whitened, differ *less*
# from one another than blurred ones: more look alike (S6.4).
#
# ## What was not there
#
# Windows of $21\times21$ and a hole of $9\times9$: every pixel of the hole sees what is around it.
#
# **Predict.** A plain shirt, and one with a large 6, both new to the formula. What stands in the hole, and how sure is
# the formula of it?

# %% tags=["claim"] claim="06-hallucination"
# NBVAL_CHECK_OUTPUT
hide, truth = le.Inpainting(le.center_mask(28, 28, side=9)), unseen[[136, 120]]
phi = le.LocalEquivariantMMSE(garments, hide, patch_size=21, pre_inverse=le.PseudoInverse(hide), memory_limit=2**26)
y, hole = hide.A(truth) + 0.05 * torch.randn(truth.shape, generator=seed(0)), (..., slice(10, 19), slice(10, 19))
moments, sources = phi(y, sigma=0.05, reduction=le.PosteriorMoments()), phi(y, sigma=0.05, reduction=le.TopSources(1))
eye = le.explain.contributions(phi, y, moments, sources, (14, 14))
pairs = {"contrast of the truth": truth[hole].std((1, 2, 3)), "of the formula": moments.mean[hole].std((1, 2, 3))}
pairs["error"] = (moments.mean - truth)[hole].square().mean((1, 2, 3)).sqrt()
pairs["error it expects"] = moments.variance[hole].mean((1, 2, 3)).sqrt()
for name, (plain, six) in pairs.items():
    print(f"{name:21}: plain shirt {plain:.2f}, shirt with a 6 {six:.2f}")
assert pairs["of the formula"][0] > 0.1 and (pairs["error"] > 20 * pairs["error it expects"]).all()
assert eye.weight.min() > 0.99

# %%
share = (sources.image[..., 0] == eye.image[:, :, None]).float()[hole].mean((1, 2))
notes = [f"image {i}, {s:.0%}" for i, s in zip(eye.image[:, 0].tolist(), share)]
shown = {"x": truth, "y": y, "formula": moments.mean, "source of the middle": garments[eye.image[:, 0]]}
le.figures.show(shown, notes={"y": "", "formula": "", "source of the middle": notes})

# %% [markdown]
# A print where there was none, and no 6: each is copied, nearly all of it, from one training garment, whose
# surroundings are the least unlike. The formula expects next to no error, for nobody else speaks. A network that
# matched it would paint the same.
#
# ## On a GPU
#
# All this was small. With a GPU, the same functions train windows of $11\times11$ on 10 000 images of $64\times64$;
# name a folder of images, such as thumbnails of FFHQ, or else 1500 crops of photographs stand in.

# %%
folder = None
if not torch.cuda.is_available():
    print("This cell needs a GPU; there it was not timed, so how long it takes is unknown. Nothing was done.")
else:
    many = le.data.photo_crops("train", size=64) if folder is None else le.data.image_folder(folder, 64, 10_004)
    new, many = (le.data.photo_crops("test", size=64, count=4), many) if folder is None else (many[-4:], many[:-4])
    net = PatchMLP(3, 11, width=256, hidden=256, preconditioning=Preconditioning.of(many, Id), generator=seed(3))
    how = {"steps": 20_000, "batch_size": 8192, "crop": 1, "sigmas": (0.04, 1.1), "generator": seed(4)}
    for _ in le.training.train(net, many, Id, device="cuda", **how):
        pass
    best = le.LocalEquivariantMMSE(many.cuda(), Id, patch_size=11)
    match = compare(net, best, new.cuda(), sigmas=(0.1, 0.3, 1.0), generator=seed(5)).psnr_network_formula.mean(1)
    print(f"{len(many)} of {folder or 'photo_crops, the stand-in'}:", *(f"{db:.1f} dB" for db in match))

# %% [markdown]
# ## What we saw
#
# * Networks leave their formula where windows are rare, and all architectures leave it alike: more noise, more images
#   and smaller windows bring them together. Not the kind of image counts, but how foreign its windows are.
# * At little noise the formula is a staircase of copies, the network a ramp: worse on training images, far better on
#   new ones. There the theory explains a function that no network reaches, luckily.
# * Certainty is no evidence: in a hole the formula invents a print and expects no error.
#
# ## Where this stands in the paper
#
# Around the theorem of arXiv 2601.10334: densities (S5.10), pre-inverses (S6), the derivative (S1.3), by the protocol
# S11. `python scripts/limits.py` writes tables of all this, on more images and with intervals; one finds that a CNN
# which sees whole images is nearer to the formula of 5 × 5 windows than to its own (27 against 17 dB at $\sigma=0.2$):
# locality comes from the data, too. Next, in 07: how far from the truth can the formula be?
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="06-nudge" minutes=3
# ### Exercise 1: a nudge
#
# At $\sigma=0.2$, the sources of a pixel disagree with a posterior variance of 0.03. Its measurement is made 0.04
# brighter. By how much does the formula's answer change there, to first order?
#
# <details><summary>Hint</summary>
#
# The derivative is a ratio of two variances.
#
# </details>

# %% tags=["exercise"] exercise="06-nudge" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
from lemmse.exercises import Exercise

exercise = Exercise(
    "06-nudge",
    expected=0.03,
    mistakes={
        "That is the derivative; the nudge was 0.04.": 0.75,
        "Divide by σ², not by σ.": 0.006,
        "The derivative is variance / σ²: divide, too.": 0.0012,
        "That is standard deviation over σ; the derivative has both squared.": lambda answer: 0.034 < answer < 0.035,
        "The answer moves less than the measurement, as the derivative is below 1.": 0.04,
    },
    why="0.03 / 0.2² = 0.75, times 0.04.",
)

# %% tags=["exercise"] exercise="06-nudge"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="06-nudge"
# <details><summary>Solution</summary>
#
# ```python
# answer = 0.03 / 0.2**2 * 0.04
# ```
# Sources that agree do not care what is measured.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="06-nudge"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 0.75
# ```
# is the derivative. And
#
# ```python
# answer = 0.03 / 0.2 * 0.04
# ```
# forgets a square.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="06-rare" minutes=8
# ### Exercise 2: how rare?
#
# Write `log_density(v, keys, sigma)`: $\ln p$ of a noisy window `v`, (k,), drawn from one of the windows `keys`, (K, k),
# all equally likely, plus noise of standard deviation `sigma`.
#
# <details><summary>Hint</summary>
#
# A mean of K Gaussians in k dimensions; `torch.logsumexp` adds what is too small to be exponentiated.
#
# </details>

# %% tags=["exercise"] exercise="06-rare" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import math

import torch

from lemmse.exercises import Exercise


def exponents(v, keys, sigma):
    """Return -|v - key|² / 2σ² of every key."""
    return -(keys - v).square().sum(1) / (2 * sigma**2)


def constant(k, sigma):
    """Return the logarithm of a Gaussian's peak in k dimensions."""
    return -k / 2 * math.log(2 * math.pi * sigma**2)


draw = torch.Generator().manual_seed(0)
sizes = ((4, 7, 0.3), (9, 5, 0.02))
cases = [(torch.rand(k, generator=draw), torch.rand(K, k, generator=draw), s) for k, K, s in sizes]
exercise = Exercise(
    "06-rare",
    expected=lambda v, keys, sigma: (
        exponents(v, keys, sigma).logsumexp(0) - math.log(len(keys)) + constant(len(v), sigma)
    ),
    inputs=cases,
    mistakes={
        "The keys are equally likely: one of K, so divide by K.": (
            lambda v, keys, sigma: exponents(v, keys, sigma).logsumexp(0) + constant(len(v), sigma)
        ),
        "The Gaussians' own constant is missing; it depends on k and σ.": (
            lambda v, keys, sigma: exponents(v, keys, sigma).logsumexp(0) - math.log(len(keys))
        ),
        "The constant counts once per dimension: -k/2 · ln 2πσ².": (
            lambda v, keys, sigma: exponents(v, keys, sigma).logsumexp(0) - math.log(len(keys)) + constant(1, sigma)
        ),
        "That is the nearest key alone; the others add to it.": (
            lambda v, keys, sigma: exponents(v, keys, sigma).amax() - math.log(len(keys)) + constant(len(v), sigma)
        ),
        "The logarithm of a mean is not the mean of logarithms.": (
            lambda v, keys, sigma: exponents(v, keys, sigma).mean() + constant(len(v), sigma)
        ),
    },
    why="p is the mean of the Gaussians around the keys.",
)


# %% tags=["exercise"] exercise="06-rare"
def log_density(v, keys, sigma):
    return ...


exercise.check(log_density)

# %% [markdown] tags=["solution"] exercise="06-rare"
# <details><summary>Solution</summary>
#
# ```python
# def log_density(v, keys, sigma):
#     (K, k), r2 = keys.shape, (keys - v).square().sum(1)
#     return torch.logsumexp(-r2 / (2 * sigma**2), 0) - math.log(K) - k / 2 * math.log(2 * math.pi * sigma**2)
# ```
# The first term is the normaliser that every estimate computes anyway, `log_partition`.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="06-rare"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def log_density(v, keys, sigma):
#     return exponents(v, keys, sigma).logsumexp(0) + constant(len(v), sigma)
# ```
# has mass K. And
#
# ```python
# def log_density(v, keys, sigma):
#     return exponents(v, keys, sigma).mean() + constant(len(v), sigma)
# ```
# averages logarithms.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="06-apart" minutes=4
# ### Exercise 3: drive them apart
#
# Which change takes a network, trained for as long, and its formula further apart on new images? `"a"`: ten times as
# many training images. `"b"`: windows of $11\times11$ instead of $5\times5$. `"c"`: noise of $\sigma=0.5$ instead of
# 0.1. `"d"`: to ask for smooth photographs instead of garments.
#
# <details><summary>Hint</summary>
#
# Which one makes windows rarer?
#
# </details>

# %% tags=["exercise"] exercise="06-apart" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "06-apart",
    expected="b",
    choices=("a", "b", "c", "d"),
    mistakes={
        "More images spread the density: fewer new windows are rare.": "a",
        "More noise makes all windows common, and the function smooth.": "c",
        "Flat windows are the commonest that garments have.": "d",
    },
    why="Large windows are all rare, and what is best for them depends on single training images.",
)

# %% tags=["exercise"] exercise="06-apart"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="06-apart"
# <details><summary>Solution</summary>
#
# ```python
# answer = "b"
# ```
# The right half of the explorable shows it.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="06-apart"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = "a"
# ```
# brings them together. So does
#
# ```python
# answer = "c"
# ```
# as 05's table shows.
#
# </details>
