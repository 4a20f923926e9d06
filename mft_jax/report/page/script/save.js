// Saves a chart as a file, for a paper: with its title and legend, on white, in the light colours even if the page is dark.

const KINDS = {SVG: "image/svg+xml", PNG: "image/png"};
const PIXELS = 3; // of the PNG for each pixel of the page

/** The buttons that save the chart of a figure. `figureOf()` returns the figure. */
function saveButtons(title, figureOf) {
  return div("save", Object.keys(KINDS).map((kind) => element("button", {
    type: "button", title: `Save this chart as ${kind}`, "data-kind": kind, onclick: () => saveChart(title, figureOf(), kind),
  }, kind)));
}

async function saveChart(title, figure, kind) {
  const {text, width, height} = chartFile(title, figure);
  const svg = new Blob([text], {type: KINDS.SVG});
  const name = `${title.toLowerCase().replace(/[^\w@]+/g, "_").replace(/^_|_$/g, "")}.${kind.toLowerCase()}`;
  saveFile(name, kind === "SVG" ? svg : await drawn(text, width, height));
}

/** The text of an SVG file with everything inside, and its size. */
function chartFile(title, figure) {
  const light = div("light", figure.cloneNode(true)); // the colours of elements are known while they are in the document
  document.body.append(light);
  try {
    const chart = [...light.querySelectorAll(".plot svg")].at(-1); // those before it are the signs of its legend
    const width = Number(chart.getAttribute("width"));
    chart.querySelectorAll("[aria-label=tip]").forEach((tip) => tip.remove());
    const legend = legendOf(light, width - 16);
    const top = 30 + legend.height;
    const height = Number(chart.getAttribute("height")) + top;
    const file = d3.create("svg").attr("xmlns", "http://www.w3.org/2000/svg").attr("width", width).attr("height", height)
      .attr("viewBox", `0 0 ${width} ${height}`).attr("font-family", "sans-serif").attr("font-size", 12);
    file.append("rect").attr("width", width).attr("height", height).attr("fill", "white");
    file.append("text").attr("x", 8).attr("y", 20).attr("font-size", 14).attr("font-weight", "bold").text(title);
    for (const {name, colour, x, y} of legend.entries) {
      file.append("rect").attr("x", 8 + x).attr("y", 30 + y).attr("width", 12).attr("height", 12).attr("fill", colour);
      file.append("text").attr("x", 24 + x).attr("y", 40 + y).text(name);
    }
    fixColours(chart);
    chart.style.fontFamily = "sans-serif";
    chart.setAttribute("y", top);
    file.node().append(chart);
    return {text: new XMLSerializer().serializeToString(file.node()), width, height};
  } finally {
    light.remove();
  }
}

/** The names and colours in the legend of a figure, in lines of at most `width` pixels. */
function legendOf(figure, width) {
  const swatches = [...figure.querySelectorAll("[class$='-swatch']")].map((node) =>
    [node.textContent, getComputedStyle(node.querySelector("svg")).fill]);
  const keys = [...figure.querySelectorAll(".flow-key")].map((node) =>
    [node.textContent, getComputedStyle(node.querySelector("i")).backgroundColor]);
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = "12px sans-serif";
  let [x, y] = [0, 0];
  const entries = [...swatches, ...keys].map(([name, colour]) => {
    const size = 34 + ruler.measureText(name).width;
    if (x && x + size > width) [x, y] = [0, y + 18];
    x += size;
    return {name, colour, x: x - size, y};
  });
  return {entries, height: entries.length ? y + 22 : 0};
}

/** Replaces colours that depend on the page: variables of the style sheet, and the colour of the text. */
function fixColours(chart) {
  for (const node of [chart, ...chart.querySelectorAll("*")])
    for (const name of ["fill", "stroke"])
      if (/var\(|currentColor/.test(node.getAttribute(name) ?? "")) node.setAttribute(name, getComputedStyle(node)[name]);
}

/** A PNG of an SVG file. */
async function drawn(text, width, height) {
  const image = new Image();
  image.src = `data:${KINDS.SVG};charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas", {width: PIXELS * width, height: PIXELS * height});
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, KINDS.PNG));
}

/** Lets the browser save a file. */
function saveFile(name, blob) {
  const address = URL.createObjectURL(blob);
  element("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
