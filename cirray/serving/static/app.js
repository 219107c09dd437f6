// The page of the service: one state (`entry`, see state.js), one history entry a search, one `render`.

import { connectBeside, renderBeside, sayHere } from "./beside.js";
import { makeGrid } from "./grid.js";
import { connectDrop, connectQuery, connectResults } from "./inputs.js";
import { enlarge, enlargeReference } from "./large.js";
import { LOST, examples, find, further, gallery, imagePath, versionOf } from "./service.js";
import { connectNarrow, renderNarrow } from "./narrow.js";
import { renderPart } from "./part.js";
import { address, alike, before, answersWanted, readAddress, same, searched, settled, shareable, shown, start, walked } from "./state.js";
import { pictureOf, renderTrail, wordsOf } from "./trail.js";
import { accept } from "./uploads.js";
import { $, card, chips, complain, fill, narrow, query } from "./view.js";

const NAME = document.title;
const answers = new Map(); // answers of this tab by search, so that Back is immediate
const grid = makeGrid($("grid"), (item, place) => mark(card(item, place)));
let version, entry, page;
let turn = 0; // number of the last load: what an earlier one brings is late and left alone
let displayed = null; // what the grid shows: {items, answers, read}

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
  keep({ ...settled(entry), scroll: scrollY, seen: displayed?.read?.items.length ?? 0 });
  push(next);
}

// What the service can do: some models search by a text or by a picture alone, some weigh the two.
const takes = (kind) => (version.compositions || []).includes(kind);
const answerable = ({ reference, text }) =>
  text ? reference !== null || takes("text") : reference !== null && takes("image");
const movable = () => typeof version.weight === "number";
const does = (shape) => version.shapes.includes(shape);

// Take another reference. Beside answers, or deep in the gallery, it is a draft with an entry of its own, so that Back
// returns there.
function choose(reference, base = 0, text = entry.text) {
  const next = { ...entry, reference, box: null, base, text };
  complain();
  if (!entry.draft && (shown(entry) || scrollY > innerHeight)) move({ ...next, draft: true });
  else keep(next);
  renderQuery();
}

// `place` of the grid keeps the reader there; without one they are brought to the answers.
async function search(given = {}, place = null) {
  const asked = { ...entry, ...given };
  if (!answerable(asked)) return miss(asked);
  const next = searched(asked);
  answers.delete(key(next)); // asked again, it is asked of the service
  if (next.at === entry.at && alike(shown(next), shown(entry))) keep(next);
  else move(next);
  const rendered = render();
  if (place === null) return arrive();
  await rendered;
  if (displayed?.items.length) grid.focus(Math.min(place, displayed.items.length - 1));
}

// Something about the query is changed: it is asked again where its answers are on display.
function change(fields) {
  edit(fields);
  keep(entry);
  if (shown(entry) && !entry.draft && answerable(entry)) search({}, -1);
  else renderQuery();
}

const edit = (fields) => (entry = { ...entry, ...fields });

const leaveOut = (id, place) => search({ ...settled(entry), without: [...new Set([...shown(entry).without, id])] }, place);
const less = (id) => search({ ...settled(entry), unlike: id, unwanted: "" });

function miss({ reference, text }) {
  if (reference) complain("Say what should be different in the picture.");
  else if (takes("text")) complain("Pick a picture, or say what you look for.");
  else complain("Pick a reference first: a picture of the gallery, or one of yours.");
  (reference || (takes("text") && !text) ? $("text") : $("file")).focus();
}

function walk(place) {
  move(walked(entry, place));
  render();
  arrive();
}

// Bring the reader to the answers: one Tab leads from here to the first.
function arrive() {
  $("title").focus({ preventScroll: true });
  const { top } = $("title").getBoundingClientRect();
  if (narrow() || top < 0) $("title").scrollIntoView();
}

const key = (entry) => JSON.stringify([shown(entry), entry.k, before(entry)]);

