(async () => {
  const page = JSON.parse(find("data").textContent);
  const hidden = new Set(); // places in page.entries
  const FEW_POINTS = 30; // with more, markers would be a thick line
  const LEFT = 74, RIGHT = 18, TOP = 34, BOTTOM = 52; // pixels around all panels
  const GRID = "#e3e3e3", INK = "#222";
  const SYMBOLS = {
    circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", "triangle-down": "▼",
    cross: "✚", star: "★", x: "✖", "triangle-left": "◀", "triangle-right": "▶",
    pentagon: "⬟", hexagon: "⬢",
  };
  const BUTTONS = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"];
  let owners = []; // for each of plotly's traces the one of the view that it draws

  const view = () => page.views[find("metric").value];
  const isLog = () => view().log !== null && find("log").checked;
  const axisId = (letter, panel) => letter + (panel ? panel + 1 : "");

  function fact(name, value) {
    if (value === null) return `${name}: no number`;
    return `${name}: ${typeof value === "number" ? shown(value) : value}`;
  }

  function factsOf(trace, i) {
    const column = (facts) => (typeof facts === "string" ? trace[facts] : facts);
    return trace.facts.map(([name, facts]) => fact(name, column(facts)[i]));
  }

  // a label: what it is, what is known of it, and the run that it is of
  function hoverText(trace, lines, i) {
    const runs = runsOf(trace, i);
    const last = runs.length === 1 ? [`run ${runs[0].name || runs[0].id}`] : [];
    if (trace.low && trace.low[i] !== null && runs.length > 1)
      last.push(`mean over seeds, from ${shown(trace.low[i])} to ${shown(trace.high[i])}`);
    return [trace.name, ...lines, ...last].filter(Boolean).map(plain).join("<br>");
  }

  function runsOf(trace, i) {
    return ((trace.each ? trace.each[i] : trace.runs) || []).map((place) => page.runs[place]);
  }

  function label(colour) {
    return { bgcolor: "#fff", bordercolor: colour, font: { color: INK }, align: "left" };
  }

  function placed(trace) {
    return { xaxis: axisId("x", trace.panel), yaxis: axisId("y", trace.panel) };
  }

  function lineTrace(trace, panel) {
    const few = trace.x.length <= FEW_POINTS;
    const { colour } = trace;
    const look = trace.step
      ? { mode: "lines", line: { color: colour, width: 4, shape: "hv" }, opacity: 0.4, hoverinfo: "skip" }
      : {
          mode: few ? "lines+markers" : "lines",
          line: { color: colour, dash: trace.dash || "solid", width: 2 },
          marker: { color: colour, symbol: trace.symbol || "circle", size: trace.symbol ? 9 : 5 },
          hoverinfo: "text",
          hovertext: trace.x.map((_, i) => hoverText(trace, [panel.title, ...factsOf(trace, i)], i)),
          hoverlabel: label(colour),
        };
    return { type: "scatter", x: trace.x, y: trace.y, ...look, ...placed(trace) };
  }

  function band(trace) {
    const edge = (y, fill) => ({
      type: "scatter",
      mode: "lines",
      x: trace.x,
      y,
      line: { width: 0, color: trace.colour },
      hoverinfo: "skip",
      ...(fill ? { fill: "tonexty", fillcolor: `${trace.colour}30` } : {}),
      ...placed(trace),
    });
    return [edge(trace.low, false), edge(trace.high, true)];
  }

  function barTrace(trace) {
    return {
      type: "bar",
      x: trace.from.map((from, i) => (from + trace.to[i]) / 2),
      width: trace.from.map((from, i) => trace.to[i] - from),
      base: trace.base,
      y: trace.heights,
      marker: { color: trace.colour, opacity: 0.75, line: { width: 0.5, color: "#fff" } },
      hoverinfo: "text",
      hovertext: trace.from.map((_, i) => hoverText(trace, factsOf(trace, i), i)),
      textposition: "none",
      hoverlabel: label(trace.colour),
      ...placed(trace),
    };
  }

  function cellTrace(trace, log) {
    const drawn = (v) => (v === null || (log && v <= 0) ? null : log ? Math.log10(v) : v);
    const text = (value, row, column) =>
      hoverText(
        trace,
        [trace.rows[row], fact("epoch", trace.x[column]), fact(trace.label, value)],
        row,
      );
    const bar = { title: { text: plain(trace.unit), side: "right" }, thickness: 14, outlinewidth: 0 };
    return {
      type: "heatmap",
      x: trace.x,
      y: trace.rows.map((_, row) => row),
      z: trace.z.map((row) => row.map(drawn)),
      colorscale: "Viridis",
      colorbar: log ? { ...bar, ...logTicks(trace.z.flat()) } : bar,
      hoverinfo: "text",
      hoverongaps: true,
      text: trace.z.map((values, row) => values.map((value, column) => text(value, row, column))),
      hoverlabel: label("#8a8a8a"),
      ...placed(trace),
    };
  }

  // 1, 2 and 5 of each decade, at their logarithms
  function logTicks(values) {
    const there = values.filter((v) => v !== null && v > 0);
    const [low, high] = [there.reduce((a, b) => Math.min(a, b)), there.reduce((a, b) => Math.max(a, b))];
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) ticks.push(m * 10 ** e);
    const few = ticks.length > 12 ? ticks.filter((_, i) => i % 3 === 0) : ticks;
    return { tickmode: "array", tickvals: few.map(Math.log10), ticktext: few.map(shown) };
  }

  function traces(log) {
    owners = [];
    return view().traces.flatMap((trace) => {
      if (trace.entries.some((place) => hidden.has(place))) return [];
      const panel = view().panels[trace.panel];
      const drawn =
        trace.kind === "cells" ? [cellTrace(trace, log)]
        : trace.kind === "bars" ? [barTrace(trace)]
        : [...(trace.low ? band(trace) : []), lineTrace(trace, panel)];
      for (const _ of drawn) owners.push(trace);
      return drawn;
    });
  }

  function valuesIn(panel) {
    const all = view().share_y;
    return view()
      .traces.filter((t) => (all || t.panel === panel) && !t.entries.some((e) => hidden.has(e)))
      .flatMap((t) => [...(t.y || []), ...(t.low || []), ...(t.high || [])]);
  }

  function xRange(panel) {
    const x = view().traces.filter((t) => view().share_x || t.panel === panel).flatMap((t) => t.x || []);
    const there = x.filter((v) => v !== null);
    const low = there.reduce((a, b) => Math.min(a, b), Infinity);
    const high = there.reduce((a, b) => Math.max(a, b), -Infinity);
    return [low, high];
  }

  // names at as many places as have room
  function named(ticks, room, size) {
    const step = Math.max(1, Math.ceil((ticks.length * size) / room));
    const places = ticks.map((_, i) => i).filter((i) => i % step === 0);
    return { tickmode: "array", tickvals: places, ticktext: places.map((i) => plain(ticks[i])) };
  }

  function xAxis(panel, place, width) {
    const axis = { gridcolor: GRID, zeroline: false, tickformat: ",", nticks: Math.max(3, Math.floor(width / 70)) };
    const { x } = panel;
    if (x.decades) {
      const logs = [...Array(Math.floor(x.range[1]) - Math.ceil(x.range[0]) + 1).keys()].map((i) => Math.ceil(x.range[0]) + i);
      const percents = logs.map((log) => `${log} (${Number((100 * 10 ** log).toPrecision(3))}%)`);
      return { ...axis, range: x.range, tickmode: "array", tickvals: logs, ticktext: percents };
    }
    if (x.log) {
      const range = x.range.map(Math.log10);
      const decades = range[1] - range[0]; // with more ticks plotly writes 10, 100 below the others
      const nticks = decades < 1 ? axis.nticks : Math.min(axis.nticks, Math.max(2, Math.floor(decades / 0.31)));
      return { ...axis, type: "log", range, nticks };
    }
    if (x.ticks) {
      const longest = x.ticks.reduce((most, name) => Math.max(most, Math.min(name.length, 90)), 1);
      const room = (7 * longest + 12) * ((x.range[1] - x.range[0]) / width);
      let last = -Infinity;
      const shownAt = x.at.filter((at) => at - last >= room && ((last = at), true));
      const ticktext = shownAt.map((at) => plain(x.ticks[x.at.indexOf(at)]));
      return { ...axis, tickmode: "array", tickvals: shownAt, ticktext, range: x.range };
    }
    if (x.range) return { ...axis, range: x.range };
    const [low, high] = xRange(place);
    if (low > high) return { ...axis, range: [0, 1], showticklabels: false };
    const heat = view().traces[0].kind === "cells";
    const pad = heat ? 0.5 : Math.max(0.02 * (high - low), high - low < 2 ? 0.5 : 0.2);
    const few = high - low < Math.min(12, width / 30) ? { dtick: 1, tick0: low } : {};
    return { ...axis, ...few, range: [low - pad, high + pad] };
  }

  function yAxis(panel, place, height, log) {
    const { y } = panel;
    const axis = { gridcolor: GRID, zeroline: false, nticks: Math.max(3, Math.floor(height / 45)) };
    if (y.ticks) {
      const most = Math.max(12, Math.floor((0.4 * find("chart").clientWidth) / 7));
      const room = named(y.ticks.map((name) => shortened(name, most)), height, 15);
      const range = y.reverse ? [y.ticks.length - 0.5, -0.5] : [-0.3, y.ticks.length - 1 + y.top + 0.15];
      return { ...axis, ...room, range, automargin: true, showgrid: false };
    }
    const range = valueRange(valuesIn(place), log);
    return {
      ...axis, type: log ? "log" : "linear", range: range || [0, 1],
      showticklabels: range !== null, exponentformat: "power", minexponent: 4,
    };
  }

  // in two lines where it is longer than its axis
  function axisTitle(text, room) {
    const spaces = [...text.matchAll(/ /g)].map((found) => found.index);
    const off = (at) => Math.abs(at - text.length / 2);
    const at = spaces.reduce((best, each) => (off(each) < off(best) ? each : best), 0);
    const lines = at && 6.4 * text.length > room ? [text.slice(0, at), text.slice(at + 1)] : [text];
    return { text: lines.map(plain).join("<br>"), font: { size: 12 }, standoff: 6 };
  }

  // its start and its end, where it is longer
  function shortened(text, most) {
    if (text.length <= most) return text;
    return `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`;
  }

  // where the panels are, in shares of the room within the margins
  function grid(width, height) {
    const count = view().panels.length;
    const most = Math.max(1, Math.min(view().columns || 2, Math.floor(width / 240)));
    const columns = Math.min(most, count <= most ? count : Math.ceil(Math.sqrt(count)));
    const rows = Math.ceil(count / columns);
    const [gapX, gapY] = [view().share_y ? 20 : 90, 64];
    const across = (width - (columns - 1) * gapX) / columns;
    const down = (height - (rows - 1) * gapY) / rows;
    return { columns, rows, across, down, gapX, gapY };
  }

  function chartHeight(width) {
    const { rows } = grid(width, 1);
    const room = Math.max(360, Math.min(760, window.innerHeight - 170));
    return view().row_height ? Math.max(view().row_height, 320) : Math.max(room, rows * 250);
  }

  function layout(log) {
    const [wide, high] = [find("chart").clientWidth, chartHeight(find("chart").clientWidth)];
    const right = view().panels[0].y.beside ? 90 : RIGHT;
    const [width, height] = [wide - LEFT - right, high - TOP - BOTTOM];
    const g = grid(width, height);
    const made = {
      height: high,
      margin: { l: LEFT, r: right, t: TOP, b: BOTTOM },
      paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      font: { family: "system-ui, sans-serif", color: INK },
      hovermode: "closest", showlegend: false, barmode: "overlay", bargap: 0,
      uirevision: `${find("metric").value} ${log}`,
      annotations: [], shapes: [],
    };
    for (const [place, panel] of view().panels.entries()) {
      const [row, column] = [Math.floor(place / g.columns), place % g.columns];
      const x0 = (column * (g.across + g.gapX)) / width;
      const y1 = 1 - (row * (g.down + g.gapY)) / height;
      const [x, y] = [axisId("x", place), axisId("y", place)];
      const lowest = place + g.columns >= view().panels.length;
      const outer = column === 0 || !view().share_y;
      made[`xaxis${place ? place + 1 : ""}`] = {
        ...xAxis(panel, place, g.across), domain: [x0, Math.min(1, x0 + g.across / width)], anchor: y,
        title: lowest || !view().share_x ? axisTitle(panel.x.title, g.across) : undefined,
        ...(view().share_x && place ? { matches: "x" } : {}),
      };
      made[`yaxis${place ? place + 1 : ""}`] = {
        ...yAxis(panel, place, g.down, log), domain: [Math.max(0, y1 - g.down / height), y1], anchor: x,
        title: outer ? axisTitle(panel.y.title, g.down) : undefined,
        ...(view().share_y ? { showticklabels: outer, ...(place ? { matches: "y" } : {}) } : {}),
      };
      if (panel.title)
        made.annotations.push({
          text: `<b>${plain(panel.title)}</b>`, xref: "paper", yref: "paper", x: x0, y: y1,
          xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 },
        });
      for (const [at, text] of (panel.y.beside || []).entries())
        made.annotations.push({
          text, xref: "paper", yref: y, x: 1, y: at, xanchor: "left", showarrow: false, font: { size: 11 },
        });
      for (const at of panel.x.marks || [])
        made.shapes.push({
          type: "line", xref: x, yref: "paper", x0: at, x1: at, y0: 0, y1: 1, layer: "above",
          line: { color: "#555", dash: "dash", width: 1 },
        });
    }
    return made;
  }

  function notOnLogAxis(log) {
    const lost = view().traces.flatMap((t) => [...(t.y || []), ...(t.z || []).flat()]).filter((v) => v !== null && v <= 0);
    return log && lost.length ? [`0 or less, not on a log axis: ${lost.length} values`] : [];
  }

  function draw() {
    const log = isLog();
    find("chart").setAttribute("aria-label", `${page.title} ${view().title}`);
    find("said").textContent = [...view().said, ...notOnLogAxis(log)].join("\n");
    const high = chartHeight(find("chart").clientWidth);
    document.querySelector("main").style.setProperty("--high", `${high}px`);
    return Plotly.react(find("chart"), traces(log), layout(log), {
      displaylogo: false,
      typesetMath: false, // `$` is a dollar
      plotlyServerURL: "", // nor a button that would send the chart there
      modeBarButtons: [[...BUTTONS, ...(embedded ? [] : ["toImage"])]],
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
    const places = [...page.entries.keys()];
    for (const [place, entry] of page.entries.entries()) {
      const button = made("button", "", {
        type: "button",
        title: "click: hide or show; double click: this one alone",
        "aria-pressed": "true",
      });
      const first = page.entries.findIndex((other) => other.group === entry.group) === place;
      if (first && place) button.classList.add("group");
      const sign = entry.symbol ? made("span", SYMBOLS[entry.symbol], { class: "symbol", "aria-hidden": "true" }) : swatch(entry);
      if (entry.symbol) sign.style.color = entry.colour;
      button.append(sign, made("span", entry.label));
      button.addEventListener("click", () =>
        hideOnly(hidden.has(place) ? [...hidden].filter((p) => p !== place) : [...hidden, place]),
      );
      const others = places.filter((p) => p !== place && page.entries[p].group === entry.group);
      const elsewhere = () => [...hidden].filter((p) => page.entries[p].group !== entry.group);
      button.addEventListener("dblclick", () => hideOnly([...elsewhere(), ...others]));
      find("legend").append(button);
    }
    find("all").addEventListener("click", () => hideOnly([]));
    find("none").addEventListener("click", () => hideOnly(places));
    find("toggles").hidden = places.length < 2;
    find("legend").hidden = !places.length;
  }

  function choose() {
    find("log").parentElement.hidden = view().log === null;
    find("log").checked = Boolean(view().log);
  }

  function fillControls() {
    for (const [place, each] of page.views.entries())
      find("metric").append(made("option", each.title, { value: place }));
    find("metric").parentElement.hidden = page.views.length < 2;
    choose();
    find("metric").addEventListener("change", () => {
      if (page.views[0].traces[0].kind === "cells") choose();
      draw();
    });
    find("log").addEventListener("change", draw);
    if (page.views[0].traces[0].kind === "cells") find("log").nextSibling.textContent = " Log colours";
  }

  function clicked(event) {
    const point = event.points[0];
    const index = Array.isArray(point.pointNumber) ? point.pointNumber[0] : point.pointNumber;
    const runs = runsOf(owners[point.curveNumber], index);
    find("run").replaceChildren(...runs.map(runLine));
    find("run").scrollIntoView({ block: "nearest" });
    if (runs.length === 1 && opens(runs[0]) && !embedded) window.open(runs[0].address, "_blank", "noopener");
  }

  document.title = page.title;
  find("title").textContent = page.title;
  find("note").textContent = page.note;
  fillControls();
  fillLegend();
  try {
    await loadPlotly();
  } catch (error) {
    find("said").textContent = `This browser can't draw the page: ${error.message}`;
    return;
  }
  await draw();
  find("chart").on("plotly_click", clicked);
  let width = find("chart").clientWidth;
  new ResizeObserver(() => {
    if (find("chart").clientWidth === width) return; // the height is the page's own
    width = find("chart").clientWidth;
    draw();
  }).observe(find("chart"));
})();
