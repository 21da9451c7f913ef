// A static server for this folder: `node server.mjs [PORT]`. Text, graphs and WebAssembly are sent gzipped.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const ROOT = fileURLToPath(new URL(".", import.meta.url));

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".mjs": "text/javascript; charset=utf-8",
  ".onnx": "application/octet-stream",
  ".png": "image/png",
  ".wasm": "application/wasm",
};

const sent = new Map();

/** The bytes of a file, gzipped unless they are compressed already. */
async function body(path) {
  const bytes = await readFile(path);
  const gzipped = ![".png", ".safetensors"].includes(extname(path));
  return { gzipped, bytes: gzipped ? await promisify(gzip)(bytes) : bytes };
}

const server = createServer(async (request, response) => {
  try {
    const asked = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const path = join(ROOT, normalize(asked.endsWith("/") ? `${asked}index.html` : asked));
    // The runtime is compressed once.
    const kept = sent.get(path) ?? (await body(path));
    if (extname(path) === ".wasm") sent.set(path, kept);
    response.writeHead(200, {
      "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
      "Content-Length": kept.bytes.length,
      "Cache-Control": path.includes("onnxruntime-web") ? "max-age=86400" : "no-cache",
      ...(kept.gzipped && { "Content-Encoding": "gzip" }),
    });
    response.end(kept.bytes);
  } catch {
    response.writeHead(404, { "Content-Type": "text/plain" }).end("There is no such file.\n");
  }
});

server.listen(Number(process.argv[2] ?? 8000), "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}/`);
});
