// Runs the page of docs/transports.md as its user would, and reports what became of it.
const started = performance.now();
const report = { errors: [], states: [], peaks: {}, loudest: 0 };

// What is played is listened to where it goes to the loudspeaker.
const connect = AudioNode.prototype.connect;
let ear = null;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to === this.context.destination) {
    ear = this.context.createAnalyser();
    ear.fftSize = 4096;
    connect.call(this, ear);
  }
  return connect.call(this, to, ...rest);
};

function listen() {
  if (!ear) return;
  const levels = new Float32Array(ear.frequencyBinCount);
  ear.getFloatFrequencyData(levels);
  const peak = levels.indexOf(Math.max(...levels));
  if (levels[peak] < -50) return;
  report.loudest = Math.max(report.loudest, levels[peak] + 100);
  const hz = Math.round((peak * ear.context.sampleRate) / ear.fftSize / 25) * 25;
  report.peaks[hz] = (report.peaks[hz] || 0) + 1;
}

async function until(what, check, seconds = 10) {
  const deadline = performance.now() + seconds * 1000;
  while (!check()) {
    if (performance.now() > deadline) throw new Error(`${what} did not come`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// A page of another site tries its luck meanwhile, in the same browser.
async function strangers() {
  const frame = document.createElement("iframe");
  frame.src = FOREIGN;
  document.body.append(frame);
  return new Promise((resolve) => addEventListener("message", (event) => resolve(event.data), { once: true }));
}

async function main() {
  const { client } = await import("./page.js");
  client.on("transportStateChanged", (state) => report.states.push(state));
  client.on("error", (message) => report.errors.push(JSON.stringify(message)));
  const button = document.querySelector("button");
  report.strangers = await strangers();
  button.click();
  await until("the bot", () => client.state === "ready");
  report.ready_ms = performance.now() - started;
  await until("the bot's voice", () => (listen(), Object.values(report.peaks).some((count) => count >= 10)));
  button.click();
  await until("the end", () => client.state === "disconnected");
}

main()
  .catch((error) => report.errors.push(String(error.stack || error)))
  .finally(() => fetch("/report", { method: "POST", body: JSON.stringify(report) }));
