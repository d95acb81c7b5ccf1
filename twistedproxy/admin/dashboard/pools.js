// Pools and their servers: what they get, how they are, and the handles to change it.

import { html } from "./vendor/htm-preact.js";
import { duration, number, percent, sharesByWeight } from "./figures.js";
import { serverPath } from "./api.js";

const STATES = [
  ["ready", "Ready", "takes new connections"],
  ["drain", "Drain", "gets nothing new, what is open finishes"],
  ["maint", "Maint", "gets nothing new, what is open is cut at the drain limit"],
];
const ONE_MORE = { weight: 1, backup: false, address: "" };

const healthWord = (s) => (s.ejected ? "ejected" : s.health.status);
const healthTone = (s) => (s.ejected || s.health.status === "down" ? "bad" : s.health.status === "up" ? "ok" : "idle");

export function Pool({ pool, traffic, leaving, pending, propose }) {
  const mine = pending?.pool === pool.name ? pending : null;
  const wish = mine?.address && mine.wish ? { [mine.address]: mine.wish } : {};
  const wanted = sharesByWeight(pool, wish);
  const heaviest = Math.max(10, ...pool.servers.map((s) => 2 * Math.max(s.weight.configured, s.weight.set ?? 0)));
  const rate = traffic.rate(pool.name);
  const failing = traffic.rate(`errors ${pool.name}`);
  const add = (event) =>
    propose({
      title: `Add a server to ${pool.name}`,
      pool: pool.name,
      form: "add",
      method: "POST",
      path: `/api/v1/pools/${encodeURIComponent(pool.name)}/servers`,
      operation: ["POST", "/api/v1/pools/{pool}/servers"],
      body: { ...ONE_MORE },
      apply: "Add server",
      origin: event.currentTarget,
    });
  return html`<section class="card pool" aria-labelledby=${`pool-${pool.name}`}>
    <header>
      <h2 id=${`pool-${pool.name}`}>${pool.name}</h2>
      <p class="muted">
        ${pool.balance.replaceAll("_", " ")} · ${number(rate, 1)}/s${failing > 0 && html` · <span class="bad">${number(failing, 1)} errors/s</span>`}
        ${pool.queue.waiting ? html` · <span class="warn">${pool.queue.waiting} of ${pool.queue.size} waiting</span>` : ""}
      </p>
      <button type="button" class="quiet" onClick=${add}>Add server<span class="sr"> to ${pool.name}</span></button>
    </header>
    <table role="table">
      <thead role="rowgroup">
        <tr role="row">
          <th role="columnheader" scope="col">Server</th>
          <th role="columnheader" scope="col">Traffic now against weight</th>
          <th role="columnheader" scope="col">Weight</th>
          <th role="columnheader" scope="col" class="right">Open</th>
          <th role="columnheader" scope="col" class="right">Per second</th>
          <th role="columnheader" scope="col" class="right">Failures</th>
          <th role="columnheader" scope="col">State</th>
        </tr>
      </thead>
      <tbody role="rowgroup">
        ${pool.servers.map(
          (server) => html`<${Server} key=${server.address} pool=${pool} server=${server} traffic=${traffic} leaving=${leaving(pool.name, server.address)} heaviest=${heaviest}
            wanted=${wanted.get(server.address)} pending=${mine?.address === server.address ? mine : null} propose=${propose} />`,
        )}
      </tbody>
    </table>
  </section>`;
}

// Where there is no room for all of it, an address breaks before its port and never in it.
function Address({ of }) {
  const [, host, port] = /^(.*?)(:\d+)?$/.exec(of);
  return html`${host}${port && html`<wbr /><span class="port">${port}</span>`}`;
}

