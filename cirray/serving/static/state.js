// What the page shows, as one plain value a history entry: the browser keeps it over Back and reload.
//
//   reference  null, {id} of the gallery, or {upload, name}: what the next search starts from
//   text, k    what the next search asks
//   steps      the searches that led to this reference, [{reference, text}]
//   shown      the search whose answers are on display, {reference, text, steps}; null: the gallery
//   offset     first gallery picture on display, `pages` pages of them
//   draft      true from the choice of another reference beside the answers until the next search

export const PAGE = 60;

export const start = (k) => ({ reference: null, text: "", k, steps: [], shown: null, offset: 0, pages: 1, draft: false });

// The entry as its answers were asked for: what Back should find.
export const settled = (entry) => (entry.shown ? { ...entry, ...entry.shown, draft: false } : entry);

export const searched = (entry) => {
  const { reference, text, steps } = entry;
  return { ...entry, shown: { reference, text, steps }, draft: false };
};

export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// The address of an entry: a search, or the picture that is picked.
export function address(entry, usualK) {
  const { reference, text } = entry.draft || !entry.shown ? { ...entry, text: "" } : entry.shown;
  const query = new URLSearchParams();
  if (reference?.upload) query.set("upload", reference.upload);
  else if (reference) query.set("image", reference.id);
  if (text) query.set("text", text);
  if (text && entry.k !== usualK) query.set("k", entry.k);
  const words = query.toString();
  return words ? `?${words}` : location.pathname;
}

export function answersWanted(given, { default_k: usual, max_k: most }) {
  const k = Number(given);
  return Number.isInteger(k) && k >= 1 ? Math.min(k, most) : usual;
}

// The entry of an address that was typed or followed.
export function readAddress(search, version) {
  const query = new URLSearchParams(search);
  const entry = start(answersWanted(query.get("k"), version));
  entry.text = (query.get("text") || "").trim();
  if (query.get("upload")) entry.reference = { upload: query.get("upload"), name: "your picture" };
  else if (query.get("image")) entry.reference = { id: query.get("image") };
  return entry.reference && entry.text ? searched(entry) : entry;
}
