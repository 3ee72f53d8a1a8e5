// The time axis: waveforms by wavesurfer.js, and below each call's the lanes of what happened in it.
"use strict";

const LANES = { turns: 46, buffer: 34, events: 26 };
const WAVE = 54;
const RULER = 24;
const MAX_PX_PER_S = 2000;
/** Browsers draw no wider elements than about twice this. */
const MAX_WIDTH = 12e6;
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

class Timeline extends EventTarget {
  constructor(player) {
    super();
    this.player = player;
    this.lanes = document.getElementById("lanes");
    this.gutter = document.getElementById("gutter");
    this.scroller = document.getElementById("scroll");
    this.tip = document.getElementById("tip");
    this.canvases = [];
    this.waves = [];
    this.pxPerS = 0;
    this.left = 0;
  }

  async open() {
    this.ruler = this.#lane("", RULER, (...all) => this.#drawRuler(...all));
    for (const [number, call] of DATA.calls.entries()) await this.#openCall(call, number);
    this.cursor = element("div", { id: "cursor" });
    this.lanes.append(this.cursor);
    this.#listen();
    this.#hint();
    this.fit();
  }

  async #openCall(call, number) {
    const name = DATA.calls.length > 1 ? `${"AB"[number]} ` : "";
    const container = element("div", { "aria-hidden": "true" });
    this.lanes.append(container);
    for (const end of ["caller", "bot"]) this.#label(`${name}${end}`, WAVE);
    const packed = new Uint8Array(await unpacked(embedded(`peaks-${number}`)).arrayBuffer());
    const all = Float32Array.from(packed, (value) => value / 255);
    const half = all.length / 2;
    const wave = WaveSurfer.create({
      container,
      media: this.player.calls[number].audio,
      peaks: [all.subarray(0, half), all.subarray(half)],
      duration: DATA.duration,
      splitChannels: [{}, {}],
      height: WAVE,
      normalize: true,
      // Silence is not blown up, and both ends are drawn to the same scale.
      maxPeak: Math.max(0.1, all.reduce((most, value) => Math.max(most, value), 0) * 1.05),
      cursorWidth: 0,
      interact: false,
      hideScrollbar: true,
      autoScroll: false,
      cspNonce: NONCE,
    });
    this.waves.push(wave);
    await new Promise((resolve) => wave.once("redrawcomplete", resolve));
    this.#lane(`${name}turns`, LANES.turns, (...all) => this.#drawTurns(call, ...all), (...at) => turnAt(call, ...at));
    if (call.buffered.length) {
      call.mostBuffered = call.buffered.reduce((most, [, ms]) => Math.max(most, ms), 1);
      this.#lane(`${name}buffered ≤\u00a0${wait(call.mostBuffered / 1000).replace(" ", "\u00a0")}`, LANES.buffer, (...all) => this.#drawBuffer(call, ...all),
        (seconds) => bufferAt(call, seconds));
    }
    this.#lane(`${name}events`, LANES.events, (...all) => this.#drawEvents(call, ...all),
      (...at) => pointAt(call, ...at));
  }

  #label(text, height) {
    const label = element("div", { text });
    label.style.height = `${height}px`;
    this.gutter.append(label);
  }

  #lane(name, height, draw, at) {
    this.#label(name, height);
    const canvas = element("canvas", { "aria-hidden": "true" });
    canvas.style.height = `${height}px`;
    this.lanes.append(canvas);
    this.canvases.push({ canvas, height, draw, at });
  }

  #listen() {
    this.scroller.addEventListener("scroll", () => this.#moveTo(this.scroller.scrollLeft));
    this.lanes.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.lanes.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.lanes.setPointerCapture(event.pointerId);
      this.isDragged = true;
      this.player.seek(this.timeAt(event));
    });
    this.lanes.addEventListener("pointermove", (event) => {
      if (this.isDragged) this.player.seek(this.timeAt(event));
      this.#point(event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.lanes.addEventListener(name, () => { this.isDragged = false; });
    }
    this.lanes.addEventListener("pointerleave", () => this.#hint());
    new ResizeObserver(() => (this.isFitted ? this.fit() : this.#scale(this.pxPerS))).observe(this.lanes);
  }

  #hint() { this.tip.textContent = "Click to go there; the wheel zooms, with Shift it moves."; }

  get width() { return this.lanes.clientWidth; }
  get fitted() { return this.width / DATA.duration; }
  get most() { return Math.max(this.fitted, Math.min(MAX_PX_PER_S, MAX_WIDTH / DATA.duration)); }
  timeAt(event) { return (event.clientX - this.lanes.getBoundingClientRect().left + this.left) / this.pxPerS; }
  x(seconds) { return seconds * this.pxPerS - this.left; }

  fit() { this.#scale(this.fitted); }

  /** Zoom, so that the moment `at` stays where it is; without one, the cursor or else the middle does. */
  zoom(factor, at) {
    const cursor = this.x(this.player.time);
    const anchor = at ?? (cursor >= 0 && cursor <= this.width ? this.player.time : (this.left + this.width / 2) / this.pxPerS);
    const x = this.x(anchor);
    this.#scale(this.pxPerS * factor);
    this.scroller.scrollLeft = anchor * this.pxPerS - x;
    this.#moveTo(this.scroller.scrollLeft);
  }

  #scale(pxPerS) {
    this.pxPerS = Math.min(this.most, Math.max(this.fitted, pxPerS));
    this.isFitted = this.pxPerS <= this.fitted * 1.001;
    document.getElementById("extent").style.width = this.isFitted ? "1px" : `${DATA.duration * this.pxPerS}px`;
    for (const wave of this.waves) wave.zoom(this.isFitted ? 0 : this.pxPerS);
    this.#moveTo(this.isFitted ? 0 : this.scroller.scrollLeft);
  }

  #moveTo(left) {
    this.left = left;
    for (const wave of this.waves) wave.setScroll(left);
    this.draw();
  }

  /** Bring a moment into view. */
  show(seconds) {
    const x = this.x(seconds);
    if (x < 0 || x > this.width * 0.95) this.scroller.scrollLeft = seconds * this.pxPerS - this.width * 0.15;
  }

  #wheel(event) {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.scroller.scrollLeft += event.deltaX || event.deltaY;
      return;
    }
    const at = this.timeAt(event);
    this.turned = (this.turned ?? 0) + event.deltaY * (event.deltaMode ? 30 : 1);
    this.wheeling ??= requestAnimationFrame(() => {
      const factor = Math.exp(-this.turned * 0.003);
      this.turned = 0;
      this.wheeling = undefined;
      this.zoom(Math.min(4, Math.max(0.25, factor)), at);
    });
  }

  #point(event) {
    const seconds = this.timeAt(event);
    const lane = this.canvases.find(({ canvas }) => canvas === event.target);
    const y = lane ? event.offsetY / lane.height : 0;
    this.tip.textContent = `${clock(seconds)}  ${lane?.at?.(seconds, 6 / this.pxPerS, y) ?? ""}`;
  }

  moveCursor() {
    if (this.cursor) this.cursor.style.transform = `translateX(${this.x(this.player.time)}px)`;
  }

  /** Read the colours of the theme, which has changed. */
  recolour() {
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const wave of this.waves) {
      const channels = ["caller", "bot"].map((end) => ({ waveColor: this.colour(end), progressColor: this.colour(end) }));
      wave.setOptions({ splitChannels: channels });
    }
    this.draw();
  }

  /** Draw the lanes, once before the next frame. */
  draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = undefined;
      if (!this.cursor) return;
      const ratio = window.devicePixelRatio || 1;
      const width = this.width;
      for (const { canvas, height, draw } of this.canvases) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.width = `${width}px`;
        const context = canvas.getContext("2d");
        context.scale(ratio, ratio);
        context.font = "11px system-ui, sans-serif";
        context.textBaseline = "middle";
        context.fillStyle = this.colour("line");
        context.fillRect(0, height - 1, width, 1);
        draw(context, width, height);
      }
      this.moveCursor();
    });
  }

  /** Return the items that are in view, of those whose times do not decrease. */
  #seen(items, start = (item) => item[0], longest = 0) {
    const from = this.left / this.pxPerS - longest - 20 / this.pxPerS;
    const to = (this.left + this.width + 20) / this.pxPerS;
    let first = firstAt(items, from, start);
    const seen = [];
    for (; first < items.length && start(items[first]) <= to; first++) seen.push(items[first]);
    return seen;
  }

  #drawRuler(context, width, height) {
    const step = STEPS.find((each) => each * this.pxPerS >= 80) ?? 7200;
    const digits = step >= 1 ? 0 : step >= 0.1 ? 1 : 2;
    const first = Math.floor(this.left / this.pxPerS / step);
    for (let i = first; this.x(i * step) <= width; i++) {
      const x = Math.round(this.x(i * step));
      if (i < 0 || i * step > DATA.duration) continue;
      context.fillStyle = this.colour("line");
      context.fillRect(x, height - 8, 1, 8);
      context.fillStyle = this.colour("soft");
      context.fillText(clock(i * step, digits), x + 4, height / 2 - 1);
    }
  }

  #bars(context, spoken, colour, y, height) {
    context.fillStyle = this.colour(colour);
    let until = -1;
    for (const [start, end] of this.#seen(spoken, (each) => each[1])) {
      const x = Math.max(-10, this.x(start));
      if (x > this.width) break;
      const right = Math.min(this.width + 10, Math.max(this.x(end), x + 1.5));
      if (right <= until) continue;
      context.beginPath();
      context.roundRect(x, y, right - x, height, Math.min(3, (right - x) / 2));
      context.fill();
      until = right;
    }
  }

  #drawTurns(call, context, width, height) {
    const bar = 12;
    const below = height - bar - 5;
    this.#bars(context, call.caller, "caller", 4, bar);
    this.#bars(context, call.bot, "bot", below, bar);
    for (const [, end, bot, seconds] of call.turns) {
      if (bot === null || !seconds) continue;
      const [x, right] = [this.x(end), this.x(bot)];
      if (right < 0 || x > width) continue;
      const size = Math.max(1, right - x);
      context.fillStyle = this.colour("wait-fill");
      context.fillRect(x, 4, size, below + bar - 4);
      context.fillStyle = this.colour("wait");
      context.fillRect(x, 16 + 1, 1, below - 17);
      context.fillRect(right - 1, 16 + 1, 1, below - 17);
      context.fillRect(x, height / 2 - 0.5, size, 1);
      const label = wait(seconds);
      const wide = context.measureText(label).width + 6;
      if (size < wide + 4) continue;
      context.fillStyle = this.colour("wait-fill");
      context.fillRect(x + (size - wide) / 2, height / 2 - 6, wide, 12);
      context.fillStyle = this.colour("wait");
      context.fillText(label, x + (size - wide) / 2 + 3, height / 2 + 0.5);
    }
  }

  #drawBuffer(call, context, width, height) {
    const y = (ms) => height - 2 - (ms / call.mostBuffered) * (height - 6);
    const from = Math.max(0, firstAt(call.buffered, this.left / this.pxPerS, (each) => each[0]) - 1);
    context.beginPath();
    context.moveTo(this.x(call.buffered[from][0]), height - 2);
    // Of many samples on one pixel, the highest is drawn.
    let [column, most] = [-Infinity, 0];
    let last = 0;
    for (let i = from; i < call.buffered.length; i++) {
      const [seconds, ms] = call.buffered[i];
      const x = this.x(seconds);
      if (Math.floor(x) === column) {
        most = Math.max(most, ms);
        continue;
      }
      if (column > -Infinity) context.lineTo(column, y(most));
      [column, most] = [Math.floor(x), ms];
      last = x;
      if (x > width + 20) break;
    }
    context.lineTo(column, y(most));
    context.lineTo(Math.max(last, column), height - 2);
    context.closePath();
    context.globalAlpha = 0.35;
    context.fillStyle = this.colour("buffer");
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = this.colour("buffer");
    context.stroke();
  }

  #drawEvents(call, context, width, height) {
    const seen = this.#seen(call.points);
    const isDense = seen.length > width / 24;
    let digitsUntil = -Infinity;
    for (const [seconds, kind, text] of seen) {
      const x = this.x(seconds);
      const row = Math.max(0, KINDS.indexOf(kind));
      context.fillStyle = context.strokeStyle = this.colour(KIND_COLOURS[row]);
      if (isDense) {
        // Signs would cover each other: a row of ticks for each kind.
        context.fillRect(x - 0.75, 2 + row * 4.6, 1.5, 3.6);
      } else if (kind !== "digit") {
        drawSign(context, kind, x, height);
      } else if (x >= digitsUntil) {
        const label = digitOf(text);
        const size = context.measureText(label).width + 6;
        context.lineWidth = 1;
        context.strokeRect(x, height / 2 - 7.5, size, 15);
        context.fillText(label, x + 3, height / 2 + 0.5);
        digitsUntil = x + size;
      }
    }
  }
}

