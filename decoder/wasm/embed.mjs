// node embed.mjs INDEX.js CORE.wasm OUT.mjs: puts the WebAssembly into the module, as gzip in base64.

import { readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const [source, wasm, output] = process.argv.slice(2);
const text = readFileSync(source, "utf8");
if (!text.includes("@WASM@")) throw new Error(`${source} has no place for the WebAssembly`);
writeFileSync(output, text.replace("@WASM@", gzipSync(readFileSync(wasm), { level: 9 }).toString("base64")));
