// The list of all that happened: only the rows in view are elements, and their texts are unpacked in blocks.
"use strict";

const ROW_PX = 24;
const AUDIO_KIND = DATA.kinds.length - 1;
/** How many unpacked blocks are kept. */
const KEPT_BLOCKS = 60;

/** The times and kinds of all rows, and their texts. */
class Rows {
  async open() {
    const packed = await unpacked(embedded("row-index")).arrayBuffer();
    this.times = new Int32Array(packed, 0, DATA.rows);
    this.kinds = new Uint8Array(packed, 4 * DATA.rows, DATA.rows);
    this.blocks = [0, 1].map((part) => embedded(`row-texts-${part}`).split("\n"));
    this.cache = new Map();
    // A row's place among those that are audio, or among those that are not.
    this.places = new Uint32Array(DATA.rows);
    const counts = [0, 0];
    for (let i = 0; i < DATA.rows; i++) this.places[i] = counts[this.#part(i)]++;
  }

  #part(row) { return this.kindOf(row) === AUDIO_KIND ? 1 : 0; }
  timeOf(row) { return this.times[row] / DATA.ticks; }
  kindOf(row) { return this.kinds[row] & 15; }
  callOf(row) { return this.kinds[row] >> 4; }
  #key(row) { return `${this.#part(row)}-${Math.floor(this.places[row] / DATA.blockRows)}`; }

  /** Return a row as [label, text, fields], or a promise of it if it is still packed. */
  get(row) {
    const block = this.#block(this.#key(row));
    const place = this.places[row] % DATA.blockRows;
    return block instanceof Promise ? block.then((rows) => rows[place]) : block[place];
  }

  #block(key) {
    const known = this.cache.get(key);
    if (known) {
      this.cache.delete(key);
      this.cache.set(key, known);
      return known;
    }
    const [part, number] = key.split("-").map(Number);
    const promise = unpacked(this.blocks[part][number]).json().then((rows) => {
      if (this.cache.get(key) === promise) this.cache.set(key, rows);
      return rows;
    });
    this.cache.set(key, promise);
    if (this.cache.size > KEPT_BLOCKS) this.cache.delete(this.cache.keys().next().value);
    return promise;
  }
}

/** The list as it is shown, filtered by kinds and a word. */
class List extends EventTarget {
  constructor(rows) {
    super();
    this.rows = rows;
    this.box = document.getElementById("rows");
    this.sizer = document.getElementById("sizer");
    this.detail = document.getElementById("detail");
    this.found = document.getElementById("found");
    this.kinds = new Set(DATA.kinds.keys());
    this.kinds.delete(AUDIO_KIND);
    this.word = "";
    this.shown = new Uint32Array(0);
    this.chosen = -1;
    this.now = -1;
    this.box.classList.toggle("two", DATA.calls.length > 1);
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("click", (event) => {
      const place = event.target.closest(".row")?.dataset.place;
      if (place !== undefined) this.choose(Number(place));
    });
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.#showKinds();
    this.filter();
  }

