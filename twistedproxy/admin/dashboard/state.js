// All that the page knows of the proxy, kept fresh by its events; `changed` is called whenever something is new.

import { Offers, Refused, ask, follow } from "./api.js";
import { Series, Traffic } from "./figures.js";
import { inOneLine } from "./changes.js";
import { rotationInWords, upgradeInWords } from "./renewal.js";

const REFRESH_MS = 5000;
const SITES = "/api/v1/sites";
const SHIFTS = "/api/v1/shifts";
const DIFF = "/api/v1/config/diff";
const MIRRORS = "/api/v1/mirrors";
const ROTATION = "/api/v1/workers/restart";
const EXPOSURE_MS = 10_000;

export class Proxy {
  constructor(changed, refused, announce) {
    this.changed = changed;
    this.refused = refused; // the token is not, or no longer, good
    this.announce = announce;
    this.series = new Series();
    this.traffic = new Traffic();
    this.offers = new Offers();
    this.connection = "waiting";
    this.pools = null;
    this.status = null;
    this.sites = null;
    this.shifts = [];
    this.splits = [];
    this.changes = [];
    this.differences = null; // live values against the file, as of `diffOf`
    this.mirrors = [];
    this.rotation = null; // the latest replacement of workers
    this.mostOpen = new Map(); // by server that is leaving: the most connections since it began
    this.stats = null;
    this.etag = null;
    this.heard = null; // when the proxy last said something
    this.failure = "";
  }

  start() {
    this.end = new AbortController();
    ask("GET", "/api/v1/openapi.json").then(({ data }) => {
      this.offers = new Offers(data);
      this.refresh();
    }, this.#failed);
    follow((kind, data) => this.#happened(kind, data), (state) => this.#connected(state), this.end.signal);
    this.timer = setInterval(() => document.hidden || this.refresh(), REFRESH_MS);
  }

  stop() {
    this.end.abort();
    clearInterval(this.timer);
  }

  #failed = (e) => {
    if (!(e instanceof Refused)) throw e;
    if (e.status === 401) this.refused(e.message);
    else {
      this.failure = e.message;
      this.changed();
    }
  };

  #connected(state) {
    if (state instanceof Refused) return this.#failed(state);
    this.connection = state;
    if (state === "live") this.refresh();
    this.changed();
  }

  // Everything that is not a counter. One at a time; a wish that comes meanwhile is granted afterwards.
  async refresh() {
    if (this.refreshing) {
      this.again = true;
      return this.refreshing;
    }
    this.refreshing = this.#load();
    try {
      await this.refreshing;
    } finally {
      this.refreshing = null;
    }
    if (this.again) {
      this.again = false;
      await this.refresh();
    }
  }

  async #load() {
    try {
      const wanted = ["/api/v1/status", "/api/v1/changes", "/api/v1/pools"].map((path) => ask("GET", path));
      for (const path of [SITES, SHIFTS, MIRRORS, ROTATION]) wanted.push(this.offers.has("GET", path) ? ask("GET", path) : null);
      const [status, changes, pools, sites, shifts, mirrors, rotation] = await Promise.all(wanted);
      this.status = status.data;
      this.changes = changes.data.changes;
      this.pools = pools.data.pools;
      this.etag = pools.etag;
      this.sites = sites ? sites.data.sites : null;
      this.shifts = shifts?.data.shifts ?? [];
      this.mirrors = mirrors?.data.mirrors ?? [];
      this.rotation = rotation?.data ?? null;
      this.#countSplits();
      this.#seeLeaving();
      await this.#compare();
      this.failure = "";
      this.changed();
    } catch (e) {
      this.#failed(e);
    }
  }

  // The file is read for this: only when something has changed.
  async #compare() {
    if (!this.offers.has("GET", DIFF) || this.diffOf === this.etag) return;
    try {
      this.differences = (await ask("GET", DIFF)).data.differences;
      this.diffOf = this.etag;
    } catch (e) {
      if (!(e instanceof Refused) || e.status === 401) throw e;
      this.differences = null; // no file, or one that is broken just now
    }
  }

  #seeLeaving() {
    for (const pool of this.pools) {
      for (const { address, state, connections } of pool.servers) {
        const key = `${pool.name} ${address}`;
        if (state === "ready") this.mostOpen.delete(key);
        else this.mostOpen.set(key, Math.max(connections, this.mostOpen.get(key) ?? 0));
      }
    }
  }

  // The most connections that a server had since it was taken out of rotation; 0: none, or it was not.
  leaving = (pool, address) => this.mostOpen.get(`${pool} ${address}`) ?? 0;

  #happened(kind, data) {
    this.heard = new Date();
    if (kind === "recent") {
      this.series.bounds = data.bounds;
      const rows = data.rows.map((row) => Object.fromEntries(data.columns.map((name, i) => [name, row[i]])));
      const newest = rows.at(-1)?.uptime_seconds ?? 0;
      for (const row of rows) this.series.add(row, Date.now() / 1000 - (newest - row.uptime_seconds));
    } else if (kind === "stats") {
      this.#counted(data);
    } else {
      if (kind === "change") this.announce(`Revision ${data.revision} by ${data.by}: ${inOneLine(data.change)}`);
      if (kind === "health" && data.health) this.announce(`${data.server} in ${data.pool} is ${data.health}: ${data.reason}`);
      if (kind === "purge") this.announce(`Cache purged by ${data.by}: ${Object.entries(data.purged).map(([by, what]) => (by === "all" ? "everything" : what))}`);
      if (kind === "upgrade") this.announce(upgradeInWords(data));
      if (kind === "rotation") this.announce(rotationInWords(data));
      this.refresh();
    }
    this.changed();
  }

  #counted(stats) {
    this.stats = stats;
    this.series.add(stats, Date.now() / 1000);
    this.traffic.add(stats);
    const rows = new Map(stats.servers.map((s) => [`${s.pool} ${s.server}`, s]));
    const queues = new Map((stats.pools ?? []).map((p) => [p.name, p.waiting]));
    for (const pool of this.pools ?? []) {
      pool.queue.waiting = queues.get(pool.name) ?? pool.queue.waiting;
      for (const server of pool.servers) {
        const row = rows.get(`${pool.name} ${server.address}`);
        if (row) Object.assign(server, { connections: row.connections, requests: row.requests, failures: row.failures });
      }
    }
    if (this.status) Object.assign(this.status, { workers: stats.workers, uptime_seconds: stats.uptime_seconds });
  }

  // How often each side of a split was taken, remembered for some seconds.
  #countSplits() {
    const counts = new Map();
    for (const site of this.sites ?? []) {
      for (const route of site.routes ?? []) {
        for (const side of route.split ?? []) counts.set(JSON.stringify([site.name, route.path, side.pool]), side.requests);
      }
    }
    if (!counts.size) return;
    const at = Date.now();
    this.splits.push({ at, counts });
    while (this.splits.length > 2 && at - this.splits[1].at > EXPOSURE_MS) this.splits.shift();
  }

  // The part of a split's traffic that this side got in the last seconds; null without traffic.
  exposure = (site, path, pool) => {
    const [first, last] = [this.splits[0], this.splits.at(-1)];
    if (!first || first === last) return null;
    let [mine, all] = [0, 0];
    for (const [key, count] of last.counts) {
      const [ofSite, ofPath, ofPool] = JSON.parse(key);
      if (ofSite !== site || ofPath !== path) continue;
      const grown = Math.max(0, count - (first.counts.get(key) ?? 0));
      all += grown;
      if (ofPool === pool) mine += grown;
    }
    return all ? mine / all : null;
  };
}
