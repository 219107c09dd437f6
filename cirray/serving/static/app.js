// The page of the service: one state (`entry`, see state.js), one history entry a search, one `render`.

import { examples, find, gallery, imagePath, ask } from "./service.js";
import { PAGE, address, answersWanted, readAddress, same, searched, settled, start } from "./state.js";
import { accept, upload } from "./uploads.js";
import { $, card, chips, complain, fill, narrow, query } from "./view.js";

const NAME = document.title;
const answers = new Map(); // answers of this tab by search, so that Back is immediate
let version, entry;
let turn = 0; // number of the last load: what an earlier one brings is late and left alone
let displayed; // what the grid shows: {shown, k, hits} or {offset, pages}

function keep(next) {
  entry = next;
  history.replaceState(entry, "", address(entry, version.default_k));
}

function push(next) {
  entry = next;
  history.pushState(entry, "", address(entry, version.default_k));
}

// Leave an entry as it was asked for, so that Back finds it; a draft gives its place away.
function move(next) {
  if (entry.draft) return keep(next);
  keep(settled(entry));
  push(next);
}

// Take another reference. Beside answers it is a draft with an entry of its own, so that Back returns to the answers.
function choose(reference, steps = [], text = entry.text) {
  const next = { ...entry, reference, steps, text };
  complain();
  if (entry.shown && !entry.draft) move({ ...next, draft: true });
  else keep(next);
  renderQuery();
}

function search({ reference, text, steps } = entry) {
  if (!reference) return miss("Pick a reference first: a picture of the gallery, or one of yours.", $("file"));
  if (!text) return miss("Say what should be different in the picture.", $("text"));
  const next = searched({ ...entry, reference, text, steps });
  answers.delete(key(next)); // asked again, it is asked of the service
  if (same(next.shown, entry.shown)) keep(next);
  else move(next);
  render();
  arrive();
}

// Bring the reader to the answers: one Tab leads from here to the first.
function arrive() {
  $("title").focus({ preventScroll: true });
  if (narrow()) $("title").scrollIntoView();
}

function miss(message, field) {
  complain(message);
  field.focus();
}

const key = ({ shown, k }) => JSON.stringify([shown.reference, shown.text, k]);

function refine(id) {
  const { reference, text, steps } = displayed.shown;
  choose({ id }, [...steps, { reference, text }], "");
  compose();
}

function pick(id) {
  choose({ id });
  compose();
}

// Bring the form to the reader: to the text with a keyboard, into sight with a finger.
function compose() {
  if (narrow()) $("query").scrollIntoView();
  if (!matchMedia("(pointer: coarse)").matches) $("text").focus({ preventScroll: true });
}

async function take(file) {
  try {
    choose(await accept(file, version));
    compose();
  } catch (error) {
    complain(error.message);
  }
}

function toGallery() {
  move(start(entry.k));
  render();
}

const source = async (reference) =>
  reference?.upload ? (await upload(reference.upload))?.url : reference && imagePath(reference.id);

function render() {
  complain();
  if ($("large").open) $("large").close();
  if ($("enlarge").matches(".blank")) fill($("enlarge"), null); // it may load now
  renderQuery();
  renderResults();
}

function renderQuery() {
  const { reference, steps } = entry;
  if ($("text").value.trim() !== entry.text) $("text").value = entry.text;
  $("hint").hidden = reference !== null;
  $("enlarge").hidden = $("clear").hidden = reference === null;
  $("drop").classList.toggle("filled", reference !== null);
  $("name").textContent = reference?.name || reference?.id || "";
  for (const cell of $("grid").children) cell.classList.toggle("chosen", cell.dataset.id === reference?.id);
  const options = [...new Set([version.default_k, 24, 48, 96, entry.k])].filter((count) => count <= version.max_k);
  $("count").replaceChildren(...options.sort((a, b) => a - b).map((k) => new Option(k, k, false, k === entry.k)));
  $("trailbox").hidden = steps.length === 0;
  renderPictures(reference, steps);
  renderTexts(reference, steps);
}

async function renderPictures(reference, steps) {
  const places = await Promise.all([reference, ...steps.map((step) => step.reference)].map(source));
  if (!same(reference, entry.reference)) return;
  fill($("enlarge"), places[0], reference?.name || reference?.id, reference?.upload && unseen);
  if (reference?.upload && !places[0]) complain("This picture is no longer kept in this browser. Choose it again.");
  $("trail").replaceChildren(...steps.map((step, number) => stepBack(step, number, places[number + 1])));
}

