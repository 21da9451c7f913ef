// The page: what the user gives, and what the network says of it.

import { fetchBytes, fetchNetwork, runtimeBytes, sortFiles } from "./files.mjs";
import { Network, start } from "./network.mjs";
import { decodePicture, toInput } from "./pictures.mjs";
import { inWords, likeliest, percent } from "./uncertainty.mjs";

const SHOWN_LABELS = 10;
const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const PEN = 22;

const element = (id) => document.getElementById(id);
const pad = element("pad");
const pen = pad.getContext("2d");

/** What is open. `run` numbers the predictions, so that a later one stops an earlier one; `pen` is where a stroke has come to. */
const state = { network: null, settings: null, picture: null, drawing: false, pen: null, own: {}, run: 0, loading: 0 };

// Networks

/** ONNX Runtime Web starts while the network is fetched. */
const starting = start();
starting.catch(() => {});

async function useNetwork({ settings, graph, artifact }) {
  const loading = ++state.loading;
  state.run++;
  state.startMilliseconds = await starting;
  say("Decoding …");
  const network = await new Network(graph.bytes, artifact.bytes, settings).open();
  if (loading !== state.loading) return network.close();
  await state.network?.close();
  state.network = network;
  state.settings = { ...settings, labels: settings.labels ?? [], image: imageOf(network, settings) };
  showNetwork(graph, artifact);
  showSamples(settings.samples ?? []);
  element("draws").value = settings.draws ?? 16;
  element("draws-shown").value = element("draws").value;
  const [first] = settings.samples ?? [];
  if (first) return showSample(first, element("samples").firstElementChild);
  if (state.picture) return predict();
  return say("Drop a picture, or choose one.");
}

/** Size, channels, mean and standard deviation of the input: given, else those of the graph and of ImageNet. */
function imageOf(network, settings) {
  const [channels, height] = network.inputShape;
  const given = { size: height, channels, ...settings.image };
  if (![1, 3].includes(given.channels) || typeof given.size !== "number") {
    throw new Error("This page shows networks of pictures: the graph's input must have 1 or 3 channels and a fixed size.");
  }
  const plain = given.channels === 3 ? IMAGENET : { mean: [0], std: [1] };
  const image = { ...plain, ...given };
  for (const key of ["mean", "std"]) {
    if (image[key].length !== image.channels) {
      throw new Error(`The settings must give one number for each of ${image.channels} channels as “${key}”.`);
    }
  }
  return image;
}

function showNetwork(graph, artifact) {
  const { network, settings } = state;
  element("about").textContent = settings.about ?? settings.name ?? "Your own network.";
  element("wire").textContent = bytesInWords(artifact.wireBytes + graph.wireBytes);
  element("wire-parts").textContent = `over the wire: artifact ${bytesInWords(artifact.wireBytes)}, graph ${bytesInWords(graph.wireBytes)}`;
  element("dense").textContent = bytesInWords(network.denseBytes);
  element("decoding").textContent = duration(network.milliseconds.decoding);
  element("loading").textContent = duration(network.milliseconds.loading);
  const { decoder, runtime } = runtimeBytes();
  element("runtime").textContent =
    `Beside the network, the page fetched the decoder (${bytesInWords(decoder)}) and ONNX Runtime Web (${bytesInWords(runtime)}), ` +
    `which took ${duration(state.startMilliseconds)} to start. They are the same for every network, and the browser keeps them.`;
  element("draw").hidden = !settings.image.ink;
}

function showSamples(samples) {
  const buttons = samples.map((sample) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    image.src = sample.address;
    image.alt = sample.about;
    button.title = sample.about;
    button.append(image);
    button.addEventListener("click", () => attempt(() => showSample(sample, button)));
    return button;
  });
  element("samples").replaceChildren(...buttons);
}

// Pictures

async function showSample(sample, button) {
  const { bytes } = await fetchBytes(sample.address);
  await showPicture(new Blob([bytes]));
  button.setAttribute("aria-pressed", "true");
}

async function showPicture(file) {
  state.picture = await decodePicture(file);
  press(null);
  setDrawing(false);
  const { width, height } = state.picture;
  const scale = Math.min(pad.width / width, pad.height / height);
  pen.imageSmoothingEnabled = scale < 1;
  pen.clearRect(0, 0, pad.width, pad.height);
  const [w, h] = [width * scale, height * scale];
  pen.drawImage(await createImageBitmap(state.picture), (pad.width - w) / 2, (pad.height - h) / 2, w, h);
  await predict();
}

function press(button) {
  for (const each of element("samples").children) each.setAttribute("aria-pressed", String(each === button));
}

function setDrawing(drawing) {
  state.drawing = drawing;
  pad.classList.toggle("drawing", drawing);
}

/** Clear the pad; from now on, strokes add to a drawing. */
function startDrawing() {
  state.run++;
  state.picture = null;
  press(null);
  setDrawing(true);
  pen.fillStyle = "black";
  pen.fillRect(0, 0, pad.width, pad.height);
  element("result").hidden = true;
  say("Draw with a finger or the mouse.");
}

function draw(event) {
  if (!state.drawing || !(event.buttons & 1)) return;
  const box = pad.getBoundingClientRect();
  const scale = pad.width / box.width;
  const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const [fromX, fromY] = state.pen ?? [x, y];
  state.pen = [x, y];
  Object.assign(pen, { lineWidth: PEN, lineCap: "round", strokeStyle: "white" });
  pen.beginPath();
  pen.moveTo(fromX, fromY);
  pen.lineTo(x, y);
  pen.stroke();
}

function finishStroke() {
  if (!state.pen) return;
  state.pen = null;
  state.picture = pen.getImageData(0, 0, pad.width, pad.height);
  attempt(predict);
}

