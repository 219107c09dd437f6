// The page of the service. State lives in the address (?image=ID&text=...&k=N), so that a search can be linked;
// an uploaded picture stays in this tab. Everything shown is set as text, never as HTML.

const PAGE = 60;
const $ = (id) => document.getElementById(id);
const state = { id: null, file: null, preview: null, text: "", k: 12, offset: 0, trail: [], version: null, run: 0 };

const imagePath = (id) => `v1/images/${encodeURIComponent(id)}`;

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    const busy = reply.status === 429 || reply.status === 503;
    throw new Error(body.detail || (busy ? "The service is busy; try again in a moment." : `Error ${reply.status}.`));
  }
  return body;
}

function complain(error) {
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}

function card(item, rank, best) {
  const node = $("card").content.firstElementChild.cloneNode(true);
  const image = node.querySelector("img");
  if (item.image) image.src = imagePath(item.id);
  else {
    image.remove();
    node.querySelector(".frame").classList.add("blank");
  }
  const isAnswer = rank !== undefined;
  image.alt = isAnswer ? `Answer ${rank}: ${item.id}` : item.id;
  node.title = item.id;
  node.querySelector(".id").textContent = item.id;
  node.querySelector(".act").textContent = isAnswer ? "Refine from this one" : "";
  if (isAnswer) {
    node.querySelector(".rank").textContent = rank;
    node.querySelector(".score").textContent = item.score.toFixed(3);
    const share = best > 0 ? Math.max(0, Math.min(1, item.score / best)) : 0;
    node.querySelector(".meter span").style.width = `${100 * share}%`;
  }
  node.dataset.id = item.id;
  node.addEventListener("click", () => (isAnswer ? refine(item.id) : pick(item.id)));
  return node;
}

function markChosen() {
  for (const node of $("grid").children) node.classList.toggle("chosen", node.dataset.id === state.id);
}

function showReference() {
  const source = state.file ? state.preview : state.id === null ? null : imagePath(state.id);
  $("reference").hidden = $("clear").hidden = source === null;
  $("hint").hidden = source !== null;
  $("drop").classList.toggle("filled", source !== null);
  if (source) $("reference").src = source;
  else $("reference").removeAttribute("src");
  $("reference").alt = state.file ? "Your picture" : state.id || "";
  $("name").textContent = state.file ? state.file.name || "your picture" : state.id || "";
  $("submit").disabled = source === null || !$("text").value.trim();
  markChosen();
}

function setFile(file) {
  if (!file || !file.type.startsWith("image/")) return;
  if (state.preview) URL.revokeObjectURL(state.preview);
  Object.assign(state, { file, preview: URL.createObjectURL(file), id: null, trail: [] });
  complain(null);
  showReference();
  showTrail();
  $("text").focus();
}

function setId(id) {
  Object.assign(state, { id, file: null });
  showReference();
}

function pick(id) {
  state.trail = [];
  setId(id);
  showTrail();
  $("text").focus({ preventScroll: matchMedia("(min-width: 821px)").matches });
}

function refine(id) {
  state.trail.push({ id: state.id, preview: state.file ? state.preview : null, file: state.file, text: state.text });
  setId(id);
  $("text").value = "";
  showReference();
  showTrail();
  $("text").focus();
}

function showTrail() {
  $("trailbox").hidden = state.trail.length === 0;
  $("trail").replaceChildren(
    ...state.trail.map((step, number) => {
      const line = document.createElement("li");
      const button = document.createElement("button");
      const image = document.createElement("img");
      const words = document.createElement("span");
      button.type = "button";
      image.alt = "";
      image.src = step.preview || imagePath(step.id);
      words.textContent = step.text;
      button.append(image, words);
      button.addEventListener("click", () => returnTo(number));
      line.append(button);
      return line;
    }),
  );
}

function returnTo(number) {
  const step = state.trail[number];
  state.trail = state.trail.slice(0, number);
  Object.assign(state, { id: step.id, file: step.file, preview: step.preview });
  $("text").value = step.text;
  showReference();
  showTrail();
  search();
}