const KINDS = ["interruption", "finding", "clear", "digit", "mark"];
const KIND_COLOURS = ["bad", "warn", "wait", "caller", "soft"];

/** Draw a flag for an interruption, a triangle for a finding, a cross for a clear, a diamond for a mark. */
function drawSign(context, kind, x, height) {
  const middle = height / 2;
  const shape = (...points) => {
    context.beginPath();
    for (const [dx, dy] of points) context.lineTo(x + dx, middle + dy);
    context.closePath();
    context.fill();
  };
  if (kind === "interruption") {
    context.fillRect(x - 1, 2, 2, height - 5);
    shape([1, 2 - middle], [9, 6 - middle], [1, 10 - middle]);
  } else if (kind === "finding") {
    shape([0, -6], [6, 5], [-6, 5]);
  } else if (kind === "clear") {
    context.lineWidth = 1.5;
    context.beginPath();
    for (const side of [1, -1]) {
      context.moveTo(x - 4 * side, middle - 4);
      context.lineTo(x + 4 * side, middle + 4);
    }
    context.stroke();
  } else {
    shape([0, -5], [4, 0], [0, 5], [-4, 0]);
  }
}

/** Return the index of the first item that starts at `seconds` or later. */
function firstAt(items, seconds, start) {
  let [low, high] = [0, items.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (start(items[middle]) < seconds) low = middle + 1;
    else high = middle;
  }
  return low;
}

