"""Figures show all that a history has, say so in words, and are written as PNG and SVG without a warning."""

import io
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from chameleon_lab.history import Alarm, History, Intervention, RunState, StepRecord, lr_sensitivity
from chameleon_widgets.figures import (
    PAGE_STYLE,
    band_figure,
    compare_figure,
    figure_uri,
    interval_figure,
    page_png,
    run_figure,
    sensitivity_figure,
)
from chameleon_widgets.runs.comparison import CURVE_COLOURS, Columns, smoothed


def record(step: int, **values: float) -> StepRecord:
    loss = 2 + math.exp(-step / 5)
    plain = {"loss": loss, "text_loss": loss / 2, "image_loss": 2 * loss, "image_log_partition": 6.0 + step}
    layers = {"residual_norm": [1.0 + step, 2.0 + step], "attention_entropy": [[0.5, 0.4], [0.3, 0.9]]}
    return StepRecord(step, 0.1 * step, plain | {"max_attention_logit": 5.0 + 10 * step} | values, layers)


HISTORY = History(
    tuple(record(step, **({"held_out_loss": 2.5} if step % 4 == 3 else {})) for step in range(12)),
    (Alarm(5, "WARN", "logits", "max logit 55"), Alarm(10, "CRITICAL", "logits", "max logit 105")),
    (Intervention(8, "rate", 0.1, 0.05, "by hand"),),
)
STATE = RunState("baseline", "failed", 0.4, parent="first run", forked_at=3, difference="rate 0.1", error="a\nNaN loss")


def titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def chart(figure: Figure, title: str) -> Any:
    return next(axis for axis in figure.axes if axis.get_title(loc="left") == title)


def named(axis: Any, gid: str) -> list[Any]:
    return [line for line in axis.lines if line.get_gid() == gid]


