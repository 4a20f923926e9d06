// The same question in the other stages and runs, side by side.

/** All debates of the question, in the order of the report. The same text with another id is another question. */
const debatesOf = (question) => report.debates.filter((debate) =>
  debate.question === question || (debate.question.id === question.id && debate.question.text === question.text));

function compareSection(debate) {
  const all = debatesOf(debate.question);
  if (all.length < 2) return div("alone");
  const texts = element("button", {type: "button", "aria-pressed": "false", onclick: () => showTexts(cards, texts)}, "Show the last answers");
  const cards = div("cards", all.map((other) => compareCard(other, debate)));
  return element("section", {class: "compare"},
    element("h2", {}, "The same question in other iterations and methods"), texts, cards);
}

function compareCard(debate, current) {
  const rounds = d3.max(debate.marks, (own) => own.length);
  const card = element("article", {class: debate === current ? "card current" : "card"},
    element("h3", {}, element("a", {href: debateAddress(debate)}, literal(fullTitle(debate)))),
    answerChip(debate.vote, debate.voteMarks.at(-1), "vote"),
    element("table", {class: "marks-table"},
      element("tbody", {}, d3.range(rounds).map((round) => element("tr", {},
        element("th", {scope: "row"}, `round ${round + 1}`),
        debate.marks.map((own) => element("td", {}, own[round] ? markIcon(own[round]) : "")))))),
    div("last"));
  card.debate = debate;
  return card;
}

/** Shows or hides the last answer of each agent in all cards. */
async function showTexts(cards, button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  for (const card of cards.children) {
    const place = card.querySelector(".last");
    if (!on) {
      place.replaceChildren();
      continue;
    }
    const body = await textsOf(card.debate).catch(() => null);
    place.replaceChildren(...(body?.agents ?? []).map((turns, n) => {
      const turn = turns.findLast((own) => own.said !== null);
      return div("last-answer", element("b", {}, `Agent ${n + 1}`),
        turn ? modelText(turn.said, {answer: turn.answer, formulas: showFormulas}) : "no answer");
    }));
  }
}

/** The debate of the same question in the previous (-1) or next (1) stage; undefined if there is none. */
function inOtherStage(debate, by) {
  const all = debatesOf(debate.question);
  return all[all.indexOf(debate) + by];
}
