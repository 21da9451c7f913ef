// Which tensors an ONNX graph takes from outside: a reader of the few fields of its protobuf that say so.

const [GRAPH, INITIALISER, DIMENSION, NAME, EXTERNAL, KEY, VALUE] = [7, 5, 1, 8, 13, 1, 2];

/** The fields of a message: [number, value], where a value is a number or the bytes of what it holds. */
function* fields(bytes) {
  let place = 0;
  const varint = () => {
    let [number, unit] = [0, 1];
    for (;;) {
      const byte = bytes[place++];
      if (byte === undefined) throw new Error("cut short");
      number += (byte & 127) * unit;
      if (byte < 128) return number;
      unit *= 128;
    }
  };
  const take = (size) => {
    if (size > bytes.length - place) throw new Error("cut short");
    place += size;
    return bytes.subarray(place - size, place);
  };
  while (place < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind > 2 && kind !== 5) throw new Error("no protobuf");
    yield [Math.floor(tag / 8), kind === 0 ? varint() : take(kind === 1 ? 8 : kind === 5 ? 4 : varint())];
  }
}

const all = (bytes, number) => [...fields(bytes)].filter(([found]) => found === number).map(([, value]) => value);
const text = (bytes) => new TextDecoder().decode(bytes);

/** Numbers of a repeated field, each by itself or packed. */
function numbers(bytes, number) {
  return all(bytes, number).flatMap((value) => {
    if (typeof value === "number") return [value];
    const found = [];
    for (let i = 0, n = 0, unit = 1; i < value.length; i++) {
      n += (value[i] & 127) * unit;
      if (value[i] < 128) {
        found.push(n);
        [n, unit] = [0, 1];
      } else unit *= 128;
    }
    return found;
  });
}

/**
 * The initialisers of a graph that are external data.
 *
 * @param {Uint8Array} model Bytes of an ONNX file.
 * @returns {{name: string, location: string, shape: number[]}[]}
 */
export function externalTensors(model) {
  return all(model, GRAPH).flatMap((graph) =>
    all(graph, INITIALISER).flatMap((tensor) => {
      const entries = all(tensor, EXTERNAL).map((entry) => [text(all(entry, KEY)[0]), text(all(entry, VALUE)[0])]);
      const { location } = Object.fromEntries(entries);
      if (location === undefined) return [];
      return [{ name: text(all(tensor, NAME)[0]), location, shape: numbers(tensor, DIMENSION) }];
    }),
  );
}

/**
 * Refuse a graph that would take other tensors than it was made for: runtimes do not compare shapes.
 *
 * @param {Uint8Array} model Bytes of an ONNX file.
 * @param {Record<string, {shape: number[]}>} tensors Decoded tensors.
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
  for (const { location, shape } of outside) {
    const found = tensors[location]?.shape;
    if (found === undefined) {
      throw new Error(`The graph needs a tensor \u201c${location}\u201d, which the artifact does not have.`);
    }
    if (found.join() !== shape.join()) {
      const [ours, its] = [found, shape].map((each) => each.join("\u00d7"));
      throw new Error(`\u201c${location}\u201d is ${ours} in the artifact and ${its} in the graph: they are not of one network.`);
    }
  }
}