def caption(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def draw(figure: Figure) -> None:
    figure.draw_without_rendering()  # where a warning of the layout or of a font would come


def test_a_run_figure_draws_all_that_the_history_has():
    figure = run_figure(HISTORY, STATE)
    draw(figure)
    assert titles(figure) == [
        "loss, nats a token",
        "max attention logit",
        "attention entropy, lowest head",
        "log-partition, log Z",
        "residual norm by layer",
    ]
    loss = chart(figure, "loss, nats a token")
    for name in ("loss", "text_loss", "image_loss", "held_out_loss"):
        (line,) = named(loss, name)
        steps, values = HISTORY.series(name)
        assert line.get_xdata().tolist() == steps and line.get_ydata().tolist() == values
    assert {text.get_text() for text in loss.get_legend().get_texts()} == {"all", "text", "image", "held out"}
    assert [line.get_xdata()[0] for line in named(loss, "alarm")] == [5, 10]
    assert [line.get_xdata()[0] for line in named(loss, "intervention")] == [8]
    (entropy,) = named(chart(figure, "attention entropy, lowest head"), "attention_entropy")
    assert set(entropy.get_ydata()) == {0.3}
    assert all(tick == round(tick) for axis in figure.axes[:5] for tick in axis.get_xticks()), "no half steps"
    (mesh,) = chart(figure, "residual norm by layer").collections
    assert mesh.get_array().shape == (2, 12)


@pytest.mark.parametrize("charts", [1, 3, 5, 9])
def test_every_letter_can_be_read_where_a_cell_shows_600_pixels(charts):
    run = record(0, **{f"mine{at}": 1.0 for at in range(charts)})
    histories = {f"run {at}": replace(HISTORY, records=(run,)) for at in range(5)}
    figures = [run_figure(HISTORY, STATE), compare_figure(histories, [f"mine{at}" for at in range(charts)])]
    for figure in figures:
        draw(figure)
        scale = min(1, 600 / figure.bbox.width)
        words = [each for each in figure.findobj(Text) if each.get_text().strip()]
        assert min(float(each.get_fontsize()) for each in words) * 100 / 72 * scale >= 9


def test_what_a_run_was_rewarded_for_comes_first_in_its_figure():
    values = [{"reward": 0.1 * step, "right_share": 0.05 * step, "policy_loss": -0.2} for step in range(9)]
    figure = run_figure(History(tuple(StepRecord(step, 0.0, each) for step, each in enumerate(values))))
    draw(figure)
    assert titles(figure) == ["reward", "right, of the replies"]
    (line,) = named(chart(figure, "reward"), "reward")
    assert line.get_ydata().tolist() == [each["reward"] for each in values]


def test_attention_logits_are_on_a_log_axis_with_the_alarms_thresholds():
    axis = chart(run_figure(HISTORY, thresholds={"max_attention_logit": {"WARN": 40.0}}), "max attention logit")
    assert axis.get_yscale() == "log"
    (line,) = named(axis, "threshold WARN")
    assert line.get_ydata()[0] == 40 and axis.texts[0].get_text() == "WARN 40"


def test_the_caption_tells_the_facts_and_no_date():
    told = caption(run_figure(HISTORY, STATE, smoothing=0.5))
    for fact in (
        "baseline: 12 steps, held-out loss 2.500, 2 alarms, failed.",
        "Forked from first run at step 3: rate 0.1.",
        "It failed: NaN loss.",
        "the first, at step 5: max logit 55.",
        "rate 0.1 → 0.05 at step 8.",
        "exponential means of weight 0.5",
    ):
        assert fact in told
    assert not re.search(r"20\d\d|\d:\d\d", told)
    assert "steps 3 to 11" in caption(run_figure(History(HISTORY.records[3:])))


def test_no_caption_and_no_legend_is_cut_off_whatever_its_letters():
    rng = np.random.default_rng(0)
    for letters in ("W", "i", "WiW .", "Ünïcödé "):
        text = "".join(rng.choice(list(letters), 400))
        names = {f"{text[:50]}{at}": History((record(0, loss=1.0),)) for at in range(5)}
        figure = compare_figure(names, ["loss"], note=text)
        draw(figure)
        inside = figure.bbox
        for artist in (figure._supxlabel, *figure.legends):  # pyright: ignore[reportAttributeAccessIssue]
            box = artist.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= inside.x1 + 1, letters


def test_in_a_cell_a_figure_has_no_ground_and_readable_inks_and_is_itself_again_afterwards():
    figure = compare_figure({"a run": HISTORY, "another": HISTORY}, ["loss"], note="a note")
    look = lambda artist: (artist.get_alpha(), getattr(artist, "get_color", lambda: None)())  # noqa: E731
    colours = {artist: look(artist) for artist in figure.findobj()}
    picture = np.asarray(PIL.Image.open(io.BytesIO(page_png(figure))).convert("RGBA"), np.float64)
    assert (picture[..., 3] == 0).mean() > 0.5 and (picture[2, 2, 3], picture[-3, -3, 3]) == (0, 0)
    solid = picture[picture[..., 3] == 255][:, :3] @ [0.2126, 0.7152, 0.0722] / 255
    assert np.quantile(solid, 0.01) > 0.1 and np.quantile(solid, 0.99) < 0.95, "neither near black nor white"
    for artist in figure.findobj():
        if artist in colours:
            assert look(artist) == colours[artist]
    out = io.BytesIO()
    figure.savefig(out, format="png")
    paper = np.asarray(PIL.Image.open(out).convert("RGBA"))
    assert (paper[..., 3] == 255).all() and (paper[2, 2] == 255).all()


def test_a_notebooks_own_plot_lies_on_any_page_with_the_style_of_these():
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({**PAGE_STYLE}):  # pyright: ignore[reportArgumentType]
        figure = Figure()
        axis = figure.add_subplot()
        axis.plot([1, 2], label="a line")
        axis.set(title="title", xlabel="across", ylabel="up")
        axis.legend()
        FigureCanvasAgg(figure).draw()
        out = io.BytesIO()
        figure.savefig(out, format="png")
    from matplotlib_inline.backend_inline import _fetch_figure_metadata

    assert _fetch_figure_metadata(figure) is None  # else JupyterLab lays it on a slab, dark on a light page
    picture = np.asarray(PIL.Image.open(out).convert("RGBA"), np.float64)
    assert picture[2, 2, 3] == 0
    solid = picture[picture[..., 3] == 255][:, :3].mean(-1) / 255
    assert solid.min() > 0.2 and solid.max() < 0.9


def test_only_what_was_recorded_gets_a_chart():
    figure = run_figure(History(tuple(StepRecord(step, 0.0, {"loss": 1.0}) for step in range(3))))
    assert titles(figure) == ["loss, nats a token"]


@pytest.mark.parametrize(
    "history",
    [
        History(),
        History((StepRecord(0, 0.0),)),
        History((record(7),)),
        History(tuple(StepRecord(step, 0.1, {"loss": math.nan, "max_attention_logit": math.inf}) for step in range(5))),
        History(tuple(StepRecord(step, 0.1, {"loss": -1.0, "max_attention_logit": 0.0}) for step in range(5))),
        History(
            (
                StepRecord(0, 0.0, {}, {"residual_norm": [math.nan, 0.0]}),
                StepRecord(4, 0.0, {}, {"residual_norm": [0.0, 0.0]}),
            )
        ),
    ],
    ids=["empty", "no values", "one step", "not finite", "not positive", "layers without numbers"],
)
def test_a_history_of_any_kind_is_drawn_without_a_warning(history: History):
    figures = run_figure(history), compare_figure({"one": history}, smoothing=0.9)
    for figure in figures:
        draw(figure)
        assert caption(figure)
        empty = "Nothing recorded yet" in [text.get_text() for text in figure.texts]
        assert empty == (not figure.axes)
    assert bool(titles(figures[1])) == any(record.values or record.layers for record in history.records)


def test_a_figure_is_written_as_png_and_svg_and_needs_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    figure = run_figure(HISTORY, STATE)
    figure.savefig(tmp_path / "run.png", dpi=80)
    figure.savefig(tmp_path / "run.svg")
    with PIL.Image.open(tmp_path / "run.png") as picture:
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").resize((60, 40)).tobytes())) > 10
    assert "</svg>" in (tmp_path / "run.svg").read_text()[-20:]
    assert figure_uri(figure).startswith("data:image/png;base64,iVBOR")


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.facecolor": "black", "axes.grid": False}):
        figure = run_figure(HISTORY)
        assert matplotlib.rcParams["axes.facecolor"] == "black"
    draw(figure)
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
    assert dict(matplotlib.rcParams) == before


OTHER = History(tuple(record(step, loss=1.0) for step in range(3, 30, 2)))


def test_compared_runs_keep_their_steps_colours_and_alarms():
    figure = compare_figure(
        {"one": HISTORY, "other": OTHER}, ["loss", "residual_norm"], colours={"other": "#123456"}, note="A note."
    )
    draw(figure)
    assert titles(figure) == ["loss", "residual norm"]
    loss, norm = figure.axes
    (one,), (other,) = named(loss, "one"), named(loss, "other")
    assert one.get_xdata().tolist() == list(range(12)) and other.get_xdata().tolist() == list(range(3, 30, 2))
    assert (one.get_color(), other.get_color()) == (CURVE_COLOURS[0], "#123456")
    assert norm.get_yscale() == "log" and named(norm, "other")[0].get_ydata()[0] == 5
    assert {line.get_color() for line in named(loss, "alarm")} == {CURVE_COLOURS[0]}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "other"]
    assert (
        "one: 12 steps" in caption(figure)
        and "other: steps 3 to 29" in caption(figure)
        and "A note." in caption(figure)
    )


