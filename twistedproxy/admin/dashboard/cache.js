// The cache: how much of the traffic it answers, what it holds, and how to take things back.

import { html, useState } from "./vendor/htm-preact.js";
import { Refused, ask } from "./api.js";
import { ago, number, percent, size } from "./figures.js";

const PURGE = "/api/v1/cache/purge";
const CACHE = "/api/v1/cache";
const SHOWN = 5;
const KINDS = [
  ["url", "This URL", "the whole address, with its query"],
  ["prefix", "All URLs that begin with", "the beginning of the address"],
  ["tag", "All with the tag", "product-17"],
  ["all", "Everything", ""],
];

export function Cache({ totals, offers }) {
  const rows = [["Memory", totals.memory], ["Disk", totals.disk]].filter(([, tier]) => tier.limit);
  return html`<section class="card lookup cache" aria-labelledby="cache">
    <header><h2 id="cache">Cache</h2><span class="muted"><b>${percent(totals.hit_ratio, 1)}</b> of ${number(totals.requests)} from the cache</span></header>
    <table class="plain">
      <thead><tr><th scope="col">Tier</th><th scope="col" class="right">Holds</th><th scope="col" class="right">Answers</th><th scope="col" class="right">Evicted</th></tr></thead>
      <tbody>${rows.map(
        ([name, tier]) => html`<tr key=${name}><th scope="row">${name}</th>
          <td class="right number">${size(tier.bytes)} <span class="muted">of ${size(tier.limit)}</span></td>
          <td class="right number">${number(tier.objects)}</td><td class="right number">${number(tier.evicted)}</td></tr>`,
      )}</tbody>
    </table>
    ${totals.errors > 0 && html`<p class="bad">${number(totals.errors)} times the cache directory could not be used; the log says why.</p>`}
    ${offers.has("POST", PURGE) && html`<${Purge} />`}
  </section>`;
}

function Purge() {
  const [kind, setKind] = useState("url");
  const [state, set] = useState({});
  const [latest, setLatest] = useState([]);
  const look = () => ask("GET", CACHE).then(({ data }) => setLatest(data.purges.latest.slice(0, SHOWN)), () => setLatest([]));
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const what = kind === "all" ? true : form.elements.namedItem("what").value.trim();
    const body = { [kind]: what };
    if (form.elements.namedItem("soft").checked) body.soft = true;
    const reason = form.elements.namedItem("reason").value.trim();
    if (reason) body.reason = reason;
    set({ isAsking: true });
    try {
      const { purged, workers, notes = [] } = (await ask("POST", PURGE, { body })).data;
      set({ done: `Purged ${kind === "all" ? "everything" : purged[kind]}, in force in ${workers.acked} of ${workers.total} workers.`, notes });
      look();
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      set({ problem: e.message });
    }
  };
  const [, , example] = KINDS.find(([name]) => name === kind);
  return html`<details onToggle=${(e) => { if (e.currentTarget.open) look(); }}>
    <summary>Purge</summary>
    <form onSubmit=${submit} aria-label="Purge the cache">
      <div class="fields">
        <label>What <select name="kind" value=${kind} onChange=${(e) => { setKind(e.currentTarget.value); set({}); }}>
          ${KINDS.map(([name, label]) => html`<option value=${name}>${label}</option>`)}</select></label>
        ${kind !== "all" && html`<label class="wide">${kind === "tag" ? "Tag" : "URL"} <input name="what" required maxlength=${kind === "tag" ? 1024 : 8192}
          placeholder=${example} autocomplete="off" spellcheck="false" /></label>`}
        <label class="wide">Reason <input name="reason" maxlength="500" autocomplete="off" /></label>
        <label class="tick"><input type="checkbox" name="soft" /> keep as stale</label>
        <div class="buttons"><button type="submit" class="main" disabled=${state.isAsking}>Purge</button></div>
      </div>
    </form>
    <div class="answer" role="status">
      ${state.problem && html`<p class="bad">${state.problem}</p>`}
      ${state.done && html`<p>${state.done}</p>`}
      ${state.notes?.map((note) => html`<p class="warn">${note}</p>`)}
    </div>
    ${latest.length > 0 && html`<ol class="purges" aria-label="Latest purges">${latest.map(
      ({ at, by, what, soft, who, reason }) => html`<li key=${at + by + what}><b>${by === "all" ? "everything" : what}</b>${soft && " (stale)"}
        <span class="muted"><time datetime=${at} title=${at}>${ago(at)}</time> · ${who || "–"}${reason && html` · “${reason}”`}</span></li>`,
    )}</ol>`}
  </details>`;
}
