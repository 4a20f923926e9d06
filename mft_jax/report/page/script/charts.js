// The charts, all drawn by Observable Plot. Their colours are variables of the style sheet, for light and dark.

const PALETTE = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"].map((name) => `var(${name})`);

/** A titled figure that is drawn again when its width changes. `draw(width)` returns an element. */
function figure(title, note, draw) {
  const body = div("plot");
  const head = [saveButtons(title, () => node), element("h3", {}, title)];
  const node = element("figure", {}, element("figcaption", {}, head, note && element("p", {}, note)), body);
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && Math.abs(width - drawn) > 4) {
      drawn = width;
      body.replaceChildren(draw(width));
    }
  }).observe(body);
  return node;
}

const SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star"];

/** Colour options of a chart whose series are `names`; the same name has the same colour in all charts of `names`. */
const colours = (names) => ({domain: names, range: names.map((_, i) => PALETTE[i % PALETTE.length]), legend: names.length > 1});

/** Symbol options, as those for colours. Names with the same colour have different symbols. */
const symbols = (names) => ({domain: names, range: names.map((_, i) => SYMBOLS[((i % PALETTE.length) + Math.floor(i / PALETTE.length)) % SYMBOLS.length])});

const bySeries = {stroke: "series", z: "series"};
const seriesDot = {...bySeries, fill: "series", symbol: "series", r: 4, tip: true};

/** The name of a series: the method, and the run if there are several. */
const seriesName = (run, method) => (report.runs.length > 1 ? `${run.name}: ${method}` : method);

/** The measures of diversity in results.json: [title, how it is measured, label of the axis]. */
const MEASURES = {
  diversity: ["disagreement", "1 minus the mean share of agents that agree with the vote.", "1 - consensus"],
  nll: ["likelihood", "Negative log-likelihood of an agent's last answer under the other agents.", "nats per token"],
  embedding: ["embeddings", "Cosine dissimilarity of the last answers that agree with the vote.", "dissimilarity"],
  kl: ["divergence", "Divergence between the agents on their last answers.", "nats per token"],
  kl_to_base: ["from the base", "Divergence of the agents from the base model on their last answers.", "nats per token"],
};

/** The results as points, own task only: {series, iteration, accuracy, low, high, flops, diversity, ...}. */
function resultPoints() {
  return report.runs.flatMap((run) => run.results.filter((row) => row.task === run.task).map((row) => ({
    series: seriesName(run, row.method), iteration: row.iteration, accuracy: row.accuracy === null ? NaN : 100 * row.accuracy,
    low: 100 * (row.accuracy - row.stderr), high: 100 * (row.accuracy + row.stderr), flops: row.cumulative?.flops ?? NaN,
    ...Object.fromEntries(Object.keys(MEASURES).map((name) => [name, row.diversity?.[name] ?? NaN])),
  })));
}

/** The names of all series, so that a method has the same colour and symbol in all charts. */
const seriesNames = () => [...new Set(report.runs.flatMap((run) =>
  [...run.results.filter((row) => row.task === run.task), ...run.stages].map(({method}) => seriesName(run, method))))];

/** A chart of `y` over iterations: a line with points for each series. A point at iteration 0 also has a dashed level line. */
function overIterations(points, y, label, width, {low = null, high = null, zero = false} = {}) {
  const known = points.filter((point) => Number.isFinite(point[y]));
  const isTuned = (point) => point.iteration > 0;
  return plot(width, {
    x: {label: "iteration", ticks: [...new Set(known.map((point) => point.iteration))], tickFormat: "d", inset: 12},
    y: {label, grid: true, nice: true, zero},
    color: colours(seriesNames()),
    marks: [
      Plot.ruleY(known.filter((point) => !isTuned(point)), {y, ...bySeries, strokeDasharray: "4 4", strokeOpacity: 0.6}),
      low && Plot.ruleX(known, {x: "iteration", y1: low, y2: high, ...bySeries, strokeWidth: 1.5}),
      Plot.line(known.filter(isTuned), {x: "iteration", y, ...bySeries, strokeWidth: 2}),
      Plot.dot(known, {x: "iteration", y, ...seriesDot}),
    ],
  });
}

