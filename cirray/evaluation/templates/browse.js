"use strict";

// Pure functions first; the page's wiring is at the end and runs only where there is a document.

const tokens = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];

/** Does every word asked for begin a word of the text? */
function matches(text, asked) {
  const found = tokens(text);
  return tokens(asked).every((word) => found.some((token) => token.startsWith(word)));
}

const hit = (rank, k) => rank !== null && rank <= k;

const GROUPS = {
  1: {
    "all queries": () => true,
    "found": (ranks, k) => hit(ranks[0], k),
    "missed": (ranks, k) => !hit(ranks[0], k),
  },
  2: {
    "all queries": () => true,
    "won": (ranks, k) => hit(ranks[1], k) && !hit(ranks[0], k),
    "lost": (ranks, k) => hit(ranks[0], k) && !hit(ranks[1], k),
    "found by both": (ranks, k) => hit(ranks[0], k) && hit(ranks[1], k),
    "missed by both": (ranks, k) => !hit(ranks[0], k) && !hit(ranks[1], k),
  },
};

const far = (rank) => (rank === null ? 1e9 : rank);
const gain = (ranks) => Math.log(far(ranks[0])) - Math.log(far(ranks[1]));

const ORDERS = {
  1: {
    "worst first": (a, b) => far(b.ranks[0]) - far(a.ranks[0]),
    "best first": (a, b) => far(a.ranks[0]) - far(b.ranks[0]),
    "as in the data set": () => 0,
  },
  2: {
    "most lost first": (a, b) => gain(a.ranks) - gain(b.ranks),
    "most won first": (a, b) => gain(b.ranks) - gain(a.ranks),
    "as in the data set": () => 0,
  },
};

/** Queries that are to be shown, in order. */
function chosen(queries, runs, words, group, k, order) {
  const keep = GROUPS[runs][group];
  return queries
    .filter((query) => keep(query.ranks, k) && matches(query.text, words))
    .sort(ORDERS[runs][order]);
}

function start(data) {
  const PAGE = 20;
  const runs = data.runs.length;
  const at = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const fill = (id, values) => values.forEach((value) => {
    const option = make("option", "", String(value));
    option.value = value;
    at(id).append(option);
  });
  fill("group", Object.keys(GROUPS[runs]));
  fill("order", Object.keys(ORDERS[runs]));
  fill("k", data.ks);

  function picture(id) {
    const uri = data.pictures[id];
    const node = make(uri ? "img" : "span", uri ? "" : "missing", uri ? undefined : id);
    node.title = id;
    if (uri) {
      node.loading = "lazy";
      node.alt = id;
      node.src = uri;
    }
    return node;
  }

  function labelled(id, words) {
    const figure = make("figure");
    figure.append(picture(id), make("figcaption", "", words));
    return figure;
  }

  function answers(query, run) {
    const list = make("ol", "answers");
    query.lists[run].forEach((id) => {
      const kind = query.targets.includes(id) ? "target" : id === query.reference ? "reference" : "";
      const item = make("li", kind);
      item.append(picture(id));
      list.append(item);
    });
    return list;
  }

  function card(query) {
    const article = make("article", "card query");
    const header = make("header");
    query.tags.forEach((tag) => header.append(make("span", "chip", tag)));
    header.append(make("code", "", query.id));
    const ask = make("div", "ask");
    ask.append(labelled(query.reference, "reference"), make("p", "", query.text));
    if (query.targets.length) ask.append(labelled(query.targets[0], "target"));
    article.append(header, ask);
    data.runs.forEach((name, run) => {
      const rank = query.ranks[run];
      const level = hit(rank, 1) ? "good" : hit(rank, 10) ? "fair" : "bad";
      const line = make("div", "run", name);
      line.append(make("span", `rank ${level}`, rank === null ? "not found" : `rank ${rank.toLocaleString("en")}`));
      article.append(line, answers(query, run));
    });
    return article;
  }

  let found = [];
  let shown = 0;
  function more() {
    found.slice(shown, shown + PAGE).forEach((query) => at("queries").append(card(query)));
    shown = Math.min(shown + PAGE, found.length);
    at("more").hidden = shown >= found.length;
    at("count").textContent = `${shown.toLocaleString("en")} of ${found.length.toLocaleString("en")} queries`;
  }
  function again() {
    found = chosen(data.queries, runs, at("words").value, at("group").value, Number(at("k").value), at("order").value);
    shown = 0;
    at("queries").replaceChildren();
    more();
  }
  at("controls").addEventListener("input", again);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", more);
  again();
}

if (typeof document !== "undefined") start(JSON.parse(document.getElementById("data").textContent));
if (typeof module !== "undefined") module.exports = { matches, chosen };
