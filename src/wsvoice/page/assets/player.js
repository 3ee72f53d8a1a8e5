// Plays one call, or two at the same time; its clock is that of the first that is heard.
"use strict";

class Player extends EventTarget {
  constructor(calls) {
    super();
    this.calls = calls.map((call, number) => ({ number, type: call.soundType, audio: new Audio(), isHeard: true }));
    for (const { audio } of this.calls) {
      audio.preload = "auto";
      for (const name of ["play", "pause", "seeked", "ended"]) audio.addEventListener(name, () => this.#changed());
    }
    this.ends = "both";
  }

  /** Unpack the sound; until then a position can be chosen, and nothing be heard. */
  load() {
    for (const call of this.calls) {
      if (call.isLoaded) continue;
      call.isLoaded = true;
      const blob = new Blob([bytesOf(embedded(`sound-${call.number}`))], { type: call.type });
      const { currentTime, playbackRate } = call.audio;
      call.audio.src = URL.createObjectURL(blob);
      call.audio.currentTime = currentTime;
      call.audio.playbackRate = playbackRate;
    }
  }

  get #heard() { return this.calls.filter((call) => call.isHeard); }
  get time() { return this.#heard[0].audio.currentTime; }
  get isPlaying() { return !this.#heard[0].audio.paused; }

  seek(seconds) {
    const time = Math.min(Math.max(0, seconds), DATA.duration);
    for (const { audio } of this.calls) audio.currentTime = time;
    this.#changed();
  }

  async toggle() {
    this.load();
    if (this.isPlaying) {
      for (const { audio } of this.calls) audio.pause();
      return;
    }
    if (this.time >= DATA.duration - 0.02) this.seek(0);
    if (this.context) await this.context.resume();
    const { time } = this;
    for (const { audio } of this.#heard) audio.currentTime = time;
    await Promise.all(this.#heard.map(({ audio }) => audio.play()));
  }

  set speed(rate) { for (const { audio } of this.calls) audio.playbackRate = audio.defaultPlaybackRate = rate; }

  /** Choose the calls that are heard, by their numbers, and which of their ends: both, caller or bot. */
  choose(numbers, ends) {
    const { time, isPlaying } = this;
    for (const call of this.calls) {
      call.isHeard = numbers.includes(call.number);
      call.audio.pause();
    }
    this.ends = ends;
    if (ends !== "both" || this.context) this.#route();
    this.seek(time);
    if (isPlaying) this.toggle();
  }

  /** Send one end of each call to both ears. Once a sound goes this way it always does. */
  #route() {
    this.context ??= new AudioContext();
    for (const call of this.calls) {
      if (!call.gains) {
        const splitter = this.context.createChannelSplitter(2);
        const merger = this.context.createChannelMerger(2);
        this.context.createMediaElementSource(call.audio).connect(splitter);
        // From the end to the ear: the caller is on the left, the bot on the right.
        call.gains = [0, 1].map((end) => [0, 1].map((ear) => {
          const gain = this.context.createGain();
          splitter.connect(gain, end);
          gain.connect(merger, 0, ear);
          return gain;
        }));
        merger.connect(this.context.destination);
      }
      call.gains.forEach((ears, end) => ears.forEach((gain, ear) => {
        const chosen = this.ends === "both" ? end === ear : this.ends === ["caller", "bot"][end];
        gain.gain.value = chosen ? 1 : 0;
      }));
    }
  }

  #changed() { this.dispatchEvent(new Event("change")); }
}
