"""The data-and-split schematic: what flows where, with the counts of a run, and what never flows back."""

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lensaudit.figures.style import COLOURS, mark_simulated, new_figure

# name: (x, y, width, height, title, colour); x and y are the centre, in units of a 12 x 6 canvas.
BOXES = {
    "catalogues": (1.05, 5.0, 1.9, 1.1, "lens catalogues", "blue"),
    "survey": (1.05, 3.0, 1.9, 1.1, "survey tables", "grey"),
    "truth": (1.05, 0.75, 1.9, 1.0, "truth tables", "vermilion"),
    "positives": (3.55, 5.0, 1.9, 1.1, "matched lenses", "blue"),
    "negatives": (3.55, 3.0, 1.9, 1.1, "negatives", "grey"),
    "train": (6.05, 5.0, 1.9, 1.1, "training", "green"),
    "val": (6.05, 3.4, 1.9, 1.1, "validation", "orange"),
    "test": (6.05, 1.8, 1.9, 1.1, "test", "purple"),
    "detector": (8.55, 5.0, 1.9, 1.1, "detector", "green"),
    "frozen": (8.55, 3.4, 1.9, 1.1, "frozen detector", "orange"),
    "injections": (8.55, 1.8, 1.9, 1.1, "injections", "purple"),
    "evaluation": (11.05, 5.0, 1.9, 1.1, "evaluation", "black"),
    "completeness": (11.05, 3.4, 1.9, 1.1, "completeness", "black"),
    "closure": (11.05, 1.8, 1.9, 1.1, "closure", "black"),
}
FLOWS = (
    ("catalogues", "positives"), ("survey", "positives"), ("survey", "negatives"),
    ("positives", "negatives"), ("positives", "train"), ("positives", "val"),
    ("positives", "test"), ("negatives", "train"), ("negatives", "val"), ("negatives", "test"),
    ("train", "detector"), ("detector", "frozen"), ("val", "frozen"), ("frozen", "evaluation"),
    ("frozen", "completeness"), ("test", "injections"), ("injections", "completeness"),
    ("injections", "closure"), ("frozen", "closure"),
)  # fmt: skip


def plot_schematic(counts, simulated=True):
    """Draw the flow of data through the audit.

    Parameters
    ----------
    counts : pandas.DataFrame
        ``box`` (a name of `BOXES`) and ``text`` (a line or two that stands below the box's title).
    simulated : bool
        The truth tables, which only a simulated sky has, are drawn when true.

    Returns
    -------
    matplotlib.figure.Figure
    """
    texts = dict(zip(counts["box"], counts["text"], strict=True))
    figure, axis = new_figure("text", 3.3)
    axis.set(xlim=(0, 12.1), ylim=(0.1, 5.75))
    axis.set_axis_off()
    boxes = {name: box for name, box in BOXES.items() if simulated or name != "truth"}
    for name, box in boxes.items():
        _draw_box(axis, box, texts.get(name, ""))
    for start, end in FLOWS:
        _draw_arrow(axis, boxes[start], boxes[end])
    _draw_return(axis, boxes["test"], boxes["closure"], "held-out lenses", COLOURS["purple"], "-", 1.0)
    if simulated:
        _draw_return(axis, boxes["truth"], boxes["closure"], "only to closure and to checks",
                     COLOURS["vermilion"], "--", 0.45)  # fmt: skip
    return mark_simulated(figure, simulated)


def _draw_box(axis, box, text):
    x, y, width, height, title, colour = box
    patch = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.12",
                           fc="white", ec=COLOURS[colour], lw=1.0, zorder=2)  # fmt: skip
    axis.add_patch(patch)
    axis.text(x, y + height / 2 - 0.13, title, ha="center", va="top", fontsize=8, weight="bold", zorder=3)
    axis.text(x, y - height / 2 + 0.11, text, ha="center", va="bottom", fontsize=6.5, linespacing=1.15, zorder=3)


def _draw_arrow(axis, start, end):
    """A straight arrow between facing sides: left to right, or downwards inside a column."""
    if abs(start[0] - end[0]) < 0.1:
        a, b = (start[0], start[1] - start[3] / 2), (end[0], end[1] + end[3] / 2)
    else:
        a, b = (start[0] + start[2] / 2, start[1]), (end[0] - end[2] / 2, end[1])
    axis.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=6, lw=0.7, color=COLOURS["grey"],
                                   shrinkA=1, shrinkB=1, zorder=1))  # fmt: skip


def _draw_return(axis, start, end, text, colour, style, y):
    """A line that leaves `start` below or beside, runs along height y and comes up into `end`."""
    low = start[1] - start[3] / 2
    first = [(start[0], low), (start[0], y)] if low > y else [(start[0] + start[2] / 2, y)]
    shift = 0.35 if style == "--" else -0.35
    line = [*first, (end[0] + shift, y)]
    axis.plot(*zip(*line, strict=True), ls=style, lw=0.8, color=colour, zorder=1, solid_capstyle="round")
    axis.add_patch(FancyArrowPatch(line[-1], (end[0] + shift, end[1] - end[3] / 2), arrowstyle="-|>", ls=style, lw=0.8,
                                   mutation_scale=6, color=colour, shrinkA=0, shrinkB=1, zorder=1))  # fmt: skip
    axis.text((line[-2][0] + end[0]) / 2, y + 0.05, text, ha="center", va="bottom", fontsize=6.5, color=colour)
