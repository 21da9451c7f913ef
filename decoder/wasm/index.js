// gbnn-decoder: artifacts of gbnn-compress to named tensors. The C library does the work, as WebAssembly.

const WASM = "@WASM@"; // gzip in base64, put here by `make package`

const ARRAYS = {
  bool: Uint8Array,
  int8: Int8Array,
  uint8: Uint8Array,
  float8_e4m3fn: Uint8Array,
  float8_e4m3fnuz: Uint8Array,
  float8_e5m2: Uint8Array,
  float8_e5m2fnuz: Uint8Array,
  float8_e8m0fnu: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  float32: Float32Array,
  complex32: Uint16Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  float64: Float64Array,
  complex64: Float32Array,
  complex128: Float64Array,
};

const NO_MEMORY = 1;
const NOT_TIED = 0xffffffff;

let compiled;

/** Thrown when an artifact cannot be fetched or decoded: it is damaged, is no artifact, or does not fit in memory. */
export class ArtifactError extends Error {
  name = "ArtifactError";
}

/** Decodes an artifact, given as bytes or as the response that brings them. */
export async function decode(artifact, { member, normals } = {}) {
  if (normals !== undefined && typeof normals !== "function") {
    throw new TypeError("decode: expected `normals` to be a function that returns the next normal number");
  }
  const bytes = await bytesOf(artifact);
  compiled ??= compile();
  const { exports } = await WebAssembly.instantiate(await compiled, { env: { normal: checked(normals ?? (() => 0)) } });
  return tensorsOf(open(exports, bytes), chosen(exports, member), normals ? exports.draw : exports.decode);
}

/** The next normal number, which would otherwise become NaN in silence. */
const checked = (normals) => () => {
  const number = normals();
  if (!Number.isFinite(number)) throw new TypeError("decode: `normals` must return finite numbers");
  return number;
};

async function compile() {
  const packed = Uint8Array.from(atob(WASM), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return WebAssembly.compile(await new Response(unpacked).arrayBuffer());
}

async function bytesOf(artifact) {
  if (typeof Response !== "undefined" && artifact instanceof Response) {
    if (!artifact.ok) throw new ArtifactError(`the artifact could not be fetched: status ${artifact.status}`);
    return new Uint8Array(await artifact.arrayBuffer());
  }
  if (artifact instanceof ArrayBuffer) return new Uint8Array(artifact);
  if (ArrayBuffer.isView(artifact)) return new Uint8Array(artifact.buffer, artifact.byteOffset, artifact.byteLength);
  throw new TypeError("decode: expected a Uint8Array, an ArrayBuffer or a Response (a fetch needs `await`)");
}

function open(core, bytes) {
  const place = allocate(core, bytes.length);
  new Uint8Array(core.memory.buffer, place, bytes.length).set(bytes);
  const code = core.open_file(place, bytes.length);
  if (code !== 0) fail(core, code, core.damaged_member());
  return core;
}

/** The number of the network that is wanted; an ensemble has several, and none of them is the first choice. */
function chosen(core, member) {
  const members = core.members();
  if (member === undefined && members === 1) return 0;
  if (Number.isInteger(member) && member >= 0 && member < members) return member;
  const got = member === undefined ? "no member was given" : `got ${member}`;
  const [holds, wanted] =
    members === 1
      ? ["one network", "{member: 0}, or no member"]
      : [`${members} networks`, `{member: 0} to {member: ${members - 1}}`];
  throw new RangeError(`the artifact holds ${holds}: expected ${wanted}; ${got}`);
}

/** The tensors of a member, each decoded by `decode` or `draw`. */
function tensorsOf(core, member, decodeInto) {
  const tensors = [];
  for (let index = 0; index < core.count(member); index++) {
    const { name, dtype, shape, sizeBytes, tiedTo } = describe(core, member, index);
    const one = () => decodeOne(core, (place) => decodeInto(member, index, place), member, ARRAYS[dtype], sizeBytes);
    const data = tiedTo === NOT_TIED ? one() : tensors[tiedTo][1].data;
    tensors.push([name, { dtype, shape, data }]);
  }
  return Object.fromEntries(tensors);
}

function describe(core, member, index) {
  const place = core.describe(member, index) >>> 0;
  const view = new DataView(core.memory.buffer);
  const [name, nameBytes, dtype, dimensions, shape, tiedTo] = [0, 4, 8, 12, 16, 20].map((at) =>
    view.getUint32(place + at, true),
  );
  return {
    name: text(core, name, nameBytes),
    dtype: text(core, dtype),
    shape: Array.from({ length: dimensions }, (_, axis) => Number(view.getBigUint64(shape + 8 * axis, true))),
    sizeBytes: view.getFloat64(place + 24, true),
    tiedTo,
  };
}

function decodeOne(core, decodeAt, member, Numbers, sizeBytes) {
  const place = allocate(core, sizeBytes);
  const code = decodeAt(place);
  if (code !== 0) fail(core, code, core.members() > 1 ? member : -1);
  const data = new Numbers(core.memory.buffer.slice(place, place + sizeBytes));
  core.release(place);
  return data;
}

function allocate(core, size) {
  const place = size < 2 ** 32 - 1 ? core.allocate(size) >>> 0 : 0;
  if (place === 0) fail(core, NO_MEMORY, -1);
  return place;
}

function text(core, place, size) {
  const bytes = new Uint8Array(core.memory.buffer, place);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(0, size ?? bytes.indexOf(0)));
}

function fail(core, code, member) {
  const where = member < 0 ? "" : `member ${member}: `;
  throw new ArtifactError(where + text(core, core.error_message(code) >>> 0));
}
