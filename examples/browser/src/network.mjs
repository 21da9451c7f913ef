// A compressed network in the browser: the artifact is decoded here, and ONNX Runtime Web runs the graph with it.

import { decode } from "gbnn-decoder";
import * as ort from "onnxruntime-web";

import { requireFit } from "./graph.mjs";
import { normals } from "./normals.mjs";
import { softmax, summarise } from "./uncertainty.mjs";

// Several threads need two HTTP headers that plain servers do not send.
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

/** Sessions of all draws are kept while their weights take no more bytes than this. */
const KEPT_BYTES = 2 ** 28;

/** A graph of one Identity. */
const TRIVIAL = "CAo6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBU=";

/** Start ONNX Runtime Web, which fetches and compiles it; the milliseconds that this takes. */
export async function start() {
  const started = performance.now();
  const graph = Uint8Array.from(atob(TRIVIAL), (letter) => letter.charCodeAt(0));
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  await session.release();
  return performance.now() - started;
}

/** Let the page draw what changed. */
const breathe = () => new Promise((resolve) => setTimeout(resolve));

export class Network {
  /**
   * @param {Uint8Array} graph From `export --weights external`.
   * @param {Uint8Array} artifact
   * @param {{temperature?: number}} settings `temperature`: that of the artifact, which the graph's logits are divided by.
   */
  constructor(graph, artifact, { temperature = 1 } = {}) {
    this.graph = graph;
    this.artifact = artifact;
    this.temperature = temperature;
    this.denseBytes = 0;
    this.milliseconds = { decoding: 0, loading: 0 };
    this.sessions = new Map();
  }

  /** Decode the posterior mean and load the graph. */
  async open() {
    const session = await this.#session(null);
    const [input] = session.inputMetadata;
    if (session.inputMetadata.length !== 1 || input.shape.length !== 4) {
      throw new Error("This page shows networks of pictures: the graph must have one input, (batch, channels, height, width).");
    }
    this.inputShape = input.shape.slice(1);
    return this;
  }

  /**
   * Predict one picture.
   *
   * @param {Float32Array} values
   * @param {{shape: number[], draws: number, seed?: number, onDraw?: (n: number) => void, stopped?: () => boolean}} options
   *   `shape`: (channels, height, width). Draw n has the weights of seed + n.
   * @returns {Promise<object | null>} What `summarise` returns, and `atMean`, the probabilities of the posterior mean; null
   *   if it was stopped.
   */
  async predict(values, { shape, draws, seed = 0, onDraw = () => {}, stopped = () => false }) {
    const input = new ort.Tensor("float32", values, [1, ...shape]);
    const atMean = await this.#run(null, input);
    const each = [];
    for (let draw = 0; draw < draws; draw++) {
      onDraw(draw + 1);
      await breathe();
      if (stopped()) return null;
      each.push(await this.#run(seed + draw, input));
    }
    return { ...summarise(each, this.temperature), atMean: summarise([atMean], this.temperature).probabilities };
  }

  /** Probabilities at temperature 1, with the weights of a seed, or the posterior mean. */
  async #run(seed, input) {
    const session = await this.#session(seed);
    const outputs = await session.run({ [session.inputNames[0]]: input });
    if (!this.sessions.has(seed)) await session.release();
    const { data } = outputs[session.outputNames[0]];
    return softmax(Array.from(data, (logit) => logit * this.temperature));
  }

  /** The graph with the weights of a seed. */
  async #session(seed) {
    const kept = this.sessions.get(seed);
    if (kept) return kept;
    const started = performance.now();
    const tensors = await this.#decoded(seed);
    if (seed === null) requireFit(this.graph, tensors);
    const decoded = performance.now();
    const session = await sessionWith(this.graph, tensors);
    if (seed === null) {
      this.denseBytes = Object.values(tensors).reduce((total, { data }) => total + data.byteLength, 0);
      this.milliseconds = { decoding: decoded - started, loading: performance.now() - decoded };
    }
    if (seed === null || this.denseBytes * this.sessions.size < KEPT_BYTES) this.sessions.set(seed, session);
    return session;
  }

  async #decoded(seed) {
    try {
      return await decode(this.artifact, seed === null ? {} : { normals: normals(seed) });
    } catch (error) {
      throw new Error(`The artifact cannot be decoded: ${error.message}.`);
    }
  }

  /** Free the sessions. */
  async close() {
    for (const session of this.sessions.values()) await session.release();
    this.sessions.clear();
  }
}

/** A session of a graph whose external data are decoded tensors. */
async function sessionWith(graph, tensors) {
  const externalData = Object.entries(tensors).map(([path, { data }]) => ({
    path,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  }));
  try {
    return await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
  } catch (error) {
    throw new Error(
      `The graph does not fit the artifact, or ONNX Runtime Web cannot run it (${error.message ?? error}). ` +
        "Make it from this artifact with `gbnn-compress export --weights external`.",
    );
  }
}
