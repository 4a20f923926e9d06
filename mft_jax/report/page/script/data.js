// The data of the report: read from the page, or, if they did not fit in, from the parts beside it.

const report = {runs: [], questions: [], flags: [], places: [], debates: []};

/** Parses base64 of deflated JSON. */
async function inflate(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const embedded = (id) => document.getElementById(id).textContent;

/** Reads everything except the texts of the debates. */
async function readReport() {
  const [summary, index, places] = await Promise.all(["summary", "index", "places"].map((id) => inflate(embedded(id))));
  Object.assign(report, summary, {questions: index.questions, flags: index.flags, places});
  report.runs.forEach((run, r) => {
    run.stages = index.stages[r];
    run.stages.forEach((stage) => stage.rows.forEach((row, at) => report.debates.push(debateOf(run, stage, row, at))));
  });
  report.debates.forEach((debate, order) => (debate.order = order));
}

/** One debate without its texts, from its row in the index (see debates.py). */
function debateOf(run, stage, row, at) {
  const [question, bits, marks, vote, voteMarks, agreement, tokens] = row;
  const flags = new Set(report.flags.filter((name, bit) => bits & (1 << bit)));
  return {run, stage, at, question: report.questions[question], flags, marks, vote, voteMarks, agreement, tokens};
}

const chunks = new Map();

/** The texts of a debate: {agents: [[turn, ...], ...], votes}. */
async function textsOf(debate) {
  const number = debate.stage.first_chunk + Math.floor(debate.at / debate.stage.chunk_debates);
  if (!chunks.has(number)) {
    chunks.set(number, (report.places[number] === null ? Promise.resolve(embedded(`chunk-${number}`)) : loadPart(number))
      .then(inflate));
    chunks.get(number).catch(() => chunks.delete(number));
  }
  return (await chunks.get(number))[debate.at % debate.stage.chunk_debates];
}

const waiting = new Map();

globalThis.receivePart = (number, base64) => waiting.get(number)?.(base64);

/** Loads a part of the report as a script, because a page on disk may read other files in no other way. */
function loadPart(number) {
  return new Promise((resolve, reject) => {
    waiting.set(number, resolve);
    const script = element("script", {src: report.places[number]});
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`${report.places[number]} is missing: it belongs beside this file.`));
    document.head.append(script);
  });
}

/** Such as "multiagent_ft, iteration 2, training debate". */
function stageTitle(stage) {
  const when = stage.iteration ? `iteration ${stage.iteration}` : "untuned";
  const what = stage.split === "train" ? ", training debate" : "";
  return `${stage.method}, ${when}${what}`;
}

/** As `stageTitle`, with the names of the task and of the run where the report has several. */
function fullTitle(debate) {
  const other = debate.stage.task === debate.run.task ? "" : ` on ${debate.stage.task}`;
  return (report.runs.length > 1 ? `${debate.run.name}: ` : "") + stageTitle(debate.stage) + other;
}
