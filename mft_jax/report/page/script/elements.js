// Builds elements. Strings always become text nodes, so a text of a model is never read as HTML.

/** An element with attributes and children. "onclick" and the like take functions; null and false are left out. */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const span = (style, ...children) => element("span", {class: style}, ...children);

const div = (style, ...children) => element("div", {class: style}, ...children);

/** A folded part of the page. `make` builds the content when it is first opened. */
function folded(title, make, {open = false, style = ""} = {}) {
  const node = element("details", {class: style, open}, element("summary", {}, title));
  let made = false;
  const fill = () => {
    if (node.open && !made) {
      made = true;
      node.append(make());
    }
  };
  node.addEventListener("toggle", fill);
  fill();
  return node;
}

/** A table. Each column is {title, cell(row), text?: true for left-aligned columns, hint?}. */
function table(columns, rows, {style = ""} = {}) {
  const align = (column) => (column.text ? "left" : "number");
  return div("scroll", element("table", {class: style},
    element("thead", {}, element("tr", {}, columns.map((column) =>
      element("th", {class: align(column), title: column.hint, scope: "col"}, column.title)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, columns.map((column) =>
      element("td", {class: align(column)}, column.cell(row)))))),
  ));
}

/** A select box. `options` is [[value, label], ...]. */
function choice(label, options, value, onchange) {
  const select = element("select", {"aria-label": label, onchange: () => onchange(select.value)},
    options.map(([own, text]) => element("option", {value: own, selected: own === value}, text)));
  return element("label", {class: "choice"}, span("label", label), select);
}
