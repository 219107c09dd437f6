// Pictures at their own shapes, in rows of one height. Only the cells near the window are in the document, so that a
// gallery of ten thousand pictures costs no more than one of two hundred.

const SHAPES = [0.45, 4]; // narrower and wider pictures leave a margin in their cell
const NEAR = 1.5; // windows above and below that keep their cells

const shape = ({ width, height }) => Math.min(SHAPES[1], Math.max(SHAPES[0], width && height ? width / height : 1));

// Rows of some items: {first, end, top, height}, filled from `first` on. The last one is not stretched.
export function rowsOf(items, first, top, { width, aim, gap, line }) {
  const rows = [];
  let shapes = 0;
  for (let place = first; place < items.length; place++) {
    shapes += shape(items[place]);
    const height = (width - gap * (place - first)) / shapes;
    const full = height <= aim;
    if (!full && place < items.length - 1) continue;
    rows.push({ first, end: place + 1, top, height: full ? height : aim, full });
    top += (full ? height : aim) + line + gap;
    first = place + 1;
    shapes = 0;
  }
  return rows;
}

// A grid in `box`; `make(item, place)` gives the cell of an item. Styles say --aim, --gap and --line in pixels: height
// of a row's pictures, space between cells, height of what stands below a picture.
export function makeGrid(box, make) {
  const cells = new Map(); // place -> cell
  let items = [], total = 0, rows = [], size = {}, whole = false, current = 0, due = false;

  function measure() {
    const style = getComputedStyle(box);
    const [aim, gap, line] = ["--aim", "--gap", "--line"].map((name) => parseFloat(style.getPropertyValue(name)));
    size = { width: box.clientWidth, aim, gap, line };
  }

  function arrange() {
    while (rows.length && !rows.at(-1).full) rows.pop();
    const last = rows.at(-1);
    const top = last ? last.top + last.height + size.line + size.gap : 0;
    rows.push(...rowsOf(items, last ? last.end : 0, top, size));
    const end = rows.at(-1);
    box.style.height = `${end ? Math.ceil(end.top + end.height + size.line) : 0}px`;
  }

  const rowAt = (test) => {
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (test(rows[middle])) high = middle;
      else low = middle + 1;
    }
    return Math.min(low, rows.length - 1);
  };
  const rowOf = (place) => rows[rowAt((row) => row.end > place)];

  function put(cell, place, row) {
    let left = 0;
    for (let before = row.first; before < place; before++) left += shape(items[before]) * row.height + size.gap;
    const { style } = cell;
    style.left = `${left}px`;
    style.top = `${row.top}px`;
    style.width = `${shape(items[place]) * row.height}px`;
    style.setProperty("--picture", `${row.height}px`);
  }

  function add(place, row, next) {
    const cell = make(items[place], place);
    cell.setAttribute("aria-posinset", place + 1);
    cell.setAttribute("aria-setsize", total);
    put(cell, place, row);
    cells.set(place, cell);
    box.insertBefore(cell, next);
    reach(cell, place === current);
    return cell;
  }

  // Add what came near, drop what is far; the cell with the focus stays.
  function update() {
    due = false;
    if (!rows.length) return;
    const top = -box.getBoundingClientRect().top;
    const from = whole ? 0 : rowAt((row) => row.top + row.height > top - NEAR * innerHeight);
    const to = whole ? rows.length - 1 : rowAt((row) => row.top > top + (1 + NEAR) * innerHeight);
    const [first, end] = [rows[from].first, rows[to].end];
    let next = null;
    for (const [place, cell] of cells) {
      if (place >= first && place < end) continue;
      if (cell.contains(document.activeElement)) next = place >= end ? cell : next;
      else (cell.remove(), cells.delete(place));
    }
    for (let at = to; at >= from; at--) {
      for (let place = rows[at].end - 1; place >= rows[at].first; place--) {
        next = cells.get(place) ?? add(place, rows[at], next);
      }
    }
  }

  function later() {
    if (due) return;
    due = true;
    requestAnimationFrame(update);
  }

  // One cell is a stop of the Tab key; arrows lead to the others.
  const reach = (cell, yes) => cell.querySelectorAll("button").forEach((button) => (button.tabIndex = yes ? 0 : -1));

  function stop(place) {
    if (cells.has(current)) reach(cells.get(current), false);
    current = place;
    if (cells.has(current)) reach(cells.get(current), true);
  }

  function focus(place, selector = "button") {
    if (place < 0 || place >= items.length) return;
    const row = rowOf(place);
    const { top } = box.getBoundingClientRect();
    const [above, below] = [top + row.top, top + row.top + row.height + size.line];
    if (above < 0 || below > innerHeight) scrollBy({ top: above < 0 ? above - 12 : below - innerHeight + 12, behavior: "instant" });
    update();
    stop(place);
    cells.get(place).querySelector(selector).focus({ preventScroll: true });
  }

  function beside(place, step) {
    const here = rowOf(place);
    const there = rows[rows.indexOf(here) + step];
    if (!there) return place;
    const middle = (cell) => parseFloat(cell.style.left) + parseFloat(cell.style.width) / 2;
    const wanted = middle(cells.get(place));
    let [best, left] = [there.first, 0];
    for (let other = there.first, nearest = Infinity; other < there.end; other++) {
      const wide = shape(items[other]) * there.height;
      const away = Math.abs(left + wide / 2 - wanted);
      if (away < nearest) [best, nearest] = [other, away];
      left += wide + size.gap;
    }
    return best;
  }

  box.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -current, End: items.length - 1 - current };
    const vertical = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const step = vertical ? beside(current, vertical) - current : steps[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    focus(current + step, `.${event.target.className}`);
  });
  box.addEventListener("focusin", (event) => {
    const place = placeOf(event.target);
    if (place !== current) stop(place);
  });
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);

  // Another width: the same picture stays at the top of the window.
  new ResizeObserver(() => {
    if (!rows.length || box.clientWidth === size.width) return;
    const top = -box.getBoundingClientRect().top;
    const anchor = top > 0 ? rows[rowAt((row) => row.top + row.height > top)] : null;
    measure();
    rows = [];
    arrange();
    for (const [place, cell] of cells) put(cell, place, rowOf(place));
    if (anchor) scrollBy({ top: rowOf(anchor.first).top - anchor.top, behavior: "instant" });
    update();
  }).observe(box);

  const placeOf = (element) => Number(element.closest("[aria-posinset]").getAttribute("aria-posinset")) - 1;

  // Show some items of `count`; `all` keeps every cell in the document.
  function show(shown, count = shown.length, all = false) {
    box.replaceChildren();
    cells.clear();
    [items, total, whole, rows, current] = [shown, count, all, [], 0];
    measure();
    arrange();
    update();
  }

  // `items` has grown.
  function grown() {
    arrange();
    for (const [place, cell] of cells) put(cell, place, rowOf(place));
    update();
  }

  return { show, grown, update, focus, placeOf, item: (place) => items[place], cells: () => cells.values() };
}