const digitOf = (text) => (/[0-9*#A-D]+\s*$/.exec(text)?.[0] ?? text).trim().slice(0, 12);

function turnAt(call, seconds) {
  const number = call.turns.findLastIndex(([start]) => start <= seconds);
  if (number < 0) return "";
  const [, end, bot, waited] = call.turns[number];
  const isIn = (spoken) => spoken.some(([from, to]) => from <= seconds && seconds <= to);
  const who = ["caller", "bot"].filter((end) => isIn(call[end])).map((end) => `the ${end} speaks`);
  if (!who.length && bot !== null && seconds >= end && seconds <= bot) who.push("the caller waits");
  const answer = bot === null ? "no answer" : waited ? `answered after ${wait(waited)}` : "answered while the caller spoke";
  return `turn ${number + 1}: ${answer}${who.length ? `; ${who.join(", ")}` : ""}`;
}

function bufferAt(call, seconds) {
  const number = Math.max(0, firstAt(call.buffered, seconds, (each) => each[0]) - 1);
  return `${Math.round(call.buffered[number][1])} ms of audio were buffered at the provider`;
}

function pointAt(call, seconds, within) {
  const first = firstAt(call.points, seconds - within, (each) => each[0]);
  const found = [];
  for (let i = first; i < call.points.length && call.points[i][0] <= seconds + within && found.length < 5; i++) {
    found.push(`${call.points[i][1]}: ${call.points[i][2]}`);
  }
  return found.join("; ");
}
