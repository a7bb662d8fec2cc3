// One login of the console, and what it knows of the gateway: open connections, ended ones, and nodes.

import { Cluster } from "./cluster.js";
import { GatewayClient } from "./gateway-client.js";

const PAGE = 200; // the most that connection.list and node.list give at once
const HISTORY = 500;
const TOPICS = ["gateway.connection.*", "gateway.node.*"];
const OPENING = 10_000; // ms that a login may take
const NEWS = 20_000; // ms that the news of a reconnect stay
const REST = 100; // ms between two drawings, so that a storm of events leaves time for the reader

/** Tells its listeners ("change") whenever something that a view may show has changed. */
export class Session extends EventTarget {
  #queued = false;
  #found = null; // what a reload has found so far
  #reloadAgain = false;
  #lostAt = null;
  #server = null; // its version when this page was loaded
  #asking = false;
  #askAgain = false;

  constructor(token) {
    super();
    const url = new URL("ws", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.client = new GatewayClient(url.href, { token, reconnect: true });
    this.connections = new Map();
    this.changes = 0; // of connections, so that a view knows whether its rows are still right
    this.history = [];
    this.nodes = [];
    this.cluster = new Cluster(this.client, { changed: () => this.changed(), renew: () => this.#renew() });
    this.listedAt = null;
    this.loading = false;
    this.draining = null;
    this.news = ""; // what the last reconnect has changed
    this.ending = ""; // why the connection has ended for good
    this.problem = "";
    this.client.addEventListener("state", ({ detail }) => this.#moved(detail));
    this.client.addEventListener("draining", ({ detail }) => {
      this.draining = detail;
      this.changed();
    });
  }

  get state() {
    return this.client.state;
  }

  /** Connect; rejects with the client's error if the gateway refuses. */
  async open() {
    await this.client.open({ timeout: OPENING });
    this.#server = this.client.welcome.server.version;
    this.cluster.look();
    if (this.may("admin")) this.#watch();
    else this.refreshNodes();
  }

  may(scope) {
    const scopes = this.client.principal?.scopes ?? [];
    return scopes.includes("*") || scopes.includes(scope);
  }

  /** Whether at least one method of a node may be called. */
  mayCall() {
    const scopes = this.client.principal?.scopes ?? [];
    return scopes.some((scope) => scope === "*" || scope.startsWith("call:"));
  }

  close() {
    this.cluster.stop();
    return this.client.close();
  }

  /** Have the views draw the current state soon. */
  changed() {
    if (this.#queued) return;
    this.#queued = true;
    setTimeout(() => {
      this.#queued = false;
      this.dispatchEvent(new Event("change"));
    }, REST);
  }

  // Incoming events

  #moved({ state, code, reason, resumed }) {
    if (state === "away" || state === "waiting") {
      this.#lostAt ??= Date.now();
      this.news = "";
    } else if (state === "open") {
      this.draining = null;
      this.problem = "";
      if (this.#lostAt !== null) this.#back(resumed);
    } else if (state === "closed") {
      this.draining = null;
      this.ending = [code, reason].filter(Boolean).join(" ");
    }
    this.changed();
  }

  #back(resumed) {
    const { version } = this.client.welcome.server;
    const away = Math.max(1, Math.round((Date.now() - this.#lostAt) / 1000));
    this.news = resumed ? `This page was away for ${away} s, and nothing is lost.` : `Connected again, after ${away} s.`;
    if (version !== this.#server) this.news += ` The gateway is version ${version} now: load this page again.`;
    this.#lostAt = null;
    const told = this.news;
    setTimeout(() => {
      if (this.news === told) this.news = "";
      this.changed();
    }, NEWS);
    this.cluster.look();
    this.#renew();
  }

  /** List again what this page may see. */
  #renew() {
    if (this.may("admin")) this.reload();
    else this.refreshNodes();
  }

  async #watch() {
    try {
      const events = this.client.subscribe(TOPICS);
      events.ready.then(() => this.reload(), () => {}); // subscribed first, so that no change between the two is missed
      for await (const event of events) {
        if (event.gap) this.reload();
        else this.#take(event.topic, event.data, event.time);
      }
    } catch (error) {
      this.#failed(error);
    }
  }

  #take(topic, data, time) {
    if (topic === "gateway.connection.opened") {
      const fresh = { openedAt: time, messagesIn: 0, messagesOut: 0, inFlight: 0, ...data };
      for (const map of this.#maps()) if (!map.has(data.connId)) map.set(data.connId, fresh);
      this.changes++;
    } else if (topic === "gateway.connection.closed") {
      for (const map of this.#maps()) map.delete(data.connId);
      this.changes++;
      // The new link of a connection that has come back: its connection goes on, and the gateway remembers no end either.
      if (data.cause !== "resumed") this.history = [{ ...data, closedAt: time }, ...this.history.slice(0, HISTORY - 1)];
    } else {
      this.refreshNodes();
    }
    this.changed();
  }

  #maps() {
    return this.#found ? new Set([this.connections, this.#found]) : [this.connections];
  }

  /** List everything again, page by page. If a list is under way, list once more after it: it may predate a restart. */
  async reload() {
    if (this.loading) {
      this.#reloadAgain = true;
      return;
    }
    this.loading = true;
    this.#found = new Map();
    if (this.connections.size === 0) this.connections = this.#found; // the first time, show every page as it comes
    this.changed();
    try {
      let after = "";
      do {
        const page = await this.client.call("connection.list", { limit: PAGE, after }, { retry: true });
        this.cluster.lacked(page.missing);
        for (const connection of page.connections) this.#found.set(connection.connId, connection);
        after = page.next;
        this.changes++;
        this.changed();
      } while (after);
      this.connections = this.#found;
      this.listedAt = new Date();
      this.history = (await this.client.call("connection.history", { limit: HISTORY }, { retry: true })).connections;
      await this.refreshNodes();
    } catch (error) {
      this.#failed(error);
    } finally {
      this.#found = null;
      this.loading = false;
      this.changes++;
      this.changed();
      if (this.#reloadAgain) {
        this.#reloadAgain = false;
        this.reload();
      }
    }
  }

  /** List the nodes again, one request at a time however many come and go. */
  async refreshNodes() {
    if (!this.mayCall()) return;
    this.#askAgain = true;
    if (this.#asking) return;
    this.#asking = true;
    try {
      while (this.#askAgain) {
        this.#askAgain = false;
        this.nodes = await this.#allNodes();
        this.problem = "";
        this.changed();
      }
    } catch (error) {
      this.#failed(error);
    } finally {
      this.#asking = false;
    }
  }

  async #allNodes() {
    const found = [];
    let after = "";
    do {
      const page = await this.client.call("node.list", { limit: PAGE, after }, { retry: true });
      this.cluster.lacked(page.missing);
      found.push(...page.nodes);
      after = page.next;
    } while (after);
    return found;
  }

  /** What a node says of one of its methods: { name, summary, params, streams }. Rejects if it does not serve it now. */
  async described(node, method) {
    const { methods, streams = false } = await this.client.call("node.get", { name: node.name }, { retry: true });
    const found = methods.find((one) => one.name === method.name);
    if (!found) throw new Error(`${node.name} does not serve ${method.name} now.`);
    return { ...found, streams };
  }

  #failed(error) {
    if (this.state !== "open") return; // the state says it already
    this.problem = error.message;
    this.changed();
  }
}
