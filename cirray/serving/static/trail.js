// The searches that were refined one from another, as a line of steps to walk back and forth on.

import { imagePath } from "./service.js";
import { upload } from "./uploads.js";
import { $, query } from "./view.js";

export const pictureOf = async (reference) =>
  reference?.upload ? (await upload(reference.upload))?.url : reference && imagePath(reference.id);

export const nameOf = (id) => id.split("/").at(-1) || id;

export const wordsOf = ({ reference, text, box }) =>
  text || `like ${box ? "a part of " : ""}${reference.name || nameOf(reference.id)}`;

// `walk(place)` leads to a step. The one on display is marked, and so is a next one that is being prepared.
export async function renderTrail({ trail, at, base, draft }, walk, current) {
  const pending = draft && base > 0;
  $("trailbox").hidden = trail.length < 2 && !pending;
  if ($("trailbox").hidden) return $("trail").replaceChildren();
  const places = await Promise.all(trail.map((step) => pictureOf(step.reference)));
  if (!current()) return;
  const lines = trail.map((step, place) => {
    const button = query(places[place], wordsOf(step), () => walk(place));
    button.classList.toggle("alone", !step.reference);
    button.title = `Step ${place + 1}: ${wordsOf(step)}`;
    if (place === at) button.setAttribute("aria-current", "step");
    return button;
  });
  if (pending) {
    const next = document.createElement("span");
    next.className = "pending";
    next.textContent = "next step …";
    lines.splice(base, 0, next);
  }
  $("trail").replaceChildren(...lines.map((line) => {
    const item = document.createElement("li");
    item.append(line);
    return item;
  }));
  show($("trail").querySelector(".pending") || $("trail").querySelector("[aria-current]"));
}

// Scroll the line alone, not the page.
function show(mark) {
  if (!mark) return;
  const [line, there] = [$("trail").getBoundingClientRect(), mark.getBoundingClientRect()];
  if (there.left < line.left || there.right > line.right) $("trail").scrollBy({ left: there.right - line.right });
}
