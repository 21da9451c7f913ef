// Drives the page of examples/browser in Chromium: `node drive.mjs CHROMIUM`. Each line of stdin is an action in JSON, and each
// line of stdout what it saw.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const EXAMPLE = new URL("../../examples/browser/", import.meta.url);
const { chromium } = createRequire(new URL("package.json", EXAMPLE))("playwright-core");
const OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];

const browser = await chromium.launch({ executablePath: process.argv[2], args: [...OPTIONS, ...QUIET] });
// One context: pages share the browser's cache.
const context = await browser.newContext();

/** A page whose predictions are kept in `window.predictions`. */
async function opened(address, width = 1280) {
  const page = await context.newPage();
  await page.setViewportSize({ width, height: 900 });
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.errors.push(message.text()));
  await page.addInitScript(() => {
    window.predictions = [];
    document.addEventListener("predicted", (event) => window.predictions.push(event.detail));
  });
  await page.goto(address);
  return page;
}

/** The prediction that an action leads to. */
async function predicted(page, action) {
  const before = await page.evaluate(() => window.predictions.length);
  await action();
  await page.waitForFunction((count) => window.predictions.length > count, before);
  return page.evaluate(() => window.predictions.at(-1));
}

const text = async (page, selector) => (await page.locator(selector).innerText()).replaceAll("\u00a0", " ");

const actions = {
  /** Predictions of the first sample and of pictures, with what the page says. */
  async predictions({ address, pictures }) {
    const page = await opened(address);
    const first = await predicted(page, async () => {});
    const found = [];
    for (const picture of pictures) found.push(await predicted(page, () => page.setInputFiles("#file", picture)));
    const tiles = await text(page, "#tiles");
    return { first, found, tiles, words: await text(page, "#words"), errors: page.errors };
  },

  /** The network's input for a picture. */
  async input({ address, picture, image }) {
    const page = await opened(address);
    return page.evaluate(
      async ([bytes, settings]) => {
        const { decodePicture, toInput } = await import("./src/pictures.mjs");
        return Array.from(toInput(await decodePicture(new Blob([new Uint8Array(bytes)])), settings));
      },
      [[...(await readFile(picture))], image],
    );
  },

  /** A network of the user's, from files. */
  async own({ address, files, picture }) {
    const page = await opened(address);
    await predicted(page, async () => {});
    await page.setInputFiles("#files", files);
    await page.getByText("Drop a picture, or choose one.").waitFor();
    return predicted(page, () => page.setInputFiles("#file", picture));
  },

  /** What the page says of files that it cannot use; of null, what it says of the address. */
  async problems({ address, files }) {
    const page = await opened(address);
    if (files[0] !== null) await predicted(page, async () => {});
    const said = [];
    for (const each of files) {
      if (each) await page.setInputFiles("#files", each);
      await page.locator("#problem:not([hidden])").waitFor();
      said.push(await text(page, "#problem"));
    }
    return said;
  },

  /** Width of the window and of the page, and a screenshot. */
  async layout({ address, width, scheme, picture, screenshot }) {
    const page = await opened(address, width);
    await page.emulateMedia({ colorScheme: scheme });
    await predicted(page, async () => {});
    if (picture) await predicted(page, () => page.getByTitle(picture).click());
    for (const each of await page.locator("details").all()) await each.evaluate((details) => (details.open = true));
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
    return page.evaluate(() => [document.documentElement.clientWidth, document.documentElement.scrollWidth]);
  },

  /** A digit drawn with the mouse. */
  async drawn({ address, strokes }) {
    const page = await opened(address);
    await predicted(page, async () => {});
    await page.getByRole("button", { name: "Draw one" }).click();
    const box = await page.locator("#pad").boundingBox();
    const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
    return predicted(page, async () => {
      await page.mouse.move(...at(strokes[0]));
      await page.mouse.down();
      for (const point of strokes.slice(1)) await page.mouse.move(...at(point), { steps: 5 });
      await page.mouse.up();
    });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { action, ...details } = JSON.parse(line);
  const seen = await actions[action](details).catch((error) => ({ failed: String(error) }));
  for (const page of context.pages()) await page.close();
  console.log(JSON.stringify(seen));
}
await browser.close();
