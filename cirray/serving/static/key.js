// The key of a service that needs one: asked for when an answer says so, kept in this tab, sent with every request. The
// page's own service is asked by relative paths; another one has a key of its own, and never sees this one.

const $ = (id) => document.getElementById(id);
const NAME = "cirray-key";
const TURNS = 5; // a screen of pictures may be more than a key's rate
let asking = null; // one question at a time, however many requests were refused

export const isElsewhere = (path) => /^https?:/.test(path);
const kept = (path) => (isElsewhere(path) ? `${NAME} ${new URL(path).origin}` : NAME);
const key = (path) => sessionStorage.getItem(kept(path)) || "";

// Ask for the key to a path; true once there is another one, false when the reader closes the question.
function askForKey(path, reason) {
  asking ??= new Promise((resolve) => {
    const [box, field] = [$("keybox"), $("key")];
    const done = (given) => {
      asking = null;
      field.value = "";
      box.close();
      resolve(given);
    };
    const where = isElsewhere(path) ? `${new URL(path).host}: ` : "";
    $("keyreason").textContent = where + reason.replace(/ Send `.*/, ""); // how a program sends it is not the reader's business
    $("keyform").onsubmit = (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      sessionStorage.setItem(kept(path), field.value.trim());
      done(true);
    };
    $("keycancel").onclick = () => done(false);
    box.oncancel = () => done(false);
    box.showModal();
  });
  return asking;
}

// As `fetch`, with the key; where the service wants another one, it is asked for.
export async function request(path, options = {}) {
  for (;;) {
    const sent = key(path);
    const headers = sent ? { ...options.headers, authorization: `Bearer ${sent}` } : options.headers;
    const reply = await fetch(path, { ...options, headers, signal: options.limit?.() });
    if (reply.status !== 401) return reply;
    if (key(path) !== sent) continue; // another request has asked meanwhile
    const body = await reply.clone().json().catch(() => null);
    if (!(await askForKey(path, body?.detail || "This service needs a key."))) return reply;
  }
}

// Where an image element finds a picture: its path, or with a key, which elements cannot send, what was fetched.
export async function source(path) {
  if (!key(path) || !(isElsewhere(path) || path.startsWith("v1/"))) return path;
  for (let turn = 0; turn < TURNS; turn++) {
    const reply = await request(path);
    if (reply.ok) return URL.createObjectURL(await reply.blob());
    if (reply.status !== 429) break;
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(reply.headers.get("retry-after")) || 1)));
  }
  return path;
}

// Give an image its picture; what was fetched for it is let go when it has been read.
export async function load(image, path) {
  const found = await source(path).catch(() => path);
  const release = () => found.startsWith("blob:") && found !== path && URL.revokeObjectURL(found);
  image.addEventListener("load", release, { once: true });
  image.addEventListener("error", release, { once: true });
  image.src = found;
}
