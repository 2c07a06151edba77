"""The parts of a dashboard: one function per kind of panel, and what all of them share.

Colours are Okabe-Ito's, told apart by readers with any colour vision; a panel with more lines than colours dashes
the rest. Runs have no fixed number, so charts by run use shades of one blue and name the run in the legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailwatch_dashboards.grafana.metric import Bounds
from tailwatch_dashboards.grafana.sdk import (
    Builder,
    Panel,
    Query,
    builders,
    common,
    common_builders,
    models,
    prometheus,
    prometheus_models,
    stat,
    table,
    timeseries,
)

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9")
"""Okabe-Ito without its yellow, which a white background swallows."""

RUN_PAGE = "${tailwatch}/?q=${__field.labels.project:percentencode}%20${__field.labels.run:percentencode}"
"""Tailwatch's own list, searched for project and run: a series carries the run's name, never its id."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The data source that the reader chose."""

WIDTH = 24
"""Columns of Grafana's grid."""

Property = models.DynamicConfigValue
"""One property of an override: its id and its value."""


def query(expr: str, *, legend: str = "__auto", ref: str = "A", instant: bool = False) -> Query:
    """One PromQL query; instant ones come as a table."""
    made = prometheus.Dataquery().expr(expr).ref_id(ref).legend_format(legend).datasource(SOURCE)
    made = made.editor_mode(prometheus_models.QueryEditorMode.CODE).exemplar(False)
    return made.instant().format(prometheus_models.PromQueryFormat.TABLE) if instant else made.range()


def chart(
    title: str,
    *,
    about: str,
    unit: str,
    queries: Sequence[Query],
    log: bool = False,
    bounds: Bounds | None = None,
    by_run: bool = False,
    shades: bool = False,
    linked: bool = True,
    colours: Sequence[tuple[str, Sequence[Any]]] = (),
    span: int = 8,
) -> Panel:
    """A chart over time.

    Args:
        title: what is drawn.
        about: the panel's description, Markdown.
        unit: Grafana's id.
        queries: what is drawn; more than one gets a colour each.
        log: draw on a logarithmic axis.
        bounds: healthy range, as dashed lines.
        by_run: the series are runs.
        shades: the series have no fixed number, as runs have none.
        linked: the series carry project and run, so a click can lead to them.
        colours: (name of a series, its properties), where a query gives several series of fixed names.
        span: width in grid columns.
    """
    panel = timeseries.Panel().title(title).description(about).unit(unit).span(span).height(8).datasource(SOURCE)
    panel = panel.line_width(1.5).fill_opacity(0).show_points(common.VisibilityMode.AUTO).point_size(4)
    panel = panel.legend(_legend()).tooltip(_tooltip()).no_value("no data")
    panel = panel.color_scheme(
        _colour(models.FieldColorModeId.SHADES if by_run or shades else models.FieldColorModeId.FIXED)
    )
    if log:
        scale = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if bounds is not None:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_lines(bounds)).thresholds_style(style)
    for index, made in enumerate(queries):
        panel = panel.with_target(made)
        if len(queries) > 1:
            panel = panel.override_by_query(ref_of(index), line_look(index))
    for name, properties in colours:
        panel = panel.override_by_name(name, list(properties))
    if not linked:
        return panel
    there = [link("Open in Grafana", run_dashboard("__field.labels.project", "__field.labels.run"))] if by_run else []
    return panel.data_links([*there, link("Open in Tailwatch", RUN_PAGE)])


def number(
    title: str,
    *,
    about: str,
    unit: str,
    expr: str,
    bounds: Bounds | None = None,
    words: dict[str, str] | None = None,
    span: int = 4,
) -> Panel:
    """One number. `words` replaces values by text; outside `bounds` it turns vermilion."""
    panel = stat.Panel().title(title).description(about).unit(unit).span(span).height(4).datasource(SOURCE)
    panel = panel.with_target(query(expr)).graph_mode(common.BigValueGraphMode.AREA).no_value("no data")
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.color_mode(common.BigValueColorMode.VALUE).text_mode(common.BigValueTextMode.VALUE)
    panel = panel.color_scheme(_colour(models.FieldColorModeId.THRESHOLDS)).thresholds(judged(bounds))
    if words:
        results = {
            value: models.ValueMappingResult(text=text, index=i) for i, (value, text) in enumerate(words.items())
        }
        panel = panel.mappings([models.ValueMap(options=results)])
    return panel