function Server({ pool, server, traffic, leaving, heaviest, wanted, pending, propose }) {
  const { address, health } = server;
  const name = `${address} in ${pool.name}`;
  const change = (title, wish, event, extra = {}) =>
    propose({
      title,
      pool: pool.name,
      address,
      wish,
      method: "PATCH",
      path: serverPath(pool.name, address),
      operation: ["PATCH", "/api/v1/pools/{pool}/servers/{address}"],
      body: wish,
      origin: event.currentTarget,
      ...extra,
    });
  const setWeight = (event) => {
    const weight = Number.parseInt(event.currentTarget.value, 10);
    if (Number.isNaN(weight)) return;
    const bounded = Math.min(1000, Math.max(0, weight));
    change(`Weight of ${name}: ${server.weight.effective} → ${bounded}`, { weight: bounded }, event, { keepFocus: true });
  };
  const limit = (event) =>
    change(`Most connections of ${name}`, undefined, event, { form: "limit", body: { max_connections: server.max_connections }, text: "Of all workers together; those over it wait in the queue." });
  const remove = (event) =>
    change(`Remove ${name}`, undefined, event, {
      form: "remove",
      method: "DELETE",
      operation: ["DELETE", "/api/v1/pools/{pool}/servers/{address}"],
      body: {},
      apply: "Remove server",
      isGrave: true,
      text: "It is drained first: what is open finishes, then it is gone.",
    });
  const weight = pending?.wish?.weight === undefined ? server.weight.effective : (pending.wish.weight ?? server.weight.configured);
  const state = pending?.wish?.state ?? server.state;
  const share = traffic.share(pool, address);
  const since = health.since ? ` ${duration((Date.now() - Date.parse(health.since)) / 1000)}` : "";
  return html`<tr role="row" class=${`server ${server.state !== "ready" ? "aside" : ""} ${pending ? "pending" : ""}`}>
    <th role="rowheader" scope="row">
      <span class="address"><${Address} of=${address} /></span>
      ${server.backup && html`<span class="badge">backup</span>`}
      ${server.state !== "ready" && html`<${Leaving} left=${server.connections} most=${Math.max(leaving, server.connections)} name=${name} />`}
      <span class=${`health ${healthTone(server)}`}>
        <${Icon} tone=${healthTone(server)} />
        <span><b>${healthWord(server)}</b>${since}${health.reason && html` <span class="muted">· ${health.reason}</span>`}</span>
      </span>
    </th>
    <td role="cell" data-label="Traffic">
      <${Share} share=${share} wanted=${wanted} isPending=${Boolean(pending?.wish)} name=${name} />
    </td>
    <td role="cell" data-label="Weight">
      <span class="weight">
        <input type="range" min="0" max=${Math.max(heaviest, weight)} value=${weight} onInput=${setWeight} aria-label=${`Weight of ${name}`} data-step />
        <input type="number" min="0" max="1000" value=${weight} onInput=${setWeight} aria-label=${`Weight of ${name}, as a number`} data-step />
      </span>
      ${server.weight.set !== null &&
      html`<button type="button" class="link" aria-label=${`Weight of ${name}: back to the file's ${server.weight.configured}`}
        onClick=${(e) => change(`Weight of ${name}: back to the file's ${server.weight.configured}`, { weight: null }, e)}>
        file says ${server.weight.configured}</button>`}
    </td>
    <td role="cell" data-label="Open" class="right number">${number(server.connections)}<span class="muted"> / </span><button type="button" class="link" onClick=${limit}
      title="Change the most connections" aria-label=${`Most connections of ${name}: ${server.max_connections}, change`}>${number(server.max_connections)}</button></td>
    <td role="cell" data-label="Per second" class="right number">${number(traffic.rate(`${pool.name} ${address}`), 1)}</td>
    <td role="cell" data-label="Failures" class=${`right number ${server.failures ? "warn" : "muted"}`}>${number(server.failures)}</td>
    <td role="cell" data-label="State">
      <span class="states" role="group" aria-label=${`State of ${name}`}>
        ${STATES.map(
          ([value, label, meaning]) => html`<button type="button" aria-pressed=${String(state === value)} class=${value} title=${`${label}: ${meaning}`}
            onClick=${(e) => value !== server.state && change(`${label} ${name}: ${meaning}`, { state: value }, e, { apply: label })}>${label}</button>`,
        )}
        <button type="button" class="remove" aria-label=${`Remove ${name}`} title="Remove" onClick=${remove}>✕</button>
      </span>
    </td>
  </tr>`;
}

// How far a server that leaves has come.
function Leaving({ left, most, name }) {
  if (!left) return html`<span class="badge">idle</span>`;
  return html`<span class="badge warn leaving"><span>${left} to finish</span>
    <progress max=${most} value=${most - left} aria-label=${`${name}: finished since it was taken out of rotation`}></progress></span>`;
}

function Share({ share, wanted, isPending, name }) {
  const spoken = `${share === null ? "no traffic" : `${percent(share)} of the traffic`}, ${percent(wanted)} by weight`;
  return html`<span class=${`share ${isPending ? "changing" : ""}`} role="img" aria-label=${`${name}: ${spoken}`}>
    <span class="words" aria-hidden="true"><b>${percent(share)}</b> <span class="muted">of ${percent(wanted)}</span></span>
    <span class="bar" aria-hidden="true">
      <i class="got" style=${{ width: `${100 * (share ?? 0)}%` }}></i>
      <i class="mark" style=${{ left: `${100 * wanted}%` }}></i>
    </span>
  </span>`;
}

// Shapes differ, so that colour is never the only sign.
export function Icon({ tone }) {
  const shape = { ok: "M3.5 8.5l3 3 6-7", bad: "M4 4l8 8M12 4l-8 8", warn: "M8 3v6M8 12.5v.01", idle: "M4 8h8" }[tone];
  return html`<svg class=${`icon ${tone}`} viewBox="0 0 16 16" aria-hidden="true"><path d=${shape} /></svg>`;
}
