"""Figures drawn by matplotlib: one run, several compared, the loss against the learning rate, values with intervals.

Each is a `Figure` of its own, with a caption that says what it shows: the last expression of a cell shows it, and
`figure.savefig("runs.svg")` or `"runs.png"` keeps it.
"""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chameleon_lab.history import Alarm, History, Losses, RunState, counted, lr_sensitivity
from chameleon_lab.measures import default_thresholds, measure_of, measures_of, threshold_lines
from chameleon_widgets.runs.comparison import CURVE_COLOURS as COLOURS
from chameleon_widgets.runs.comparison import Columns, band_of, first_measures, smoothed

INK, SOFT, RULE, EDGE = "#1f2328", "#5f6670", "#e8eaed", "#8a8f98"
PAGE_INKS = {INK: "#7a8189", SOFT: "#7f868e", RULE: "#80868f", EDGE: "#80868e", "#ffffff": "none", "#a4161a": "#d23b40"}
"""What stands for these on a page: four to one or nearly so on white and on near black alike."""
PAGE_STYLE = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "legend.labelcolor"), PAGE_INKS[INK]),
    **dict.fromkeys(("ytick.color", "axes.edgecolor", "legend.edgecolor"), PAGE_INKS[EDGE]),
    # A shade darker, on the other side of the middle: where all labels are on one side, IPython asks the page for a
    # dark or a light slab behind a figure without a ground.
    "xtick.color": "#797f87",
}
"""Settings of matplotlib for a notebook's own plots, so that they lie on a page of any colour as these figures do:
`plt.rcParams.update(PAGE_STYLE)`."""

FONT = "DejaVu Sans"  # comes with matplotlib
MODALITIES = {"": INK, "text": COLOURS[0], "image": COLOURS[1], "special": COLOURS[3]}  # as on screen
LEVEL_COLOURS: Mapping[str, str] = {"WARN": "#d49a00", "ALARM": "#d55e00", "CRITICAL": "#a4161a"}
CELL, CAPTION_POINTS = (3.6, 2.6), 8  # inches of one chart; size of a caption's letters
ACROSS = 2  # charts side by side: with a third, letters are too small where a cell shows 600 pixels


