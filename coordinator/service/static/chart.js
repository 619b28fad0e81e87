// One chart: demand and allocation of the past, what was forecast for it an hour before, and the coming hour with its 80 % band.
"use strict";
window.TidegateChart = (() => {
  const STEP_S = 300;
  const scaled = (values, scale) => values.map((value) => (value === null ? null : value * scale));
  const times = (seconds) => seconds.map((at) => at * 1000);

  function draw(target, series, forecast, levels, leadMinutes, unit, key) {
    if (!window.Plotly) return; // its script is large and comes last; the next poll draws
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const soft = (name) => { const [r, g, b] = hex(colour(name)); return `rgba(${r},${g},${b},0.20)`; };
    const lead = leadMinutes % 60 ? `${leadMinutes} min` : `${leadMinutes / 60} h`;
    const rows = forecast ? forecast.rows : [];
    const [low, high] = [levels.indexOf(0.1), levels.indexOf(0.9)];
    const past = times(series.start_s);
    const ahead = times(rows.map((row) => row.start_s));
    const line = (name, x, y, look, more) => ({ name, x, y, mode: "lines", line: look, hovertemplate: `%{y:.3~g} ${unit.unit}`, connectgaps: false, ...more });
    const band = (name, x, lower, upper, fill, group) => [
      line(name, x, lower, { width: 0, color: fill }, { hoverinfo: "skip", hovertemplate: null, showlegend: false, legendgroup: group }),
      line(name, x, upper, { width: 0, color: fill }, { fill: "tonexty", fillcolor: fill, hoverinfo: "skip", hovertemplate: null, legendgroup: group, showlegend: group === "ahead" }),
    ];
    const traces = [
      ...band("80 % band", ahead, rows.map((row) => up(row.quantiles[low], unit)), rows.map((row) => up(row.quantiles[high], unit)), soft("tide"), "ahead"),
      ...band(`band of ${lead} before`, past, scaled(series.forecast_q10, unit.scale), scaled(series.forecast_q90, unit.scale), soft("grey"), "past"),
      line(`${lead} before`, past, scaled(series.forecast_mean, unit.scale), { color: colour("grey"), width: 1.2, dash: "dot" }),
      line("allocation", past, scaled(series.allocation, unit.scale), { color: colour("amber"), width: 1.6, shape: "hv" }),
      line("demand", past, scaled(series.demand, unit.scale), { color: colour("ink"), width: 1.7 }),
      line("forecast", ahead, rows.map((row) => up(row.mean, unit)), { color: colour("tide"), width: 2.2 }),
    ];
    const now = rows.length ? rows[0].start_s * 1000 : past.length ? past[past.length - 1] + STEP_S * 1000 : null;
    Plotly.react(target, traces, layout(colour, now, unit, key), { displayModeBar: false, responsive: true, doubleClick: "reset" });
  }

  function layout(colour, now, unit, key) {
    const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), tickcolor: colour("line") };
    const shapes = now === null ? [] : [{ type: "line", x0: now, x1: now, yref: "paper", y0: 0, y1: 1, line: { color: colour("muted"), width: 1, dash: "dash" } }];
    const note = now === null ? [] : [{ x: now, yref: "paper", y: 1, yanchor: "bottom", text: "now", showarrow: false, font: { size: 10, color: colour("muted") } }];
    return {
      uirevision: key, // a zoom stays until another VM, resource or span is chosen
      margin: { l: 52, r: 12, t: 18, b: 62 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif", size: 11, color: colour("muted") },
      xaxis: { ...axis, type: "date", hoverformat: "%d %b %H:%M" },
      yaxis: { ...axis, rangemode: "tozero", title: { text: unit.unit, standoff: 6 } },
      hovermode: "x unified", hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") } },
      legend: { orientation: "h", x: 0, y: -0.14, yanchor: "top", font: { size: 10.5, color: colour("ink") } },
      shapes, annotations: note,
    };
  }
  const up = (value, unit) => (value === null || value === undefined ? null : value * unit.scale);
  const hex = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  return { draw };
})();