async function renderTexts(reference, steps) {
  const box = $("suggestions");
  if (box.dataset.of !== reference?.id) box.hidden = true; // those of another picture do not fit
  const texts = reference?.id === undefined ? [] : await examples(reference.id);
  if (!same(reference, entry.reference)) return;
  chips($("chips"), texts.map(({ text }) => text), (text) => search({ reference, text, steps }));
  box.dataset.of = reference?.id;
  box.hidden = texts.length === 0;
}

const unseen = () => complain("This browser cannot show that picture. The service may read it: search to see.");

function stepBack(step, number, place) {
  const line = document.createElement("li");
  line.append(query(place, step.text, () => search({ ...step, steps: entry.steps.slice(0, number) })));
  return line;
}

async function renderResults() {
  const wanted = { ...entry };
  const now = ++turn;
  renderHead(wanted);
  try {
    const begin = performance.now();
    const found = wanted.shown ? await answersOf(wanted) : await pagesOf(wanted);
    if (now !== turn) return;
    if (wanted.shown) showAnswers(wanted, found, performance.now() - begin);
    else showGallery(wanted, found);
  } catch (error) {
    if (now !== turn) return;
    $("grid").replaceChildren(); // old pictures under a new question would mislead
    $("subtitle").textContent = "nothing to show";
    complain(error.message, error.again && (() => (render(), arrive())));
  } finally {
    if (now === turn) busy(false);
  }
}

function busy(yes) {
  $("grid").classList.toggle("busy", yes);
  $("grid").inert = yes;
  $("submit").textContent = yes && entry.shown ? "Searching …" : "Search";
}

function renderHead({ shown }) {
  busy(true);
  displayed = null;
  $("title").textContent = shown ? `“${shown.text}”` : "Gallery";
  document.title = shown ? `“${shown.text}” · ${shown.reference.name || shown.reference.id} · cirray` : NAME;
  $("subtitle").title = "";
  $("subtitle").textContent = shown ? "searching …" : "";
  $("back").hidden = !shown;
  $("share").hidden = !shown || Boolean(shown.reference.upload);
  $("trybox").hidden = $("shuffle").hidden = $("more").hidden = true;
}

async function answersOf(wanted) {
  if (!answers.has(key(wanted))) {
    const { reference } = wanted.shown;
    const held = reference.upload ? await upload(reference.upload) : null;
    if (reference.upload && !held) throw new Error("This picture is no longer kept in this browser. Choose it again.");
    answers.set(key(wanted), await find(wanted.shown, wanted.k, held?.blob));
  }
  return answers.get(key(wanted));
}

function showAnswers({ shown, k }, { hits, times_ms: times }, milliseconds) {
  displayed = { shown, k, hits };
  const best = hits.length ? hits[0].score : 0;
  $("grid").classList.add("answers");
  $("grid").replaceChildren(...hits.map((hit, place) => card(hit, place + 1, best)));
  const found = `${hits.length} best of ${version.gallery_size.toLocaleString("en")} in ${milliseconds.toFixed(0)} ms`;
  $("subtitle").textContent = hits.length ? `${found} · pick one to refine from it` : "the gallery has no other picture";
  $("subtitle").title = Object.entries(times).map(([step, took]) => `${step} ${took.toFixed(1)} ms`).join(", ");
  renderQuery();
}

async function pagesOf({ offset, pages }) {
  const [found, tries] = await Promise.all([gallery(offset, PAGE * pages), examples()]);
  return { ...found, tries };
}

function showGallery({ offset }, { items, total, tries }) {
  displayed = { offset };
  $("grid").classList.remove("answers");
  $("grid").replaceChildren(...items.map((item) => card(item)));
  $("subtitle").textContent = `pick a reference among ${total.toLocaleString("en")} pictures`;
  $("more").hidden = offset + items.length >= total;
  $("shuffle").hidden = total <= PAGE;
  $("trybox").hidden = tries.length === 0;
  $("tries").replaceChildren(...tries.map(attempt));
  renderQuery();
}

function attempt({ gallery_id: id, text, image }) {
  return query(image && imagePath(id), text, () => search({ reference: { id }, text, steps: [] }));
}

async function more() {
  const now = turn;
  $("more").disabled = true;
  try {
    const { items, total } = await gallery(entry.offset + $("grid").children.length, PAGE);
    if (now !== turn) return;
    keep({ ...entry, pages: Math.min(8, entry.pages + 1) });
    $("grid").append(...items.map((item) => card(item)));
    $("more").hidden = entry.offset + $("grid").children.length >= total;
    renderQuery();
  } catch (error) {
    if (now === turn) complain(error.message, error.again && more);
  } finally {
    $("more").disabled = false;
  }
}