def test_a_smoothed_curve_has_what_was_recorded_behind_it():
    axis, held_out = compare_figure({"one": HISTORY}, ["loss", "held_out_loss"], smoothing=0.8).axes
    assert not named(held_out, "recorded"), "the few held-out losses are shown as they are"
    (curve,), (recorded,) = named(axis, "one"), named(axis, "recorded")
    assert recorded.get_ydata().tolist() == HISTORY.series("loss")[1]
    assert curve.get_ydata().tolist() == smoothed(recorded.get_ydata(), 0.8).tolist()


def test_a_measure_that_no_run_has_is_named():
    with pytest.raises(KeyError, match=r"No run recorded 'accuracy'; there is .*loss"):
        compare_figure({"one": HISTORY}, ["accuracy"])


NAMES = ["a$b$c", "$\\frac{1}", "_hidden", "鸟 🐦", "x" * 300, "<b>bold</b>", "two\nlines"]


def test_any_name_is_shown_as_it_is():
    figure = compare_figure(dict.fromkeys(NAMES, HISTORY), ["loss"])
    draw(figure)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["a$b$c", "$\\frac{1}", "_hidden", "\ufffd \ufffd", "x" * 59 + "…", "<b>bold</b>", "two lines"]
    draw(run_figure(History(HISTORY.records[:1]), RunState(" ".join(NAMES), "finished")))
    draw(sensitivity_figure({name: {0.1: [1.0], 0.2: [2.0]} for name in NAMES}))


OUTCOMES = {"baseline": {0.1: [2.5, 2.7], 0.01: [1.65], 0.3: [math.nan, 9.0]}, "fixed": {0.01: [1.6], 0.1: [1.7]}}


def test_the_loss_against_the_rate_has_means_ranges_and_the_sensitivity():
    figure = sensitivity_figure(OUTCOMES, start=5.0)
    draw(figure)
    axis: Any = figure.axes[0]
    assert axis.get_xscale() == "log"
    (line,) = named(axis, "baseline")
    assert line.get_xdata().tolist() == [0.01, 0.1, 0.3] and line.get_ydata() == pytest.approx([1.65, 2.6, 5.0])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.01", "0.1", "0.3"]
    assert axis.collections[0].get_paths()[0].vertices[:, 1].max() == 5.0
    told = [text.get_text() for text in axis.get_legend().get_texts()]
    assert told == ["baseline: sensitivity 1.43", "fixed: sensitivity 0.05"]
    assert "1 to 2 a rate" in caption(figure) and "The loss at the start, 5, is the most that counts." in caption(
        figure
    )


