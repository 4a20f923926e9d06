// Addresses, views and keys.

const KEYS = [
  ["j, k", "next, previous debate"], ["Enter", "open the marked debate"], ["[, ]", "the same question one stage earlier, later"],
  ["m", "render formulas, or show their source"], ["/", "search"], ["Escape", "back to the list"], ["s, d", "summary, debates"],
  ["?", "this list"],
];

let current = null; // the debate that is open

/** Shows what the address asks for. */
async function render() {
  const [view, query = ""] = decodeHash().split("?");
  const parameters = new URLSearchParams(query);
  const asked = location.hash;
  current = view === "debate" ? debateAt(parameters) ?? null : null;
  let page;
  if (view === "debate") {
    if (!shown.length) applyFilters();
    page = current ? await debateView(current) : element("p", {class: "warning"}, "This report has no such debate.");
  } else if (view === "debates") {
    filters = filtersOf(parameters);
    page = listView();
  } else page = summaryView();
  if (view === "debate" && location.hash !== asked) return; // the address changed while the texts were read
  for (const name of ["summary", "debates"]) {
    const isCurrent = name === (view === "debate" ? "debates" : view || "summary");
    document.getElementById(`to-${name}`).toggleAttribute("aria-current", isCurrent);
  }
  document.getElementById("view").replaceChildren(page);
  if (view === "debate") scrollTo(0, 0);
}

const decodeHash = () => location.hash.slice(1);

const go = (debate) => {
  if (debate) location.hash = debateAddress(debate);
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (isTyping) event.target.blur();
    else if (current) location.hash = listAddress();
    return;
  }
  if (isTyping) return;
  const action = {
    j: () => move(1), k: () => move(-1),
    "[": () => current && go(inOtherStage(current, -1)), "]": () => current && go(inOtherStage(current, 1)),
    m: () => current && toggleFormulas(), s: () => (location.hash = "#summary"), d: () => (location.hash = listAddress()),
    "/": openSearch, "?": () => document.getElementById("help").showModal(),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

/** Opens the next debate, or in the list marks the next row. */
function move(by) {
  if (current) {
    const at = shown.indexOf(current);
    go(at < 0 ? shown[0] : shown[at + by]);
    return;
  }
  const rows = [...document.querySelectorAll(".row")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(at + by, 0), rows.length - 1)]?.focus();
}

function openSearch() {
  if (!document.getElementById("search")) {
    location.hash = listAddress();
    setTimeout(() => document.getElementById("search")?.focus(), 50);
  } else document.getElementById("search").focus();
}

function makeHelp() {
  const help = document.getElementById("help");
  help.append(element("h2", {}, "Keyboard"),
    element("dl", {}, KEYS.map(([keys, title]) => [element("dt", {}, keys), element("dd", {}, title)])),
    element("form", {method: "dialog"}, element("button", {onclick: () => help.close(), type: "button"}, "Close")));
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
}

async function start() {
  try {
    await readReport();
  } catch (error) {
    const reason = `This report cannot be shown (${error}): it needs a browser of 2023 or later, and the whole file.`;
    document.getElementById("view").replaceChildren(element("p", {class: "warning"}, reason));
    return;
  }
  makeHelp();
  addEventListener("hashchange", render);
  addEventListener("keydown", onKey);
  await render();
  document.documentElement.dataset.ready = "yes";
}

start();
