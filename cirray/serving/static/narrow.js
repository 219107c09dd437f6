// What narrows a search: a text that is not wanted, and a filter over the metadata, with the counts of its columns.

import { facets, imagePath } from "./service.js";
import { nameOf } from "./trail.js";
import { $, chips, query } from "./view.js";

const SHOWN = 12; // values of a column that are offered
const NAME = /^[\p{L}_][\p{L}\p{N}_.-]*$/u;

const quoted = (name) => (NAME.test(name) ? name : `\`${name}\``);
const said = (value) => (typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : String(value));

// A condition that is not there yet is joined to the filter; one that is there already leaves it.
function toggled(filter, condition) {
  const parts = filter.split(" and ").map((part) => part.trim()).filter(Boolean);
  const left = parts.filter((part) => part !== condition);
  return (left.length < parts.length ? left : [...parts, condition]).join(" and ");
}

export function connectNarrow(page, { shapes = [], columns = [] }) {
  const [words, filters] = [shapes.includes("not a text"), columns.length > 1];
  $("unwantedbox").hidden = !words;
  $("filterbox").hidden = !filters;
  $("narrowbox").hidden = !words && !filters;
  $("filter").placeholder = filters ? `${quoted(columns[1])} is not null` : "";
  for (const name of ["unwanted", "filter"]) {
    $(name).addEventListener("input", () => {
      page.edit({ [name]: $(name).value.trim() });
      if (name === "unwanted" && page.entry().unwanted) page.edit({ unlike: "" }); // one of the two
    });
    $(name).addEventListener("change", () => page.save());
    $(name).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault();
        page.search({ [name]: $(name).value.trim() });
      }
    });
  }
  $("narrowbox").addEventListener("toggle", () => $("narrowbox").open && filters && renderFacets(page));
}

export function renderNarrow({ filter, unwanted, without = [], unlike }, page) {
  for (const [name, value] of Object.entries({ filter, unwanted })) {
    if ($(name).value.trim() !== (value ?? "")) $(name).value = value ?? "";
  }
  if (filter || unwanted) $("narrowbox").open = true;
  if ($("narrowbox").open && !$("filterbox").hidden) renderFacets(page);
  $("withoutbox").hidden = !without.length;
  chips($("without"), without.map(nameOf), (_, place) => {
    page.change({ without: without.toSpliced(place, 1) });
    ($("without").children[place] ?? $("without").firstElementChild ?? $("submit")).focus();
  });
  $("unlikebox").hidden = !unlike;
  $("unlike").replaceChildren(...(unlike ? [query(imagePath(unlike), `${nameOf(unlike)} ×`, () => page.change({ unlike: "" }))] : []));
}

let asked = null;
async function renderFacets(page) {
  const { filter } = page.entry();
  if (asked === filter) return;
  asked = filter;
  const found = await facets(filter).catch(() => null); // a filter that is wrong is told by the search
  if (!found || asked !== filter) return;
  const shown = found.columns.find(({ values }) => values.length);
  if (shown) $("filter").placeholder = `${quoted(shown.column)} = ${said(shown.values[0].value)}`;
  $("facets").replaceChildren(...found.columns.map((column) => facet(column, page)).filter(Boolean));
}

function facet({ column, values, least, most }, page) {
  if (!values.length && least === null) return null;
  const box = document.createElement("div");
  const title = document.createElement("p");
  title.textContent = least === null ? column : `${column}, ${least} to ${most}`;
  const row = document.createElement("div");
  row.className = "chips";
  const conditions = new Map(
    (least === null ? values.slice(0, SHOWN) : []).map(({ value, count }) => [`${value} (${count})`, `${quoted(column)} = ${said(value)}`]),
  );
  chips(row, [...conditions.keys()], (label) => {
    page.change({ filter: toggled(page.entry().filter ?? "", conditions.get(label)) });
  });
  box.append(title, row);
  return box;
}
