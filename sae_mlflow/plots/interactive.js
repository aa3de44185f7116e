(async () => {
  let page = JSON.parse(find("data").textContent);
  const hidden = new Set(); // places in page.curves
  const FEW_EPOCHS = 30; // with more, markers would be a thick line
  const BUTTONS = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d"];
  const NO_METRIC = { key: "", title: "Metrics", axis: "", log: false, said: [], said_log: [] };
  let drawings = 0;
  let logChosen = null; // once the box was clicked: then it stays so, whatever the metric
  let view = null; // the axes' ranges that were zoomed or panned to, and of which axes
  let owners = []; // for each trace its curve, and its run where it is of one run alone

  function epochsOf(series) {
    return series.epochs || series.values.map((_, i) => i + 1);
  }

  function hoverText(metric, curve, run, epoch, value, more = []) {
    const lines = [
      curve.label,
      run ? `run ${run.name || run.id}` : "",
      `epoch ${epoch.toLocaleString("en-US")}`,
      `${metric.title}: ${value === null ? "no number" : shown(value)}`,
      run && run.seed ? `seed ${run.seed}` : "",
      ...more,
    ];
    return lines.filter(Boolean).map(plain).join("<br>");
  }

  function line(curve, series, texts, width, opacity) {
    const few = series.values.filter((v) => v !== null).length <= FEW_EPOCHS;
    const size = series.values.length === 1 ? 9 : 5;
    return {
      type: "scatter",
      mode: few ? "lines+markers" : "lines",
      x: epochsOf(series),
      y: series.values,
      line: { color: curve.colour, dash: curve.dash, width },
      marker: { color: curve.colour, size },
      opacity,
      hoverinfo: "text",
      hovertext: texts,
      hoverlabel: { bgcolor: "#fff", bordercolor: curve.colour, font: { color: "#222" }, align: "left" },
    };
  }

  function band(curve, series) {
    const edge = (y, fill) => ({
      type: "scatter",
      mode: "lines",
      x: epochsOf(series),
      y,
      line: { width: 0, color: curve.colour },
      hoverinfo: "skip",
      ...(fill ? { fill: "tonexty", fillcolor: `${curve.colour}30` } : {}),
    });
    return [edge(series.low, false), edge(series.high, true)];
  }

  function curveTraces(metric, curve, width) {
    const series = curve.means[metric.key];
    const epochs = epochsOf(series);
    const text = (run, s, more) =>
      epochsOf(s).map((epoch, i) => hoverText(metric, curve, run, epoch, s.values[i], more && more(i)));
    if (curve.runs.length < 2) {
      const run = curve.runs[0];
      return [[line(curve, series, text(run, series), width, 1), run]];
    }
    const seeds = curve.runs.flatMap((run) => {
      const own = run.series[metric.key];
      return own ? [[line(curve, own, text(run, own), 1, 0.5), run]] : [];
    });
    const spread = (i) =>
      series.low[i] === null
        ? []
        : [`mean over seeds, from ${shown(series.low[i])} to ${shown(series.high[i])}`];
    const mean = line(curve, series, text(null, series, spread), width, 1);
    return [...band(curve, series).map((t) => [t, null]), ...seeds, [mean, null]];
  }

  function traces(metric) {
    owners = [];
    const many = page.curves.length > 12;
    return page.curves.flatMap((curve, place) => {
      if (hidden.has(place) || !curve.means[metric.key]) return [];
      return curveTraces(metric, curve, many ? 1.5 : 2.2).map(([trace, run]) => {
        owners.push({ curve, run });
        return trace;
      });
    });
  }

  function title(text) {
    return { text: plain(text), font: { size: 13 } };
  }

  function epochAxis(drawn) {
    const epochs = drawn.flatMap((trace) => trace.x);
    const first = epochs.reduce((a, b) => Math.min(a, b), Infinity);
    const last = epochs.reduce((a, b) => Math.max(a, b), -Infinity);
    const axis = { title: title("epoch"), gridcolor: "#e3e3e3", zeroline: false, tickformat: "," };
    if (!epochs.length) return { ...axis, range: [0, 1], showticklabels: false };
    const pad = Math.max(0.02 * (last - first), last - first < 2 ? 0.5 : 0.2);
    const ticks = last - first < 12 ? { dtick: 1, tick0: first } : {};
    return { ...axis, ...ticks, range: [first - pad, last + pad] };
  }

  function layout(metric, drawn, log) {
    const range = valueRange(drawn.flatMap((trace) => trace.y), log);
    const epochs = epochAxis(drawn);
    const [x, y] = view && view.of === axes() ? view.ranges : [epochs.range, range || [0, 1]];
    const grid = { gridcolor: "#e3e3e3", linecolor: "#b0b0b0", zeroline: false };
    const value = { title: title(log ? `${metric.axis}, log scale` : metric.axis), exponentformat: "power", ...grid };
    const allHidden = hidden.size === page.curves.length;
    const nothing = !page.curves.length
      ? "no epoch has ended yet"
      : allHidden ? "all curves are hidden" : log ? "no number above 0" : "no numbers";
    return {
      font: { family: "system-ui, sans-serif", size: 13, color: "#222" },
      margin: { l: 76, r: 14, t: 34, b: 50 },
      hovermode: "closest",
      showlegend: false,
      uirevision: "what a drag does stays",
      xaxis: { ...epochs, range: x, uirevision: drawings },
      yaxis: {
        ...value,
        type: log ? "log" : "linear",
        range: y,
        uirevision: drawings,
        showticklabels: range !== null,
      },
      annotations: range
        ? []
        : [{ text: nothing, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false }],
    };
  }

  function chosenMetric() {
    return page.metrics[find("metric").value] || NO_METRIC;
  }

  function axes() {
    return `${chosenMetric().key} ${find("log").checked}`;
  }

  function zoomed(change) {
    if (!Object.keys(change).some((key) => /^[xy]axis\.range/.test(key))) return;
    const { xaxis, yaxis } = find("chart").layout;
    view = { of: axes(), ranges: [[...xaxis.range], [...yaxis.range]] };
  }

  function showAll() {
    view = null;
    draw();
  }

  function draw() {
    drawings += 1; // so that the ranges below hold, whatever plotly would keep
    const metric = chosenMetric();
    const log = logChosen ?? metric.log;
    find("log").checked = log;
    const drawn = traces(metric);
    find("chart").setAttribute("aria-label", `${metric.title} of each epoch`);
    find("said").textContent = [...metric.said, ...(log ? metric.said_log : [])].join("\n");
    return Plotly.react(find("chart"), drawn, layout(metric, drawn, log), {
      displaylogo: false,
      typesetMath: false, // `$` is a dollar
      plotlyServerURL: "", // nor a button that would send the chart there
      doubleClick: false, // it would go back to the ranges of the first drawing
      modeBarButtons: [
        [
          ...BUTTONS,
          { name: "resetScale2d", title: "Reset axes", icon: Plotly.Icons.home, click: showAll },
          ...(embedded ? [] : ["toImage"]),
        ],
      ],
    });
  }

  function hideOnly(places) {
    hidden.clear();
    for (const place of places) hidden.add(place);
    for (const [place, button] of [...find("legend").children].entries())
      button.setAttribute("aria-pressed", String(!hidden.has(place)));
    draw();
  }

  function fillLegend() {
    const places = [...page.curves.keys()];
    const buttons = page.curves.map((curve, place) => {
      const button = made("button", "", {
        type: "button",
        title: "click: hide or show; double click: this one alone",
        "aria-pressed": String(!hidden.has(place)),
      });
      button.append(swatch(curve), made("span", curve.label));
      button.addEventListener("click", () =>
        hideOnly(hidden.has(place) ? [...hidden].filter((p) => p !== place) : [...hidden, place]),
      );
      button.addEventListener("dblclick", () => hideOnly(places.filter((p) => p !== place)));
      return button;
    });
    find("legend").replaceChildren(...buttons);
    find("toggles").hidden = places.length < 2;
  }

  function fillMetrics(chosen) {
    const groups = new Map();
    for (const [place, metric] of page.metrics.entries()) {
      const label = metric.once ? "once" : "every epoch";
      if (!groups.has(label)) groups.set(label, made("optgroup", "", { label }));
      const option = made("option", metric.title, { value: place });
      option.selected = metric.key === chosen;
      groups.get(label).append(option);
    }
    find("metric").replaceChildren(...groups.values());
  }

  function fillTitle() {
    document.title = page.title;
    find("title").textContent = page.title;
    find("note").textContent = page.note;
  }

  function listen() {
    find("all").addEventListener("click", () => hideOnly([]));
    find("none").addEventListener("click", () => hideOnly([...page.curves.keys()]));
    find("metric").addEventListener("change", draw);
    find("log").addEventListener("change", () => {
      logChosen = find("log").checked;
      draw();
    });
  }

  // other content in the same page: what was chosen, hidden and zoomed stays so
  function update(content) {
    const before = page;
    const chosen = before.metrics[find("metric").value] || { key: content.start };
    const gone = new Set([...hidden].map((place) => before.curves[place].label));
    page = content;
    hidden.clear();
    for (const [place, curve] of page.curves.entries()) if (gone.has(curve.label)) hidden.add(place);
    fillTitle();
    // what has the focus, or a finger on it, isn't made anew without a need
    const differ = (facts) => JSON.stringify(facts(before)) !== JSON.stringify(facts(page));
    if (differ((p) => p.metrics.map((m) => [m.key, m.title, m.once]))) fillMetrics(chosen.key);
    if (differ((p) => p.curves.map((c) => [c.label, c.colour, c.dash]))) fillLegend();
    if (window.Plotly) draw();
  }

  function clicked(event) {
    const { curve, run } = owners[event.points[0].curveNumber];
    find("run").replaceChildren(...(run ? [run] : curve.runs).map(runLine));
    find("run").scrollIntoView({ block: "nearest" });
    if (run && opens(run) && !embedded) window.open(run.address, "_blank", "noopener");
  }

  fillTitle();
  fillMetrics(page.start);
  fillLegend();
  listen();
  window.curvesPage = { update };
  try {
    await loadPlotly();
  } catch (error) {
    find("said").textContent = `This browser can't draw the page: ${error.message}`;
    return;
  }
  await draw();
  find("chart").on("plotly_click", clicked);
  find("chart").on("plotly_relayout", zoomed);
  find("chart").on("plotly_doubleclick", showAll);
  new ResizeObserver(() => Plotly.Plots.resize(find("chart"))).observe(find("chart"));
})();
