// What the page asks of the service. Every failure is an Error whose message is a sentence for people; `again` says
// whether the same question may be answered later.

import { isElsewhere, request } from "./key.js";
import { upload } from "./uploads.js";

const WAIT_S = 60;
const REFERENCES = 8; // most of one query
export const LOST = "This picture is no longer kept in this browser. Choose it again.";

// A service may hold several galleries. The page is about one of them (`in` of its address), and may show another one
// beside, or another service.
export const HOME = new URLSearchParams(location.search).get("in") || "default";
const others = new Map(); // name -> what the routes of another service begin with
const below = (gallery) =>
  others.get(gallery) ?? (gallery === "default" ? "v1/" : `v1/galleries/${encodeURIComponent(gallery)}/`);

export const versionOf = () => ask(HOME === "default" ? "version" : `v1/galleries/${encodeURIComponent(HOME)}`);

// Names of the galleries here, and of the other services.
export async function galleries() {
  const found = await ask("v1/galleries");
  for (const [name, api] of Object.entries(found.compare)) others.set(name, api);
  return [found.galleries.map(({ name }) => name), [...others.keys()]];
}
export const imagePath = (id, size, gallery = HOME) =>
  `${below(gallery)}images/${encodeURIComponent(id)}${size ? `?size=${size}` : ""}`;

const failure = (message, again = true) => Object.assign(new Error(message), { again });

export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await request(path, { ...options, limit: () => AbortSignal.timeout(1000 * WAIT_S) });
  } catch (error) {
    if (error.name === "TimeoutError") throw failure(`The service has not answered for ${WAIT_S} s.`);
    if (!isElsewhere(path)) throw failure("The service cannot be reached. Is it still running?");
    throw failure(`The service at ${new URL(path).host} cannot be reached from here: it is not running, or its \`origins\` lacks ${location.origin}.`);
  }
  const body = await reply.json().catch(() => null);
  if (reply.ok && body) return body;
  const busy = [429, 502, 503, 504].includes(reply.status);
  if (typeof body?.detail === "string") {
    throw Object.assign(failure(body.detail, busy || reply.status >= 500 || reply.status === 408), { status: reply.status });
  }
  if (reply.ok) throw failure("The service sent an answer that cannot be read.");
  throw failure(busy ? "The service is busy; try again in a moment." : `The service failed (status ${reply.status}).`);
}

// One search. Without a reference it asks by the text
// alone, without a text by the picture alone; `weight` is left to the service where it is null.
// With `steps` (queries that came before it) their references count too, each half as much as the next one.
export async function find({ reference, text, weight, box, filter, unwanted, without, unlike }, k, steps = [], gallery = HOME) {
  const post = (body) => send(gallery, { headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const fields = { k };
  if (text) fields.text = text;
  if (typeof weight === "number" && text && reference) fields.weight = weight;
  if (filter) fields.filter = filter;
  if (unwanted) fields.negative = { text: unwanted };
  if (unlike) fields.negative = { gallery_id: unlike };
  if (without?.length) fields.exclude = without;
  const pictures = references({ reference, box }, steps);
  if (pictures.length > 1) return post({ ...fields, references: await Promise.all(pictures.map(coded)) });
  if (box) fields.box = box;
  if (!reference?.upload && !reference?.blob) return post(reference ? { ...fields, gallery_id: reference.id } : fields);
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  form.append("image", await held(reference), "picture");
  return send(gallery, { body: form });
}

const send = (gallery, options) => ask(`${below(gallery)}search`, { method: "POST", ...options });

// The picture of this query and those of the steps before it, none twice.
function references(now, steps) {
  const found = new Map();
  for (const { reference, box } of now.reference ? [now, ...steps] : []) {
    const place = reference && (reference.upload ?? `id ${reference.id}`);
    if (reference && !found.has(place)) found.set(place, { reference, box, weight: 0.5 ** found.size });
  }
  return [...found.values()].slice(0, REFERENCES);
}

async function coded({ reference, box, weight }) {
  const told = box ? { weight, box } : { weight };
  if (!reference.upload) return { ...told, gallery_id: reference.id };
  const bytes = new Uint8Array(await (await held(reference)).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return { ...told, image: btoa(text) };
}

async function held({ upload: key, blob }) {
  if (blob) return blob;
  const found = await upload(key);
  if (!found) throw failure(LOST, false);
  return found.blob;
}

// The gallery from `offset` on, as far as it was read: a round trip of all pictures that ends where it began.
const [PAGE, LARGER, MOST] = [100, 200, 500];
let read = { offset: -1, items: [], total: Infinity };
let reading = Promise.resolve();

// All that was read, at least `wanted` pictures where there are so many. Calls queue, so that no page comes twice.
export function gallery(offset, wanted) {
  const next = reading.catch(() => {}).then(() => readOn(offset, wanted));
  reading = next;
  return next;
}

async function readOn(offset, wanted) {
  if (read.offset !== offset) read = { offset, items: [], total: Infinity };
  const known = read;
  while (known.items.length < Math.min(wanted, known.total)) {
    const at = Number.isFinite(known.total) ? (offset + known.items.length) % known.total : offset;
    const missing = Math.min(MOST, Math.max(PAGE, wanted - known.items.length), known.total - known.items.length);
    const { items, total } = await ask(`${below(HOME)}gallery?offset=${at}&limit=${missing}`);
    known.total = total;
    if (!items.length) break;
    known.items.push(...items);
  }
  return known;
}

// The next page; what follows the first one comes in larger pages.
export const further = ({ offset, items }) => gallery(offset, items.length + Math.min(LARGER, items.length));

// What the metadata holds among the images that pass a filter.
export const facets = (filter) => ask(`${below(HOME)}facets${filter ? `?filter=${encodeURIComponent(filter)}` : ""}`);

// Queries to try: the index's best, or the data set's own texts about one picture. Nothing depends on them.
const known = new Map();
export async function examples(id) {
  const path = `${below(HOME)}examples${id === undefined ? "" : `?gallery_id=${encodeURIComponent(id)}`}`;
  if (!known.has(path)) {
    const found = await ask(path).catch(() => null);
    if (!found) return [];
    known.set(path, found.queries);
  }
  return known.get(path);
}
