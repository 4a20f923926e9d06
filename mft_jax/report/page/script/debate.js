// One debate: agents x rounds, with what each agent was shown, what it said, what was parsed, and what it cost.

let showFormulas = true;

async function debateView(debate) {
  const page = div("debate", debateHead(debate));
  let body;
  try {
    body = await textsOf(debate);
  } catch (error) {
    page.append(element("p", {class: "warning"}, literal(String(error.message ?? error))));
    return page;
  }
  page.append(roundsGrid(debate, body), compareSection(debate));
  return page;
}

function debateHead(debate) {
  const {question, stage} = debate;
  const position = shown.indexOf(debate);
  const step = (by, title) => {
    const other = position < 0 ? undefined : shown[position + by];
    return element("a", {class: "button", href: other && debateAddress(other), "aria-disabled": String(!other)}, title);
  };
  const link = element("button", {type: "button", title: "Copy a link to this debate", onclick: () => copy(location.href, link)}, "Link");
  return div("debate-head",
    div("bar",
      element("a", {class: "button", href: listAddress(), id: "back"}, "← All debates"),
      step(-1, "↑ Previous (k)"), step(1, "↓ Next (j)"),
      span("position", position < 0 ? "" : `${position + 1} of ${shown.length}`),
      element("button", {type: "button", id: "formulas", "aria-pressed": String(showFormulas), title: "Render formulas (m)",
        onclick: toggleFormulas}, "Formulas"),
      link),
    element("p", {class: "where"}, literal(fullTitle(debate)), " · ", span("id", literal(question.id))),
    element("div", {class: "question-text"}, modelText(question.text, {formulas: showFormulas})),
    div("outcome",
      answerChip(debate.vote, debate.voteMarks.at(-1), "vote"),
      span("chip", span("label", "gold"), span("value", question.gold === null ? "not known" : literal(question.gold))),
      span("chip", span("label", "agents that agree"), span("value", `${Math.round(debate.agreement * debate.marks.length)} of ${debate.marks.length}`)),
      [...debate.flags].map((name) => element("span", {class: "tag", title: FLAG_TITLES[name][1]}, FLAG_TITLES[name][0]))),
    stage.split === "train" ? element("p", {class: "note"}, "A training question: its gold answer is never used for training.") : null,
    judgePanel(debate));
}

function roundsGrid(debate, body) {
  const rounds = d3.max(body.agents, (turns) => turns.length);
  const grid = element("div", {class: "grid", style: `--agents: ${body.agents.length}`});
  for (let round = 1; round <= rounds; round++) {
    grid.append(element("h2", {class: "round"}, `Round ${round}`,
      answerChip(body.votes[round - 1] ?? null, debate.voteMarks[round - 1] ?? "n", "vote")));
    const cells = body.agents.map((turns, n) =>
      (turns[round - 1] ? turnCell(debate, turns[round - 1], round, n) : div("cell")));
    grid.append(div("agents", cells));
  }
  const turns = body.agents.flat();
  const sampled = [...turns, ...turns.map((turn) => turn.summary).filter((summary) => summary)];
  const sum = (name) => d3.sum(sampled, (part) => part[name] ?? 0);
  grid.append(element("p", {class: "note"}, `Whole debate: ${count(sum("in"))} prompt tokens, ${count(sum("out"))} new tokens` +
    (sum("flops") ? `, ${count(sum("flops"))}FLOPs.` : ".")));
  return grid;
}

function turnCell(debate, turn, round, n) {
  const speaker = debate.stage.speakers[round - 1]?.[n];
  const by = speaker === undefined ? null : speaker ?? "base model";
  const said = turn.said === null ? element("p", {class: "note"}, "No answer: the prompt did not fit into the context.")
    : modelText(turn.said, {answer: turn.answer, formulas: showFormulas});
  return element("article", {class: "cell", "aria-label": `Agent ${n + 1}, round ${round}`},
    div("cell-head", element("b", {}, `Agent ${n + 1}`), by && span("speaker", by), answerChip(turn.answer, turn.mark),
      turn.agrees && element("span", {class: "tag", title: "Equivalent to the final vote"}, "agrees")),
    shownPart(turn, round),
    div("said", said),
    turn.said === null ? null : markButtons(debate, round, n),
    div("cell-foot", costs(turn), turn.end in ENDS && span("tag warning-tag", ENDS[turn.end]),
      (turn.for ?? []).map(([adapter, kind]) => element("span", {class: "tag trained", title: "This message became training data"},
        `trains ${adapter}${kind ? ` (${kind})` : ""}`))));
}

/** What the agent was shown before it answered: the summary as it saw it, or the whole message. */
function shownPart(turn, round) {
  const whole = () => modelText(turn.shown.join(""), {formulas: showFormulas});
  if (turn.shown.length < 3)
    return folded(round === 1 ? "prompt" : "what it was shown", whole, {open: round > 1 && turn.shown[0] !== "", style: "shown"});
  return div("shown",
    element("blockquote", {class: "seen", title: "The summary of the other agents' answers, as this agent saw it"},
      div("label", "the summary that it was shown", turn.summary && [" · ", costs(turn.summary)]),
      modelText(turn.shown[1], {formulas: showFormulas})),
    folded("whole prompt", whole));
}

const costs = (part) => span("cost", `${count(part.in)} + ${count(part.out)} tokens` + (part.flops ? ` · ${count(part.flops)}FLOPs` : ""));

function toggleFormulas() {
  showFormulas = !showFormulas;
  render();
}