def run_table(title: str, *, about: str, columns: Sequence[tuple[str, str, str, Bounds | None]]) -> Panel:
    """One row per run.

    Args:
        title: what is listed.
        about: the panel's description, Markdown.
        columns: (heading, Grafana unit, PromQL with the labels project and run, healthy range).
    """
    panel = table.Panel().title(title).description(about).span(WIDTH).height(9).datasource(SOURCE)
    panel = panel.color_scheme(_colour(models.FieldColorModeId.THRESHOLDS)).thresholds(judged(None)).no_value("–")
    panel = panel.align(common.FieldTextAlignment.AUTO)
    names = {"project": "Project", "run": "Run"}
    for index, (heading, unit, expr, bounds) in enumerate(columns):
        ref = ref_of(index)
        names[f"Value #{ref}"] = heading
        panel = panel.with_target(query(expr, ref=ref, instant=True))
        properties = [Property("unit", unit), Property("thresholds", _plain(judged(bounds)))]
        if bounds is not None:
            properties.append(Property("custom.cellOptions", {"type": "color-text"}))
        panel = panel.override_by_name(heading, properties)
    search = "${tailwatch}/?q=${__data.fields.Project:percentencode}%20${__data.fields.Run:percentencode}"
    links = [
        link("Open in Grafana", run_dashboard("__data.fields.Project", "__data.fields.Run")),
        link("Open in Tailwatch", search),
    ]
    panel = panel.override_by_name("Run", [Property("links", [_plain(made) for made in links])])
    order = {"Project": 0, "Run": 1}
    options = {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": order}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))


def link(title: str, url: str) -> Builder:
    """A link out of a panel."""
    return builders.DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).target_blank(True)


def run_dashboard(project: str, run: str) -> str:
    """Address of the run dashboard; the arguments are names of Grafana variables."""
    return (
        f"/d/tailwatch-run/?var-project=${{{project}:percentencode}}&var-run=${{{run}:percentencode}}"
        "&var-datasource=${datasource:percentencode}&${__url_time_range}"
    )


def ref_of(index: int) -> str:
    """refId of the i-th query: A .. Z, AA .. AZ, and so on."""
    head, tail = divmod(index, 26)
    return ("" if head == 0 else ref_of(head - 1)) + chr(ord("A") + tail)


def line_look(index: int) -> list[Any]:
    """Colour and dash of the i-th of several lines."""
    row, column = divmod(index, len(PALETTE))
    return fixed(PALETTE[column], dashed=row % 2 == 1)


def fixed(colour: str, *, dashed: bool = False) -> list[Any]:
    """A line of one colour."""
    look = [Property("color", {"fixedColor": colour, "mode": "fixed"})]
    return [*look, Property("custom.lineStyle", {"dash": [6, 4], "fill": "dash"})] if dashed else look


def judged(bounds: Bounds | None) -> Builder:
    """Thresholds of a number: green within its range, vermilion outside, blue where there is none."""
    if bounds is None:
        return _steps((None, BLUE))
    first = GREEN if bounds.lower is None else VERMILION
    inside = [] if bounds.lower is None else [(bounds.lower, GREEN)]
    above = [] if bounds.upper is None else [(bounds.upper, VERMILION)]
    return _steps((None, first), *inside, *above)


def _lines(bounds: Bounds) -> Builder:
    ends = [(value, ORANGE) for value in (bounds.lower, bounds.upper) if value is not None]
    return _steps((None, "transparent"), *ends)


def _steps(*steps: tuple[float | None, str]) -> Builder:
    made = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _colour(mode: models.FieldColorModeId) -> Builder:
    return builders.FieldColor().mode(mode).fixed_color(BLUE)


def _legend() -> Builder:
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE)
    return legend.placement(common.LegendPlacement.BOTTOM).show_legend(True).calcs(["lastNotNull", "max"])


def _tooltip() -> Builder:
    return common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)


def _plain(made: Any) -> Any:
    """A built part as the JSON that an override holds."""
    return plain(made.build())


def plain(model: Any) -> Any:
    """A model of the SDK as plain JSON values."""
    if hasattr(model, "to_json"):
        return plain(model.to_json())
    if isinstance(model, dict):
        return {key: plain(value) for key, value in model.items()}
    return [plain(value) for value in model] if isinstance(model, list) else model
