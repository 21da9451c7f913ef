// From a picture to the network's input, with the arithmetic of `gbnn_compress.data.preprocessing`.

const CROP_ONLY_BELOW = 1.3;
const INK = 0.25;

/**
 * Decode a picture on a white ground.
 *
 * @param {Blob} file
 * @returns {Promise<ImageData>}
 */
export async function decodePicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name ? `“${file.name}”` : "This file"} is not a picture that this browser can open.`);
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/**
 * Preprocess a picture: resize, crop, then (x / 255 - mean) / std.
 *
 * @param {ImageData} picture
 * @param {{size: number, channels: number, mean: number[], std: number[], crop_fraction?: number, ink?: boolean}} image
 *   `ink`: the network knows light strokes on a dark ground that fill the picture. Others are inverted and cropped.
 * @returns {Float32Array} (channels, size, size)
 */
export function toInput(picture, image) {
  const { size, channels, mean, std } = image;
  let planes = channels === 1 ? [grey(picture)] : [0, 1, 2].map((channel) => plane(picture, channel));
  if (image.ink && picture.width !== size) planes = [inkOf(planes[0])];
  const input = new Float32Array(channels * size * size);
  planes.forEach((each, channel) => {
    const fitted = fit(each, size, image.crop_fraction ?? 1);
    fitted.forEach((value, place) => {
      input[channel * size * size + place] = (value / 255 - mean[channel]) / std[channel];
    });
  });
  return input;
}

/** One channel of a picture: rows of numbers from 0 to 255. */
function plane({ data, width, height }, channel) {
  return { width, height, values: Float32Array.from({ length: width * height }, (_, i) => data[4 * i + channel]) };
}

/** The brightness of a picture, as Pillow's mode L. */
function grey({ data, width, height }) {
  const value = (i) => Math.round((299 * data[i] + 587 * data[i + 1] + 114 * data[i + 2]) / 1000);
  return { width, height, values: Float32Array.from({ length: width * height }, (_, i) => value(4 * i)) };
}

/** Light strokes on a dark ground, cropped to a square around them. */
function inkOf({ width, height, values }) {
  const edge = values.filter((_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return x === 0 || y === 0 || x === width - 1 || y === height - 1;
  });
  const ground = edge.toSorted()[edge.length >> 1];
  const strokes = values.map((value) => Math.abs(value - ground));
  const strongest = strokes.reduce((largest, value) => Math.max(largest, value), 0);
  if (strongest === 0) return { width, height, values: strokes };
  let [left, top, right, bottom] = [width, height, -1, -1];
  strokes.forEach((value, i) => {
    if (value < INK * strongest) return;
    const [x, y] = [i % width, Math.floor(i / width)];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  });
  const side = Math.max(right - left, bottom - top) + 1;
  const [x0, y0] = [Math.round((left + right + 1 - side) / 2), Math.round((top + bottom + 1 - side) / 2)];
  const square = Float32Array.from({ length: side * side }, (_, i) => {
    const [x, y] = [x0 + (i % side), y0 + Math.floor(i / side)];
    const inside = x >= 0 && y >= 0 && x < width && y < height;
    return inside ? Math.min(255, (255 * strokes[y * width + x]) / strongest) : 0;
  });
  return { width: side, height: side, values: square };
}

/** Resize and crop a plane to a square. */
function fit(given, size, cropFraction) {
  const short = Math.min(given.width, given.height);
  let { width, height, values } = given;
  if (short < size || short >= CROP_ONLY_BELOW * size) {
    const target = short < size ? size : roundEven(size / cropFraction);
    [width, height] = [width, height].map((side) => Math.floor((side * target) / short));
    values = transposed(resizedRows(values, given.width, width), given.height, width);
    values = transposed(resizedRows(values, given.height, height), width, height);
  }
  const [top, left] = [height, width].map((side) => roundEven((side - size) / 2));
  return Float32Array.from({ length: size * size }, (_, i) => {
    return values[(top + Math.floor(i / size)) * width + left + (i % size)];
  });
}

/** Resize each row with a triangle filter that is as wide as the scale, as torch's antialiased bilinear mode does. */
function resizedRows(values, from, to) {
  const scale = from / to;
  const support = Math.max(1, scale);
  const rows = values.length / from;
  const result = new Float32Array(rows * to);
  for (let column = 0; column < to; column++) {
    const centre = scale * (column + 0.5);
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let i = first; i < last; i++) weights.push(Math.max(0, 1 - Math.abs((i - centre + 0.5) / support)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    for (let row = 0; row < rows; row++) {
      const place = row * from + first;
      result[row * to + column] = weights.reduce((total, weight, i) => total + weight * values[place + i], 0) / sum;
    }
  }
  return result;
}

/** (rows, columns) -> (columns, rows). */
function transposed(values, rows, columns) {
  return Float32Array.from({ length: rows * columns }, (_, i) => values[(i % rows) * columns + Math.floor(i / rows)]);
}

/** Python's `round`: halves to the even neighbour. */
function roundEven(value) {
  const below = Math.floor(value);
  const half = value - below === 0.5;
  return half ? below + (below % 2) : Math.round(value);
}
