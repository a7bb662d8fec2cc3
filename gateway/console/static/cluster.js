// What is known of the cluster that the gateway belongs to: its gateways, those that are gone, and whether NATS is there.

const EVERY = 3_000; // ms between two looks at it; an answer may be a second old
const MOST = 20; // gateways that are gone, and remembered

/**
 * Asks again and again, if the gateway is one of several. Calls `changed()` after each answer, and `renew()` when the lists
 * may be wrong, because a gateway has come or gone: what it had tells no end. It does so at the next answer, too: the
 * lists were perhaps asked for in the middle of it.
 */
export class Cluster {
  #client;
  #changed;
  #renew;
  #timer = null;
  #looking = false;
  #stopped = false;
  #known = new Set(); // names of gateways that have been there
  #shape = null; // what the last answer said of who is there
  #unsure = false; // whether the lists are to be renewed whatever the next answer says

  constructor(client, { changed, renew }) {
    this.#client = client;
    this.#changed = changed;
    this.#renew = renew;
    this.here = null; // the name of the gateway that this page is connected to; null if it is alone
    this.members = []; // as gateway.info has them
    this.missing = []; // names of those that do not answer
    this.gone = new Map(); // name → since when
    this.lost = false; // without NATS
    this.deaf = false; // without events, because JetStream alone is out of reach
  }

  /** Whether the gateway is one of several. */
  get several() {
    return this.here !== null;
  }

  /** Ask now. After that it asks by itself. */
  async look() {
    clearTimeout(this.#timer);
    if (this.#looking || this.#stopped) return;
    this.#looking = true;
    let failed = false;
    try {
      if (this.#client.state === "open") this.#take(await this.#client.call("gateway.info", {}, { retry: true }));
    } catch {
      failed = true; // and the lists, which fail as well, say so
    } finally {
      this.#looking = false;
      if ((this.several || failed) && !this.#stopped) this.#timer = setTimeout(() => this.look(), EVERY);
    }
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  /** Take the names of those that were missing in a list. If they have answered here, the list lacks something. */
  lacked(missing = []) {
    if (missing.some((name) => !this.missing.includes(name))) this.#unsure = true;
  }

  /** Speak no more of gateways that are gone. */
  forget() {
    for (const name of this.gone.keys()) this.#known.delete(name);
    this.gone.clear();
    this.#changed();
  }

  #take({ member = null, members = [], missing = [], cluster, events }) {
    this.here = member;
    this.members = members;
    this.missing = missing;
    this.lost = cluster === "lost";
    this.deaf = events === "lost";
    this.#compare();
    const shape = JSON.stringify([cluster, events, missing, members.map((one) => one.instance)]);
    const other = this.#shape !== null && this.#shape !== shape;
    this.#shape = shape;
    const renew = other || this.#unsure;
    this.#unsure = other;
    if (renew) this.#renew();
    this.#changed();
  }

  #compare() {
    const here = new Set([...this.members.map((one) => one.member), ...this.missing]);
    for (const name of here) {
      this.#known.add(name);
      this.gone.delete(name);
    }
    if (this.lost) return; // who is there is not known
    for (const name of this.#known) if (!here.has(name) && !this.gone.has(name)) this.gone.set(name, new Date());
    for (const name of this.gone.keys()) {
      if (this.gone.size <= MOST) break;
      this.gone.delete(name);
      this.#known.delete(name);
    }
  }
}