def run_figure(
    history: History,
    state: RunState | None = None,
    *,
    smoothing: float = 0.0,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """One run: whatever it recorded of reward, loss, largest attention logit, attention entropy, log-partition and
    residual norm by layer; triangles above for alarms, dotted lines for what was changed on the way.

    `thresholds`: by measure and level, where dashed lines show what its rules sound at; else those of `state`, and of
    the default rules without one.
    """
    limits = thresholds if thresholds is not None else state.thresholds if state else default_thresholds()
    columns = Columns(history)
    names = columns.names
    charts: list[Callable[[Axes, Columns, float], None]] = [
        partial(_measure_chart, name=name) for name in ("reward", "right_share") if name in names
    ]
    if any(name in names for name in _by_modality("loss")):
        charts.append(_loss)
    if "max_attention_logit" in names:
        charts.append(partial(_measure_chart, name="max_attention_logit"))
    if any(name.endswith("attention_entropy") for name in names):
        charts.append(_entropy)
    if any(name in names for name in _by_modality("log_partition")):
        charts.append(_log_partition)
    if any(record.layers.get("residual_norm") for record in history.records):
        charts.append(_residual_norm)
    figure, axes = _frame(len(charts))
    for axis, draw in zip(axes, charts, strict=True):
        draw(axis, columns, smoothing)
        _threshold_lines(axis, limits)
        if draw is not _residual_norm:
            for change in history.interventions:
                axis.axvline(change.step, color=SOFT, linewidth=0.9, linestyle=":", gid="intervention")
            _alarm_marks(axis, history.alarms)
    _caption(figure, axes, _run_caption(history, state, smoothing))
    return figure


def compare_figure(
    histories: Mapping[str, History],
    measures: Sequence[str] | None = None,
    *,
    smoothing: float = 0.0,
    colours: Mapping[str, str] | None = None,
    note: str = "",
    seeds: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Several runs by step, a chart for each measure; triangles above in a run's colour are its alarms.

    `measures`: four worth a look first where left out. `colours`: of these runs or more, in whose order dashes come
    where colours come again. `smoothing`: the weight of `comparison.smoothed`; what was recorded stays behind it,
    faint; what is measured on held-out documents is not smoothed. `note` goes into the caption. `seeds`: by a name of
    their own, runs that are drawn as one: their mean, in a band from the lowest to the highest. Raises KeyError for a
    measure that no run has.
    """
    runs = {name: Columns(history) for name, history in histories.items()}
    bands = {name: [each for each in members if each in runs] for name, members in (seeds or {}).items()}
    bands = {name: members for name, members in bands.items() if len(members) > 1}
    banded = {each for members in bands.values() for each in members}
    names = sorted({name for columns in runs.values() for name in columns.names})
    charts = first_measures(names) if measures is None else list(measures)
    for name in charts:
        if name not in names:
            raise KeyError(f"No run recorded {name!r}; there is {', '.join(names) or 'nothing'}.")
    others = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(histories) if name not in (colours or {})}
    hues = {**(colours or {}), **others}
    hues |= {each: hues[members[0]] for members in bands.values() for each in members}  # of their line and their alarms
    dashes: dict[str, Literal["-", "--"]] = {
        name: "--" if at % (2 * len(COLOURS)) >= len(COLOURS) else "-" for at, name in enumerate(hues)
    }
    figure, axes = _frame(len(charts))
    for axis, measure in zip(axes, charts, strict=True):
        weight = 0.0 if measure.startswith("held_out") else smoothing
        for name, columns in runs.items():
            if name not in banded:
                _line(axis, columns.series(measure), hues[name], weight, name=name, dash=dashes[name])
        for name, members in bands.items():
            _band(axis, band_of([runs[each] for each in members], measure), hues[members[0]], weight, name)
        about = measure_of(measure)
        _head(axis, about.words, log=about.axis == "log")
        for row, (name, history) in enumerate(histories.items()):
            _alarm_marks(axis, history.alarms, hues[name], row)
    if axes:
        single = [name for name in histories if name not in banded]
        handles = [Line2D([], [], color=hues[name], linewidth=2, linestyle=dashes[name]) for name in single]
        handles += [Line2D([], [], color=hues[members[0]], linewidth=4) for members in bands.values()]
        names = [_short(name) for name in single]
        names += [_short(f"{name}, {len(members)} seeds") for name, members in bands.items()]
        _legend(figure, handles, names, loc="outside upper left", ncols=_columns_of(figure, names, 4))
    facts = [f"{name}: {_facts(history)}" for name, history in histories.items()]
    opening = "Runs aligned by step." if histories else "No runs."
    opening += " Bands reach from the lowest to the highest of the seeds, lines are their means." if bands else ""
    _caption(figure, axes, " ".join([opening, *(f"{each}." for each in facts), _smoothing(smoothing), note]))
    return figure


def sensitivity_figure(outcomes: Mapping[str, Losses], *, start: float = math.inf) -> Figure:
    """Held-out loss against learning rate, a line for each configuration: mean and range over seeds.

    `outcomes`: by configuration, the losses of each rate, one a seed. `start`: the loss before training, above which
    no loss is curves or counted; a loss that is no number counts as that. The legend has `lr_sensitivity`.
    """
    curves = {name: counted(losses, start) for name, losses in outcomes.items() if losses}
    figure, axes = _frame(1 if curves else 0, (6.4, 3.8))
    for axis in axes:
        handles = []
        for at, (name, losses) in enumerate(curves.items()):
            colour, rates = COLOURS[at % len(COLOURS)], list(losses)
            means = [float(np.mean(each)) for each in losses.values()]
            (line,) = axis.plot(rates, means, color=colour, linewidth=1.4, marker="o", markersize=4.5, gid=name)
            lows, highs = [min(each) for each in losses.values()], [max(each) for each in losses.values()]
            axis.fill_between(rates, lows, highs, color=colour, alpha=0.16, linewidth=0)
            handles.append(line)
        axis.set_xscale("log")
        _head(axis, _title("held_out_loss", Columns()), across="learning rate")
        if len(tried := sorted({rate for losses in curves.values() for rate in losses})) <= 10:
            axis.set_xticks(tried, [f"{rate:g}" for rate in tried], minor=False)
            axis.set_xticks([], minor=True)
        if any(start in each for losses in curves.values() for each in losses.values()):
            axis.axhline(start, color=SOFT, linewidth=0.9, linestyle="--", gid="start")
        labels = [f"{_short(name)}: sensitivity {lr_sensitivity(losses, start):.3g}" for name, losses in curves.items()]
        _legend(axis, handles, labels, loc="best")
    seeds = sorted({len(each) for losses in curves.values() for each in losses.values()}) or [0]
    over = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    text = (
        f"Held-out loss against learning rate; lines are means and bands the range over seeds, {over} a rate. "
        "LR sensitivity: mean over rates of the loss less the best of them, nats a token (arXiv 2309.14322). "
    )
    if math.isfinite(start):
        text += f"The loss at the start, {start:.3g}, is the most that counts."
    _caption(figure, axes, text)
    return figure


def interval_figure(
    groups: Mapping[str, Mapping[str, Sequence[float]]], *, title: str, across: str = "", caption: str = ""
) -> Figure:
    """Values with their intervals, a row for each name and a colour for each group: (value, low, high) each."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure, (axis,) = _frame(1, (6.4, 1.5 + 0.34 * max(1, len(names))))
    for at, (group, values) in enumerate(groups.items()):
        rows = [names.index(name) + 0.16 * (at - (len(groups) - 1) / 2) for name in values]
        middles, lows, highs = np.array([tuple(each)[:3] for each in values.values()], np.float64).reshape(-1, 3).T
        spread = np.stack([middles - lows, highs - middles]).clip(0)
        hue = COLOURS[at % len(COLOURS)]
        axis.errorbar(middles, rows, xerr=spread, fmt="o", markersize=4.5, color=hue, elinewidth=1.6, gid=group)
    _head(axis, title, across=across)
    axis.set_yticks(range(len(names)), [_writable(name) for name in names])
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axis.tick_params(axis="y", labelcolor=INK)
    _groups(figure, list(groups))
    _caption(figure, [axis], caption)
    return figure


def band_figure(
    curves: Mapping[str, Sequence[Sequence[float]]],
    *,
    title: str,
    across: str = "layer",
    up: str = "",
    caption: str = "",
) -> Figure:
    """Values at 0, 1, 2, ..., such as layers, a line for each name and its intervals as a band: (value, low, high)."""
    figure, (axis,) = _frame(1, (6.4, 3.8))
    for at, (name, points) in enumerate(curves.items()):
        values, lows, highs = np.array([tuple(each)[:3] for each in points], np.float64).reshape(-1, 3).T
        places, hue = np.arange(len(values)), COLOURS[at % len(COLOURS)]
        axis.plot(places, values, color=hue, linewidth=1.6, marker="o", markersize=4.5, gid=name)
        axis.fill_between(places, lows, highs, color=hue, alpha=0.16, linewidth=0)
    _head(axis, title, across=across, up=up)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _groups(figure, list(curves))
    _caption(figure, [axis], caption)
    return figure


def _groups(figure: Figure, names: Sequence[str]) -> None:
    """A legend above the chart, where there is more than one name to tell apart."""
    if len(names) > 1:
        handles = [Line2D([], [], color=COLOURS[at % len(COLOURS)], linewidth=2) for at in range(len(names))]
        short = [_short(name) for name in names]
        _legend(figure, handles, short, loc="outside upper left", ncols=_columns_of(figure, short, 5))


def figure_uri(figure: Figure) -> str:
    """The figure as a small PNG inside a `data:` address, for a still."""
    return "data:image/png;base64," + base64.b64encode(page_png(figure)).decode()


# The charts of one run


def _title(name: str, columns: Columns) -> str:
    measure = measures_of({*columns.names, name})[name]
    return f"{measure.words}, {measure.unit}" if measure.unit else measure.words


def _loss(axis: Axes, columns: Columns, smoothing: float) -> None:
    for name, (modality, colour) in _by_modality("loss").items():
        _line(axis, columns.series(name), colour, smoothing, label=modality or "all", name=name)
    steps, values = columns.series("held_out_loss")
    if len(steps):
        axis.plot(steps, values, color=COLOURS[2], marker="o", markersize=3.5, label="held out", gid="held_out_loss")
    _head(axis, _title("loss", columns), legend=True)


def _measure_chart(axis: Axes, columns: Columns, smoothing: float, *, name: str) -> None:
    """A measure that has a chart to itself."""
    _line(axis, columns.series(name), INK, smoothing, name=name)
    _head(axis, _title(name, columns), log=measure_of(name).axis == "log")


def _threshold_lines(axis: Axes, limits: Mapping[str, Mapping[str, float]]) -> None:
    """A dashed line and its words at each value beyond which a rule sounds on one of the chart's measures."""
    names = dict.fromkeys(str(line.get_gid()) for line in axis.lines)
    for threshold, level in (each for name in names for each in threshold_lines(limits.get(name, {}))):
        colour = LEVEL_COLOURS.get(level, SOFT)
        axis.axhline(threshold, color=colour, linewidth=0.9, linestyle="--", gid=f"threshold {level}")
        axis.annotate(
            f"{level} {threshold:g}",
            (0, threshold),
            (3, 2),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            fontsize=CAPTION_POINTS,
            color=colour,
            parse_math=False,
        )


def _entropy(axis: Axes, columns: Columns, smoothing: float) -> None:
    names = [name for name in columns.names if name.endswith("attention_entropy")]
    for at, name in enumerate(names):
        _line(axis, columns.series(name), (INK, *COLOURS)[at % 8], smoothing, label=measure_of(name).words, name=name)
    _head(axis, f"{measure_of('attention_entropy').words}, lowest head", legend=len(names) > 1)


def _log_partition(axis: Axes, columns: Columns, smoothing: float) -> None:
    for name, (modality, colour) in _by_modality("log_partition").items():
        _line(axis, columns.series(name), colour, smoothing, label=modality or "all", name=name)
    _head(axis, _title("log_partition", columns), legend=True)


def _residual_norm(axis: Axes, columns: Columns, smoothing: float) -> None:
    records = [record for record in columns.history.records if record.layers.get("residual_norm")]
    steps = np.array([record.step for record in records], np.float64)
    values_LT = np.ma.masked_invalid([record.layers["residual_norm"] for record in records]).T
    several = np.diff(steps) / 2 if len(steps) > 1 else np.array([0.5])
    edges = np.concatenate([[steps[0] - several[0]], steps[:-1] + np.diff(steps) / 2, [steps[-1] + several[-1]]])
    finite = values_LT.compressed()
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    norm = LogNorm(low, high) if high > low > 0 else Normalize(low, high if high > low else low + 1)
    layers = np.arange(len(values_LT) + 1) + 0.5
    mesh = axis.pcolormesh(edges, layers, values_LT, norm=norm, cmap="viridis", rasterized=True)
    axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(False)
    bar = axis.figure.colorbar(mesh, ax=axis, pad=0.02, aspect=26)
    bar.ax.tick_params(which="both", length=0, labelsize=8, labelcolor=SOFT, labelfontfamily=FONT)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _head(axis, "residual norm by layer", up="layer")


def _by_modality(measure: str) -> dict[str, tuple[str, str]]:
    """(modality, colour) by the measure's name in each modality; the whole last, so that it lies on top."""
    names = {f"{modality}_{measure}" if modality else measure: (modality, hue) for modality, hue in MODALITIES.items()}
    return dict(reversed(names.items()))


# Parts of a figure


class CellFigure(Figure):
    """A figure that a notebook's cell shows even where nothing has imported pyplot, which brings Jupyter's own way.

    In the cell it lies on the page, light or dark; saved, it is dark on white, for paper. Nothing of it is cut off.
    """

    def _repr_png_(self) -> bytes:
        return page_png(self)

    def savefig(self, fname: Any, **options: Any) -> None:
        super().savefig(fname, **{"bbox_inches": "tight", "pad_inches": 0.08} | options)


def page_png(figure: Figure) -> bytes:
    """The figure as a PNG for a page of any colour: no ground of its own, and inks that are legible on both."""
    out, before = io.BytesIO(), list[tuple[Any, str, Any]]()
    try:
        for artist in figure.findobj():
            for kind in ("color", "facecolor", "edgecolor", "markerfacecolor"):
                ask, colour = getattr(artist, f"get_{kind}", None), None
                if ask is not None and hasattr(artist, f"set_{kind}"):
                    colour = ask()
                page = PAGE_INKS.get(_hex_of(colour), "")
                if page:
                    before.append((artist, kind, colour))
                    getattr(artist, f"set_{kind}")(page)
                if page == PAGE_INKS[RULE]:  # a line of the grid, whose own alpha of 1 would win over the colour's
                    before.append((artist, "alpha", artist.get_alpha()))
                    artist.set_alpha(0.22)
        figure.savefig(out, format="png", dpi=100)
    finally:
        for artist, kind, colour in reversed(before):
            getattr(artist, f"set_{kind}")(colour)
    return out.getvalue()


def _hex_of(colour: Any) -> str:
    """A colour as #rrggbb; empty for what is none, for several, and for one that can be seen through."""
    try:
        red_green_blue, alpha = to_rgba(colour)[:3], to_rgba(colour)[3]
    except (ValueError, TypeError):
        return ""
    return to_hex(red_green_blue) if alpha == 1 else ""


def _frame(charts: int, size: tuple[float, float] | None = None) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many charts, a paragraph's room below them left to the layout."""
    columns = min(max(charts, 1), ACROSS)
    rows = max(1, math.ceil(charts / columns))
    across, high = CELL
    size = size or (max(across * columns, 5.4), (high * rows if charts else 0) + 0.9)
    figure = CellFigure(size, layout="constrained", facecolor="white")
    return figure, [figure.add_subplot(rows, columns, at + 1) for at in range(charts)]


def _head(
    axis: Axes, title: str, *, log: bool = False, across: str = "step", up: str = "", legend: bool = False
) -> None:
    """Title, scale and quiet looks, said here and not in matplotlib's settings, which are the notebook's and global."""
    axis.set_title(title, loc="left", parse_math=False, color=INK, fontsize=9.5, fontweight="bold", fontfamily=FONT)
    axis.set_xlabel(across, color=SOFT, fontsize=8.5, fontfamily=FONT)
    axis.set_ylabel(up, color=SOFT, fontsize=8.5, fontfamily=FONT)
    if log and any(np.any(np.atleast_1d(line.get_ydata()) > 0) for line in axis.lines):
        axis.set_yscale("log", nonpositive="mask")
    if across == "step":
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.set_facecolor("white")
    axis.set_axisbelow(True)
    axis.grid(True, which="major", color=RULE, linewidth=0.7, linestyle="-")
    axis.tick_params(which="both", length=0, labelsize=8, labelcolor=SOFT, labelfontfamily=FONT)
    for side, spine in axis.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=EDGE, linewidth=0.8)
    if legend:
        handles = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
        _legend(axis, handles, [str(line.get_label()) for line in handles], loc="best")


def _line(
    axis: Axes,
    points: tuple[np.ndarray, np.ndarray],
    colour: str,
    smoothing: float,
    *,
    name: str,
    label: str = "",
    dash: Literal["-", "--"] = "-",
) -> None:
    """A curve; behind a smoothed one, faint, the recorded values."""
    steps, values = points
    if not len(steps):
        return
    if smoothing:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7, gid="recorded")
    curve, dot = smoothed(values, smoothing), "o" if np.isfinite(values).sum() == 1 else "none"
    axis.plot(
        steps, curve, color=colour, linewidth=1.4, linestyle=dash, marker=dot, markersize=3.5, label=label, gid=name
    )


