// Trace: the output of `guard trace --json`, read in the browser alone.

import { $, badge, make, name, problem, shade, titled, write } from "./page.js";

const MOST = 200; // traces that are shown

function part(found, i, of) {
  const head = make("h3", {}, titled(found.stage), " ", badge(found.severity));
  if (found.categories?.length) head.append(` · ${found.categories.map(name).join(", ")}`);
  const about = make("p", { className: "note", textContent: `${found.n_tokens ?? "?"} tokens, highest risk ${(found.risk ?? 0).toFixed(2)}` });
  if (typeof found.text !== "string") {
    const rows = (found.sentences ?? []).map((each, i) => `sentence ${i + 1}: ${each.severity}, risk ${each.risk.toFixed(2)}`);
    return make("section", {}, head, about, make("p", { textContent: rows.join(" · ") || "The file has no texts: add --text." }));
  }
  const text = [...found.text]; // offsets count characters, not UTF-16 units
  const node = make("div", { className: "text", a: { dir: "auto", tabindex: "0", role: "region", "aria-label": `${of}, part ${i + 1}: ${name(found.stage)}` } });
  let at = 0;
  for (const span of found.tokens ?? found.sentences ?? []) {
    const risk = span.risk ?? (span.scores ? 1 - (span.scores.safe ?? span.scores[0]) : 0);
    if (span.start > at) write(node, text.slice(at, span.start).join(""));
    const mark = span.flagged || (!found.tokens && span.severity !== "safe") ? ` f-${span.severity}` : "";
    const piece = make("span", { className: `r${shade(risk)}${mark}`, title: `risk ${risk.toFixed(2)}` });
    if (span.end > Math.max(at, span.start)) node.append(write(piece, text.slice(Math.max(at, span.start), span.end).join("")));
    at = Math.max(at, span.end);
  }
  write(node, text.slice(at).join(""));
  return make("section", {}, head, about, node);
}

function card(found, i) {
  const title = `Trace ${(found.index ?? i) + 1}`;
  const head = make("h2", {}, title);
  if (found.action) head.append(badge(found.action));
  const about = { safe: "Nothing was flagged.", reasoning_only: "The reasoning is not safe.", answer_only: "The answer is not safe.", both: "Neither the reasoning nor the answer is safe.", not_judged: "Not all of it was judged: nothing here counts as safe." };
  const node = make("article", { className: "card" }, head, make("p", { className: "sum", textContent: about[found.outcome] ?? "" }));
  if (found.error) node.append(write(make("p", { className: "warn" }), `Not judged: ${found.error}`));
  node.append(...(found.parts ?? []).map((each, n) => part(each, n, title)));
  return node;
}

function read(text) {
  const whole = text.trim();
  if (whole.startsWith("[")) return JSON.parse(whole);
  return whole.split("\n").filter((line) => line.trim()).map((line, i) => {
    try {
      return JSON.parse(line);
    } catch {
      throw new Error(`line ${i + 1} is no JSON`);
    }
  });
}

export function startTrace() {
  $("file").addEventListener("change", async () => {
    const [file] = $("file").files;
    if (!file) return;
    try {
      const found = read(await file.text());
      if (!found.length || !found.every((each) => each && Array.isArray(each.parts))) throw new Error("these are no traces: use guard trace --json");
      const shown = Math.min(found.length, MOST);
      const about = make("p", { className: "note", textContent: `${file.name}: ${shown} of ${found.length} traces` });
      $("traces").replaceChildren(about, ...found.slice(0, MOST).map(card));
      problem("");
    } catch (error) {
      $("traces").replaceChildren();
      problem(`${file.name}: ${error.message}`);
    }
    $("file").value = ""; // so that the same file can be chosen again
  });
}
