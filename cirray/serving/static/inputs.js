// What people do, handed to the page: typing, choosing, dropping, pasting, dragging, clicking.

import { connectLarge } from "./large.js";
import { connectPart } from "./part.js";
import { $, complain } from "./view.js";

const ID = "application/x-cirray-id"; // a picture that is dragged out of the grid

export function connectQuery(page) {
  let pause;
  const save = () => {
    clearTimeout(pause);
    page.edit({ scroll: scrollY, seen: page.displayed()?.read?.items.length ?? page.entry().seen });
    page.save();
  };
  const later = () => {
    clearTimeout(pause);
    pause = setTimeout(save, 300); // browsers limit how often history may be written
  };
  $("text").addEventListener("input", () => {
    page.edit({ text: $("text").value.trim() });
    page.changed();
    later();
  });
  addEventListener("scroll", later, { passive: true });
  addEventListener("beforeunload", save);
  $("query").addEventListener("submit", () => page.search());
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    page.search();
  });
  connectWeight(page);
  connectPart(page);
  $("keep").addEventListener("change", () => page.change({ keep: $("keep").checked }));
  $("count").addEventListener("change", () => page.recount($("count").value));
  $("file").addEventListener("change", () => {
    if ($("file").files.length) page.take($("file").files[0]);
    $("file").value = "";
  });
  $("clear").addEventListener("click", () => page.choose(null));
  $("enlarge").addEventListener("click", page.large);
}

// Moving the slider tells the weight; letting it go asks again, where answers to this query are on display.
function connectWeight(page) {
  const weigh = (weight) => {
    page.edit({ weight: weight === page.usualWeight ? null : weight });
    page.changed();
  };
  $("weight").addEventListener("input", () => weigh(Number($("weight").value)));
  $("weight").addEventListener("change", page.weigh);
  $("usual").addEventListener("click", () => {
    weigh(page.usualWeight);
    $("weight").focus();
    page.weigh();
  });
}

export function connectResults(page) {
  $("grid").addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell || !page.displayed()) return;
    if (event.target.closest(".use")) page.use(cell.dataset.id);
    else if (event.target.closest(".not")) page.leaveOut(cell.dataset.id, page.place(cell));
    else if (event.target.closest(".less")) page.less(cell.dataset.id);
    else if (event.target.closest(".open")) page.openLarge(page.place(cell));
  });
  $("grid").addEventListener("dragstart", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    event.dataTransfer.setData(ID, cell.dataset.id);
    event.dataTransfer.effectAllowed = "copy";
  });
  $("more").addEventListener("click", page.more);
  $("shuffle").addEventListener("click", () => page.toGallery(Math.floor(Math.random() * page.size)));
  $("back").addEventListener("click", () => page.toGallery());
  $("share").addEventListener("click", page.share);
  connectLarge(page);
}

export function connectDrop(page) {
  const over = (event) => {
    if (event.target === $("text") && !["Files", ID].some((kind) => event.dataTransfer.types.includes(kind))) return;
    event.preventDefault();
    $("drop").classList.add("over");
  };
  document.addEventListener("dragenter", over);
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    const file = event.dataTransfer.files[0];
    const id = event.dataTransfer.getData(ID);
    if (!file && !id && event.target === $("text")) return;
    event.preventDefault();
    if (id) page.use(id);
    else if (file) page.take(file);
    else complain("That was no file. Drop a picture from a folder of this computer.");
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) page.take(event.clipboardData.files[0]);
    else if (event.target !== $("text")) complain("The clipboard holds no picture.");
  });
}