def _band(axis: Axes, points: tuple[np.ndarray, np.ndarray], colour: str, smoothing: float, name: str) -> None:
    """Several runs' values as their mean, in a band of all."""
    steps, values_RX = points
    if len(steps):
        low, mean, high = (
            smoothed(each, smoothing) for each in (values_RX.min(0), values_RX.mean(0), values_RX.max(0))
        )
        axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        dot = "o" if len(steps) == 1 else "none"
        axis.plot(steps, mean, color=colour, linewidth=1.4, marker=dot, markersize=3.5, gid=name)


def _alarm_marks(axis: Axes, alarms: Sequence[Alarm], colour: str = "", row: int = 0) -> None:
    """Triangles above the chart, hollow for a warning: in the level's colour, or in a run's, a row for each."""
    for alarm in alarms:
        hue = colour or LEVEL_COLOURS.get(alarm.level, SOFT)
        axis.plot(
            alarm.step,
            0.985 - 0.045 * row,
            marker="v",
            markersize=5,
            color=hue,
            linestyle="none",
            gid="alarm",
            markerfacecolor="white" if alarm.level == "WARN" else hue,
            transform=axis.get_xaxis_transform(),
        )


def _legend(place: Axes | Figure, handles: list[Line2D], labels: Sequence[str], **keys: Any) -> None:
    """A legend whose words are shown as they are: no formulas, no names that are left out."""
    if not handles:
        return
    legend = place.legend(handles, [f"{at}" for at in range(len(handles))], handlelength=1.4, frameon=False, **keys)
    room = 72 * place.get_size_inches()[0] - 40 if isinstance(place, Figure) else math.inf
    for text, label in zip(legend.get_texts(), (_short(each, room) for each in labels), strict=True):
        text.set(parse_math=False, color=INK, fontsize=8, fontfamily=FONT)
        text.set_text(_writable(label))


