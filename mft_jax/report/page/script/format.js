// Formats numbers and marks.

const UNITS = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** 812, 94.2 k, 1.11 M: at most three digits. */
function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of UNITS) if (value >= 0.9995 * size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  return String(Number(value.toPrecision(3)));
}

/** 12.3 s, 4 min 10 s, 3 h 20 min. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : (100 * share).toFixed(digits));

const MARKS = {r: ["✓", "right"], w: ["✗", "wrong"], n: ["∅", "no answer"], u: ["·", "not known"]};

/** A mark of an answer as an icon: r right, w wrong, n no answer, u not known. */
function markIcon(mark) {
  const [sign, name] = MARKS[mark];
  return element("span", {class: `mark ${name.replace(" ", "-")}`, title: name, "aria-label": name}, sign);
}

/** An answer with its mark. */
function answerChip(answer, mark, label = null) {
  return span(`chip ${MARKS[mark][1].replace(" ", "-")}`, label && span("label", label), markIcon(mark),
    span("value", answer === null ? "no answer" : literal(answer)));
}

const FLAG_TITLES = {
  wrong_to_right: ["wrong → right", "An agent's first answer is wrong or missing, and its last one right"],
  right_to_wrong: ["right → wrong", "An agent's first answer is right, and its last one wrong or missing"],
  split: ["split vote", "The last answers of the agents are not all the same"],
  vote_wrong: ["vote against gold", "The final vote is not the reference answer"],
  vote_right: ["vote right", "The final vote is the reference answer"],
  vote_changed: ["vote changed", "The vote of the last round differs from that of the first"],
  unparsed: ["unparseable", "A text has no answer"],
  cut: ["cut off", "A text was cut by a limit, or a prompt had no room in the model's context"],
  trained: ["trained on", "A message became training data"],
};

const ENDS = {
  limit: "cut off by max_new_tokens", context: "cut off at the end of the context",
  unanswerable: "the prompt did not fit into the context",
};
