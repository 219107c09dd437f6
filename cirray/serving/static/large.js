// A picture in the whole window: first its thumbnail, then the large one.

import { load } from "./key.js";
import { upload } from "./uploads.js";
import { $, fill } from "./view.js";
import { imagePath } from "./service.js";

let list = null; // {item, count, closed, ...} of the pictures beside this one; null: the reference alone
let place = 0;
let turn = 0;

async function pictures(reference) {
  if (reference.upload) return [(await upload(reference.upload))?.url];
  return [undefined, "large"].map((size) => imagePath(reference.id, size, reference.gallery));
}

async function draw(reference, words) {
  const now = ++turn;
  $("largename").textContent = words;
  const [small, large] = await pictures(reference);
  if (now !== turn) return;
  fill($("largeframe"), reference.image === null ? null : small, reference.name || reference.id);
  if (!large || reference.image === null) return;
  const image = new Image();
  await load(image, large);
  const came = await image.decode().then(() => true, () => false);
  if (came && now === turn && $("large").open) fill($("largeframe"), large, reference.id);
}

// The reference by itself.
export function enlargeReference(reference) {
  list = null;
  open(reference, reference.name || reference.id);
}

// A picture of the grid, with those beside it: `item(place)`, `count()`, and `near(place)` and `closed(place)` are told.
export function enlarge(at, beside) {
  list = beside;
  turnTo(at);
}

function turnTo(at) {
  const item = list.item(at);
  if (!item) return;
  place = at;
  list.near(at);
  const score = item.score === undefined ? `${at + 1} of ${list.count().toLocaleString("en")}` : `answer ${at + 1}, ${item.score.toFixed(3)}`;
  open(item, `${item.id} · ${score}`);
}

function open(reference, words) {
  $("previous").hidden = $("next").hidden = !list;
  $("refine").hidden = !list || list.other;
  $("leaveout").hidden = !list?.answers;
  $("less").hidden = !list?.answers || !list.less;
  $("previous").disabled = !list || place === 0;
  $("next").disabled = !list || place >= list.count() - 1;
  if (!$("large").open) {
    $("largeframe").replaceChildren();
    $("largeframe").dataset.source = "";
    $("large").showModal();
    (list && !list.other ? $("refine") : $("close")).focus();
  }
  draw(reference, words);
}

// What is done with the picture on display: it closes the window and takes the reader to what follows.
function then(act) {
  return () => {
    const { item } = list;
    list = null;
    $("large").close();
    act(item(place).id, place);
  };
}

export function connectLarge({ use, leaveOut, less }) {
  $("close").addEventListener("click", () => $("large").close());
  $("previous").addEventListener("click", () => turnTo(place - 1));
  $("next").addEventListener("click", () => turnTo(place + 1));
  $("refine").addEventListener("click", then(use));
  $("leaveout").addEventListener("click", then(leaveOut));
  $("less").addEventListener("click", then(less));
  $("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
  $("large").addEventListener("close", () => list?.closed(place));
  $("large").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && list && place + step >= 0) turnTo(place + step);
  });
}
