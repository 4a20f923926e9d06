// Shows texts of models: literally, with invisible characters made visible, and with rendered formulas.

// Control characters, and characters that reorder or hide the text around them.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/u;
const MAX_FORMULA = 2000; // characters; a longer one is shown as text
const MAX_FORMULAS = 300; // per text

/** The text as nodes, with a visible mark in place of each invisible character. */
function literal(text) {
  return text.split(new RegExp(`(${INVISIBLE.source})`, "u")).filter((part) => part).map((part) => {
    if (part.length > 1 || !INVISIBLE.test(part)) return document.createTextNode(part);
    const code = part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return span("invisible", `U+${code}`);
  });
}

const FORMULA = new RegExp([
  String.raw`\$\$([^]+?)\$\$`, String.raw`\\\[([^]+?)\\\]`, String.raw`\\\(([^]+?)\\\)`,
  String.raw`(?<![\\\w$])\$(?=[^\s$])([^$\n]*?[^\s$\\])\$(?![\d$])`, String.raw`\\(?:boxed|fbox)\s*\{`,
].join("|"), "g");

/** Splits a text into [{text}] and formulas [{text, tex, display}]. `text` is always the original part. */
function segments(text) {
  const found = [];
  let end = 0;
  FORMULA.lastIndex = 0;
  for (let match; found.length < 2 * MAX_FORMULAS && (match = FORMULA.exec(text)); ) {
    const [whole, ...groups] = match;
    const kind = groups.findIndex((group) => group !== undefined);
    const stop = kind < 0 ? closingBrace(text, match.index + whole.length) : match.index + whole.length;
    if (stop < 0 || stop - match.index > MAX_FORMULA) continue;
    if (match.index > end) found.push({text: text.slice(end, match.index)});
    const own = text.slice(match.index, stop);
    found.push({text: own, tex: kind < 0 ? own : groups[kind], display: kind === 0 || kind === 1});
    FORMULA.lastIndex = end = stop;
  }
  if (end < text.length) found.push({text: text.slice(end)});
  return found;
}

/** The index after the brace that closes the one before `start`; -1 if there is none. */
function closingBrace(text, start) {
  for (let i = start, depth = 1; i < Math.min(text.length, start + MAX_FORMULA); i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i + 1;
  }
  return -1;
}

/** A text of a model. `answer`: the answer parsed from it, which is marked in it. `formulas`: whether to render them. */
function modelText(text, {answer = null, formulas = true} = {}) {
  const parts = segments(text);
  const parsed = answer === null ? -1 : parts.findLastIndex((part) => /\\(boxed|fbox)\s*\{/.test(part.text));
  const fallback = answer === null || parsed >= 0 ? -1 : parts.findLastIndex((part) => part.text.includes(answer));
  return div("text", parts.map((part, index) => {
    const shown = formulas && part.tex !== undefined ? formula(part) : null;
    if (index === parsed) return element("mark", {title: "parsed answer"}, shown ?? literal(part.text));
    if (index === fallback && shown === null) {
      const at = part.text.lastIndexOf(answer);
      const mark = element("mark", {title: "parsed answer"}, literal(answer));
      return [literal(part.text.slice(0, at)), mark, literal(part.text.slice(at + answer.length))];
    }
    return shown ?? literal(part.text);
  }));
}

/** A formula as MathML; null if it is not valid TeX, and then shown as text. */
function formula(part) {
  const node = element("span", {class: part.display ? "formula display" : "formula", title: part.text});
  try {
    temml.render(part.tex, node, {
      displayMode: part.display, throwOnError: true, trust: false, strict: false, maxSize: [20, 20], maxExpand: 200,
    });
  } catch {
    return null;
  }
  return node;
}
