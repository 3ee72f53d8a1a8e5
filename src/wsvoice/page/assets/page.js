// Puts the page together: titles, summary, keys.
"use strict";

const byId = (id) => document.getElementById(id);
const names = DATA.calls.length > 1 ? ["A", "B"] : [""];

function showTitles() {
  document.title = `${DATA.calls.map((call) => call.title).join(" | ")} · wsvoice`;
  for (const [number, call] of DATA.calls.entries()) {
    const line = element("div", { class: "call-line" });
    line.append(element("h1", { text: [names[number], call.title].filter(Boolean).join("  ") }));
    if (call.verdict) line.append(element("span", { class: `badge ${call.verdict === "passed" ? "good" : "bad"}`, text: call.verdict }));
    if (!call.isComplete) line.append(element("span", { class: "badge warn", text: "incomplete" }));
    const started = new Date(call.startedAt * 1000);
    const when = Number.isNaN(started.getTime()) ? "" : started.toLocaleString();
    line.append(element("p", { text: [clock(call.duration, 1), when, call.failure].filter(Boolean).join(" · ") }));
    byId("titles").append(line);
  }
}

const wordsByTurn = DATA.calls.map((call) => Map.groupBy(call.words, (each) => each[0]));

/** Return rows with what both said in a turn, as a transcriber has understood it; 0 is before the first. */
function wordsRows(turn) {
  return wordsByTurn.flatMap((words, number) => (words.get(turn) ?? []).map(([, who, at, text]) => {
    const label = names[number] ? `${names[number]} ${who}` : who;
    const button = element("button", { type: "button", class: who, text: label, "aria-label": `Go to where the ${label} says this`, "data-at": at });
    return element("tr", { class: "words" }, element("td", { colspan: 4 }, button, ` ${text}`));
  }));
}

/** Return a table of turns; of two calls with what has changed. */
function turnsTable() {
  const isTwo = DATA.calls.length > 1;
  const heads = isTwo ? ["Turn", "A waited", "B waited", "B − A"] : ["Turn", "Caller", "until", "Waited"];
  const body = element("tbody", {}, ...wordsRows(0));
  const count = Math.max(...DATA.calls.map((call) => call.turns.length));
  const answer = (turn) => (!turn ? "–" : turn[2] === null ? "no answer" : turn[3] ? wait(turn[3]) : "at once");
  for (let i = 0; i < count; i++) {
    const turns = DATA.calls.map((call) => call.turns[i]);
    const start = (turns[0] ?? turns[1])[0];
    const button = element("button", { type: "button", text: i + 1, "aria-label": `Go to turn ${i + 1}`, "data-at": start });
    const cells = isTwo
      ? [answer(turns[0]), answer(turns[1]), turns.every((turn) => turn?.[3] != null) ? difference(turns[1][3] - turns[0][3]) : ""]
      : [clock(turns[0][0], 1), clock(turns[0][1], 1), answer(turns[0])];
    body.append(element("tr", {}, element("td", {}, button), ...cells.map((text) => element("td", { text }))));
    body.append(...wordsRows(i + 1));
  }
  body.addEventListener("click", (event) => {
    const at = event.target.dataset.at;
    if (at !== undefined) goTo(Number(at));
  });
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { text, scope: "col" }))));
  return element("table", {}, element("caption", { class: "hidden", text: "Turns" }), head, body);
}

const difference = (seconds) => `${seconds < 0 ? "−" : "+"}${Math.round(Math.abs(seconds) * 1000)} ms`;

/** Return the middle and the slow end of a call's waits, in words. */
function waitsInWords(call) {
  const waits = call.turns.map((turn) => turn[3]).filter((each) => each !== null).sort((a, b) => a - b);
  const turns = `${call.turns.length} ${call.turns.length === 1 ? "turn" : "turns"}`;
  if (!waits.length) return `${turns}, none answered`;
  const at = (share) => wait(waits[Math.min(waits.length - 1, Math.floor(share * waits.length))]);
  return waits.length < 3 ? turns : `${turns}; the caller waited ${at(0.5)} (half of them), at most ${at(1)}`;
}

function showSummary() {
  const summary = byId("summary");
  for (const [number, call] of DATA.calls.entries()) {
    const of = names[number] ? ` of ${names[number]}` : "";
    if (!call.isComplete) {
      summary.append(element("p", { class: "warn", text: `The trace${of} has no end: the call was still running, or its recorder was killed.` }));
    }
    const bad = call.findings.map(([level, id, message, count]) => element("li", {},
      element("strong", { class: level === "fail" ? "bad" : "warn", text: `${level} ${id}` }),
      ` ${message}${count > 1 ? ` (${count} times)` : ""}`));
    bad.push(...call.causes.map((text) => element("li", {}, element("strong", { class: "bad", text: "in the bot" }), ` ${text}`)));
    if (bad.length) summary.append(element("h2", { text: `Findings${of}` }), element("ul", { class: "findings" }, ...bad));
  }
  summary.append(element("h2", { text: "Turns" }));
  for (const [number, call] of DATA.calls.entries()) {
    summary.append(element("p", { text: `${names[number] ? `${names[number]}: ` : ""}${waitsInWords(call)}` }));
  }
  if (DATA.calls.some((call) => call.turns.length || call.words.length)) summary.append(turnsTable());
  for (const [number, call] of DATA.calls.entries()) {
    const facts = call.facts.map(([name, text]) => element("div", {}, element("dt", { text: name }), element("dd", { text })));
    summary.append(element("h2", { text: names[number] ? `Call ${names[number]}` : "Call" }), element("dl", { class: "facts" }, ...facts));
  }
}

