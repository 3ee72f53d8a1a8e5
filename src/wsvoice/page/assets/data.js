// What the page holds: its calls, and packed data that is unpacked when it is needed.
"use strict";

const embedded = (id) => document.getElementById(id).textContent;
const DATA = JSON.parse(embedded("call"));
const NONCE = document.getElementById("call").dataset.nonce;

/** Return the bytes of a text in base64. */
function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Return what was packed, as a Response to read it from. */
function unpacked(base64) {
  return new Response(new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate")));
}

/** Make an element with a text and children; nothing that is passed in is ever read as markup. */
function element(name, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Return a time as a clock shows it, to the millisecond: 0:05.120, 1:02:03.000. */
function clock(seconds, digits = 3) {
  const unit = 10 ** digits;
  const whole = Math.round(Math.abs(seconds) * unit);
  const rest = whole % (60 * unit);
  const minutes = Math.floor(whole / (60 * unit));
  const hours = Math.floor(minutes / 60);
  const pad = (value) => String(value).padStart(2, "0");
  const last = (rest / unit).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return (seconds < 0 && whole ? "−" : "") + (hours ? `${hours}:${pad(minutes % 60)}:${last}` : `${minutes}:${last}`);
}

/** Return a wait in words. */
const wait = (seconds) => (seconds < 10 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`);