const PLOT_STYLE = {background: "transparent", fontFamily: "inherit", fontSize: "12px"};

function plot(width, options) {
  return Plot.plot({
    width, height: Math.min(340, Math.max(220, width * 0.55)), marginLeft: 48, marginBottom: 38, style: PLOT_STYLE,
    symbol: symbols(seriesNames()), ...options,
  });
}

function accuracyChart() {
  return figure("Accuracy over iterations", "Held-out questions, with standard errors. Dashed: without finetuning.", (width) =>
    overIterations(resultPoints(), "accuracy", "accuracy (%)", width, {low: "low", high: "high"}));
}

/** A chart of one measure of diversity, with a select box if several were measured. */
function diversityChart() {
  const measured = Object.keys(MEASURES).filter((name) => resultPoints().some((point) => Number.isFinite(point[name])));
  const holder = div("holder");
  const draw = (name) => holder.replaceChildren(figure("Diversity over iterations", MEASURES[name][1], (width) =>
    overIterations(resultPoints(), name, MEASURES[name][2], width, {zero: true})));
  draw(measured[0] ?? "diversity");
  if (measured.length < 2) return holder;
  return div("chart-with-choice", choice("measure", measured.map((name) => [name, MEASURES[name][0]]), measured[0], draw), holder);
}

/** pass@k of the newest iteration of each method with several agents. */
function passChart() {
  const newest = new Map();
  for (const run of report.runs)
    for (const row of run.results.filter((own) => own.task === run.task && own.answers?.pass_at_k.length > 1))
      newest.set(seriesName(run, row.method), row); // results are in the order of the iterations
  const points = [...newest].flatMap(([series, {answers, iteration}]) =>
    answers.pass_at_k.map((share, i) => ({series, k: i + 1, value: 100 * share, iteration})));
  if (!points.length) return null;
  const note = "Questions that at least one of k agents answers correctly in the last round, after the last iteration of each method.";
  return figure("pass@k", note, (width) => plot(width, {
    x: {label: "k", ticks: [...new Set(points.map((point) => point.k))], tickFormat: "d", inset: 12},
    y: {label: "%", grid: true, nice: true, zero: true},
    color: colours(seriesNames()),
    marks: [
      Plot.line(points, {x: "k", y: "value", ...bySeries, strokeWidth: 2}),
      Plot.dot(points, {x: "k", y: "value", ...seriesDot, channels: {iteration: "iteration"}}),
    ],
  }));
}

function flopsChart() {
  return figure("Accuracy against compute", "FLOPs of all training up to the iteration, and of its evaluation.", (width) => {
    const points = resultPoints().filter((point) => Number.isFinite(point.accuracy) && point.flops > 0);
    return plot(width, {
      x: {type: "log", label: "FLOPs (cumulative)", grid: true, tickFormat: (value) => count(value), ticks: width / 90, inset: 12},
      y: {label: "accuracy (%)", grid: true, nice: true},
      color: colours(seriesNames()),
      marks: [
        Plot.ruleX(points, {x: "flops", y1: "low", y2: "high", ...bySeries, strokeWidth: 1.5}),
        Plot.line(points, {x: "flops", y: "accuracy", ...bySeries, strokeWidth: 2}),
        Plot.dot(points, {x: "flops", y: "accuracy", ...seriesDot, channels: {iteration: "iteration"}}),
      ],
    });
  });
}

