// The summary: results with their cost, charts, and what is needed to repeat the run.

function summaryView() {
  const several = report.runs.length > 1;
  const page = div("summary", report.runs.map(runHead));
  const results = report.runs.flatMap((run) => run.results.map((row) => ({run, ...row})));
  if (results.length) {
    page.append(section("Results", resultsTable(results, several),
      div("charts", accuracyChart(), flopsChart(), diversityChart(), passChart(), precisionChart())));
  } else {
    page.append(section("Results", element("p", {}, "There are no results yet.")));
  }
  const judged = results.filter((row) => row.monitor);
  if (judged.length) page.append(section("Does it still improve?", monitorTable(judged, several)));
  const flows = report.runs.flatMap((run) => run.stages.filter((stage) => hasTransitions(stage)).map((stage) => ({run, stage})));
  if (flows.length) page.append(section("How answers change in a debate", flowSection(flows, several)));
  const trained = report.runs.filter((run) => run.curves.length);
  if (trained.length) page.append(section("Finetuning", trained.map(curvesChart)));
  page.append(section("Time and tokens", report.runs.map((run) => [stageChart(run), workTable(run)])));
  page.append(section("Configuration", report.runs.map(configuration)));
  page.append(element("footer", {}, `Made ${report.made} by mft_jax ${report.version}.`));
  return page;
}

const section = (title, ...content) => element("section", {}, element("h2", {}, title), ...content);

function runHead(run) {
  const facts = [
    ["task", run.task], ["model", run.model], ["method", run.method], ["started", run.started], ["finished", run.finished],
    ["verdicts", givenVerdicts(run)],
  ].filter(([, value]) => value);
  const warning = run.state === "finished" && !run.left.length ? null : element("p", {class: "warning"},
    `This run is ${run.state}: it is not complete. `, run.error && literal(`It stopped with: ${run.error} `),
    run.left.length ? `Still to do: ${run.left.join(", ")}.` : null);
  return div("run-head",
    element("h1", {}, literal(run.name)),
    element("dl", {}, facts.map(([name, value]) => [element("dt", {}, name), element("dd", {}, literal(String(value)))])),
    warning,
    run.problems.map((problem) => element("p", {class: "warning"}, literal(problem))));
}

function resultsTable(results, several) {
  const cost = (name, title, hint, format = count) => ({title, hint, cell: (row) =>
    [format(row[name]), row.iteration ? span("cumulative", row.cumulative ? format(row.cumulative[name]) : "–") : null]});
  const tasks = new Set(results.map((row) => row.task)).size > 1;
  const counts = [["cut", "cut", "Answers cut off by a limit"], ["unanswered", "unans.", "Turns whose prompt did not fit into the context"],
    ["grading_timeouts", "late", "Comparisons of answers that ran out of time and count as different"]]
    .filter(([name]) => results.some((row) => row[name]));
  return [
    table([
      several && {title: "run", text: true, cell: (row) => literal(row.run.name)},
      {title: "method", text: true, cell: (row) => literal(row.method)},
      tasks && {title: "task", text: true, cell: (row) => literal(row.task)},
      {title: "iter.", hint: "Number of finetunings", cell: (row) => row.iteration},
      {title: "accuracy %", hint: "With standard error", cell: (row) =>
        [element("b", {}, percent(row.accuracy)), row.stderr === null ? null : span("error", ` ± ${percent(row.stderr)}`)]},
      results.some((row) => row.comparison) && {title: "to first", cell: comparisonCell,
        hint: "Difference to the first row of the run in percentage points, and the p-value of the paired test after Holm's correction"},
      results.some((row) => row.feedback) && {title: "verdicts", cell: (row) => row.feedback?.verdicts ?? "–",
        hint: "Verdicts of people that count in the training of the iteration"},
      {title: "n", hint: "Questions", cell: (row) => row.n},
      {title: "diversity", hint: "1 - mean share of agents that agree with the vote", cell: (row) =>
        (row.diversity ? row.diversity.diversity.toFixed(2) : "–")},
      cost("prompt_tokens", "prompt tokens", "Without padding"),
      cost("new_tokens", "new tokens", "Sampled tokens"),
      cost("flops", "FLOPs", "That the algorithm needs, without padding"),
      cost("device_seconds", "device time", "Programs running, times the number of devices", duration),
      cost("wall_seconds", "wall time", "Everything included", duration),
      ...counts.map(([name, title, hint]) => ({title, hint, cell: (row) => row[name]})),
    ].filter((column) => column), results, {style: "results"}),
    element("p", {class: "note"}, "Costs: those of the iteration, and below them the cumulative ones: of all training up to the ",
      "iteration, and of its evaluation."),
  ];
}

