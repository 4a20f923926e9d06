// A person's verdicts on training debates: marks on answers, and right answers that are written. A served report sends them
// to its server; a report on disk keeps them until they are saved as a file.

const SAYS = {right: ["✓", "This answer is right"], wrong: ["✗", "This answer is wrong"], best: ["★", "This answer is right, and better than the others"]};

let unsaved = new Map(); // run: the verdicts that were given on this page and are not saved yet

const canJudge = (debate) => debate.stage.split === "train" && debate.stage.task === debate.run.task;

/** All verdicts on the question of a debate, the newest first, each with {counts}: whether no newer one contradicts it. */
function verdictsOn(debate) {
  const {run, question} = debate;
  const saved = run.feedback.verdicts.map((verdict, i) => ({...verdict, counts: !run.feedback.overruled.includes(i)}));
  const all = [...saved, ...(unsaved.get(run) ?? []).map((verdict) => ({...verdict, counts: true}))];
  const own = d3.sort(all.filter((verdict) => verdict.id === question.id), (verdict) => moment(verdict.time)).reverse();
  const newest = new Map();
  for (const verdict of own) {
    const newer = newest.get(placeOf(verdict));
    if (newer && contradicts(verdict, newer)) verdict.counts = false;
    if (!newer) newest.set(placeOf(verdict), verdict);
    verdict.isNewest = !newer;
  }
  return own;
}

/** A time without a zone is in UTC. */
const moment = (time) => Date.parse(/(Z|[+-]\d\d:?\d\d)$/.test(time) ? time : `${time}Z`);

const placeOf = (verdict) => ("mark" in verdict ? `${verdict.iteration} ${verdict.agent} ${verdict.round}` : "");

const saysRight = (verdict) => verdict.mark !== "wrong";

function contradicts(older, newer) {
  if (older.mark === "none" || newer.mark === "none" || older.answer === null || newer.answer === null) return false;
  return "mark" in older ? saysRight(older) !== saysRight(newer) : older.answer !== newer.answer;
}

/** "3 of people" or "5 of people, 2 simulated"; null without any. */
function givenVerdicts(run) {
  const {verdicts} = run.feedback;
  const simulated = verdicts.filter((verdict) => verdict.simulated).length;
  return verdicts.length ? `${verdicts.length - simulated} of people` + (simulated ? `, ${simulated} simulated` : "") : null;
}

/** Takes a verdict. Shows what went wrong, if it cannot be kept. */
async function give(debate, verdict, problem) {
  const {run, question} = debate;
  const whole = {id: question.id, ...verdict, time: new Date().toISOString()};
  problem.textContent = "";
  try {
    if (report.served) run.feedback = await sendVerdict(run, whole);
    else unsaved.set(run, [...(unsaved.get(run) ?? []), whole]);
  } catch (error) {
    problem.textContent = `The verdict was not taken: ${error.message}`;
    return;
  }
  showSaveButton();
  const at = scrollY;
  await render();
  scrollTo(0, at);
}

/** Sends a verdict on a run to the server of the report. Returns the feedback on the run from then on. */
async function sendVerdict(run, verdict) {
  const headers = {"Content-Type": "application/json"};
  const response = await fetch(`verdicts?${new URLSearchParams({run: run.name})}`, {method: "POST", headers, body: JSON.stringify(verdict)});
  const said = await response.json();
  if (!response.ok) throw new Error(said.error);
  return said;
}

/** The buttons that mark an answer. A second press withdraws the mark. */
function markButtons(debate, round, n) {
  if (!canJudge(debate)) return null;
  const place = {iteration: debate.stage.iteration, agent: n + 1, round};
  const current = verdictsOn(debate).find((verdict) => verdict.isNewest && placeOf(verdict) === placeOf({mark: "", ...place}))?.mark;
  const problem = element("p", {class: "problem", role: "alert"});
  return div("judge", Object.entries(SAYS).map(([mark, [sign, title]]) => element("button", {
    type: "button", class: `say ${mark}`, title, "data-mark": mark, "aria-pressed": String(current === mark),
    onclick: () => give(debate, {...place, mark: current === mark ? "none" : mark}, problem),
  }, `${sign} ${mark}`)), problem);
}

/** What people said about the question, and a field for its right answer. */
function judgePanel(debate) {
  if (!canJudge(debate)) return null;
  const input = element("input", {type: "text", id: "right-answer", maxlength: 1000, "aria-label": "right answer", placeholder: "the right answer"});
  const problem = element("p", {class: "problem", role: "alert"});
  const form = element("form", {class: "judge", onsubmit: (event) => {
    event.preventDefault();
    if (input.value.trim()) give(debate, {answer: input.value.trim()}, problem);
  }}, input, element("button", {type: "submit"}, "Give the right answer"));
  const given = verdictsOn(debate);
  return element("section", {class: "feedback"},
    element("p", {class: "note"}, "Your verdict replaces the vote on this question in the next iteration: mark answers below, or give the right answer."),
    form, problem,
    given.length ? element("ul", {class: "verdicts"}, given.map(verdictItem)) : null);
}

function verdictItem(verdict) {
  const said = "mark" in verdict
    ? `agent ${verdict.agent}, round ${verdict.round}, iteration ${verdict.iteration}: ${verdict.mark === "none" ? "not marked" : verdict.mark}`
    : verdict.answer === null ? "no answer is given" : ["the answer is ", element("b", {class: "text"}, literal(verdict.answer))];
  return element("li", {}, said, " · ", span("note", literal(verdict.time)),
    verdict.simulated && span("tag", "simulated"),
    !verdict.counts && element("span", {class: "tag warning-tag", title: "The newest verdict counts"}, "contradicted by a newer verdict"));
}

/** Shows how many verdicts are not saved yet. */
function showSaveButton() {
  const count = d3.sum(unsaved.values(), (own) => own.length);
  let button = document.getElementById("save-verdicts");
  if (!button && count) {
    button = element("button", {type: "button", id: "save-verdicts", onclick: saveVerdicts});
    document.getElementById("help-button").before(button);
  }
  if (button) {
    button.hidden = !count;
    button.textContent = `Save ${count} ${count === 1 ? "verdict" : "verdicts"}`;
    button.title = "Saves feedback.jsonl; put it into the directory of the run, or add it: mft review RUN_DIR --add feedback.jsonl";
  }
}

/** Saves one file for each run: its earlier verdicts, and those given on this page. */
function saveVerdicts() {
  for (const [run, given] of unsaved) {
    run.feedback.verdicts.push(...given);
    const lines = run.feedback.verdicts.map((verdict) => `${JSON.stringify(verdict)}\n`);
    const name = report.runs.length > 1 ? `${run.name.replace(/[^\w.-]+/g, "_")}-feedback.jsonl` : "feedback.jsonl";
    saveFile(name, new Blob(lines, {type: "application/jsonl"}));
  }
  unsaved = new Map();
  showSaveButton();
}

addEventListener("beforeunload", (event) => {
  if (unsaved.size) event.preventDefault();
});
