"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const POLL_MILLISECONDS = 1000;
  const COLUMNS = ["layer", "state", "epoch", "loss", "val FVU", "L0", "dead", "health", "left"];
  const TITLES = {
    "val FVU": "variance unexplained on held-out tokens: 0 is perfect",
    L0: "latents that fire for a token, on average",
    dead: "latents that have not fired for long",
    left: "time left",
  };
  const WORDS = new Set(["layer", "state", "health"]);
  const KINDS = { failed: "bad", killed: "bad", warning: "warning" };
  const tags = {}; // of the answers that are shown, by path
  let structure = ""; // of the tables: which trainings, layers and addresses
  let running = ""; // the rows of the layers that train
  let lost = null; // since when the watch itself doesn't answer

  function made(tag, text = "", name = "") {
    const element = document.createElement(tag);
    element.textContent = text; // never as HTML: names may hold anything
    element.className = name;
    return element;
  }

  function say(id, text) {
    const place = find(id);
    if (place.textContent !== text) place.textContent = text;
    place.hidden = !text;
  }

  function time(date) {
    return date.toLocaleTimeString("en-GB");
  }

  function named(text, address) {
    if (!/^https?:\/\//.test(address || "")) return document.createTextNode(text);
    const link = made("a", text);
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    return link;
  }

  function row(layer) {
    const line = made("tr");
    for (const column of COLUMNS) line.append(made("td", "", WORDS.has(column) ? "words" : ""));
    line.firstChild.append(named(layer.cells.layer, layer.address));
    return line;
  }

  function section(training) {
    const whole = made("section");
    const heading = made("h2");
    heading.append(named("", training.address));
    const table = made("table");
    const head = table.createTHead().insertRow();
    for (const column of COLUMNS) {
      const cell = made("th", column, WORDS.has(column) ? "words" : "");
      cell.scope = "col";
      cell.title = TITLES[column] || "";
      head.append(cell);
    }
    table.createTBody().append(...training.layers.map(row));
    whole.append(heading, table, made("div"));
    return whole;
  }

  function write(place, text) {
    if (place.textContent !== text) place.textContent = text;
  }

  // texts alone, so that what is selected or has the focus stays so
  function fill(whole, training) {
    const [heading, table, reasons] = whole.children;
    heading.title = training.title; // for where it is cut
    if (heading.textContent !== training.title)
      heading.replaceChildren(named(training.title, training.address));
    for (const [place, layer] of training.layers.entries()) {
      const cells = table.tBodies[0].rows[place].cells;
      for (const [column, name] of COLUMNS.entries()) {
        if (name === "layer") continue;
        write(cells[column], layer.cells[name]);
        if (WORDS.has(name)) cells[column].className = `words ${KINDS[layer.cells[name]] || ""}`;
      }
    }
    if ([...reasons.children].map((p) => p.textContent).join("\n") !== training.reasons.join("\n"))
      reasons.replaceChildren(...training.reasons.map((text) => made("p", text, "reason")));
  }

  function showTrainings(trainings) {
    const facts = trainings.map((t) => [t.run, t.address, t.layers.map((l) => [l.cells.layer, l.address])]);
    if (JSON.stringify(facts) !== structure) {
      structure = JSON.stringify(facts);
      find("trainings").replaceChildren(...trainings.map(section));
    }
    for (const [place, training] of trainings.entries())
      fill(find("trainings").children[place], training);
  }

  // of many layers, those that train are to be seen; again when it is another's turn
  function scrollToRunning() {
    const whole = find("trainings");
    const rows = [...whole.querySelectorAll("tbody tr")];
    const places = [...rows.keys()].filter((place) => rows[place].cells[1].textContent === "running");
    if (places.join() === running) return;
    running = places.join();
    if (!places.length) return;
    const row = rows[places[0]];
    const below = row.offsetTop + row.closest("table").offsetTop;
    whole.scrollTop = below - whole.clientHeight / 2;
  }

  function showState(state) {
    showTrainings(state.trainings);
    scrollToRunning();
    const since = state.since === null ? "" : time(new Date(state.since * 1000));
    say("trouble", state.trouble && `Out of reach since ${since}: ${state.trouble} What is shown is of before.`);
    say("ended", state.ended ? "All trainings have ended. This page shows how they did." : "");
  }

  // what is new at a path; null where nothing is
  async function asked(path) {
    const headers = tags[path] ? { "If-None-Match": tags[path] } : {};
    const answer = await fetch(path, { cache: "no-store", headers });
    if (answer.status === 304) return null;
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    const content = await answer.json();
    tags[path] = answer.headers.get("ETag");
    return content;
  }

  let state = { curves: "", ended: false };

  async function poll() {
    state = (await asked("/state")) || state;
    if (state.curves !== tags["/curves"]) {
      const content = await asked("/curves");
      if (content) window.curvesPage.update(content);
    }
    showState(state);
    lost = null;
    return !state.ended;
  }

  async function follow() {
    let goesOn = true;
    try {
      goesOn = await poll();
    } catch (error) {
      lost = lost || new Date();
      say(
        "trouble",
        `The watch that keeps this page up has not answered since ${time(lost)}: it has probably ended. ` +
          "Start it again with sae-mlflow watch --browser. What is shown is of before.",
      );
    }
    if (goesOn) setTimeout(follow, POLL_MILLISECONDS);
  }

  follow();
})();
