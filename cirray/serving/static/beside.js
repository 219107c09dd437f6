// The answers of another gallery (another index, or another model), or of another service, beside those of this one.

import { makeGrid } from "./grid.js";
import { enlarge } from "./large.js";
import { HOME, find, galleries, imagePath } from "./service.js";
import { request } from "./key.js";
import { $, card } from "./view.js";

let turn = 0;
let shown = []; // answers of the other gallery
const other = makeGrid($("othergrid"), (item, place) => card(item, place));

let connected = null;

export const connectBeside = (page) => (connected = connect(page));

async function connect(page) {
  const [names, services] = await galleries().catch(() => [[], []]);
  const others = [...names.filter((name) => name !== HOME), ...services];
  $("homebox").hidden = names.length < 2;
  $("besidebox").hidden = !others.length;
  $("homes").replaceChildren(...names.map((name) => new Option(name, name, false, name === HOME)));
  $("homes").addEventListener("change", () => location.assign($("homes").value === "default" ? location.pathname : `?in=${encodeURIComponent($("homes").value)}`));
  const label = (name) => (services.includes(name) ? `${name} (another service)` : name);
  $("beside").replaceChildren(new Option("nothing", ""), ...others.map((name) => new Option(label(name), name)));
  $("beside").value = page.entry().beside;
  $("beside").addEventListener("change", () => page.setBeside($("beside").value));
  $("othergrid").addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    enlarge(other.placeOf(cell), { item: (at) => shown[at], count: () => shown.length, near: () => {}, closed: other.focus, other: true });
  });
}

// Ask the other side what this one is asked, and say which answers both have. `finding` brings this side's answers; a
// side that fails says so for itself.
export async function renderBeside(entry, asked, steps, finding) {
  const now = ++turn;
  const gallery = asked ? entry.beside : "";
  $("beside").value = entry.beside;
  $("other").hidden = $("panehome").hidden = !gallery;
  $("homenote").hidden = true;
  document.querySelector(".panes").classList.toggle("paired", Boolean(gallery));
  if (!gallery) return;
  $("panehome").textContent = HOME;
  $("othertitle").textContent = gallery;
  $("othernote").textContent = "searching …";
  other.show((shown = []));
  try {
    await connected;
    const found = await theirs(asked, entry.k, steps, gallery);
    if (now !== turn) return;
    if (!Array.isArray(found.hits)) throw new Error("The other service sent an answer that cannot be read.");
    shown = found.hits.map((hit) => ({ ...hit, gallery, share: share(hit, found.hits) }));
    other.show(shown, shown.length, true);
    const mine = await finding.catch(() => null);
    if (now !== turn) return;
    $("othernote").textContent = told(mine, found);
  } catch (error) {
    if (now === turn) $("othernote").textContent = error.message;
  }
}

// Say what is wrong with this side where two stand side by side; false where it stands alone.
export function sayHere(sentence) {
  if ($("other").hidden) return false;
  $("homenote").hidden = false;
  $("homenote").textContent = sentence;
  return true;
}

function told(mine, { searched }) {
  const part = searched < 1 ? `; only ${Math.floor(100 * searched)} % of the gallery could be searched` : "";
  if (!mine) return `${shown.length} best${part}`;
  const both = compare($("grid"), shown) && compare($("othergrid"), mine.hits);
  return `${both} of ${shown.length} are answers of both${part}`;
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
