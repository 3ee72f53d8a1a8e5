// Runs where the browser's sound is made, 128 samples at a time: the microphone's way out, and the bot's way in.
"use strict";

/** Sends what the microphone hears, 10 ms or a little less at a time, as 16-bit samples. */
class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.max(1, Math.floor(sampleRate / 100 / 128)) * 128;
    this.start();
  }

  start() {
    this.block = new Int16Array(this.size);
    this.filled = 0;
  }

  process([[samples]]) {
    if (!samples) return true;
    for (const sample of samples) {
      this.block[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled < this.size) continue;
      this.port.postMessage(this.block.buffer, [this.block.buffer]);
      this.start();
    }
    return true;
  }
}

/**
 * Plays what the bot says. It comes 20 ms at a time, more or less in time: so much is waited for before it begins, and
 * what has waited for too long is left out.
 */
class Earpiece extends AudioWorkletProcessor {
  constructor() {
    super();
    this.least = Math.round(sampleRate * 0.04);
    this.most = Math.round(sampleRate * 0.16);
    this.clear();
    this.port.onmessage = ({ data }) => (data === null ? this.clear() : this.put(new Int16Array(data)));
  }

  clear() {
    this.pieces = [];
    this.at = 0;
    this.queued = 0;
    this.isPlaying = false;
  }

  put(piece) {
    this.pieces.push(piece);
    this.queued += piece.length;
    while (this.queued > this.most) this.skip(this.queued - this.least);
  }

  skip(count) {
    while (count > 0 && this.pieces.length) {
      const taken = Math.min(count, this.pieces[0].length - this.at);
      this.take(taken);
      count -= taken;
    }
  }

  /** Note that so much of the first piece is played. */
  take(count) {
    this.at += count;
    this.queued -= count;
    if (this.at < this.pieces[0].length) return;
    this.pieces.shift();
    this.at = 0;
  }

  process(_, [[output]]) {
    if (!this.isPlaying && this.queued < this.least) return true;
    this.isPlaying = true;
    let filled = 0;
    while (filled < output.length && this.pieces.length) {
      const count = Math.min(output.length - filled, this.pieces[0].length - this.at);
      for (let i = 0; i < count; i++) output[filled + i] = this.pieces[0][this.at + i] / 32768;
      filled += count;
      this.take(count);
    }
    if (filled < output.length) this.isPlaying = false;
    return true;
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("earpiece", Earpiece);