def _columns_of(figure: Figure, names: Sequence[str], most: int) -> int:
    """How many names of a legend stand side by side, as many as fit."""
    widest = max(map(_width, map(_writable, names))) + 34  # points: a line's sample and the gaps
    return max(1, min(most, len(names), int(72 * figure.get_size_inches()[0] / widest)))


def _caption(figure: Figure, axes: Sequence[Axes], text: str) -> None:
    rows = [math.ceil(len(each.get_texts()) / each._ncols) for each in figure.legends]  # pyright: ignore[reportAttributeAccessIssue]
    lines = "\n".join(_caption_lines(_writable(" ".join(text.split())), 72 * 0.97 * figure.get_size_inches()[0]))
    if not axes:
        figure.text(0.5, 0.7, "Nothing recorded yet", ha="center", va="center", color=SOFT, fontsize=11)
    # A long caption, or a legend of many rows, makes the figure higher and not its charts lower.
    extra = max(0, lines.count("\n") + 1 - 4) + max(0, sum(rows) - 2)
    figure.set_figheight(figure.get_figheight() + extra * 1.6 * CAPTION_POINTS / 72)
    caption = figure.supxlabel(lines, x=0.012, ha="left", fontsize=CAPTION_POINTS, color=SOFT, parse_math=False)
    caption.set_gid("caption")


