// Pieces of the page. Everything shown is set as text, never as HTML.

import { load } from "./key.js";
import { imagePath } from "./service.js";

export const $ = (id) => document.getElementById(id);
export const narrow = () => matchMedia("(max-width: 900px)").matches;

// Put a picture into a frame; one that does not load leaves a word there instead, and `missed` is told.
export function fill(frame, source, alt = "", missed) {
  if (source && frame.dataset.source === source) return;
  frame.dataset.source = source || "";
  frame.classList.toggle("blank", !source);
  if (!source) return frame.replaceChildren();
  const image = document.createElement("img");
  Object.assign(image, { alt, decoding: "async", loading: "lazy", draggable: false });
  image.addEventListener("error", () => {
    if (image.parentNode !== frame) return; // another picture came meanwhile
    frame.classList.add("blank");
    frame.replaceChildren();
    if (missed) missed();
  });
  frame.replaceChildren(image);
  load(image, source);
}

// On a fine screen a thumbnail would look soft; one that is as small as its file (an icon) is all there is.
const [SHOWN, WHOLE] = [240, 200];
export function sharp({ width, height }) {
  const longest = Math.max(width || 0, height || 0);
  return longest >= WHOLE && longest < SHOWN * devicePixelRatio ? "medium" : "";
}

// One picture of the gallery, or an answer: those have a score. Its name is the last part of its id.
export function card(item, place) {
  const cell = $("card").content.firstElementChild.cloneNode(true);
  const find = (name) => cell.querySelector(`.${name}`);
  const answer = item.score !== undefined;
  cell.dataset.id = item.id;
  fill(find("frame"), item.image && imagePath(item.id, sharp(item), item.gallery));
  find("id").textContent = item.id.split("/").at(-1) || item.id;
  cell.title = item.id;
  const score = answer ? `, answer ${place + 1}, score ${item.score.toFixed(3)}` : "";
  find("open").setAttribute("aria-label", `Open ${item.id} large${score}`);
  find("use").setAttribute("aria-label", `${answer ? "Refine from" : "Use"} ${item.id}`);
  find("use").textContent = answer ? "Refine" : "Use";
  if (!answer) {
    for (const name of ["less", "not"]) find(name).remove();
    return cell;
  }
  find("not").setAttribute("aria-label", `Not this one: leave ${item.id} out`);
  find("less").setAttribute("aria-label", `Less like this: away from ${item.id}`);
  find("rank").textContent = place + 1;
  find("score").textContent = item.score.toFixed(3);
  if (item.gallery) find("acts").remove(); // of another gallery: nothing begins from it here
  find("meter").firstElementChild.style.width = `${100 * item.share}%`; // of the best answer's score
  return cell;
}

// A picture with a text: a step that was taken, or a query to try.
export function query(source, text, act) {
  const button = document.createElement("button");
  const frame = document.createElement("span");
  const words = document.createElement("span");
  button.type = "button";
  frame.className = "frame";
  fill(frame, source);
  words.className = "words";
  words.textContent = text;
  button.append(frame, words);
  button.addEventListener("click", act);
  return button;
}

// Texts as buttons: one stop of the Tab key, arrows lead from one to the next.
export function chips(box, texts, act) {
  box.replaceChildren(
    ...texts.map((text, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.tabIndex = place ? -1 : 0;
      button.addEventListener("click", () => act(text, place));
      return button;
    }),
  );
  box.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const to = step && box.children[[...box.children].indexOf(document.activeElement) + step];
    if (!to) return;
    event.preventDefault();
    to.focus();
  };
}

// Say what went wrong, where it is seen wherever the page is scrolled to; `again` is offered as a button.
export function complain(message, again) {
  $("complaint").textContent = message || "";
  $("problem").hidden = !message;
  $("again").hidden = !again;
  $("again").onclick = again || null;
}
