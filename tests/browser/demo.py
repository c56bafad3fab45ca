"""Explorables for the browser tests: a working one with every kind of control, one that fails, one that is slow."""

import time

import torch

from lemmse import figures, ui

SIGMAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


def _scene(side: int = 28) -> torch.Tensor:
    u, v = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    return (torch.sigmoid(12 * (0.6 - (u**2 + v**2).sqrt())) * (0.6 + 0.4 * torch.cos(6 * u)))[None]


def _look(kind: str, sigma: float, shown: str, seed: int) -> ui.View:
    x = _scene()
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.ones(28, 28)
    if kind == "inpainting":
        hidden[8:20, 8:20] = 0
    y = x * hidden + sigma * torch.randn(x.shape, generator=generator)
    x_hat = y.clip(0, 1)
    error = float((x_hat - x).square().mean().sqrt())
    pictures: dict[str, figures.Image] = {"x": x, "y": y, "x_hat": x_hat}
    plot = None
    if shown == "error map":
        pictures["x_hat - x"] = figures.SignedMap(x_hat - x, limit=1.0)
    if shown == "cross-section":
        plot = figures.figure(6.4, 2.6)
        axes = plot.subplots()
        axes.plot(x[0, 14], label="x")
        axes.plot(x_hat[0, 14], label="x̂")
        axes.set_xlabel("column")
        axes.legend()
    also = {"nothing": "", "error map": " The map shows where.", "cross-section": " The plot shows row 14."}[shown]
    sentence = f"At σ = {sigma:g}, {kind} leaves an error of {error:.3f} per pixel (draw {seed}).{also}"
    return ui.View(pictures, {"error per pixel": error, "σ": sigma}, sentence, plot)


def noise(**state) -> ui.Explorable:
    """Three controls in sight and one folded."""
    controls = {
        "kind": ui.Choice("operator", ["denoising", "inpainting"], "inpainting"),
        "sigma": ui.Slider("noise level σ", SIGMAS, 0.1),
        "shown": ui.Choice("also shown", ["nothing", "error map", "cross-section"], "nothing"),
        "seed": ui.Slider("draw of the noise", list(range(10)), 0, folded=True),
    }
    return ui.Explorable(_look, controls, title="What does noise hide?", name="demo.noise", state=state)


def broken() -> ui.Explorable:
    """Raises at one value of its control."""

    def look(sigma: float) -> ui.View:
        if sigma == 1.0:
            raise ValueError("sigma = 1 is refused by this view")
        return _look("denoising", sigma, "nothing", 0)

    return ui.Explorable(look, {"sigma": ui.Slider("σ", SIGMAS, 0.5)}, title="It can fail", name="demo.broken")


def slow() -> ui.Explorable:
    """Answers coarsely while its control moves, and after 0.4 s once it rests."""

    def full(sigma: float) -> ui.View:
        time.sleep(0.4)
        return ui.View({"x": _scene()}, {}, f"Full answer at {sigma:g}.")

    def coarse(sigma: float) -> ui.View:
        return ui.View({"x": _scene()[:, ::4, ::4]}, {}, f"Coarse answer at {sigma:g}.")

    controls = {"sigma": ui.Slider("σ", SIGMAS, 0.1)}
    return ui.Explorable(full, controls, title="It takes its time", name="demo.slow", coarse=coarse)