// Pictures above the server's limit are made smaller here first.
async function sendable(file) {
  const limit = state.version.max_body_bytes - 65536;
  if (file.size <= limit) return file;
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, 1600 / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

async function request() {
  if (state.file) {
    const form = new FormData();
    form.append("text", state.text);
    form.append("k", state.k);
    form.append("image", await sendable(state.file), "picture");
    return { method: "POST", body: form };
  }
  const body = { text: state.text, gallery_id: state.id, k: state.k };
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}

async function search(push = true) {
  state.text = $("text").value.trim();
  if (!state.text || (!state.file && state.id === null)) return;
  const run = ++state.run;
  $("grid").classList.add("busy");
  complain(null);
  if (push) history.pushState(null, "", address());
  try {
    const begin = performance.now();
    const answer = await ask("v1/search", await request());
    if (run === state.run) showAnswers(answer, performance.now() - begin);
  } catch (error) {
    if (run !== state.run) return;
    await showGallery(0); // old answers under a new question would mislead
    complain(error);
  }
}

function showAnswers(answer, milliseconds) {
  const best = answer.hits.length ? answer.hits[0].score : 0;
  $("grid").classList.remove("busy");
  $("grid").classList.add("answers");
  $("grid").replaceChildren(...answer.hits.map((hit, place) => card(hit, place + 1, best)));
  $("title").textContent = `“${state.text}”`;
  $("subtitle").textContent = `${answer.hits.length} best of ${state.version.gallery_size.toLocaleString("en")} in ${milliseconds.toFixed(0)} ms`;
  $("subtitle").title = Object.entries(answer.times_ms).map(([step, took]) => `${step} ${took.toFixed(1)} ms`).join(", ");
  $("more").hidden = $("shuffle").hidden = true;
  $("back").hidden = false;
  $("share").hidden = state.file !== null;
  if (matchMedia("(max-width: 820px)").matches) $("title").scrollIntoView({ behavior: "smooth" });
}

async function showGallery(offset, add = false) {
  const run = ++state.run;
  complain(null);
  try {
    const page = await ask(`v1/gallery?limit=${PAGE}&offset=${offset}`);
    if (run !== state.run) return;
    state.offset = offset + page.items.length;
    const cards = page.items.map((item) => card(item));
    $("grid").classList.remove("answers", "busy");
    if (add) $("grid").append(...cards);
    else $("grid").replaceChildren(...cards);
    $("title").textContent = "Gallery";
    $("subtitle").title = "";
    $("subtitle").textContent = `pick a reference among ${page.total.toLocaleString("en")} pictures`;
    $("more").hidden = state.offset >= page.total;
    $("shuffle").hidden = page.total <= PAGE;
    $("back").hidden = $("share").hidden = true;
    markChosen();
  } catch (error) {
    complain(error);
  }
}

function address() {
  const query = new URLSearchParams();
  if (state.id !== null && !state.file) query.set("image", state.id);
  query.set("text", state.text);
  if (state.k !== state.version.default_k) query.set("k", state.k);
  return `?${query}`;
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  state.k = Math.min(Number.parseInt(query.get("k"), 10) || state.version.default_k, state.version.max_k);
  fillCounts();
  $("text").value = query.get("text") || "";
  if (query.has("image")) setId(query.get("image"));
  else if (!query.has("text")) setId(null);
  showReference();
  if (state.id !== null && $("text").value.trim()) search(false);
  else showGallery(0);
}

function fillCounts() {
  const { default_k: usual, max_k: most } = state.version;
  const counts = [...new Set([usual, 24, 48, 96, state.k])].filter((count) => count <= most).sort((a, b) => a - b);
  $("count").replaceChildren(...counts.map((count) => new Option(count, count, false, count === state.k)));
}

function fillExamples() {
  $("examples").hidden = state.version.examples.length === 0;
  $("examples").replaceChildren(
    ...state.version.examples.map((words) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words;
      button.addEventListener("click", () => {
        $("text").value = words;
        showReference();
        search();
      });
      return button;
    }),
  );
}

function connect() {
  $("query").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  $("text").addEventListener("input", showReference);
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      search();
    }
  });
  $("count").addEventListener("change", () => {
    state.k = Number($("count").value);
    if ($("grid").classList.contains("answers")) search();
  });
  $("file").addEventListener("change", () => setFile($("file").files[0]));
  $("clear").addEventListener("click", () => pick(null));
  $("more").addEventListener("click", () => showGallery(state.offset, true));
  $("shuffle").addEventListener("click", () =>
    showGallery(Math.floor(Math.random() * Math.max(1, state.version.gallery_size - PAGE))),
  );
  $("back").addEventListener("click", () => {
    history.pushState(null, "", location.pathname);
    state.trail = [];
    showTrail();
    showGallery(0);
  });
  $("share").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("share").textContent = "Copied";
    } catch {
      $("share").textContent = "Copy it from the address bar";
    }
    setTimeout(() => ($("share").textContent = "Copy link"), 1500);
  });
  const drop = $("drop");
  for (const name of ["dragenter", "dragover"])
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    setFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => setFile(event.clipboardData.files[0]));
  window.addEventListener("popstate", readAddress);
}

try {
  state.version = await ask("version");
  const { gallery_size: size, index_digest: index, encoder_digest: encoder } = state.version;
  $("facts").textContent = `${size.toLocaleString("en")} pictures · index ${index.slice(0, 8)} · encoder ${encoder.slice(0, 8)}`;
  fillExamples();
  connect();
  readAddress();
} catch (error) {
  complain(error);
}
