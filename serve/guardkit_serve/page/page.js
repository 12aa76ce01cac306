// The page: tabs, the key, and what the three views share. No text becomes HTML: everything is set as text.

import { startTry } from "./try.js";
import { startLive } from "./live.js";
import { startTrace } from "./trace.js";

export const $ = (id) => document.getElementById(id);
export const state = { key: "" };
let unseen = null;

// An element with properties, attributes (in `a`) and children, which may be strings.
export function make(tag, { a = {}, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(a)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Append a text; what cannot be seen in it is shown by its number.
export function write(node, text) {
  for (const piece of text.split(unseen)) {
    if (!piece) continue;
    unseen.lastIndex = 0;
    if (unseen.test(piece)) {
      const code = piece.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      node.append(make("b", { className: "x", textContent: `U+${code}` }));
    } else node.append(piece);
  }
  return node;
}

export function badge(word) {
  return make("span", { className: `badge ${word.replaceAll(" ", "-")}`, textContent: word });
}

export const shade = (risk) => state.shades.filter((bound) => risk >= bound).length;
export const name = (word) => word.replaceAll("_", " ");
export const titled = (word) => name(word[0].toUpperCase() + word.slice(1));

export function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(state.key ? { authorization: `Bearer ${state.key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const error = new Error(said.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

export function legend(node) {
  const bounds = [0, ...state.shades];
  const label = (i) => (i === 0 ? `below ${bounds[1].toFixed(2)}` : `from ${bounds[i].toFixed(2)}`);
  node.replaceChildren(
    make("b", { textContent: "Risk of a token: " }),
    ...bounds.flatMap((_, i) => [make("span", { className: `r${i}`, textContent: label(i) }), " "]),
    make("span", { className: "f-controversial", textContent: "dashed line" }), " flagged as controversial · ",
    make("span", { className: "f-unsafe", textContent: "double line" }), " flagged as unsafe · ",
    make("span", { className: "held", textContent: "dotted line" }), " waits for what follows, or is withheld",
  );
}

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const pick = (tab, focus) => {
    for (const each of all) {
      const on = each === tab;
      each.setAttribute("aria-selected", on);
      each.tabIndex = on ? 0 : -1;
      $(each.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) tab.focus();
    document.dispatchEvent(new CustomEvent("view", { detail: tab.getAttribute("aria-controls") }));
  };
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => pick(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      pick(all.at(to % all.length), true);
    });
  });
}

async function begin() {
  try {
    Object.assign(state, await (await ask("/page/state")).json());
  } catch (error) {
    problem(error.status === 401 ? "This server asks for an API key." : `Cannot reach the server: ${error.message}`);
    $("login").hidden = error.status !== 401;
    return;
  }
  problem("");
  $("login").hidden = true;
  $("version").textContent = state.version;
  // After an emoji, U+FE0F is its usual ending.
  const hex = (code) => `\\u{${(code === 0xfe0f ? 0xfe0e : code).toString(16)}}`;
  const ranges = state.unseen.map(([low, high]) => `${hex(low)}-${hex(high)}`).join("");
  unseen = new RegExp(`([\\u{0}-\\u{8}\\u{b}\\u{c}\\u{e}-\\u{1f}\\u{7f}${ranges}]|(?<!\\p{Emoji})\\u{fe0f})`, "gu");
  legend($("legend"));
  startTry();
  startLive();
  startTrace();
  document.body.dataset.ready = "yes";
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  begin();
});
tabs();
begin();
