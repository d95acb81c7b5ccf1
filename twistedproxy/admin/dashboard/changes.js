// What was changed lately: who, when, why, before and after; and the way back.

import { html } from "./vendor/htm-preact.js";
import { ago, duration } from "./figures.js";

const SHOWN = 12;
const UNDO = "/api/v1/changes/{revision}/undo";
const CONFIRM = "/api/v1/changes/{revision}/confirm";
const NOUNS = { set_weight: "weight", set_state: "state", set_max_connections: "limit", set_maintenance: "maintenance", set_split: "split" };

function written(value) {
  if (value === null || value === undefined) return "the file's";
  if (value === true || value === false) return value ? "on" : "off";
  if (typeof value === "object") {
    return Object.entries(value)
      .map(([k, v]) => `${k} ${typeof v === "object" ? JSON.stringify(v) : v}`)
      .join(", ");
  }
  return String(value);
}

// The parts of a change as [what, before, after].
export function inParts(change) {
  if (change.kind === "batch") return (change.changes ?? []).flatMap(inParts);
  if (change.kind === "replace_config") return [["configuration file reloaded"]];
  const where = [change.server ?? change.site, change.pool && `in ${change.pool}`, change.path].filter(Boolean).join(" ");
  if (change.kind === "add_server") return [[`${where} added`]];
  if (change.kind === "remove_server") return [[`${where} removed`]];
  const noun = NOUNS[change.kind] ?? String(change.kind ?? "change").replaceAll("_", " ");
  const what = where ? `${noun} of ${where}` : noun;
  return "before" in change || "after" in change ? [[what, written(change.before), written(change.after)]] : [[what]];
}

export const inOneLine = (change) =>
  inParts(change)
    .map(([what, before, after]) => (before === undefined ? what : `${what}: ${before} → ${after}`))
    .join("; ");

export function Changes({ changes, offers, propose }) {
  const latest = changes.slice(-SHOWN).reverse();
  return html`<section class="card" aria-labelledby="changes">
    <header><h2 id="changes">Latest changes</h2></header>
    ${latest.length === 0 && html`<p class="empty">Nothing was changed since the file was read.</p>`}
    <ol class="changes">
      ${latest.map((entry) => html`<${Entry} key=${entry.revision} entry=${entry} offers=${offers} propose=${propose} />`)}
    </ol>
  </section>`;
}

function Entry({ entry, offers, propose }) {
  const { revision } = entry;
  const left = entry.confirm_by ? (Date.parse(entry.confirm_by) - Date.now()) / 1000 : 0;
  const watched = entry.guard && !entry.undone_by ? (Date.parse(entry.guard.until) - Date.now()) / 1000 : 0;
  const act = (title, template, apply) => (event) =>
    propose({
      title,
      text: inOneLine(entry.change),
      method: "POST",
      path: template.replace("{revision}", revision),
      operation: ["POST", template],
      body: {},
      apply,
      origin: event.currentTarget,
    });
  return html`<li class=${entry.undone_by ? "undone" : ""}>
    <div class="what">
      ${inParts(entry.change).map(
        ([what, before, after]) =>
          html`<p>${what}${before !== undefined && html`<span class="values"><s>${before}</s><span class="sr"> before, now </span><span aria-hidden="true"> → </span><b>${after}</b></span>`}</p>`,
      )}
      ${entry.reason && html`<p class="reason">“${entry.reason}”</p>`}
      <p class="muted"><time datetime=${entry.at} title=${entry.at}>${ago(entry.at)}</time> · ${entry.by || "–"} · revision ${revision}
        ${entry.undone_by && html` · undone by ${entry.undone_by}`}
        ${left > 0 && html` · <span class="warn">undone in ${duration(left)} unless confirmed</span>`}
        ${watched > 0 && html` · <span class="warn">watched for ${duration(watched)}: undone if ${entry.guard.abort_if}</span>`}</p>
    </div>
    <div class="acts">
      ${(left > 0 || watched > 0) && !entry.undone_by && offers.has("POST", CONFIRM) &&
      html`<button type="button" class="quiet" onClick=${act(`Keep revision ${revision}`, CONFIRM, "Confirm")}>Confirm<span class="sr"> revision ${revision}</span></button>`}
      ${!entry.undone_by && offers.has("POST", UNDO) &&
      html`<button type="button" class="quiet" onClick=${act(`Undo revision ${revision}`, UNDO, "Undo")}>Undo<span class="sr"> revision ${revision}</span></button>`}
    </div>
  </li>`;
}
