// node decode.mjs INDEX.mjs: decodes the files that standard input names, one line each as JSON:
// [path, member or null, whether as a response, normal numbers or nothing].
// Prints one line for each: names, dtypes, shapes, array types and SHA-256 of the values, or the error.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { decode } = await import(pathToFileURL(process.argv[2]));

for await (const line of createInterface({ input: process.stdin })) {
  const [path, member, asResponse, numbers] = JSON.parse(line);
  const normals = numbers && (() => numbers.shift());
  const bytes = readFileSync(path);
  try {
    const tensors = await decode(asResponse ? new Response(bytes) : bytes, { member: member ?? undefined, normals });
    const described = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
      const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      return [name, dtype, shape, data.constructor.name, createHash("sha256").update(raw).digest("hex")];
    });
    console.log(JSON.stringify({ tensors: described }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.name, message: error.message }));
  }
}