def test_an_empty_sensitivity_is_a_figure_too():
    figure = sensitivity_figure({"baseline": {}})
    draw(figure)
    assert not figure.axes and caption(figure)
    draw(sensitivity_figure({"lost": {0.1: [math.nan]}}))


def test_the_published_sweep_has_the_published_sensitivities():
    """Held-out losses of docs' sweep over rates 0.01 to 0.3, mean of three seeds, and what comes of them."""
    rates = (0.01, 0.03, 0.1, 0.3)
    for losses, number in (
        ((1.651, 1.911, 2.499, 3.297), 0.688),
        ((1.602, 1.614, 1.695, 1.822), 0.081),
        ((1.608, 1.593, 1.584, 1.589), 0.009),
    ):
        assert lr_sensitivity({rate: [loss] for rate, loss in zip(rates, losses, strict=True)}, 5.7) == pytest.approx(
            number, abs=1e-3
        )


def test_sensitivity_bounds_each_seed_by_the_start_and_counts_nan_as_it():
    assert lr_sensitivity({0.1: [1.0], 0.2: [3.0, math.nan]}, 4.0) == pytest.approx((1 + 3.5) / 2 - 1)
    assert lr_sensitivity({0.1: [1.0, 2.0]}, math.inf) == 0
    assert lr_sensitivity({0.1: [1.0], 1.0: [math.nan]}, math.inf) == math.inf
    with pytest.raises(ValueError, match="one learning rate at least"):
        lr_sensitivity({}, 5.0)


def test_smoothing_is_a_mean_that_skips_what_is_no_number():
    values = np.array([1.0, math.nan, 3.0, math.inf, 5.0])
    kept = smoothed(values, 0.5)
    assert math.isnan(kept[1]) and kept[3] == math.inf
    assert kept[[0, 2, 4]] == pytest.approx([1.0, (0.5 * 1 + 3) / 1.5, (0.25 * 1 + 0.5 * 3 + 5) / 1.75])
    assert smoothed(values, 0.0) is values
    with pytest.raises(ValueError, match="below 1; got 1"):
        smoothed(values, 1.0)


def test_columns_go_on_where_they_were_and_start_anew_after_a_rewind():
    columns = Columns(History(HISTORY.records[:6]))
    columns.take(HISTORY)
    assert columns.series("loss")[1].tolist() == HISTORY.series("loss")[1]
    assert columns.series("residual_norm")[1].tolist() == [2.0 + step for step in range(12)]
    assert not len(columns.series("nothing")[0])
    columns.take(History((*HISTORY.records[:6], StepRecord(6, 9.0, {"loss": 7.0}))))
    assert columns.series("loss")[1][-1] == 7.0 and len(columns.series("loss")[0]) == 7


GROUPS = {"whole": {"colour": (98.0, 93.0, 99.5), "shape": (50.0, 40.0, 60.0)}, "silent": {"shape": (49.0, 39.0, 59.0)}}


def test_values_have_a_row_a_name_and_a_colour_a_group():
    figure = interval_figure(GROUPS, title="right", across="%", caption="Of $100 drawings.")
    draw(figure)
    axis = chart(figure, "right")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["colour", "shape"]
    whole, silent = axis.containers
    assert whole.lines[0].get_xdata().tolist() == [98.0, 50.0] and silent.lines[0].get_xdata().tolist() == [49.0]
    low, high = whole.lines[2][0].get_segments()[1][:, 0]
    assert (low, high) == (40.0, 60.0) and whole.lines[0].get_color() != silent.lines[0].get_color()
    assert whole.lines[0].get_ydata()[1] < silent.lines[0].get_ydata()[0]  # beside each other in one row
    assert caption(figure) == "Of $100 drawings."


def test_bands_hold_the_intervals_of_their_lines():
    figure = band_figure({"colour": [(1.0, 0.5, 2.0), (3.0, 2.5, 4.0)]}, title="by layer")
    draw(figure)
    axis = chart(figure, "by layer")
    (line,) = named(axis, "colour")
    assert line.get_xdata().tolist() == [0, 1] and line.get_ydata().tolist() == [1.0, 3.0]
    ys = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (ys.min(), ys.max()) == (0.5, 4.0) and not figure.legends  # one name needs none


@pytest.mark.parametrize("groups", [{}, {"a": {}}, {"a": {"b": (float("nan"),) * 3}}], ids=["no", "empty", "nan"])
def test_intervals_of_nothing_are_figures_too(groups: dict[str, dict[str, tuple[float, ...]]]):
    draw(interval_figure(groups, title="t"))
    draw(band_figure({name: list(values.values()) for name, values in groups.items()}, title="t"))


def test_a_cell_shows_a_figure_without_pyplot():
    png = run_figure(HISTORY)._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    assert png.startswith(b"\x89PNG")