def _caption_lines(text: str, points: float) -> list[str]:
    """The text in lines of at most so many points, by the widths of its letters; a word longer than that is broken."""
    lines = [""]
    for word in text.split():
        for part in _parts_of(word, points):
            longer = f"{lines[-1]} {part}".strip()
            if _width(longer) <= points:
                lines[-1] = longer
            else:
                lines.append(part)
    return lines


def _parts_of(word: str, points: float) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and _width(parts[-1] + letter) > points:
            parts.append("")
        parts[-1] += letter
    return parts


def _width(text: str) -> float:
    return sum(map(_advance, text))


@cache
def _advance(letter: str) -> float:
    """Points from one letter of a caption to the next."""
    with _font_lock:
        _font().set_size(CAPTION_POINTS, 72)
        return _font().load_char(ord(letter)).linearHoriAdvance / 65536


def _run_caption(history: History, state: RunState | None, smoothing: float) -> str:
    title = f"{state.name}: " if state else ""
    facts = _facts(history) + (f", {state.status}" if state else "")
    parts = [f"{title}{facts}."]
    if state and state.parent:
        parts.append(f"Forked from {state.parent} at step {state.forked_at}: {state.difference or 'no difference'}.")
    if state and state.error:
        parts.append(f"It failed: {state.error.splitlines()[-1]}.")
    if history.alarms:
        first = history.alarms[0]
        parts.append(f"Triangles are alarms, hollow for warnings; the first, at step {first.step}: {first.message}.")
    if history.interventions:
        changes = (f"{each.name} {each.before} → {each.after} at step {each.step}" for each in history.interventions)
        parts.append(f"Dotted lines: {'; '.join(changes)}.")
    return " ".join([*parts, _smoothing(smoothing)])


