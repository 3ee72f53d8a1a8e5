// Puts the phone together: what the user does goes to the line, and what comes from it is shown.
"use strict";

const byId = (id) => document.getElementById(id);
/** How many events are shown; the call's page has them all. */
const MAX_EVENTS = 300;
const KEYS = "123456789*0#";

const phone = { state: "connecting", call: null, startedAt: null, hello: null, wantsMicrophone: true };
const sound = new Sound((pcm) => {
  if (phone.state === "in-call" && line.readyState === WebSocket.OPEN) line.send(pcm);
});
// The token is in the page's own address, which nobody else gets to know.
const line = new WebSocket(new URL("line", location.href).href.replace("http", "ws"));
line.binaryType = "arraybuffer";
phone.sound = sound;
phone.line = line;

/** Return a new element, with attributes, text and children; text is never markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const say = (message) => line.readyState === WebSocket.OPEN && line.send(JSON.stringify(message));
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
const minutes = (ms) => `${Math.floor(ms / 60000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, "0")}`;
const isInCall = () => ["asking", "ringing", "in-call", "ending"].includes(phone.state);

// What is shown

function show(state, text, about = "") {
  phone.state = state;
  document.body.dataset.state = state;
  sound.attend(state === "ringing" || state === "in-call");
  byId("state").textContent = text;
  byId("about").textContent = about;
  if (state !== "in-call") byId("clock").textContent = "";
  byId("dial").hidden = isInCall();
  byId("dial").disabled = state === "connecting" || state === "lost";
  byId("hang-up").hidden = !isInCall();
  byId("hang-up").disabled = state === "ending";
  byId("mute").disabled = !isInCall() || !sound.hasMicrophone;
  for (const key of byId("keypad").children) key.disabled = state !== "in-call";
  for (const field of byId("form").elements) field.disabled = isInCall();
}

function showTrouble(title, help = "", offersWithout = false) {
  byId("trouble").hidden = !title;
  byId("trouble-title").textContent = title;
  byId("trouble-help").textContent = help;
  byId("trouble-help").hidden = !help;
  byId("without").hidden = !offersWithout;
}

function showEvent({ at, kind, text }) {
  byId("no-events").hidden = true;
  const events = byId("events");
  const level = kind === "finding" ? text.split(" ", 1)[0] : kind;
  const row = element("li", {}, element("span", { class: "t", text: seconds(at) }),
    element("span", { class: "k", text: kind }), element("span", { class: "x", text }));
  row.dataset.kind = level;
  // What becomes known late, such as a silence, still has its place in time.
  const isAtEnd = events.scrollTop + events.clientHeight >= events.scrollHeight - 30;
  row.at = at;
  let before = null;
  for (let each = events.lastElementChild; each && each.at > at; each = each.previousElementSibling) before = each;
  events.insertBefore(row, before);
  if (events.children.length > MAX_EVENTS) events.firstElementChild.remove();
  if (isAtEnd) events.scrollTop = events.scrollHeight;
}

function showTurn({ number, wait }) {
  byId("no-waits").hidden = true;
  let item = byId(`turn-${number}`);
  if (!item) {
    item = element("li", { id: `turn-${number}` });
    byId("turns").append(item);
  }
  item.replaceChildren(`${number} `, element("b", { text: wait ? `${(wait / 1000).toFixed(2)} s` : "at once" }));
  item.title = `Turn ${number}: you waited ${seconds(wait)}`;
  byId("turns").scrollTop = byId("turns").scrollHeight;
}

function clearCall() {
  for (const id of ["turns", "events", "frame", "pressed", "saved"]) byId(id).replaceChildren();
  byId("no-events").hidden = byId("no-waits").hidden = false;
  byId("over").hidden = true;
  showTrouble("");
}

function showLevels() {
  const [said, heard] = sound.levels();
  for (const [id, now] of [["said", said], ["heard", heard]]) {
    const bar = byId(id);
    // It falls slowly, so that words can be seen.
    bar.level = Math.max(isInCall() ? now : 0, (bar.level ?? 0) - 0.03);
    bar.style.transform = `scaleX(${bar.level.toFixed(3)})`;
  }
  if (phone.state === "in-call") byId("clock").textContent = minutes(performance.now() - phone.startedAt);
  requestAnimationFrame(showLevels);
}

// What the line says

const told = {
  hello(message) {
    phone.hello = message;
    showSettings(message);
    show("idle", "Ready", "Dial, and talk to the bot.");
  },
  state(message) {
    phone.call = message.call ?? phone.call;
    if (message.state === "ringing") {
      show("ringing", "Ringing", `${titleOf(message.provider)} calls ${message.to}`);
    } else if (message.state === "in-call") {
      phone.startedAt = performance.now();
      const microphone = sound.hasMicrophone ? "" : "Without a microphone: you hear the bot, and it hears your keys.";
      show("in-call", "In call", microphone);
    } else if (message.state === "ended") {
      showEnd(message);
    } else {
      show("idle", "Not placed", "The call could not be placed.");
    }
  },
  event: showEvent,
  turn: showTurn,
  error({ message, hint }) {
    showTrouble(sentence(message), hint && sentence(hint));
  },
  saved({ files, run, message, hint }) {
    const saved = byId("saved");
    saved.className = files ? "good" : "bad";
    saved.textContent = files ? `Saved: ${files.join(", ")}. Run it with: ${run}` : [message, hint].filter(Boolean).map(sentence).join(" ");
  },
};

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?`]$/.test(text) ? "" : ".");
const titleOf = (name) => phone.hello.providers.find((each) => each.name === name)?.title ?? name;

function showEnd({ by, verdict, failure, note, seconds: lasted, page, scenario }) {
  const wasAnswered = verdict !== null && by !== null;
  const how = { bot: "Ended by the bot", caller: "You hung up" }[by] ?? (verdict ? "Not answered" : "Given up");
  show("ended", how, wasAnswered ? `after ${minutes(lasted * 1000)}` : "");
  sound.fallSilent();
  if (failure || note) showTrouble(sentence(failure || note));
  if (!page) return;
  byId("over").hidden = false;
  byId("verdict").textContent = verdict;
  byId("verdict").className = `badge ${verdict === "passed" ? "good" : "bad"}`;
  byId("file").value = scenario;
  byId("open-page").href = page;
  // It shows what strangers said, so it gets no right of this page.
  byId("frame").replaceChildren(element("iframe", { src: page, sandbox: "allow-scripts", title: "The call that ended" }));
}

line.addEventListener("message", ({ data }) => {
  if (data instanceof ArrayBuffer) {
    if (phone.state === "in-call") sound.play(data);
    return;
  }
  const { type, ...message } = JSON.parse(data);
  told[type]?.(message);
});
line.addEventListener("close", ({ reason }) => {
  sound.fallSilent();
  show("lost", "No line", "");
  showTrouble(reason ? sentence(reason) : "The page has lost its line.", "Reload the page; if that does not help, start wsvoice again and open the address that it prints.");
});

// What the user does

async function dial(wantsMicrophone = true) {
  if (isInCall() || byId("dial").disabled) return;
  clearCall();
  show("asking", "One moment", wantsMicrophone && !sound.hasMicrophone ? "Allow the microphone if your browser asks." : "");
  try {
    await sound.open();
    if (wantsMicrophone) await sound.openMicrophone();
  } catch (error) {
    if (phone.state !== "asking") return;
    show("idle", "Not placed", "");
    showTrouble(error.message, error.help ?? "", error.help !== undefined);
    return;
  }
  // The user may have thought better of it meanwhile.
  if (phone.state !== "asking") return;
  mute(false);
  phone.startedAt = null;
  say({ type: "dial", rate: sound.rate, ...settings() });
  show("ringing", "Ringing", "");
}

function hangUp() {
  if (phone.state === "asking") show("idle", "Ready", "");
  if (!["ringing", "in-call"].includes(phone.state)) return;
  show("ending", "Hanging up");
  say({ type: "hang-up" });
}

function press(key) {
  if (phone.state !== "in-call") return;
  say({ type: "press", keys: key });
  byId("pressed").textContent = (byId("pressed").textContent + key).slice(-24);
  const button = [...byId("keypad").children].find((each) => each.textContent === key);
  button?.classList.add("down");
  setTimeout(() => button?.classList.remove("down"), 150);
}

function mute(isMuted) {
  sound.mute(isMuted);
  if (phone.state === "in-call") byId("about").textContent = isMuted ? "You are muted: the bot hears nothing of you." : "";
  byId("mute").setAttribute("aria-pressed", String(isMuted));
}

// Settings

function showSettings(hello) {
  byId("target-field").hidden = !hello.asksTarget;
  byId("target").value = hello.target;
  byId("settings").open = hello.asksTarget;
  byId("transport").replaceChildren(...hello.providers.map(({ name, title }) => element("option", { value: name, text: title })));
  byId("transport").value = hello.transport;
  byId("from").value = hello.from;
  byId("to").value = hello.to;
  byId("param").value = hello.param.join("\n");
  showQuirks();
}

function showQuirks() {
  const { quirks } = phone.hello.providers.find((each) => each.name === byId("transport").value);
  const chosen = byId("transport").value === phone.hello.transport ? phone.hello.quirk : {};
  const fields = quirks.map(({ name, choices, default: usual, help }) => {
    const field = choices.length
      ? element("select", {}, element("option", { value: "", text: `as usual: ${usual}` }),
        ...choices.filter((each) => each !== usual).map((each) => element("option", { value: each, text: each })))
      : element("input", { type: "text", placeholder: usual, spellcheck: "false" });
    field.dataset.quirk = name;
    field.value = chosen[name] === usual ? "" : (chosen[name] ?? "");
    return element("label", {}, name, field, element("small", { text: help }));
  });
  byId("quirks").replaceChildren(element("legend", { text: "How the provider deviates" }), ...fields);
  byId("quirks").hidden = !fields.length;
  showWhom();
}

function showWhom() {
  const target = phone.hello.asksTarget ? byId("target").value : phone.hello.target;
  byId("whom").textContent = `${titleOf(byId("transport").value)} → ${target}`;
}

function settings() {
  const found = {
    transport: byId("transport").value,
    from: byId("from").value.trim(),
    to: byId("to").value.trim(),
    param: byId("param").value.split("\n").map((each) => each.trim()).filter(Boolean),
    quirk: [...byId("quirks").querySelectorAll("[data-quirk]")].filter((each) => each.value.trim()).map((each) => `${each.dataset.quirk}=${each.value.trim()}`),
  };
  if (phone.hello.asksTarget) found.target = byId("target").value.trim();
  return found;
}

// Buttons and keys

for (const key of KEYS) {
  const button = element("button", { type: "button", text: key, disabled: "" });
  button.addEventListener("click", () => press(key));
  byId("keypad").append(button);
}
byId("dial").addEventListener("click", () => dial());
byId("without").addEventListener("click", () => dial(false));
byId("hang-up").addEventListener("click", hangUp);
byId("mute").addEventListener("click", () => mute(!sound.isMuted));
byId("transport").addEventListener("change", showQuirks);
byId("target").addEventListener("input", showWhom);
byId("form").addEventListener("submit", (event) => { event.preventDefault(); dial(); });
byId("save").addEventListener("submit", (event) => {
  event.preventDefault();
  say({ type: "save", call: phone.call, file: byId("file").value.trim() });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") return hangUp();
  const isTyping = event.target.closest("input, select, textarea");
  const isControl = event.target.closest("button, a, summary, iframe");
  if (isTyping) return;
  const key = event.key.toLowerCase();
  if (event.key === "Enter" && !isControl) dial();
  else if (key === "m" && !byId("mute").disabled) mute(!sound.isMuted);
  else if (key === "h") hangUp();
  else if (KEYS.includes(event.key) && !event.repeat) press(event.key);
});

// Light or dark

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

requestAnimationFrame(showLevels);
