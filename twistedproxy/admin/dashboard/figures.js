// Numbers for people: rates and percentiles from counters that only grow, and how they are written.

const KEPT_S = 300;
const SHARE_WINDOW_S = 10;
const LATENCY_WINDOW_S = 5;
const RATE_WINDOW_S = 3;

// The time below which the fraction `q` of the counted durations lies, in seconds; null when none were counted.
export function percentile(bounds, counts, q) {
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (!total) return null;
  let rank = q * total;
  for (let i = 0; i < counts.length; i++) {
    if (rank <= counts[i] && counts[i]) {
      const low = i ? bounds[i - 1] : 0;
      const high = i < bounds.length ? bounds[i] : bounds[bounds.length - 1];
      return low + (high - low) * (rank / counts[i]);
    }
    rank -= counts[i];
  }
  return bounds[bounds.length - 1];
}

const minus = (a, b) => a.map((n, i) => n - (b[i] ?? 0));

// Five minutes of one-second rows, as columns for the charts.
export class Series {
  constructor() {
    this.bounds = [];
    this.rows = [];
    this.clear();
  }

  clear() {
    this.rows = [];
    this.at = [];
    this.requests = [];
    this.errors = [];
    this.ratio = [];
    this.p50 = [];
    this.p95 = [];
    this.connections = [];
  }

  // `wall` is the wall-clock time of the row, in seconds.
  add(row, wall) {
    const before = this.rows.at(-1);
    if (before && row.uptime_seconds <= before.uptime_seconds) {
      if (row.requests >= before.requests) return; // told twice, at a reconnection
      this.clear(); // another process: its counters began anew
    }
    this.rows.push(row);
    if (this.rows.length === 1) return;
    const { seconds, requests, errors } = this.lately;
    const durations = minus(row.durations, this.since(LATENCY_WINDOW_S).durations);
    this.at.push(wall);
    this.requests.push(requests / seconds);
    this.errors.push(errors ? errors / seconds : null);
    this.ratio.push(requests ? (100 * errors) / requests : 0);
    const [p50, p95] = [0.5, 0.95].map((q) => percentile(this.bounds, durations, q));
    this.p50.push(p50 === null ? null : p50 * 1000);
    this.p95.push(p95 === null ? null : p95 * 1000);
    this.connections.push(row.connections);
    if (this.rows.length > KEPT_S + 1) this.rows.shift();
    for (const column of [this.at, this.requests, this.errors, this.ratio, this.p50, this.p95, this.connections]) {
      if (column.length > KEPT_S) column.shift();
    }
  }

  // The row from about `seconds` ago, or the oldest.
  since(seconds) {
    const now = this.rows.at(-1);
    for (let i = this.rows.length - 2; i >= 0; i--) {
      if (now.uptime_seconds - this.rows[i].uptime_seconds >= seconds - 0.5) return this.rows[i];
    }
    return this.rows[0];
  }

  // Workers tell their counts once a second, each at its own time: a little window takes the jitter out.
  get lately() {
    const row = this.rows.at(-1);
    const base = this.since(RATE_WINDOW_S);
    return {
      seconds: row.uptime_seconds - base.uptime_seconds,
      requests: row.requests - base.requests,
      errors: row.errors - base.errors,
    };
  }

  get now() {
    if (!this.at.length) return null;
    const { seconds, requests, errors } = this.lately;
    return {
      requests: requests / seconds,
      errors: errors / seconds,
      ratio: requests ? (100 * errors) / requests : 0,
      p50: this.p50.at(-1),
      p95: this.p95.at(-1),
      connections: this.connections.at(-1),
    };
  }
}

// How the traffic of the last seconds was shared out among servers, workers and listeners.
export class Traffic {
  constructor() {
    this.samples = [];
  }

  add(stats) {
    const counts = new Map();
    for (const s of stats.servers) counts.set(`${s.pool} ${s.server}`, s.requests);
    for (const p of stats.pools ?? []) counts.set(p.name, p.requests + p.sessions).set(`errors ${p.name}`, p.errors);
    for (const w of stats.workers) counts.set(`worker ${w.pid}`, w.requests);
    for (const l of stats.listeners ?? []) counts.set(`listener ${l.address}`, l.total);
    const sample = { at: stats.uptime_seconds, counts };
    if (this.samples.length && sample.at <= this.samples.at(-1).at) this.samples = [];
    this.samples.push(sample);
    while (this.samples.length > 2 && sample.at - this.samples[0].at > SHARE_WINDOW_S + 0.5) this.samples.shift();
  }

  rate(key) {
    const first = this.samples[0];
    const last = this.samples.at(-1);
    if (!first || first === last) return 0;
    return Math.max(0, (last.counts.get(key) ?? 0) - (first.counts.get(key) ?? 0)) / (last.at - first.at);
  }

  // Each server's part of what the servers of its pool got; null without traffic.
  share(pool, address) {
    const sum = pool.servers.reduce((all, s) => all + this.rate(`${pool.name} ${s.address}`), 0);
    return sum ? this.rate(`${pool.name} ${address}`) / sum : null;
  }
}

// What each server's share would be by weight; `weights` overrides some. Follows the proxy's rule: backups only when no primary serves.
export function sharesByWeight(pool, changed = {}) {
  const view = pool.servers.map((s) => {
    const wish = changed[s.address] ?? {};
    const weight = wish.weight === null ? s.weight.configured : (wish.weight ?? s.weight.effective);
    const state = wish.state ?? s.state;
    return { ...s, weight, isAvailable: state === "ready" && weight > 0 && s.health.status !== "down" && !s.ejected };
  });
  const available = view.filter((s) => s.isAvailable);
  const primaries = available.filter((s) => !s.backup);
  const serving = primaries.length ? primaries : available;
  const sum = serving.reduce((all, s) => all + s.weight, 0);
  return new Map(view.map((s) => [s.address, serving.includes(s) && sum ? s.weight / sum : 0]));
}

export function number(n, digits = 0) {
  if (n === null || n === undefined || Number.isNaN(n)) return "–";
  if (n >= 10_000_000) return `${(n / 1e6).toFixed(0)}M`;
  if (n >= 1_000_000) return `${(n / 1e6).toFixed(1)}M`;
  if (n >= 100_000) return `${(n / 1e3).toFixed(0)}k`;
  if (n >= 10_000) return `${(n / 1e3).toFixed(1)}k`;
  return n.toFixed(n < 10 && n % 1 ? Math.max(digits, 1) : digits);
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [n, unit] = [bytes ?? 0, 0];
  while (n >= 1024 && unit < units.length - 1) [n, unit] = [n / 1024, unit + 1];
  return `${n < 10 && unit ? n.toFixed(1) : n.toFixed(0)} ${units[unit]}`;
}

export function percent(part, digits = 0) {
  if (part === null || part === undefined) return "–";
  const shown = (100 * part).toFixed(digits);
  return `${shown} %`;
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 10_000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${s} s`;
}

export function ago(iso) {
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}
