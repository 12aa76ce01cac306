// Live: the newest decisions, counts by category, latency. Texts are asked for only when the box is ticked.

import { $, ask, badge, draw, make, problem, state, titled, write } from "./page.js";

const EVERY_MS = 2000;
const MOST = 200; // rows of the table
let seen = [];
let last = 0;
let isOn = false;
let paused = false;
let failed = false;
let timer = 0;

function row(each) {
  const cells = [
    new Date(each.time * 1000).toLocaleTimeString(), titled(each.stage), badge(each.action),
    each.judged ? badge(each.severity) : make("span", { className: "badge not", textContent: "not judged" }),
    each.categories.join(", ") || "–", each.risk === null ? "–" : each.risk.toFixed(2),
    each.surface === "stream" ? "stream" : String(each.ms), each.rule,
  ];
  const tr = make("tr", {}, ...cells.map((cell, i) => make("td", { className: i === 5 || i === 6 ? "n" : "" }, cell)));
  if (each.text === undefined) return [tr];
  return [tr, make("tr", { className: "words" }, write(make("td", { colSpan: 8, dir: "auto" }), each.text))];
}

function tiles(totals) {
  const shown = {
    decisions: totals.decisions, blocked: totals.actions.block ?? 0, flagged: totals.actions.flag ?? 0,
    "not judged": totals.actions["not judged"] ?? 0, "requests open": totals.requests_open, "streams open": totals.streams_open,
    "p50 ms": totals.ms.p50 ?? "–", "p95 ms": totals.ms.p95 ?? "–",
  };
  $("tiles").replaceChildren(
    ...Object.entries(shown).map(([key, value]) => make("div", {}, make("dt", { textContent: key }), make("dd", { textContent: String(value) }))),
  );
}

function bars(counts) {
  const found = Object.entries(counts);
  if (!found.length) return make("p", { className: "note", textContent: "None yet." });
  const most = Math.max(...found.map(([, n]) => n));
  const svg = draw("svg", { class: "bars", viewBox: `0 0 320 ${found.length * 22}`, role: "img", "aria-label": found.map(([k, n]) => `${k} ${n}`).join(", ") });
  found.forEach(([key, n], i) => {
    const label = draw("text", { x: 0, y: i * 22 + 14 });
    label.textContent = key;
    const count = draw("text", { x: 165 + (120 * n) / most, y: i * 22 + 14 });
    count.textContent = n;
    svg.append(label, draw("rect", { x: 160, y: i * 22 + 4, width: Math.max((120 * n) / most, 1), height: 13 }), count);
  });
  return svg;
}

function spark(times) {
  if (times.length < 2) return make("p", { className: "note", textContent: "None yet." });
  const most = Math.max(...times, 0.001);
  const points = times.map((ms, i) => `${((100 * i) / (times.length - 1)).toFixed(2)},${(38 - (36 * ms) / most).toFixed(2)}`);
  const about = `${times.length} checks, at most ${most.toFixed(1)} ms`;
  const svg = draw("svg", { class: "spark", viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": about });
  svg.append(draw("path", { d: `M${points.join("L")}` }));
  return make("div", {}, svg, make("span", { className: "dim", textContent: about }));
}

async function refresh() {
  clearTimeout(timer);
  if (!isOn || paused) return;
  try {
    const wanted = $("texts").checked ? "&texts=1" : "";
    const { recent, totals } = await (await ask(`/page/recent?after=${last}${wanted}`)).json();
    if (recent.length || !seen.length) {
      seen = [...seen, ...recent].slice(-500);
      last = seen.at(-1)?.number ?? last;
      $("recent").replaceChildren(...seen.slice(-MOST).reverse().flatMap(row));
      $("latency").replaceChildren(spark(seen.filter((each) => each.surface === "check").map((each) => each.ms)));
    }
    tiles(totals);
    $("by-category").replaceChildren(bars(totals.categories));
    if (failed) problem("");
    failed = false;
  } catch (error) {
    failed = true;
    problem(error.message);
  }
  timer = setTimeout(refresh, EVERY_MS);
}

export function startLive() {
  $("texts").disabled = !state.texts;
  $("live-note").textContent = state.texts
    ? "The newest decisions of this process. Their texts may be harmful or private."
    : "The newest decisions of this process, without their texts: this server keeps none (page_texts).";
  $("texts").addEventListener("change", () => {
    seen = [];
    last = 0;
    refresh();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    $("pause").textContent = paused ? "Go on" : "Pause";
    refresh();
  });
  document.addEventListener("view", (event) => {
    isOn = event.detail === "live";
    refresh();
  });
}