/** How often the votes that became labels are right, and how many questions have one. */
function precisionChart() {
  const points = report.runs.flatMap((run) => run.stages
    .filter((stage) => stage.split === "train" && stage.votes.known)
    .flatMap(({iteration, method, votes: {known, voted, right}}) => {
      const series = seriesName(run, method);
      const share = right / Math.max(voted, 1);
      const error = Math.sqrt((share * (1 - share)) / Math.max(voted, 1));
      return [
        {series, iteration, measure: "right votes (%)", value: 100 * share, low: 100 * (share - error), high: 100 * (share + error)},
        {series, iteration, measure: "questions with a vote (%)", value: (100 * voted) / known},
      ];
    }));
  if (!points.length) return null;
  const note = "Training questions: the votes are the labels that the agents learn from.";
  return figure("Precision and coverage of the votes", note, (width) => plot(width, {
    x: {label: "iteration", ticks: [...new Set(points.map((point) => point.iteration))], tickFormat: "d", inset: 16},
    y: {label: "%", grid: true, nice: true},
    color: {...colours(seriesNames()), legend: new Set(points.map((point) => point.series)).size > 1},
    marks: [
      Plot.ruleX(points.filter((point) => point.low !== undefined), {x: "iteration", y1: "low", y2: "high", ...bySeries}),
      Plot.line(points, {x: "iteration", y: "value", stroke: "series", z: (point) => point.series + point.measure,
        strokeDasharray: (point) => (point.measure.startsWith("right") ? null : "4 4"), strokeWidth: 2}),
      Plot.dot(points, {x: "iteration", y: "value", stroke: "series", fill: "series", r: 4, tip: true,
        channels: {measure: "measure"}}),
      Plot.text(points, Plot.selectFirst({x: "iteration", y: "value", z: (point) => point.series + point.measure, text: "measure",
        textAnchor: "start", dx: 8, dy: -10})),
    ],
  }));
}

const STATES = [["r", "right"], ["w", "wrong"], ["n", "no answer"]];
const FLOWS = {
  rr: "kept right", wr: "wrong → right", nr: "wrong → right", rw: "right → wrong", rn: "right → wrong",
  ww: "kept wrong", wn: "kept wrong", nw: "kept wrong", nn: "kept wrong",
};
const FLOW_COLOURS = {
  "kept right": "var(--right)", "wrong → right": "var(--c1)", "right → wrong": "var(--c4)", "kept wrong": "var(--muted)",
};

/** How the agents' answers change from round to round, as bands whose width is the number of answers. */
function flowChart(stage) {
  const rounds = stage.transitions.length;
  return figure(stageTitle(stage), flowNote(stage), (width) => {
    const {nodes, bands, total} = flowLayout(stage.transitions);
    const height = 200;
    const margin = 24;
    const scale = (height - 2 * margin) / total;
    return Plot.plot({
      width, height, margin, marginLeft: 90, marginRight: 90,
      style: PLOT_STYLE,
      x: {axis: null, domain: [0, rounds]}, y: {axis: null, domain: [total, 0]},
      color: {domain: Object.keys(FLOW_COLOURS), range: Object.values(FLOW_COLOURS)},
      marks: [
        Plot.link(bands, {x1: "x", x2: (band) => band.x + 1, y1: "from", y2: "to", stroke: "kind", strokeOpacity: 0.55,
          strokeWidth: (band) => Math.max(band.size * scale, 1), strokeLinecap: "butt", curve: "bump-x",
          title: (band) => `round ${band.x + 1} to ${band.x + 2}: ${band.kind}, ${band.size}`, tip: true}),
        Plot.ruleX(nodes, {x: "x", y1: "low", y2: "high", strokeWidth: 5}),
        Plot.text(nodes.filter((node) => node.x === 0), {x: "x", y: "middle", text: "label", textAnchor: "end", dx: -8}),
        Plot.text(nodes.filter((node) => node.x === rounds), {x: "x", y: "middle", text: "label", textAnchor: "start", dx: 8}),
      ],
    });
  });
}

function flowNote(stage) {
  const kinds = {};
  for (const step of stage.transitions)
    for (const [pair, size] of Object.entries(step)) kinds[FLOWS[pair]] = (kinds[FLOWS[pair]] ?? 0) + size;
  return Object.keys(FLOW_COLOURS).map((kind) =>
    [span("flow-key", element("i", {style: `background:${FLOW_COLOURS[kind]}`}), `${kind}: ${kinds[kind] ?? 0}`), " "]);
}

