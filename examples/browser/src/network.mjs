// A compressed network in the browser: the artifact is decoded here, and ONNX Runtime Web runs the graph with it.

import { decode } from "gbnn-decoder";
import * as ort from "onnxruntime-web";

import { normals } from "./normals.mjs";
import { softmax, summarise } from "./uncertainty.mjs";

// Several threads need two HTTP headers that plain servers do not send.
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

/** Sessions of all draws are kept while their weights take no more bytes than this. */
const KEPT_BYTES = 2 ** 28;

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
    this.input = session.inputMetadata[0];
    return this;
  }

  /**
   * Predict one picture.
   *
   * @param {Float32Array} values (channels, height, width)
   * @param {{draws: number, seed?: number, onDraw?: (n: number) => void}} options
   * @returns {Promise<object>} What `summarise` returns, and `atMean`, the probabilities of the posterior mean.
   */
  async predict(values, { draws, seed = 0, onDraw = () => {} }) {
    const atMean = await this.#run(null, values);
    const each = [];
    for (let draw = 0; draw < draws; draw++) {
      onDraw(draw + 1);
      await breathe();
      each.push(await this.#run(seed + draw, values));
    }
    const tempered = summarise([atMean], this.temperature).probabilities;
    return { ...summarise(each.length ? each : [atMean], this.temperature), atMean: tempered };
  }

  /** Probabilities at temperature 1, with the weights of a seed, or the posterior mean. */
  async #run(seed, values) {
    const session = await this.#session(seed);
    const [, ...shape] = this.input?.shape ?? session.inputMetadata[0].shape;
    const fixed = shape.map((size) => (typeof size === "number" ? size : Math.sqrt(values.length / shape[0])));
    const input = new ort.Tensor("float32", values, [1, ...fixed]);
    const outputs = await session.run({ [session.inputNames[0]]: input });
    const logits = outputs[session.outputNames[0]];
    if (!this.#keeps(seed)) await session.release();
    return softmax(Array.from(logits.data, (logit) => logit * this.temperature));
  }

  /** The graph with the weights of a seed. */
  async #session(seed) {
    const kept = this.sessions.get(seed);
    if (kept) return kept;
    const started = performance.now();
    const tensors = await decode(this.artifact, seed === null ? {} : { normals: normals(seed) });
    const decoded = performance.now();
    const session = await sessionWith(this.graph, tensors);
    if (seed === null) {
      this.denseBytes = Object.values(tensors).reduce((total, { data }) => total + data.byteLength, 0);
      this.milliseconds = { decoding: decoded - started, loading: performance.now() - decoded };
    }
    if (this.#keeps(seed)) this.sessions.set(seed, session);
    return session;
  }

  #keeps(seed) {
    return seed === null || this.denseBytes * this.sessions.size < KEPT_BYTES;
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
