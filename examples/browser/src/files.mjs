// Where graph, artifact and settings come from: addresses, or files that the user gives.

/**
 * Fetch a file.
 *
 * @returns {Promise<{bytes: Uint8Array, wireBytes: number}>} `wireBytes` counts what came over the wire, compressed by HTTP
 *   or not.
 */
export async function fetchBytes(address) {
  const url = new URL(address, document.baseURI);
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`“${url}” could not be fetched. Check the address and the connection.`);
  }
  if (!response.ok) throw new Error(`“${url}” could not be fetched: the server answered ${response.status}.`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const entry = performance.getEntriesByName(url.href).at(-1);
  return { bytes, wireBytes: entry?.encodedBodySize || bytes.length };
}

/** Read settings: labels, image size, mean, standard deviation. */
export function parseSettings(bytes, name) {
  let settings;
  try {
    settings = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new Error(`“${name}” is not JSON.`);
  }
  if (typeof settings !== "object" || settings === null || Array.isArray(settings)) {
    throw new Error(`“${name}” must hold a JSON object with labels, image size, mean and std.`);
  }
  return settings;
}

/**
 * Fetch a network that settings or addresses name.
 *
 * @param {URLSearchParams} query `network`, the address of settings that name `graph` and `artifact`; or these two.
 */
export async function fetchNetwork(query) {
  const address = query.get("network") ?? query.get("settings");
  const base = new URL(address ?? ".", document.baseURI);
  const settings = address ? parseSettings((await fetchBytes(address)).bytes, address) : {};
  const place = (key) => query.get(key) ?? (settings[key] && new URL(settings[key], base));
  const [graph, artifact] = [place("graph"), place("artifact")];
  if (!graph || !artifact) throw new Error("The address must name a graph and an artifact, or settings that name both.");
  const [fetchedGraph, fetchedArtifact] = await Promise.all([fetchBytes(graph), fetchBytes(artifact)]);
  const samples = (settings.samples ?? []).map((each) => ({ ...each, address: new URL(each.file, base).href }));
  return { settings: { ...settings, samples }, graph: fetchedGraph, artifact: fetchedArtifact };
}

/**
 * Sort the user's files by kind.
 *
 * @param {File[]} files
 * @returns {Promise<object>} `graph`, `artifact`, `settings` and `picture`, each only if it is among the files.
 */
export async function sortFiles(files) {
  const found = {};
  for (const file of files) {
    const bytes = async () => new Uint8Array(await file.arrayBuffer());
    if (file.name.endsWith(".onnx")) found.graph = { bytes: await bytes(), wireBytes: file.size, name: file.name };
    else if (file.name.endsWith(".safetensors")) found.artifact = { bytes: await bytes(), wireBytes: file.size, name: file.name };
    else if (file.name.endsWith(".json")) found.settings = parseSettings(await bytes(), file.name);
    else if (file.type.startsWith("image/")) found.picture = file;
    else throw new Error(`“${file.name}” is neither a picture nor an artifact (.safetensors), a graph (.onnx) or settings (.json).`);
  }
  return found;
}

/** The bytes of the decoder and of ONNX Runtime Web that this page has fetched. */
export function runtimeBytes() {
  const sum = (part) => {
    const entries = performance.getEntriesByType("resource").filter((entry) => entry.name.includes(`/node_modules/${part}/`));
    return entries.reduce((total, entry) => total + entry.encodedBodySize, 0);
  };
  return { decoder: sum("gbnn-decoder"), runtime: sum("onnxruntime-web") };
}
