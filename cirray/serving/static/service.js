// What the page asks of the service. Every failure is an Error whose message is a sentence for people; `again` says
// whether the same question may be answered later.

const WAIT_S = 60;

export const imagePath = (id) => `v1/images/${encodeURIComponent(id)}`;

const failure = (message, again = true) => Object.assign(new Error(message), { again });

export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, signal: AbortSignal.timeout(1000 * WAIT_S) });
  } catch (error) {
    const slow = error.name === "TimeoutError";
    throw failure(slow ? `The service has not answered for ${WAIT_S} s.` : "The service cannot be reached. Is it still running?");
  }
  const body = await reply.json().catch(() => null);
  if (reply.ok && body) return body;
  const busy = [429, 502, 503, 504].includes(reply.status);
  if (typeof body?.detail === "string") throw failure(body.detail, busy || reply.status >= 500 || reply.status === 408);
  if (reply.ok) throw failure("The service sent an answer that cannot be read.");
  throw failure(busy ? "The service is busy; try again in a moment." : `The service failed (status ${reply.status}).`);
}

// One search: `blob` is the uploaded picture, where the reference is one.
export function find({ reference, text }, k, blob) {
  if (!blob) {
    const body = JSON.stringify({ text, gallery_id: reference.id, k });
    return ask("v1/search", { method: "POST", headers: { "content-type": "application/json" }, body });
  }
  const form = new FormData();
  form.append("text", text);
  form.append("k", k);
  form.append("image", blob, "picture");
  return ask("v1/search", { method: "POST", body: form });
}

export const gallery = (offset, limit) => ask(`v1/gallery?offset=${offset}&limit=${limit}`);

// Queries to try: the index's best, or the data set's own texts about one picture. Nothing depends on them.
const known = new Map();
export async function examples(id) {
  const path = id === undefined ? "v1/examples" : `v1/examples?gallery_id=${encodeURIComponent(id)}`;
  if (!known.has(path)) {
    const found = await ask(path).catch(() => null);
    if (!found) return [];
    known.set(path, found.queries);
  }
  return known.get(path);
}
