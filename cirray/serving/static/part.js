// The part of the reference that is meant: a box that is drawn on it, moved by hand or by keys.

import { $ } from "./view.js";

const LEAST = 0.04; // a smaller box is a slip of the hand
const MIDDLE = [0.25, 0.25, 0.5, 0.5];
const STEP = 0.02;

const between = (value, most) => Math.min(Math.max(value, 0), most);
const round = (box) => box.map((share) => Math.round(1000 * share) / 1000);
const moved = ([x, y, width, height], dx, dy) => [between(x + dx, 1 - width), between(y + dy, 1 - height), width, height];
const sized = ([x, y, width, height], dx, dy) =>
  [x, y, Math.max(LEAST, Math.min(width + dx, 1 - x)), Math.max(LEAST, Math.min(height + dy, 1 - y))];

let box = null; // what is drawn at this moment

// Lay the drawing over the picture, which is shown whole inside its frame.
function place() {
  const image = $("enlarge").querySelector("img");
  $("part").hidden = !box || !image?.naturalWidth;
  if ($("part").hidden) return;
  const { clientWidth: wide, clientHeight: high } = $("enlarge");
  const scale = Math.min(wide / image.naturalWidth, high / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const lines = { left: (wide - width) / 2, top: (high - height) / 2, width, height };
  for (const [name, value] of Object.entries(lines)) $("part").style[name] = `${value}px`;
  ["left", "top", "width", "height"].forEach((name, at) => ($("box").style[name] = `${100 * box[at]}%`));
  const [x, y, across, down] = box.map((share) => `${Math.round(100 * share)} %`);
  const keys = "Arrow keys move it, with Shift they size it, Delete takes it away.";
  $("box").setAttribute("aria-label", `Part of the picture: ${across} wide and ${down} high, ${x} from the left, ${y} from the top. ${keys}`);
}

export function renderPart({ reference, box: given }) {
  box = reference ? given : null;
  $("mark").hidden = !reference;
  $("mark").textContent = box ? "whole picture" : "only a part";
  $("mark").setAttribute("aria-pressed", Boolean(box));
  place();
}

// `page.change({ box })` is told of a box that is finished.
export function connectPart(page) {
  const finish = (next) => page.change({ box: next && round(next) });
  $("mark").addEventListener("click", () => {
    finish(box ? null : MIDDLE);
    if (box) $("box").focus();
  });
  connectPointer(finish);
  connectKeys(finish);
  $("enlarge").addEventListener("load", place, true);
  new ResizeObserver(place).observe($("drop"));
}

// A press inside the box moves it; elsewhere on the picture it begins another one.
function connectPointer(finish) {
  let held = null;
  const at = (event) => {
    const { left, top, width, height } = $("part").getBoundingClientRect();
    return [between((event.clientX - left) / width, 1), between((event.clientY - top) / height, 1)];
  };
  $("part").addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = { from: at(event), before: box, moves: event.target === $("box") };
    $("part").setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  $("part").addEventListener("pointermove", (event) => {
    if (!held) return;
    const [[x, y], [left, top]] = [at(event), held.from];
    box = held.moves
      ? moved(held.before, x - left, y - top)
      : [Math.min(x, left), Math.min(y, top), Math.abs(x - left), Math.abs(y - top)];
    place();
  });
  const done = (kept) => {
    if (!held) return;
    const { before } = held;
    held = null;
    const fits = kept && box[2] >= LEAST && box[3] >= LEAST;
    if (!fits) box = before;
    place();
    if (fits && box !== before) finish(box);
    $("box").focus({ preventScroll: true });
  };
  $("part").addEventListener("pointerup", () => done(true));
  $("part").addEventListener("pointercancel", () => done(false));
}

function connectKeys(finish) {
  let pause;
  $("box").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
    if (!step && event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
    clearTimeout(pause);
    if (!step) {
      $("mark").focus();
      return finish(null);
    }
    box = (event.shiftKey ? sized : moved)(box, ...step);
    place();
    const drawn = box;
    pause = setTimeout(() => box === drawn && finish(drawn), 500); // one search for a row of presses
  });
}
