// The change the operator is about to make: what it is, what it would do, why; nothing happens before "Apply".

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Refused, ask } from "./api.js";
import { percent } from "./figures.js";

const PREVIEW_AFTER_MS = 250;
const WAITS = [["", "– (stays)"], ["1m", "within 1 minute"], ["5m", "within 5 minutes"], ["15m", "within 15 minutes"]];

// Sends the change; gives the proxy's answer or throws Refused.
export async function send(proposal, etag) {
  const { method, path, reason, confirmWithin, abortIf, now } = proposal;
  const body = { ...proposal.body };
  if (reason.trim()) body.reason = reason.trim();
  if (confirmWithin) body.confirm_within = confirmWithin;
  if (abortIf.trim()) body.abort_if = abortIf.trim();
  return (await ask(method, now ? `${path}?now=1` : path, { body, etag })).data;
}

export function Proposal({ proposal, offers, update, apply, cancel }) {
  const { title, text, form, operation, message, isSending, isConflict } = proposal;
  const reason = useRef();
  const first = useRef();
  const takes = (name) => offers.takes(...operation, name);
  const preview = usePreview(proposal, takes("preview"));

  useEffect(() => {
    if (!proposal.keepFocus) (first.current ?? reason.current)?.focus();
  }, [proposal.id]);

  const submit = (event) => {
    event.preventDefault();
    if (!isSending) apply();
  };
  const edit = (changes) => update({ body: { ...proposal.body, ...changes } });
  return html`<form class="proposal" aria-labelledby="proposal-title" onSubmit=${submit}>
    <div class="about">
      <h2 id="proposal-title">${title}</h2>
      ${text && html`<p class="muted">${text}</p>`}
      ${preview && html`<${Preview} preview=${preview} />`}
    </div>
    ${form === "add" && html`<div class="fields">
      <label class="wide">Address <input ref=${first} required placeholder="10.0.0.7:8080" autocomplete="off" spellcheck="false" value=${proposal.body.address}
        onInput=${(e) => edit({ address: e.currentTarget.value.trim() })} /></label>
      <label>Weight <input type="number" min="0" max="1000" required value=${proposal.body.weight}
        onInput=${(e) => edit({ weight: Number.parseInt(e.currentTarget.value, 10) || 0 })} /></label>
      <label class="tick"><input type="checkbox" checked=${proposal.body.backup} onChange=${(e) => edit({ backup: e.currentTarget.checked })} /> Backup</label>
    </div>`}
    <div class="fields">
      <label class="wide">Reason, for the journal
        <input ref=${reason} id="reason" maxlength="500" autocomplete="off" value=${proposal.reason} onInput=${(e) => update({ reason: e.currentTarget.value })} /></label>
      ${takes("confirm_within") && html`<label>Undone unless confirmed
        <select value=${proposal.confirmWithin} onChange=${(e) => update({ confirmWithin: e.currentTarget.value })}>
          ${WAITS.map(([value, label]) => html`<option value=${value}>${label}</option>`)}
        </select></label>`}
      ${takes("abort_if") && html`<label>Undone if
        <input class="guard" placeholder="errors > 1% or p95 > +20%" maxlength="200" autocomplete="off" spellcheck="false" value=${proposal.abortIf}
          onInput=${(e) => update({ abortIf: e.currentTarget.value })} /></label>`}
      ${form === "remove" && html`<label class="tick"><input type="checkbox" checked=${proposal.now} onChange=${(e) => update({ now: e.currentTarget.checked })} />
        Cut what is open at once</label>`}
      <div class="buttons">
        <button type="button" class="quiet" onClick=${cancel}>Cancel</button>
        <button type="submit" class=${proposal.isGrave ? "grave" : "main"} disabled=${isSending}>
          ${isSending ? "Applying…" : isConflict ? "Apply all the same" : (proposal.apply ?? "Apply")}</button>
      </div>
    </div>
    <p class="message" role="alert">${message}</p>
  </form>`;
}

// What the proxy says the change would do; null while it is not asked or does not answer.
function usePreview(proposal, isOffered) {
  const [preview, show] = useState(null);
  const { method, path, body } = proposal;
  const asked = JSON.stringify([method, path, body]);
  useEffect(() => {
    if (!isOffered || (body.address === "" && proposal.form === "add")) {
      show(null);
      return undefined;
    }
    const end = new AbortController();
    const timer = setTimeout(() => {
      ask(method, `${path}?preview=1`, { body, signal: end.signal }).then(
        ({ data }) => show(data.preview ?? data),
        (e) => end.signal.aborted || show(e instanceof Refused ? { problem: e.message } : null),
      );
    }, PREVIEW_AFTER_MS);
    return () => {
      clearTimeout(timer);
      end.abort();
    };
  }, [asked, isOffered]);
  return preview;
}

function Preview({ preview }) {
  if (preview.problem) return html`<p class="warn">${preview.problem}</p>`;
  const { shares = [], closing } = preview;
  return html`<p class="preview" role="status">
    ${shares.map((s) => html`<span><span class="address">${s.server}</span> ${percent(s.before)} → <b>${percent(s.after)}</b></span>`)}
    ${shares.length === 0 && html`<span class="muted">No share of traffic changes</span>`}
    ${closing !== undefined && html`<span class=${closing ? "warn" : "muted"}>closes ${closing ? `${closing} open sessions` : "nothing that is open"}</span>`}
  </p>`;
}
