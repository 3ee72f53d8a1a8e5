// The page's sound: its microphone, which is asked for once, and what it plays.
"use strict";

/** What to do about a microphone that cannot be used, by the browser's name for the reason. */
const MICROPHONE_HELP = {
  NotAllowedError: ["The microphone is blocked for this page.",
    "Allow it: click the icon left of the page’s address, set Microphone to Allow, and dial again. It may also be blocked for the browser, in the system’s settings for privacy."],
  NotFoundError: ["There is no microphone.", "Plug one in, or connect a headset, and dial again."],
  NotReadableError: ["The microphone cannot be used.", "Another program may have it: close that, and dial again."],
};
const OTHER_HELP = ["The microphone cannot be used.", "Open the page in a current browser, by the address that was printed."];

class Sound {
  /**
   * @param {(pcm: ArrayBuffer) => void} onSound Takes what the microphone hears, 16-bit samples of `rate`.
   */
  constructor(onSound) {
    this.onSound = onSound;
    this.isMuted = false;
    this.isInCall = false;
    this.heard = 0;
    this.said = 0;
  }

  get rate() {
    return this.context.sampleRate;
  }

  /** Make the way to the loudspeaker; after a click, because browsers play nothing before that. */
  async open() {
    // Whoever dials again while it is made waits for the same one.
    this.opening ??= this.makeEarpiece().finally(() => { this.opening = null; });
    await this.opening;
    await this.context.resume();
  }

  async makeEarpiece() {
    if (this.context) return;
    const context = new AudioContext({ latencyHint: "interactive" });
    await context.audioWorklet.addModule("assets/worklet.js");
    this.earpiece = new AudioWorkletNode(context, "earpiece", { numberOfInputs: 0, outputChannelCount: [1] });
    this.earpiece.connect(context.destination);
    this.context = context;
  }

  get hasMicrophone() {
    return this.stream?.getAudioTracks().some((track) => track.readyState === "live") ?? false;
  }

  /** Ask for the microphone, unless it is there or asked for; fails with an error that has a title and help. */
  async openMicrophone() {
    if (this.hasMicrophone && !this.asking) return;
    // The browser's question outlives a call that is given up; whoever dials again waits for the same answer.
    this.asking ??= this.askForMicrophone().finally(() => { this.asking = null; });
    await this.asking;
  }

  async askForMicrophone() {
    try {
      // Nothing but the echo is taken out: the bot is to hear what is said, as loud as it is said.
      const wanted = { echoCancellation: true, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      const [title, help] = MICROPHONE_HELP[error.name] ?? OTHER_HELP;
      throw Object.assign(new Error(title), { help });
    }
    this.switchMicrophone();
    try {
      await this.listenTo(this.stream);
    } catch (error) {
      // Nobody listens, so the browser need not show that somebody does.
      for (const track of this.stream.getTracks()) track.stop();
      throw error;
    }
  }

  async listenTo(stream) {
    // A context of its own, as quick as the browser can: nothing is heard of it that could break off.
    await this.listening?.close();
    const context = this.listening = new AudioContext({ latencyHint: 0, sampleRate: this.rate });
    await context.audioWorklet.addModule("assets/worklet.js");
    const node = new AudioWorkletNode(context, "microphone", { outputChannelCount: [1], channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      if (this.isMuted || !this.isInCall) return;
      this.said = Math.max(this.said, level(data));
      this.onSound(data);
    };
    // What is not on the way to the loudspeaker is not processed. It is silent.
    context.createMediaStreamSource(stream).connect(node).connect(context.destination);
    await context.resume();
  }

  /** Play 16-bit samples of `rate`. */
  play(pcm) {
    this.heard = Math.max(this.heard, level(pcm));
    this.earpiece.port.postMessage(pcm, [pcm]);
  }

  fallSilent() {
    this.earpiece?.port.postMessage(null);
    this.heard = this.said = 0;
  }

  mute(isMuted) {
    this.isMuted = isMuted;
    this.switchMicrophone();
  }

  /** Say whether a call goes on: between calls the microphone hears nothing. */
  attend(isInCall) {
    this.isInCall = isInCall;
    this.switchMicrophone();
  }

  switchMicrophone() {
    for (const track of this.stream?.getAudioTracks() ?? []) track.enabled = this.isInCall && !this.isMuted;
  }

  /** Return how loud both ends were since the last time: 0 for -60 dB and less, 1 for as loud as can be. */
  levels() {
    const found = [this.said, this.heard];
    this.said = this.heard = 0;
    return found;
  }
}

function level(buffer) {
  const samples = new Int16Array(buffer);
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / (samples.length || 1) / 32768 ** 2 + 1e-12);
  return Math.max(0, 1 + decibels / 60);
}