// Start the next search from a picture of the grid: from an answer it refines, from the gallery it begins.
function use(id) {
  const refines = displayed?.answers;
  choose({ id }, refines ? entry.at + 1 : 0, refines ? "" : entry.text);
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

function toGallery(offset = entry.offset) {
  move({ ...start(entry.k), weight: entry.weight, beside: entry.beside, offset });
  render();
}

function render() {
  complain();
  if ($("large").open) $("large").close();
  if ($("enlarge").matches(".blank")) fill($("enlarge"), null); // it may load now
  renderQuery();
  return renderResults();
}

function mark(cell) {
  cell.classList.toggle("chosen", cell.dataset.id === entry.reference?.id);
  if (!does("not a picture")) cell.querySelector(".less")?.remove();
  return cell;
}

function renderQuery() {
  const { reference, text, k } = entry;
  if ($("text").value.trim() !== text) $("text").value = text;
  $("hint").hidden = reference !== null;
  $("enlarge").hidden = $("clear").hidden = reference === null;
  $("drop").classList.toggle("filled", reference !== null);
  $("name").textContent = reference?.name || reference?.id || "";
  for (const cell of grid.cells()) mark(cell);
  const options = [...new Set([version.default_k, 24, 48, 96, k])].filter((count) => count <= version.max_k);
  $("count").replaceChildren(...options.sort((a, b) => a - b).map((n) => new Option(n, n, false, n === k)));
  renderWords();
  renderWeight();
  renderNarrow(entry, page);
  renderPart(entry);
  $("keep").checked = entry.keep;
  $("keepbox").hidden = !entry.base || !reference || !does("references");
  const steps = ({ trail, at, base, draft }) => ({ trail, at, base, draft });
  const now = steps(entry);
  renderTrail(now, walk, () => same(now, steps(entry)));
  renderPicture(reference);
  renderTexts(reference);
}

// What is asked for in words: a change of the reference, or, where the service takes that, the picture itself.
function renderWords() {
  const alone = !entry.reference && takes("text");
  $("asked").textContent = alone ? "Look for" : "Change";
  const change = takes("image") ? "Say what should be different, or search for pictures like it" : "Say what should be different";
  $("text").placeholder = alone ? "Say what you look for, or pick a picture first" : change;
}

function renderWeight() {
  const { reference, text, weight } = entry;
  const value = weight ?? version.weight;
  $("weightbox").hidden = !movable() || !reference || !text;
  $("weight").value = value;
  const words = `text ${Math.round(100 * value)} %`;
  $("weighs").textContent = words;
  $("weight").setAttribute("aria-valuetext", words);
  $("usual").hidden = value === version.weight;
}

async function renderPicture(reference) {
  const place = await pictureOf(reference);
  if (!same(reference, entry.reference)) return;
  fill($("enlarge"), place, reference?.name || reference?.id, reference?.upload && unseen);
  if (reference?.upload && !place) complain(LOST);
}

async function renderTexts(reference) {
  const box = $("suggestions");
  if (box.dataset.of !== reference?.id) box.hidden = true; // those of another picture do not fit
  const texts = reference?.id === undefined ? [] : await examples(reference.id);
  if (!same(reference, entry.reference)) return;
  chips($("chips"), texts.map(({ text }) => text), (text) => search({ text }));
  box.dataset.of = reference?.id;
  box.hidden = texts.length === 0;
}

const unseen = () => complain("This browser cannot show that picture. The service may read it: search to see.");

async function renderResults(scroll = null) {
  const wanted = { ...entry };
  const now = ++turn;
  renderHead(wanted);
  try {
    const begin = performance.now();
    const finding = shown(wanted) ? answersOf(wanted) : galleryOf(wanted);
    renderBeside(wanted, shown(wanted), before(wanted), finding);
    const found = await finding;
    if (now !== turn) return;
    if (shown(wanted)) showAnswers(found, performance.now() - begin);
    else showGallery(found);
    if (scroll !== null) scrollTo({ top: scroll, behavior: "instant" });
    grid.update();
  } catch (error) {
    if (now !== turn) return;
    grid.show([]); // old pictures under a new question would mislead
    $("subtitle").textContent = "nothing to show";
    if (!sayHere(error.message)) complain(error.message, error.again && (() => (render(), arrive())));
  } finally {
    if (now === turn) busy(false);
  }
}

function busy(yes) {
  $("grid").classList.toggle("busy", yes);
  $("grid").inert = yes;
  $("grid").setAttribute("aria-busy", yes);
  $("submit").textContent = yes && shown(entry) ? "Searching …" : "Search";
}

function renderHead(wanted) {
  const asked = shown(wanted);
  busy(true);
  displayed = null;
  $("title").textContent = asked ? (asked.text ? `“${asked.text}”` : `Like this ${asked.box ? "part" : "picture"}`) : "Gallery";
  const reference = asked?.reference && (asked.reference.name || asked.reference.id);
  document.title = asked ? [asked.text ? `“${asked.text}”` : wordsOf(asked), reference, "cirray"].filter(Boolean).join(" · ") : NAME;
  $("subtitle").title = "";
  $("subtitle").textContent = asked ? "searching …" : "loading …";
  $("back").hidden = !asked;
  $("share").hidden = !asked || !shareable(wanted);
  $("unshared").hidden = !asked?.reference?.upload;
  $("trybox").hidden = $("shuffle").hidden = $("more").hidden = true;
}

async function answersOf(wanted) {
  if (!answers.has(key(wanted))) {
    const asked = movable() ? shown(wanted) : { ...shown(wanted), weight: null }; // a link may come from another model
    const found = await find(asked, wanted.k, before(wanted));
    if (found.searched < 1) return found; // asked again it may be whole
    answers.set(key(wanted), found);
  }
  return answers.get(key(wanted));
}

function showAnswers({ hits, searched, times_ms: times }, milliseconds) {
  const best = hits[0]?.score ?? 0;
  for (const hit of hits) hit.share = best > 0 ? Math.max(0, Math.min(1, hit.score / best)) : 0;
  displayed = { items: hits, answers: true };
  $("grid").classList.add("answers");
  grid.show(hits, hits.length, true);
  const found = `${hits.length} best of ${version.gallery_size.toLocaleString("en")} in ${milliseconds.toFixed(0)} ms`;
  const { length: left } = shown(entry)?.without ?? [];
  const part = searched < 1 ? `; only ${Math.floor(100 * searched)} % of the gallery could be searched` : "";
  $("subtitle").textContent = (hits.length ? found : "the gallery has no other picture") + (left ? `, ${left} left out` : "") + part;
  $("subtitle").title = Object.entries(times).map(([step, took]) => `${step} ${took.toFixed(1)} ms`).join(", ");
}

async function galleryOf({ offset, seen }) {
  const [read, tries] = await Promise.all([gallery(offset, Math.max(1, seen)), examples()]);
  return { read, tries };
}

function showGallery({ read, tries }) {
  displayed = { items: read.items, read };
  $("trybox").hidden = tries.length === 0;
  $("tries").replaceChildren(...tries.map(attempt));
  $("grid").classList.remove("answers");
  grid.show(read.items, read.total);
  $("subtitle").textContent = `${read.total.toLocaleString("en")} pictures: open one, or use it as the reference`;
  $("shuffle").hidden = read.items.length === read.total;
  watchEnd();
}

function attempt({ gallery_id: id, text, image }) {
  return query(image && imagePath(id), text, () => search({ reference: { id }, box: null, text, base: 0 }));
}

// The gallery goes on where the reader comes near its end; `end` is told again of an end that is still near.
const end = new IntersectionObserver(([seen]) => seen.isIntersecting && more(), { rootMargin: "1500px" });

function watchEnd() {
  end.disconnect();
  const { items, total } = displayed?.read ?? { items: [], total: 0 };
  if (items.length < total) end.observe($("end"));
}

async function more() {
  const now = turn;
  const read = displayed?.read;
  if (!read || read.items.length >= read.total) return;
  end.disconnect();
  $("more").hidden = true;
  try {
    await further(read);
    if (now !== turn) return;
    grid.grown();
    watchEnd();
  } catch (error) {
    if (now !== turn) return;
    $("more").hidden = false;
    complain(error.message, error.again && (() => (complain(), more())));
  }
}

// The picture at a place of the grid large, with a way to those beside it.
function openLarge(place) {
  const { items, answers: found, read } = displayed;
  enlarge(place, {
    answers: found,
    less: does("not a picture"),
    item: (at) => items[at],
    count: () => (found ? items.length : read.total),
    near: (at) => !found && at > items.length - 20 && more(),
    closed: (at) => displayed?.items === items && grid.focus(at),
  });
}

async function share() {
  try {
    const { href } = new URL(address(shareable(entry), version.default_k), location.href);
    await navigator.clipboard.writeText(href);
    $("share").textContent = entry.trail.some((step) => step.reference?.upload) ? "Copied, without your pictures" : "Copied";
  } catch {
    $("share").textContent = "Copy it from the address bar";
  }
  setTimeout(() => ($("share").textContent = "Copy link"), 2500);
}

function enter(kept) {
  entry = kept?.trail ? { ...kept, k: answersWanted(kept.k, version) } : readAddress(location.search, version, answerable);
  if (!kept?.trail) keep(entry);
  complain();
  if ($("large").open) $("large").close();
  renderQuery();
  renderResults(entry.scroll);
}

async function begin() {
  complain();
  try {
    version = await versionOf();
  } catch (error) {
    return complain(error.message, begin);
  }
  const { gallery_size: size, index_digest: index, encoder_digest: encoder } = version;
  $("facts").textContent = `${size.toLocaleString("en")} pictures · index ${index.slice(0, 8)} · encoder ${encoder.slice(0, 8)}`;
  page = {
    search, choose, take, use, toGallery, share, more, openLarge, change, edit, leaveOut, less,
    entry: () => entry,
    displayed: () => displayed,
    save: () => keep(entry),
    changed: renderWeight,
    weigh: () => !entry.draft && alike(shown(entry), shown(searched(entry))) && search(),
    recount: (k) => (keep({ ...entry, k: answersWanted(k, version) }), shown(entry) && renderResults()),
    usualWeight: version.weight,
    size,
    setBeside: (beside) => (keep({ ...entry, beside }), shown(entry) && renderResults()),
    large: () => enlargeReference(entry.reference),
    place: grid.placeOf,
  };
  connectQuery(page);
  connectResults(page);
  connectDrop(page);
  connectNarrow(page, version);
  connectBeside(page);
  history.scrollRestoration = "manual";
  addEventListener("popstate", (event) => enter(event.state));
  enter(history.state);
}

$("dismiss").addEventListener("click", () => complain());
$("query").addEventListener("submit", (event) => event.preventDefault());
await begin();