// A picture in the whole window; `place` is that of an answer, undefined for the reference.
async function enlarge(place) {
  const hit = displayed?.hits?.[place];
  const reference = hit ? { id: hit.id } : entry.reference;
  const path = await source(reference);
  fill($("largeframe"), hit && !hit.image ? null : path, reference.name || reference.id);
  $("largename").textContent = hit ? `${place + 1} · ${hit.id} · ${hit.score.toFixed(3)}` : reference.name || reference.id;
  $("refine").hidden = $("previous").hidden = $("next").hidden = !hit;
  $("previous").disabled = place === 0;
  $("next").disabled = place === displayed?.hits?.length - 1;
  $("large").dataset.place = hit ? place : "";
  if (!$("large").open) $("large").showModal();
}

function turnPage(step) {
  const place = $("large").dataset.place;
  if (place !== "" && displayed?.hits?.[Number(place) + step]) enlarge(Number(place) + step);
}

function connectQuery() {
  let pause;
  const typed = () => {
    clearTimeout(pause);
    keep({ ...entry, text: $("text").value.trim() });
  };
  $("text").addEventListener("input", () => {
    entry = { ...entry, text: $("text").value.trim() };
    clearTimeout(pause);
    pause = setTimeout(typed, 300); // browsers limit how often history may be written
  });
  window.addEventListener("beforeunload", typed);
  $("query").addEventListener("submit", () => search());
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    search();
  });
  $("count").addEventListener("change", () => {
    keep({ ...entry, k: answersWanted($("count").value, version) });
    if (entry.shown) renderResults();
  });
  $("file").addEventListener("change", () => {
    if ($("file").files.length) take($("file").files[0]);
    $("file").value = "";
  });
  $("clear").addEventListener("click", () => choose(null));
  $("enlarge").addEventListener("click", () => enlarge());
}

function connectResults() {
  $("grid").addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell || !displayed) return;
    if (event.target.closest(".zoom")) enlarge([...$("grid").children].indexOf(cell));
    else if (displayed.hits) refine(cell.dataset.id);
    else pick(cell.dataset.id);
  });
  $("more").addEventListener("click", more);
  $("shuffle").addEventListener("click", () => {
    keep({ ...entry, offset: Math.floor(Math.random() * Math.max(1, version.gallery_size - PAGE)), pages: 1 });
    renderResults();
  });
  $("back").addEventListener("click", toGallery);
  $("share").addEventListener("click", share);
  $("close").addEventListener("click", () => $("large").close());
  $("previous").addEventListener("click", () => turnPage(-1));
  $("next").addEventListener("click", () => turnPage(1));
  $("refine").addEventListener("click", () => {
    $("large").close();
    refine(displayed.hits[Number($("large").dataset.place)].id);
  });
  $("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
  $("large").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turnPage(-1);
    if (event.key === "ArrowRight") turnPage(1);
  });
}

async function share() {
  try {
    await navigator.clipboard.writeText(new URL(address(settled(entry), version.default_k), location.href).href);
    $("share").textContent = "Copied";
  } catch {
    $("share").textContent = "Copy it from the address bar";
  }
  setTimeout(() => ($("share").textContent = "Copy link"), 1500);
}

function connectDrop() {
  const over = (event) => {
    if (event.target === $("text") && !event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    $("drop").classList.add("over");
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (!file && event.target === $("text")) return;
    event.preventDefault();
    if (file) take(file);
    else complain("That was no file. Drop a picture from a folder of this computer.");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files[0]);
    else if (event.target !== $("text")) complain("The clipboard holds no picture.");
  });
}

function enter(kept) {
  entry = kept?.pages ? { ...kept, k: answersWanted(kept.k, version) } : readAddress(location.search, version);
  if (!kept?.pages) keep(entry);
  render();
}

async function begin() {
  complain();
  try {
    version = await ask("version");
  } catch (error) {
    return complain(error.message, begin);
  }
  const { gallery_size: size, index_digest: index, encoder_digest: encoder } = version;
  $("facts").textContent = `${size.toLocaleString("en")} pictures · index ${index.slice(0, 8)} · encoder ${encoder.slice(0, 8)}`;
  connectQuery();
  connectResults();
  connectDrop();
  window.addEventListener("popstate", (event) => enter(event.state));
  enter(history.state);
}

$("dismiss").addEventListener("click", () => complain());
$("query").addEventListener("submit", (event) => event.preventDefault());
await begin();