  #showKinds() {
    const counts = DATA.kinds.map(() => 0);
    for (let i = 0; i < DATA.rows; i++) counts[this.rows.kindOf(i)]++;
    for (const [kind, name] of DATA.kinds.entries()) {
      const button = element("button", { type: "button", text: `${name} ${counts[kind].toLocaleString("en")}` });
      button.setAttribute("aria-pressed", this.kinds.has(kind));
      button.addEventListener("click", () => {
        if (!this.kinds.delete(kind)) this.kinds.add(kind);
        button.setAttribute("aria-pressed", this.kinds.has(kind));
        this.filter();
      });
      document.getElementById("kinds").append(button);
    }
  }

  /** Show the rows of the chosen kinds, with the word that is searched for. */
  async filter() {
    const run = (this.running = {});
    const kept = this.shown[this.chosen];
    const wanted = new Uint32Array(DATA.rows);
    let count = 0;
    for (let i = 0; i < DATA.rows; i++) if (this.kinds.has(this.rows.kindOf(i))) wanted[count++] = i;
    if (!this.word) {
      this.#show(wanted.slice(0, count), kept);
      this.found.textContent = `${count.toLocaleString("en")} rows`;
      return;
    }
    const word = this.word.toLowerCase();
    const matches = [];
    this.found.textContent = "Searching…";
    let shownAt = performance.now();
    for (let i = 0; i < count; i++) {
      let row = this.rows.get(wanted[i]);
      if (row instanceof Promise) {
        row = await row;
        if (this.running !== run) return;
      }
      const [label, text, fields] = row;
      const all = `${label} ${text} ${fields}`;
      if (all.toLowerCase().includes(word)) matches.push(wanted[i]);
      if (i % 1000 === 0 && performance.now() - shownAt > 200) {
        this.#show(Uint32Array.from(matches), kept);
        this.found.textContent = `Searching… ${Math.round((100 * i) / count)} %`;
        await new Promise((resolve) => setTimeout(resolve));
        if (this.running !== run) return;
        shownAt = performance.now();
      }
    }
    this.#show(Uint32Array.from(matches), kept);
    this.found.textContent = `${matches.length.toLocaleString("en")} found`;
  }

  #show(shown, kept) {
    this.shown = shown;
    this.chosen = kept === undefined ? -1 : shown.indexOf(kept);
    this.sizer.style.height = `${Math.max(1, shown.length) * ROW_PX}px`;
    if (this.chosen >= 0) this.#reveal(this.chosen);
    this.draw();
  }

  #reveal(place, share = 0) {
    const { scrollTop, clientHeight } = this.box;
    const top = place * ROW_PX;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW_PX > scrollTop + clientHeight) this.box.scrollTop = top + ROW_PX - clientHeight * (1 - share);
  }

  draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = undefined;
      const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_PX) - 6);
      const last = Math.min(this.shown.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW_PX) + 6);
      const made = [];
      for (let place = first; place < last; place++) made.push(this.#row(place));
      this.sizer.replaceChildren(...made);
      const active = this.chosen >= first && this.chosen < last ? `row-${this.chosen}` : "";
      if (active) this.box.setAttribute("aria-activedescendant", active);
      else this.box.removeAttribute("aria-activedescendant");
    });
  }

  #row(place) {
    const row = this.shown[place];
    const content = this.rows.get(row);
    const isPacked = content instanceof Promise;
    if (isPacked) content.then(() => this.draw());
    const [label, text] = isPacked ? ["", "…"] : content;
    const made = element("div", {
      id: `row-${place}`,
      role: "option",
      class: `row ${this.#style(row, label, text)}${place === this.now ? " now" : ""}`,
      "data-place": place,
      "aria-selected": String(place === this.chosen),
      "aria-setsize": this.shown.length,
      "aria-posinset": place + 1,
    }, element("span", { class: "t", text: clock(this.rows.timeOf(row)) }));
    if (DATA.calls.length > 1) made.append(element("span", { text: "AB"[this.rows.callOf(row)] }));
    made.append(element("span", { class: "k", text: label }), element("span", { text: text.slice(0, 400).replaceAll("\n", "⏎") }));
    made.style.top = `${place * ROW_PX}px`;
    return made;
  }

  /** Return the class of a row, which is one of ours whatever its texts are. */
  #style(row, label, text) {
    const name = DATA.kinds[this.rows.kindOf(row)];
    if (name === "Log") return ["ERROR", "CRITICAL", "WARNING"].find((each) => each === label) ?? "";
    if (name === "Findings") return text.startsWith("fail") ? "fail" : "warn";
    if (name === "Events") return "event";
    return label.startsWith("→") ? "in" : "out";
  }

  async choose(place) {
    if (place < 0 || place >= this.shown.length) return;
    this.chosen = place;
    const row = this.shown[place];
    this.#reveal(place);
    this.draw();
    const [label, text, fields] = await this.rows.get(row);
    if (this.shown[this.chosen] !== row) return;
    const parts = [element("p", { text: `${clock(this.rows.timeOf(row))}  ${label}` }), element("pre", { text: pretty(text) })];
    if (fields) parts.push(element("pre", { text: fields }));
    this.detail.replaceChildren(...parts);
    this.detail.hidden = false;
    this.detail.scrollTop = 0;
    this.dispatchEvent(new CustomEvent("choose", { detail: this.rows.timeOf(row) }));
    // It may have been covered by the details.
    requestAnimationFrame(() => this.#reveal(place));
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW_PX) - 1);
    const last = this.shown.length - 1;
    const next = {
      ArrowDown: this.chosen + 1, ArrowUp: this.chosen - 1, PageDown: this.chosen + page, PageUp: this.chosen - page,
      Home: 0, End: last,
    }[event.key];
    if (next !== undefined) this.choose(Math.min(last, Math.max(0, next)));
    else if (event.key === "Enter" && this.chosen >= 0) this.dispatchEvent(new Event("play"));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Mark the last row until a moment; bring it into view if the list is to follow. */
  mark(seconds, follows) {
    const ticks = seconds * DATA.ticks + 1;
    const now = firstAt(this.shown, ticks, (row) => this.rows.times[row]) - 1;
    if (now === this.now) return;
    this.now = now;
    if (follows && now >= 0) this.#reveal(now, 0.7);
    this.draw();
  }
}

/** Return a message as it is best read: JSON on lines of its own. */
function pretty(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
