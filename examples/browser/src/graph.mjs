// Which tensors an ONNX graph takes from outside: a reader of the few fields of its protobuf that say so.

const [GRAPH, INITIALISER, DIMENSION, TYPE, NAME, EXTERNAL, KEY, VALUE] = [7, 5, 1, 2, 8, 13, 1, 2];

/** PyTorch's names of the dtypes, by ONNX's numbers. */
const DTYPES = {
  1: "float32",
  2: "uint8",
  3: "int8",
  4: "uint16",
  5: "int16",
  6: "int32",
  7: "int64",
  9: "bool",
  10: "float16",
  11: "float64",
  12: "uint32",
  13: "uint64",
  14: "complex64",
  15: "complex128",
  16: "bfloat16",
  17: "float8_e4m3fn",
  18: "float8_e4m3fnuz",
  19: "float8_e5m2",
  20: "float8_e5m2fnuz",
  24: "float8_e8m0fnu",
};

/** A whole number at a place, seven bits per byte, the lowest first, and the place after it. */
function varint(bytes, place) {
  for (let number = 0, unit = 1; place < bytes.length; unit *= 128) {
    const byte = bytes[place++];
    number += (byte & 127) * unit;
    if (byte < 128) return [number, place];
  }
  throw new Error("cut short");
}

/** The fields of a message: [number, value], where a value is a number or the bytes of what it holds. */
function* fields(bytes) {
  for (let place = 0, tag = 0, value = 0; place < bytes.length; ) {
    [tag, place] = varint(bytes, place);
    const kind = tag % 8;
    if (kind > 2 && kind !== 5) throw new Error("no protobuf");
    if (kind === 0) [value, place] = varint(bytes, place);
    else {
      let size = kind === 1 ? 8 : 4;
      if (kind === 2) [size, place] = varint(bytes, place);
      if (size > bytes.length - place) throw new Error("cut short");
      value = bytes.subarray(place, (place += size));
    }
    yield [Math.floor(tag / 8), value];
  }
}

const all = (bytes, number) => [...fields(bytes)].filter(([found]) => found === number).map(([, value]) => value);
const text = (bytes) => new TextDecoder().decode(bytes);

/** Numbers of a repeated field, each by itself or packed. */
function numbers(bytes, number) {
  return all(bytes, number).flatMap((value) => {
    if (typeof value === "number") return [value];
    const found = [];
    for (let place = 0, each = 0; place < value.length; found.push(each)) [each, place] = varint(value, place);
    return found;
  });
}

/**
 * The initialisers of a graph that are external data.
 *
 * @param {Uint8Array} model Bytes of an ONNX file.
 * @returns {{name: string, location: string, dtype: string, shape: number[]}[]}
 */
export function externalTensors(model) {
  return all(model, GRAPH).flatMap((graph) =>
    all(graph, INITIALISER).flatMap((tensor) => {
      const entries = all(tensor, EXTERNAL).map((entry) => [text(all(entry, KEY)[0]), text(all(entry, VALUE)[0])]);
      const { location } = Object.fromEntries(entries);
      if (location === undefined) return [];
      const dtype = DTYPES[all(tensor, TYPE)[0]];
      return [{ name: text(all(tensor, NAME)[0]), location, dtype, shape: numbers(tensor, DIMENSION) }];
    }),
  );
}

/**
 * Refuse a graph that would take other tensors than it was made for: runtimes do not compare shapes or dtypes.
 *
 * @param {Uint8Array} model Bytes of an ONNX file.
 * @param {Record<string, {dtype: string, shape: number[]}>} tensors Decoded tensors.
 */
export function requireFit(model, tensors) {
  let outside;
  try {
    outside = externalTensors(model);
  } catch {
    throw new Error("The graph is damaged, or no ONNX file.");
  }
  if (outside.length === 0) {
    throw new Error("This graph holds its own weights. Make one with `gbnn-compress export --weights external`.");
  }
  for (const { location, dtype, shape } of outside) {
    const found = tensors[location];
    if (found === undefined) {
      throw new Error(`The graph needs a tensor “${location}”, which the artifact does not have.`);
    }
    const [ours, its] = [found, { dtype, shape }].map((each) => `${each.shape.join("×")} ${each.dtype}`);
    if (ours !== its) {
      throw new Error(`“${location}” is ${ours} in the artifact and ${its} in the graph: they are not of one network.`);
    }
  }
}