def _facts(history: History) -> str:
    if not history.records:
        return "no steps"
    first, last = history.records[0].step, history.records[-1].step
    steps = f"{last + 1:,} steps" if first == 0 else f"steps {first:,} to {last:,}"
    loss = f", held-out loss {history.held_out_loss:.3f}" if "held_out_loss" in history.names else ""
    alarms = len(history.alarms)
    return steps + loss + (f", {alarms} alarm{'s' if alarms > 1 else ''}" if alarms else "")


def _smoothing(weight: float) -> str:
    return f"Curves are exponential means of weight {weight:g}; what was recorded is faint." if weight else ""


def _short(name: str, points: float = math.inf) -> str:
    """A name of at most 60 letters, and of at most so many points' width."""
    name = " ".join(name.split())
    cut = name if len(name) <= 60 else name[:59] + "…"
    while _width(_writable(cut)) > points and len(cut) > 1:
        cut = cut[:-2] + "…"
    return cut


def _writable(text: str) -> str:
    """Text without letters that the figure's font lacks."""
    with _font_lock:
        return "".join(
            letter if letter.isspace() or _font().get_char_index(ord(letter)) else "\ufffd" for letter in text
        )


@cache
def _font() -> FT2Font:
    """One for captions alone: a font of matplotlib's is in use by the thread that draws with it."""
    return FT2Font(font_manager.findfont("DejaVu Sans"))


_font_lock = threading.Lock()  # stills are drawn in several threads, and a font holds the letter that it loaded last