const player = new Player(DATA.calls);
const timeline = new Timeline(player);
let list;

function goTo(seconds) {
  player.seek(seconds);
  timeline.show(seconds);
}

function showTime() {
  const time = player.time;
  byId("time").textContent = `${clock(time)} / ${clock(DATA.duration, 0)}`;
  byId("seek").value = time;
  byId("seek").setAttribute("aria-valuetext", clock(time, 1));
  byId("play").textContent = player.isPlaying ? "Pause" : "Play";
  timeline.moveCursor();
  list?.mark(time, byId("follow").checked && player.isPlaying);
}

function playing() {
  showTime();
  if (!player.isPlaying) return;
  const x = timeline.x(player.time);
  if (x > timeline.width * 0.95 || x < 0) timeline.show(player.time);
  requestAnimationFrame(playing);
}

/** Show the page in a theme, be it drawn already or not. */
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  timeline.recolour();
}

function openControls() {
  byId("seek").max = DATA.duration;
  byId("play").addEventListener("click", () => player.toggle());
  byId("seek").addEventListener("input", (event) => goTo(Number(event.target.value)));
  byId("speed").addEventListener("change", (event) => { player.speed = Number(event.target.value); });
  byId("zoom-in").addEventListener("click", () => timeline.zoom(2));
  byId("zoom-out").addEventListener("click", () => timeline.zoom(0.5));
  byId("zoom-fit").addEventListener("click", () => timeline.fit());
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
  const choices = names.flatMap((name, number) => ["both", "caller", "bot"].map((end) => {
    const text = end === "both" ? "both ends" : `the ${end}`;
    return { text: name ? `${name}: ${text}` : text, numbers: [number], end };
  }));
  if (names.length > 1) choices.push({ text: "A and B", numbers: [0, 1], end: "both" });
  byId("listen").append(...choices.map(({ text }) => element("option", { text })));
  byId("listen").addEventListener("change", (event) => {
    const { numbers, end } = choices[event.target.selectedIndex];
    player.choose(numbers, end);
  });
  player.choose(choices[0].numbers, "both");
  player.addEventListener("change", playing);
}

function openKeys() {
  const turn = (step) => {
    const starts = DATA.calls[0].turns.map((each) => each[0]);
    const at = step > 0 ? starts.find((each) => each > player.time + 0.01) : starts.findLast((each) => each < player.time - 0.01);
    if (at !== undefined) goTo(at);
  };
  const keys = {
    " ": () => player.toggle(),
    ArrowLeft: (event) => goTo(player.time - (event.shiftKey ? 10 : 1)),
    ArrowRight: (event) => goTo(player.time + (event.shiftKey ? 10 : 1)),
    Home: () => goTo(0),
    End: () => goTo(DATA.duration),
    "[": () => turn(-1),
    "]": () => turn(1),
    "+": () => timeline.zoom(2),
    "=": () => timeline.zoom(2),
    "-": () => timeline.zoom(0.5),
    "−": () => timeline.zoom(0.5),
    0: () => timeline.fit(),
    "/": () => byId("search").focus(),
    "?": () => byId("keys").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    const { target } = event;
    const isText = target.matches("select, input:not([type=range], [type=checkbox])");
    // A button or a box is pressed by Space; in a list of its own Home and End mean its ends.
    if (isText || (event.key === " " && target.matches("button, input[type=checkbox]"))) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act(event);
  });
}

function openSearch() {
  let waiting;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      list.word = event.target.value.trim();
      list.filter();
    }, 150);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") {
      byId("rows").focus();
      list.choose(Math.max(0, list.chosen));
      event.preventDefault();
    }
  });
  list.addEventListener("choose", (event) => goTo(event.detail));
  list.addEventListener("play", () => player.toggle());
}

async function open() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const followSystem = () => setTheme(dark.matches ? "dark" : "light");
  followSystem();
  showTitles();
  showSummary();
  openControls();
  openKeys();
  const rows = new Rows();
  await Promise.all([timeline.open(), rows.open()]);
  followSystem();
  dark.addEventListener("change", followSystem);
  list = new List(rows);
  openSearch();
  showTime();
  // Everything is there once it has been drawn.
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; }));
  setTimeout(() => player.load(), 200);
}

open();