/** Places of the nodes and of the bands between them; y counts answers from the top, with gaps between the states. */
function flowLayout(transitions) {
  const totals = transitions.map((step) => d3.sum(Object.values(step)));
  const gap = 0.06 * Math.max(...totals);
  const nodes = [];
  const place = (x, sizeOf) => {
    let low = 0;
    const offsets = {};
    for (const [mark, name] of STATES) {
      const size = sizeOf(mark);
      offsets[mark] = low;
      if (size) nodes.push({x, low, high: low + size, middle: low + size / 2, label: `${name} ${size}`});
      low += size + gap;
    }
    return offsets;
  };
  const bands = [];
  transitions.forEach((step, x) => {
    const size = (pair) => step[pair] ?? 0;
    const from = place(x, (mark) => d3.sum(STATES, ([other]) => size(mark + other)));
    const isLast = x === transitions.length - 1;
    const to = place(isLast ? x + 1 : -1, (mark) => d3.sum(STATES, ([other]) => size(other + mark)));
    for (const [a] of STATES) for (const [b] of STATES) {
      const own = size(a + b);
      if (!own) continue;
      bands.push({x, size: own, kind: FLOWS[a + b], from: from[a] + own / 2, to: to[b] + own / 2});
      from[a] += own;
      to[b] += own;
    }
  });
  return {nodes: nodes.filter((node) => node.x >= 0), bands, total: Math.max(...totals) + 2 * gap};
}

const SCALARS = {loss: "loss", grad_norm: "gradient norm", learning_rate: "learning rate", targets: "target tokens"};

/** The training curves of all adapters of a run, one panel per iteration. */
function curvesChart(run) {
  const scalars = Object.keys(SCALARS).filter((name) => run.curves.some((curve) => curve[name]));
  let scalar = scalars[0];
  const holder = div("holder");
  const draw = () => {
    const points = run.curves.flatMap((curve) => (curve[scalar] ?? []).map((value, i) =>
      ({adapter: curve.adapter, iteration: curve.iteration, step: curve.step[i], value})));
    const names = [...new Set(points.map((point) => point.adapter))];
    const iterations = new Set(points.map((point) => point.iteration)).size;
    holder.replaceChildren(figure(`Training of each adapter: ${run.name}`, "Means over parts of each iteration where there are many steps.",
      (width) => plot(width, {
        height: width < 560 ? 130 + 120 * iterations : 300, marginRight: width < 560 ? 70 : 20,
        x: {label: "step", ticks: Math.max(2, width / 60 / (width < 560 ? 1 : iterations)), grid: false},
        y: {label: SCALARS[scalar], grid: true, nice: true, tickFormat: "~g"},
        [width < 560 ? "fy" : "fx"]: {label: "iteration", tickFormat: "d"},
        color: colours(names),
        marks: [
          Plot.frame({strokeOpacity: 0.15}),
          Plot.line(points, {x: "step", y: "value", z: "adapter", stroke: "adapter", [width < 560 ? "fy" : "fx"]: "iteration", strokeWidth: 1.5, tip: "x"}),
          Plot.dot(points.length < 600 ? points : [], {x: "step", y: "value", stroke: "adapter", fill: "adapter", r: 2,
            [width < 560 ? "fy" : "fx"]: "iteration"}),
        ],
      })));
  };
  draw();
  const pick = choice("value", scalars.map((name) => [name, SCALARS[name]]), scalar, (value) => {
    scalar = value;
    draw();
  });
  return div("chart-with-choice", pick, holder);
}

/** The wall time of each stage of a run as bars, divided into the time of compiled programs and the rest. */
function stageChart(run) {
  const rows = run.work.filter((stage) => stage.wall_seconds > 0).flatMap((stage) => [
    {stage: stage.name, part: "devices at work", seconds: Math.min(stage.busy_seconds, stage.wall_seconds)},
    {stage: stage.name, part: "compilation, host, files", seconds: Math.max(stage.wall_seconds - stage.busy_seconds, 0)},
  ]);
  if (!rows.length) return null;
  const names = [...new Set(rows.map((row) => row.stage))];
  return figure(`Time of each stage: ${run.name}`, "Wall time of all starts of the run.", (width) => Plot.plot({
    width, height: 60 + 26 * names.length, marginLeft: Math.min(190, width * 0.45),
    style: PLOT_STYLE,
    x: {label: "seconds", grid: true}, y: {label: null, domain: names},
    color: {domain: ["devices at work", "compilation, host, files"], range: ["var(--c1)", "var(--muted)"], legend: true},
    marks: [Plot.barX(rows, {x: "seconds", y: "stage", fill: "part", tip: true}), Plot.ruleX([0])],
  }));
}
