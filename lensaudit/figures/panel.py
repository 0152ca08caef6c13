"""The sheet of the blinded panel, the widget it is graded with, and the graders' answers against the key."""

import io

import numpy as np
from matplotlib import image

from lensaudit.figures.style import COLOURS, mark_simulated, new_figure

MAGNIFICATION = 6  # screen pixels per pixel of a stamp


def plot_panel(pictures, first, name, simulated=True, columns=5):
    """Draw one page of the sheet: numbered stamps with boxes to tick, and nothing that tells the two kinds apart.

    Parameters
    ----------
    pictures : ndarray of shape (N, S, S, 3), float in [0, 1]
    first : int
        Number of the first stamp of the page.
    name : str
        Name of the panel, which a grade must repeat.
    simulated : bool
    columns : int

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = max(-(-len(pictures) // columns), 1)
    fig, axes = new_figure("text", 0.3 + 1.72 * rows, rows, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(pictures):
            axis.imshow(pictures[place], origin="lower", interpolation="nearest")
            axis.set_title(f"{first + place}", fontsize=8, pad=2)
            text = "lens  □     injection  □\nclean   1   2   3   4   5"
            axis.text(0.5, -0.03, text, transform=axis.transAxes, ha="center", va="top", fontsize=6.5)
    fig.suptitle(f"panel {name}: is the arc real or injected, and how clean is the stamp (5 cleanest)?", fontsize=8)
    return mark_simulated(fig, simulated)


def plot_answers(scored, simulated=True):
    """Show the confusion matrix over all graders, and each grader's share of right answers with its interval.

    Parameters
    ----------
    scored : dict
        From `audit.panel.score_panel`.
    simulated : bool

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, (left, right) = new_figure("text", 2.4, 1, 2)
    graders, kinds = scored.get("graders", []), ("lens", "injection")
    if not graders:
        left.text(0.5, 0.5, "not graded", transform=left.transAxes, ha="center", va="center")
        left.axis("off")
        right.axis("off")
        return mark_simulated(fig, simulated)
    counts = np.array([[scored["confusion"][kind][answer] for answer in kinds] for kind in kinds])
    left.imshow(counts, cmap="Blues", vmin=0, vmax=counts.sum(), origin="upper")
    for (i, j), count in np.ndenumerate(counts):
        left.text(j, i, f"{count}", ha="center", va="center")
    left.set(xticks=(0, 1), yticks=(0, 1), xticklabels=kinds, yticklabels=kinds, xlabel="answer", ylabel="truth")
    for place, row in enumerate(graders):
        error = [[row["accuracy"] - row["lower"]], [row["upper"] - row["accuracy"]]]
        right.errorbar(row["accuracy"], place, xerr=error, fmt="o", color=COLOURS["blue"])
    right.axvline(0.5, color=COLOURS["grey"], lw=0.7, ls=":")
    right.set(yticks=range(len(graders)), yticklabels=[row["grader"] for row in graders], xlim=(0, 1),
              ylim=(len(graders) - 0.5, -0.5), xlabel="share of right answers")  # fmt: skip
    return mark_simulated(fig, simulated)


def make_grader(pictures, save):
    """Build the widget that shows one stamp at a time and saves each grade as it is given.

    Parameters
    ----------
    pictures : ndarray of shape (N, S, S, 3), float in [0, 1]
        In the order of the panel.
    save : callable
        ``save(grader, number, answer, cleanliness)`` returns how many stamps the grader has graded.

    Returns
    -------
    ipywidgets.VBox
    """
    import ipywidgets as widgets  # the only figure that needs a notebook's front end

    state = {"number": 1}
    picture, title, note = widgets.Image(format="png"), widgets.Label(), widgets.Label()
    grader = widgets.Text(description="grader", placeholder="letters, digits, hyphens")
    answer = widgets.ToggleButtons(options=["lens", "injection"], value=None, description="it is a")
    clean = widgets.ToggleButtons(options=[1, 2, 3, 4, 5], value=None, description="cleanliness")
    back, done = widgets.Button(description="back"), widgets.Button(description="save and next")

    def show(number):
        state["number"] = min(max(number, 1), len(pictures))
        picture.value = encode_picture(pictures[state["number"] - 1])
        title.value = f"stamp {state['number']} of {len(pictures)}"
        answer.value = clean.value = None

    def store(_button):
        if answer.value is None or clean.value is None:
            note.value = "give both an answer and a cleanliness from 1 to 5"
            return
        try:
            count = save(grader.value, state["number"], answer.value, clean.value)
        except Exception as error:  # a widget's callback has no cell to raise in: the reason is shown instead
            note.value = str(error)
            return
        note.value = f"{count} of {len(pictures)} graded"
        show(state["number"] + 1)

    done.on_click(store)
    back.on_click(lambda _button: show(state["number"] - 1))
    show(1)
    return widgets.VBox([grader, title, picture, answer, clean, widgets.HBox([back, done]), note])


def encode_picture(picture):
    """Return a picture of shape (S, S, 3), first row at the bottom, as the bytes of a magnified PNG."""
    buffer = io.BytesIO()
    large = np.clip(picture, 0, 1).repeat(MAGNIFICATION, axis=0).repeat(MAGNIFICATION, axis=1)
    image.imsave(buffer, large, format="png", origin="lower")
    return buffer.getvalue()