// Prediction

async function predict() {
  const { network, settings, picture } = state;
  if (!network || !picture) return;
  const run = ++state.run;
  const draws = Number(element("draws").value);
  const known = network.sessions.size;
  const started = performance.now();
  element("prediction").setAttribute("aria-busy", "true");
  const { size, channels } = settings.image;
  const stopped = () => run !== state.run;
  const options = {
    shape: [channels, size, size],
    draws,
    onDraw: (n) => stopped() || say(`Draw ${n} of ${draws} …`),
    stopped,
  };
  const summary = await network.predict(toInput(picture, settings.image), options).catch((error) => {
    if (!stopped()) throw error;
  });
  if (stopped()) return;
  element("prediction").setAttribute("aria-busy", "false");
  showPrediction(summary);
  const decoded = network.sessions.size > known ? ", with decoding them" : "";
  element("time").textContent = duration(performance.now() - started) + decoded;
  document.dispatchEvent(new CustomEvent("predicted", { detail: summary }));
}

function showPrediction(summary) {
  const labels = summary.probabilities.map((_, i) => state.settings.labels[i] ?? `class ${i}`);
  const best = likeliest(summary.probabilities);
  const draws = summary.votes.length;
  say(`Averaged over ${draws} ${draws === 1 ? "draw" : "draws"} of the weights.`);
  element("result").hidden = false;
  element("label").textContent = labels[best];
  element("chance").textContent = percent(summary.probabilities[best]);
  element("words").textContent = inWords(summary, labels).join(" ");
  element("bars").replaceChildren(...rowsToShow(summary).map((label) => row(summary, label, labels[label], label === best)));
  element("votes").replaceChildren(
    ...summary.votes.map((vote) => {
      const item = document.createElement("li");
      item.textContent = labels[vote];
      item.classList.toggle("agrees", vote === best);
      return item;
    }),
  );
  element("entropy").textContent = `${summary.entropy.toFixed(3)} nats`;
  element("mutual").textContent = `${summary.mutualInformation.toFixed(3)} nats`;
}

/** All labels in order if they are few, else the likeliest. */
function rowsToShow({ probabilities }) {
  const all = probabilities.map((_, label) => label);
  if (all.length <= SHOWN_LABELS) return all;
  return all.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN_LABELS);
}

function row(summary, label, name, best) {
  const [p, low, high] = [summary.probabilities, summary.lowest, summary.highest].map((each) => each[label]);
  const line = document.createElement("tr");
  line.classList.toggle("best", best);
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const meter = document.createElement("span");
  meter.className = "meter";
  meter.setAttribute("aria-hidden", "true");
  const [bar, range] = ["bar", "range"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  bar.style.width = `${100 * p}%`;
  Object.assign(range.style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
  range.hidden = high - low < 0.005;
  meter.append(bar, range);
  const [drawn, number] = [document.createElement("td"), document.createElement("td")];
  drawn.append(meter);
  number.textContent = percent(p);
  line.append(head, drawn, number);
  return line;
}

// Words

function say(text) {
  element("status").textContent = text;
}

function bytesInWords(bytes) {
  if (bytes < 1000) return `${bytes}\u00a0B`;
  const [number, unit] = bytes < 999_500 ? [bytes / 1000, "kB"] : [bytes / 1e6, "MB"];
  return `${number.toPrecision(3)}\u00a0${unit}`;
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.max(1, Math.round(milliseconds))} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Run an action; what goes wrong is said in one sentence. */
async function attempt(action) {
  element("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    element("problem").hidden = false;
    element("problem").textContent = error.message ?? String(error);
    element("prediction").setAttribute("aria-busy", "false");
    say(state.network ? "" : "No network is open.");
  }
}

// What the user gives

async function take(files) {
  const found = await sortFiles([...files]);
  if (found.picture) await showPicture(found.picture);
  if (!found.graph && !found.artifact && !found.settings) return;
  // Another graph is another network, to which the last one's settings do not belong.
  if (found.graph && state.own.graph) state.own.settings = undefined;
  state.own = { ...state.own, ...found };
  const { graph, artifact, settings = {} } = state.own;
  element("own").open = true;
  element("given").textContent = `Given: ${[artifact?.name, graph?.name, state.own.settings && "settings"].filter(Boolean).join(", ")}.`;
  if (!graph || !artifact) return say(`Give the ${graph ? "artifact (.safetensors)" : "graph (.onnx)"} too.`);
  state.picture = null;
  element("network").selectedIndex = -1;
  element("result").hidden = true;
  await useNetwork({ settings: { ...settings, samples: [] }, graph, artifact });
}

const open = (query) => attempt(async () => useNetwork(await fetchNetwork(query)));

element("network").addEventListener("change", (event) => open(new URLSearchParams({ network: event.target.value })));
for (const id of ["file", "files"]) {
  element(id).addEventListener("change", async ({ target }) => {
    await attempt(() => take(target.files));
    target.value = "";
  });
}
element("draws").addEventListener("input", ({ target }) => (element("draws-shown").value = target.value));
element("draws").addEventListener("change", () => attempt(predict));
element("draw").addEventListener("click", startDrawing);
pad.addEventListener("pointerdown", (event) => {
  if (state.drawing) pad.setPointerCapture(event.pointerId);
  draw(event);
});
pad.addEventListener("pointermove", draw);
pad.addEventListener("pointerup", finishStroke);
pad.addEventListener("pointercancel", finishStroke);
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) attempt(() => take(event.clipboardData.files));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  attempt(() => take(event.dataTransfer.files));
});

const query = new URLSearchParams(location.search);
const own = ["network", "artifact", "graph"].some((key) => query.has(key));
element("chooser").hidden = own;
open(own ? query : new URLSearchParams({ network: element("network").value }));