/** "+3.5, p 0.01": how a result compares with the first one of its run. */
function comparisonCell({comparison}) {
  if (!comparison) return "–";
  const points = 100 * comparison.difference;
  const p = comparison.p_holm < 0.001 ? "p < 0.001" : `p ${comparison.p_holm.toPrecision(2)}`;
  const interval = `95 % interval ${percent(comparison.low)} to ${percent(comparison.high)}`;
  return element("span", {title: interval}, `${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)}`, span("error", ` ${p}`));
}

/** The verdict on each iteration, which needs no right answers, and the signs that it comes from. */
function monitorTable(judged, several) {
  const signal = (name, title, hint) => ({title, hint, cell: (row) => percent(row.monitor.signals[name])});
  const changed = (name, title, hint) => ({title, hint, cell: (row) => row.monitor[name]});
  return [
    element("p", {class: "note"}, "Judged without right answers, from what the agents answer and how it changed since the last ",
      "iteration that improved."),
    table([
      several && {title: "run", text: true, cell: (row) => literal(row.run.name)},
      {title: "method", text: true, cell: (row) => literal(row.method)},
      {title: "iter.", cell: (row) => row.iteration},
      {title: "verdict", text: true, cell: (row) => span(`verdict-${row.monitor.verdict}`, row.monitor.verdict)},
      changed("settled", "settled", "Questions on which the agents disagreed before, and now agree on an answer that one of them gave"),
      changed("lost", "lost", "Questions on which all agents agreed before, and now do not"),
      changed("invented", "invented", "Questions on which all agents now agree on an answer that none of them gave before"),
      signal("unanimous", "unanimous %", "Questions on which all agents give the same last answer"),
      signal("concentration", "one answer %", "Questions on which the most common vote won"),
      signal("flips", "flips %", "Agents whose last answer differs from their first"),
      signal("unparsed", "no answer %", "Last answers that are missing"),
      {title: "why", text: true, cell: (row) => literal(row.monitor.reason)},
    ].filter((column) => column), judged, {style: "monitor"}),
  ];
}

const hasTransitions = (stage) => stage.transitions.some((step) => Object.keys(step).length);

/** The flow charts of the evaluations, or, by a select box, of the training debates. */
function flowSection(flows, several) {
  const holder = div("charts");
  const titles = {eval: "evaluations", train: "training debates"};
  const splits = Object.keys(titles).filter((split) => flows.some(({stage}) => stage.split === split));
  const draw = (split) => holder.replaceChildren(...flows.filter(({stage}) => stage.split === split).map(({run, stage}) =>
    (several ? div("of-run", span("run-name", literal(run.name)), flowChart(stage)) : flowChart(stage))));
  draw(splits[0]);
  return [splits.length > 1 && choice("debates", splits.map((split) => [split, titles[split]]), splits[0], draw), holder];
}

function workTable(run) {
  return folded(`Tokens of each stage: ${run.name}`, () => table([
    {title: "stage", text: true, cell: (row) => row.name},
    {title: "done", cell: (row) => `${row.done} / ${row.total ?? "?"} ${row.unit}`},
    {title: "prompt tokens", cell: (row) => count(row.prompt_tokens)},
    {title: "new tokens", cell: (row) => count(row.new_tokens)},
    {title: "trained tokens", cell: (row) => count(row.train_tokens)},
    {title: "FLOPs", cell: (row) => count(row.flops)},
    {title: "device time", cell: (row) => duration(row.device_seconds)},
    {title: "wall time", cell: (row) => duration(row.wall_seconds)},
  ], run.work), {open: report.runs.length === 1});
}

function configuration(run) {
  const versions = run.starts.map((start) => [
    start.time, Object.entries(start.versions ?? {}).map(([name, version]) => `${name} ${version}`).join(", "),
    start.git_revision ?? "", JSON.stringify(start.devices ?? {}),
  ]);
  return div("configuration",
    report.runs.length > 1 && element("h3", {}, literal(run.name)),
    element("p", {}, "The command that repeats this run:"),
    copyable(run.command),
    folded("config.yaml", () => copyable(run.config)),
    folded("Versions and devices of each start", () => table(
      ["started", "versions", "git revision", "devices"].map((title, i) => ({title, text: true, cell: (row) => literal(row[i])})),
      versions)),
    run.changes.length > 0 && folded("Settings that changed between starts", () => copyable(JSON.stringify(run.changes, null, 2))));
}

/** A text with a button that copies it. */
function copyable(text) {
  const button = element("button", {type: "button", class: "copy", onclick: () => copy(text, button)}, "Copy");
  return div("copyable", element("pre", {tabindex: 0}, literal(text)), button);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy it";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}
