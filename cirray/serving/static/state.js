// What the page shows, as one plain value a history entry: the browser keeps it over Back and reload.
//
//   reference  null, {id} of the gallery, or {upload, name}: what the next search starts from
//   text       what the next search asks; with `weight`, that of the text from 0 to 1 (null: the service's own)
//   box        null, or the part of the reference that is meant: [x, y, width, height] in shares of the picture
//   filter     which images may be answered, and `unwanted`, what they should not show; both may be empty
//   without    ids that are not answered, and `unlike`, the id of a picture that they should not look like ("": none)
//   keep       whether the references of the steps before count too
//   k          answers wanted, and `beside`, the gallery whose answers stand beside ("": none)
//   trail      the searches that were refined one from another, each with what a query has (`query` below)
//   at         the search of the trail whose answers are on display; -1: the gallery
//   base       how many searches of the trail led to the next one: it replaces what stands there
//   offset     first picture of the gallery on display
//   seen       how many of them were read, and `scroll`: how far down the reader is
//   draft      true from the choice of another reference beside the answers until the next search

import { HOME } from "./service.js";

export const start = (k) => ({
  reference: null, text: "", weight: null, box: null, filter: "", unwanted: "", without: [], unlike: "", keep: false, beside: "", k, trail: [], at: -1, base: 0, offset: 0, seen: 0, scroll: 0, draft: false,
});

export const shown = (entry) => entry.trail[entry.at] ?? null;
export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

const query = ({ reference, text, weight, box, filter, unwanted, without, unlike, keep }) =>
  ({ reference, text, weight, box, filter, unwanted, without, unlike, keep });

// The steps before the search on display, the nearest first, where it keeps them in mind.
export const before = (entry) => (shown(entry)?.keep ? entry.trail.slice(0, entry.at).reverse() : []);

// The entry as its answers were asked for: what Back should find.
export const settled = (entry) => (shown(entry) ? walked(entry, entry.at) : entry);

// Another search of the trail; those after it stay, so that one can walk forth again.
export const walked = (entry, at) => ({ ...entry, ...entry.trail[at], at, base: at, draft: false });

// Whether two searches differ in their weight at most.
export const alike = (one, other) => Boolean(one && other) && same({ ...one, weight: 0 }, { ...other, weight: 0 });

// The entry once it is asked. Another question ends the trail there; another weight does not.
export function searched(entry) {
  const { trail, base } = entry;
  const asked = query(entry);
  const after = alike(trail[base], asked) ? trail.slice(base + 1) : [];
  return { ...entry, trail: [...trail.slice(0, base), asked, ...after], at: base, scroll: 0, draft: false };
}

// One search as the words of an address; `text` is there even when empty, a reference alone has none.
function words({ reference, text, weight, box, filter, unwanted, without = [], unlike, keep }) {
  const found = new URLSearchParams();
  if (reference?.upload) found.set("upload", reference.upload);
  else if (reference) found.set("image", reference.id);
  if (text !== undefined) found.set("text", text);
  if (typeof weight === "number") found.set("weight", weight);
  if (box) found.set("box", box.join(","));
  if (filter) found.set("filter", filter);
  if (unwanted) found.set("not", unwanted);
  for (const id of without) found.append("without", id);
  if (unlike) found.set("unlike", unlike);
  if (keep) found.set("keep", "yes");
  return found;
}

// The address of an entry: the picture that is picked, or a search with the trail around it.
export function address(entry, usualK) {
  if (entry.draft || !shown(entry)) {
    const { reference, box } = entry;
    const picked = words({ reference, box }).toString();
    const asked = [HOME === "default" ? "" : `in=${encodeURIComponent(HOME)}`, picked].filter(Boolean).join("&");
    return asked ? `?${asked}` : location.pathname;
  }
  const found = words(shown(entry));
  if (entry.k !== usualK) found.set("k", entry.k);
  if (HOME !== "default") found.set("in", HOME);
  if (entry.beside) found.set("beside", entry.beside);
  entry.trail.forEach((step, place) => {
    if (place !== entry.at) found.append(place < entry.at ? "step" : "later", words(step).toString());
  });
  return `?${found}`;
}

// The entry for others: without the steps that start from a picture which only this browser has. Null where the search
// itself does.
export function shareable(entry) {
  if (shown(entry).reference?.upload) return null;
  const trail = entry.trail.filter((step) => !step.reference?.upload);
  return { ...settled(entry), trail, at: trail.indexOf(shown(entry)) };
}

export function answersWanted(given, { default_k: usual, max_k: most }) {
  const k = Number(given);
  return Number.isInteger(k) && k >= 1 ? Math.min(k, most) : usual;
}

function readWords(found) {
  const weight = found.has("weight") ? Number(found.get("weight")) : NaN;
  const reference = found.get("upload")
    ? { upload: found.get("upload"), name: "your picture" }
    : found.get("image") ? { id: found.get("image") } : null;
  const text = (found.get("text") || "").trim();
  const [filter, unwanted] = ["filter", "not"].map((name) => (found.get(name) || "").trim());
  const numbers = (found.get("box") || "").split(",").map(Number);
  const box = reference && numbers.length === 4 && numbers.every((share) => share >= 0 && share <= 1) ? numbers : null;
  return {
    reference, text, weight: weight >= 0 && weight <= 1 ? weight : null, box, filter, unwanted,
    without: found.getAll("without"), unlike: found.get("unlike") || "", keep: found.has("keep"),
  };
}

// The entry of an address that was typed or followed; `answerable` says which searches the service takes.
export function readAddress(search, version, answerable) {
  const found = new URLSearchParams(search);
  const entry = { ...start(answersWanted(found.get("k"), version)), ...readWords(found), beside: found.get("beside") || "" };
  if (!found.has("text") || !answerable(entry)) return entry; // a picture that is picked
  const [before, after] = ["step", "later"].map((name) =>
    found.getAll(name).map((step) => readWords(new URLSearchParams(step))).filter(answerable),
  );
  return walked({ ...entry, trail: [...before, query(entry), ...after] }, before.length);
}
