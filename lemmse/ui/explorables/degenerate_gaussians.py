"""The explorable of notebook 01: a Gaussian of any rank against a round cloud, and who owns a point (S2.3)."""

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, Rectangle
from torch import Tensor

from lemmse import figures
from lemmse.gaussians import DegenerateNormal, MixtureOnSubspaces
from lemmse.ui.explorable import Explorable
from lemmse.ui.view import Choice, Slider, View

__all__ = ["who_owns_the_point"]

ANGLES = tuple(range(0, 180, 15))  # degrees
POSITIONS = tuple(i / 4 for i in range(-8, 9))
SHARES = (0.01, 0.1, 0.5, 0.9)
PATH = 30  # degrees: the query walks along this direction, through the common mean
LONG, SHORT, CLOUD = 1.0, 0.35, 1.2  # standard deviations
EXTENT = 2.6  # half the side of the window on the plane

NAMES = ("point", "line", "ellipse")  # the movable Gaussian, by rank
MEASURES = ("per point", "per unit length", "per unit area")
BLUE, ORANGE, *_ = figures.COLOURS


def who_owns_the_point(*, angle: int = PATH, rank: int = 1, position: float = 1.0, share: float = 0.1) -> Explorable:
    """Return the explorable: turn and flatten a Gaussian, move a query, and see which component can have made it."""
    return Explorable(
        view,
        {
            "angle": Slider("angle of the flat one", ANGLES, PATH, texts=[f"{a}°" for a in ANGLES]),
            "rank": Choice("its rank", (0, 1, 2), 1, texts=[f"{r} ({name})" for r, name in enumerate(NAMES)]),
            "position": Slider("query along the dotted path", POSITIONS, 1.0),
            "share": Choice("its prior probability", SHARES, 0.1, folded=True),
        },
        title="Who owns the point?",
        name="degenerate_gaussians.who_owns_the_point",
        state={"angle": angle, "rank": rank, "position": position, "share": share},
    )


def view(angle: int, rank: int, position: float, share: float) -> View:
    """Return what one state shows: the plane with both supports and the query, and what each component claims."""
    mixture = components(angle, rank, share)
    query = position * _direction(PATH)
    log_prob = mixture.components.log_prob(query)
    admissible, posterior = mixture.admissible(query), mixture.posterior(query)
    distance = mixture.components.support.distance(query)[0]
    drawing = figures.figure(6.6, 3.0, layout=None)
    owner = ORANGE if posterior[0] > 0.5 else BLUE
    _draw_plane(drawing.add_axes((0.01, 0.02, 0.42, 0.88)), query, angle, rank, owner)
    _draw_claims(drawing, mixture, rank, log_prob, posterior, admissible)
    return View(
        figure=drawing,
        numbers={"distance to the flat one": round(distance.item(), 12), "its posterior": posterior[0].item()},
        sentence=_sentence(rank, distance.item(), log_prob, posterior, admissible),
    )


def components(angle: int, rank: int, share: float) -> MixtureOnSubspaces:
    """Return the mixture: the movable Gaussian, of probability ``share``, and the round cloud, both centred at 0."""
    across = _direction(angle + 90)
    long, short = LONG * _direction(angle) * (rank > 0), SHORT * across * (rank > 1)
    factor = torch.stack([torch.stack([long, short], dim=1), CLOUD * torch.eye(2, dtype=torch.float64)])
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)
    return MixtureOnSubspaces(weights, DegenerateNormal(torch.zeros(2, 2, dtype=torch.float64), factor))


def _direction(degrees: float) -> Tensor:
    radians = math.radians(degrees)
    return torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)


def _draw_plane(axes: Axes, query: Tensor, angle: int, rank: int, colour: str) -> None:
    """Draw both components, to two standard deviations, and the query in its owner's colour."""
    for k in (0.5, 1, 1.5, 2):
        axes.add_patch(Circle((0, 0), k * CLOUD, color=BLUE, alpha=0.13, linewidth=0))
    _segment(axes, PATH, 2 * EXTENT, color="#555555", linewidth=1, linestyle=":")
    if rank == 0:  # ringed, so that it shows behind the star too
        axes.plot(0, 0, "o", markersize=7, color=ORANGE)
        axes.plot(0, 0, "o", markersize=25, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=2)
    elif rank == 1:  # thick where it is dense
        for half_length, width in ((2 * EXTENT, 0.8), (2 * LONG, 2.2), (LONG, 4.5)):
            _segment(axes, angle, half_length, color=ORANGE, linewidth=width)
    else:
        for k, alpha in ((1, 0.35), (2, 0.2)):
            axes.add_patch(
                Ellipse((0, 0), 2 * k * LONG, 2 * k * SHORT, angle=angle, color=ORANGE, alpha=alpha, linewidth=0)
            )
    axes.plot(*query, "*", markersize=18, color=colour, markeredgecolor="white", zorder=5)
    axes.set(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
    axes.set_axis_off()
    axes.set_title(f"round cloud, {NAMES[rank]}, query (star)", fontsize=9.5)


def _segment(axes: Axes, angle: float, half_length: float, **style: Any) -> None:
    end = half_length * _direction(angle)
    axes.plot(*torch.stack([-end, end], dim=1), **style)


def _draw_claims(
    drawing: Figure, mixture: MixtureOnSubspaces, rank: int, log_prob: Tensor, posterior: Tensor, admissible: Tensor
) -> None:
    """Draw what each component claims at the query, and the posterior probability that it gets.

    All on the figure itself: a second set of axes would take a fifth of the time.
    """
    drawing.text(0.49, 0.925, "posterior probability at the query", fontsize=9.5)
    for k, (name, r, colour) in enumerate(((NAMES[rank], rank, ORANGE), ("round cloud", 2, BLUE))):
        top = 0.83 - 0.44 * k
        drawing.text(0.49, top, f"{name}: rank {r}, prior {mixture.probabilities[k]:g}", color=colour, weight="bold")
        drawing.text(0.49, top - 0.08, _claim(r, log_prob[k], bool(admissible[k])))
        for width, shade in ((1, "#e8e8e8"), (posterior[k].item(), colour)):
            drawing.add_artist(Rectangle((0.49, top - 0.24), 0.4 * width, 0.1, color=shade, linewidth=0))
        drawing.text(0.905, top - 0.21, f"{posterior[k]:.3g}")


def _claim(rank: int, log_prob: Tensor, admissible: bool) -> str:
    if not log_prob.isfinite():
        return "the query is off its support: density 0"
    claim = f"density {log_prob.exp():.3g} {MEASURES[rank]}"
    return claim if admissible else f"{claim}, but outranked"


def _sentence(rank: int, distance: float, log_prob: Tensor, posterior: Tensor, admissible: Tensor) -> str:
    name = NAMES[rank]
    if not admissible[0]:
        return f"The query lies {distance:.2f} off the {name}, which cannot have made it: the round cloud owns it."
    if not admissible[1]:
        return (
            f"The query lies on the {name} and in the round cloud. The {name} has the lower rank, {rank} against 2, so "
            f"it owns the query whatever its prior probability: the cloud never hits a given {name} by chance."
        )
    return (
        f"Ellipse and round cloud both fill the plane, so their densities {log_prob[0].exp():.3g} and "
        f"{log_prob[1].exp():.3g} per unit area, times their prior probabilities, share the query: the ellipse gets "
        f"{posterior[0]:.1%}."
    )
