// The answers of another gallery of the service (another index, or another model) beside those of this one.

import { makeGrid } from "./grid.js";
import { enlarge } from "./large.js";
import { HOME, find, galleries, imagePath } from "./service.js";
import { request } from "./key.js";
import { $, card } from "./view.js";

let names = [];
let turn = 0;
let shown = []; // answers of the other gallery
const other = makeGrid($("othergrid"), (item, place) => card(item, place));

export async function connectBeside(page) {
  names = await galleries().catch(() => []);
  $("homebox").hidden = $("besidebox").hidden = names.length < 2;
  $("homes").replaceChildren(...names.map((name) => new Option(name, name, false, name === HOME)));
  $("homes").addEventListener("change", () => location.assign($("homes").value === "default" ? location.pathname : `?in=${encodeURIComponent($("homes").value)}`));
  const others = names.filter((name) => name !== HOME);
  $("beside").replaceChildren(new Option("nothing", ""), ...others.map((name) => new Option(name, name)));
  $("beside").value = page.entry().beside;
  $("beside").addEventListener("change", () => page.setBeside($("beside").value));
  $("othergrid").addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    enlarge(other.placeOf(cell), { item: (at) => shown[at], count: () => shown.length, near: () => {}, closed: other.focus, other: true });
  });
}

// Ask the other gallery what this one was asked, and say which answers both have.
export async function renderBeside(entry, asked, steps, hits) {
  const now = ++turn;
  const gallery = asked ? entry.beside : "";
  $("beside").value = entry.beside;
  $("other").hidden = $("panehome").hidden = !gallery;
  document.querySelector(".panes").classList.toggle("paired", Boolean(gallery));
  if (!gallery) return;
  $("panehome").textContent = HOME;
  $("othertitle").textContent = gallery;
  $("othernote").textContent = "searching …";
  other.show((shown = []));
  try {
    const found = await theirs(asked, entry.k, steps, gallery);
    if (now !== turn) return;
    shown = found.hits.map((hit) => ({ ...hit, gallery, share: share(hit, found.hits) }));
    other.show(shown, shown.length, true);
    const both = compare($("grid"), shown) && compare($("othergrid"), hits);
    $("othernote").textContent = `${both} of ${shown.length} are answers of both`;
  } catch (error) {
    if (now === turn) $("othernote").textContent = error.message;
  }
}

const share = ({ score }, hits) => Math.max(0, Math.min(1, score / (hits[0].score || 1)));

// A picture that the other gallery does not know by its id is sent to it.
async function theirs(asked, k, steps, gallery) {
  try {
    return await find(asked, k, steps, gallery);
  } catch (error) {
    if (error.status !== 404 || asked.reference?.id === undefined) throw error;
    const reply = await request(imagePath(asked.reference.id, "large"));
    if (!reply.ok) throw error;
    return find({ ...asked, reference: { blob: await reply.blob() }, unlike: "" }, k, [], gallery);
  }
}

// Beside each picture its place among the other answers; how many have one.
function compare(grid, hits) {
  const places = new Map(hits.map(({ id }, place) => [id, place + 1]));
  let both = 0;
  for (const cell of grid.querySelectorAll(".cell")) {
    const place = places.get(cell.dataset.id);
    both += place !== undefined;
    cell.querySelector(".also").textContent = place === undefined ? "" : `↔ ${place}`;
    cell.querySelector(".also").title = place === undefined ? "" : `Place ${place} on the other side`;
  }
  return String(both);
}
