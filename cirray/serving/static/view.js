// Pieces of the page. Everything shown is set as text, never as HTML.

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
  Object.assign(image, { alt, decoding: "async", draggable: false, src: source });
  image.addEventListener("error", () => {
    if (image.parentNode !== frame) return; // another picture came meanwhile
    frame.classList.add("blank");
    frame.replaceChildren();
    if (missed) missed();
  });
  frame.replaceChildren(image);
}

// One gallery picture (`rank` undefined) or answer.
export function card(item, rank, best) {
  const cell = $("card").content.firstElementChild.cloneNode(true);
  const find = (name) => cell.querySelector(`.${name}`);
  cell.dataset.id = item.id;
  fill(find("frame"), item.image && imagePath(item.id));
  find("id").textContent = item.id;
  find("card").title = item.id;
  if (rank === undefined) {
    find("card").setAttribute("aria-label", `Pick ${item.id}`);
    find("zoom").remove();
    return cell;
  }
  find("card").setAttribute("aria-label", `Answer ${rank}: ${item.id}, score ${item.score.toFixed(3)}. Refine from it`);
  find("zoom").setAttribute("aria-label", `Open ${item.id} large`);
  find("zoom").title = "Open large";
  find("rank").textContent = rank;
  find("score").textContent = item.score.toFixed(3);
  const share = best > 0 ? Math.max(0, Math.min(1, item.score / best)) : 0;
  find("meter").firstElementChild.style.width = `${100 * share}%`;
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
      button.addEventListener("click", () => act(text));
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
