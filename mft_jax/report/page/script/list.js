// The list of debates with its filters. The filters are part of the address, so that a link leads to what they show.

const PAGE_ROWS = 100; // rows added at a time
const SORTS = {
  order: ["as in the run", (debate) => debate.order],
  question: ["question", (debate) => debate.question.id],
  agreement: ["least agreement first", (debate) => debate.agreement],
  right: ["fewest right answers first", (debate) => d3.sum(debate.marks, (own) => own.at(-1) === "r")],
  changes: ["most changes first", (debate) => -d3.sum(debate.marks, (own) => d3.sum(own, (mark, i) => i > 0 && mark !== own[i - 1]))],
  tokens: ["most tokens first", (debate) => -debate.tokens],
};
const NO_FILTERS = {flags: [], run: "", method: "", iteration: "", split: "eval", text: "", sort: "order"};

let filters = {...NO_FILTERS};
let shown = []; // the debates that the filters leave, in the order of the list
let textHits = null; // {text, found: Set of debates}: what the search in the texts found
let searching = null; // the search that is going on

/** The filters of an address such as "#debates?flags=split,cut&iteration=2". */
function filtersOf(parameters) {
  const own = {...NO_FILTERS, ...Object.fromEntries(parameters)};
  const flags = parameters.get("flags")?.split(",").filter((name) => report.flags.includes(name)) ?? [];
  return {...own, flags, sort: own.sort in SORTS ? own.sort : "order"};
}

function listAddress() {
  const changed = Object.entries(filters).filter(([name, value]) => String(value) !== String(NO_FILTERS[name]));
  return changed.length ? `#debates?${new URLSearchParams(changed)}` : "#debates";
}

const options = (values, all = "all") => [["", all], ...[...new Set(values)].map((value) => [String(value), String(value)])];

function listView() {
  const rows = div("rows");
  const status = element("p", {class: "list-status", role: "status"});
  const refresh = () => {
    history.replaceState(null, "", listAddress());
    applyFilters();
    fillRows(rows, status);
    search(() => {
      applyFilters();
      fillRows(rows, status);
    });
  };
  const change = (name) => (value) => {
    filters[name] = value;
    refresh();
  };
  const page = div("list", filterBar(change, refresh), status, rows);
  refresh();
  return page;
}

function filterBar(change, refresh) {
  const all = report.debates;
  const text = element("input", {
    type: "search", id: "search", placeholder: "question, answer or any text (/)", "aria-label": "text", value: filters.text,
  });
  let timer = 0;
  text.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => change("text")(text.value), 250);
  });
  const flags = report.flags.filter((name) => all.some((debate) => debate.flags.has(name))).map((name) => {
    const [title, hint] = FLAG_TITLES[name];
    const button = element("button", {
      type: "button", class: "flag", title: hint, "data-flag": name, "aria-pressed": String(filters.flags.includes(name)),
      onclick: () => {
        const on = !filters.flags.includes(name);
        filters.flags = on ? [...filters.flags, name] : filters.flags.filter((own) => own !== name);
        button.setAttribute("aria-pressed", String(on));
        refresh();
      },
    }, title);
    return button;
  });
  return div("filters",
    div("choices", text,
      choice("questions", [["eval", "evaluation"], ["train", "training"], ["", "all"]], filters.split, change("split")),
      report.runs.length > 1 && choice("run", options(report.runs.map((run) => run.name)), filters.run, change("run")),
      choice("method", options(all.map((debate) => debate.stage.method)), filters.method, change("method")),
      choice("iteration", options(all.map((debate) => debate.stage.iteration)), filters.iteration, change("iteration")),
      choice("sort", Object.entries(SORTS).map(([name, [title]]) => [name, title]), filters.sort, change("sort"))),
    div("flags", flags));
}

function applyFilters() {
  const text = filters.text.trim().toLowerCase();
  const has = (value) => value !== null && value.toLowerCase().includes(text);
  const inTexts = textHits?.text === text ? textHits.found : new Set();
  shown = report.debates.filter((debate) =>
    passes(debate) &&
    (!text || has(debate.question.text) || has(debate.question.id) || has(debate.vote) || has(debate.question.gold) || inTexts.has(debate)));
  const [, key] = SORTS[filters.sort];
  if (filters.sort !== "order") shown = d3.sort(shown, (debate) => key(debate));
}

/** Whether a debate passes all filters except the text. */
function passes(debate) {
  const {stage, run} = debate;
  return (!filters.split || stage.split === filters.split) && (!filters.run || run.name === filters.run) &&
    (!filters.method || stage.method === filters.method) &&
    (filters.iteration === "" || stage.iteration === Number(filters.iteration)) &&
    filters.flags.every((name) => debate.flags.has(name));
}

/** Searches the texts of the debates that pass the other filters; calls `onFound` after new hits, at most every 0.4 s. */
async function search(onFound) {
  const text = filters.text.trim().toLowerCase();
  const mine = (searching = {});
  if (!text) return;
  if (textHits?.text !== text) textHits = {text, found: new Set()};
  const {found} = textHits;
  let news = false;
  let told = performance.now();
  for (const debate of report.debates.filter(passes)) {
    const body = await textsOf(debate).catch(() => null);
    if (searching !== mine) return;
    if (!body || found.has(debate) || !textMatches(body, text)) continue;
    found.add(debate);
    news = true;
    if (performance.now() - told > 400) {
      onFound();
      news = false;
      told = performance.now();
    }
  }
  mine.done = true;
  if (news) onFound();
}

const textMatches = (body, text) => body.agents.some((turns) => turns.some((turn) =>
  turn.said?.toLowerCase().includes(text) || turn.shown.join("").toLowerCase().includes(text)));

function fillRows(rows, status) {
  const count = shown.length.toLocaleString("en");
  const known = shown.filter((debate) => debate.flags.has("vote_right") || debate.flags.has("vote_wrong"));
  const right = known.filter((debate) => debate.flags.has("vote_right")).length;
  status.textContent = `${count} of ${report.debates.length.toLocaleString("en")} debates` +
    (known.length ? `; the vote is right in ${percent(right / known.length)} %` : "");
  rows.replaceChildren();
  let next = 0;
  const more = element("button", {type: "button", class: "more", onclick: () => add()}, "Show more");
  const add = () => {
    more.remove();
    rows.append(...shown.slice(next, next + PAGE_ROWS).map(listRow));
    next += PAGE_ROWS;
    if (next < shown.length) rows.append(more);
  };
  add();
}

function listRow(debate) {
  const mark = debate.voteMarks.at(-1);
  return element("a", {class: "row", href: debateAddress(debate)},
    span("question", literal(debate.question.text.slice(0, 200))),
    span("stage", literal(fullTitle(debate))),
    span("marks", debate.marks.map((own) => span("agent", [...own].map(markIcon)))),
    answerChip(debate.vote, mark, "vote"),
    debate.question.gold === null ? null : span("gold", span("label", "gold"), literal(debate.question.gold)),
    span("tokens", `${count(debate.tokens)} tokens`));
}

function debateAddress(debate) {
  const parameters = {run: debate.run.name, stage: debate.stage.stage, id: debate.question.id};
  return `#debate?${new URLSearchParams(parameters)}`;
}

/** The debate that an address points to; undefined if there is none. */
const debateAt = (parameters) => report.debates.find((debate) =>
  debate.run.name === parameters.get("run") && debate.stage.stage === parameters.get("stage") &&
  debate.question.id === parameters.get("id"));
