// A client of aisopod-gateway for browsers and Node, without dependencies. gateway-client.d.ts beside it says what each
// public name means. All times in here are milliseconds.

const TIMEOUT = 30_000; // of whatever is asked, by default
const CONNECT_TIMEOUT = 10_000; // from the first packet to the principal of the welcome
const CLOSE_TIMEOUT = 2_000;
const PAUSE_MIN = 500; // before a reconnect; doubled with each failure
const PAUSE_MAX = 30_000;
const RETRY_MIN = 100; // before a call is sent again; doubled with each refusal
const RETRY_MAX = 5_000;
const SETTLED = 10_000; // the loss of a link that was open so long is no failure
const SECOND_LOOK = 100;
const MAX_TIMER = 2 ** 31 - 1; // setTimeout takes anything longer as 1
const MAX_WAITING = 1_000; // calls and batches that wait for a link or for their turn
const MAX_BUFFERED = 16 * 2 ** 20; // bytes that wait for the network
const MAX_EVENTS = 1_000; // events that wait for their reader
const MAX_TOPICS = 10_000; // of one subscription: as many as a gateway has by default
const MAX_SINCE = 1000; // positions in one request
const PROTOCOL = 1;
const OPEN = 1; // WebSocket.OPEN
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 1010]);
const OWN_CODE = -32000; // of this client's own errors, which are never on the wire
const REFUSALS = new Set(["rate_limited", "overloaded", "draining"]); // they always come before anything is run
const LONE_SURROGATE = /(?<!\\)(?:\\\\)*\\ud[89a-f]/; // JSON.stringify escapes no other

const now = () => performance.now();
const timer = (act, time) => setTimeout(act, Math.min(Math.max(time, 0), MAX_TIMER));
const event = (name, detail) => new CustomEvent(name, { detail });
const isOver = (text, bytes) => 3 * text.length > bytes && new TextEncoder().encode(text).length > bytes;

export class CallError extends Error {
  constructor(code, message, data) {
    super(message);
    const told = data !== null && typeof data === "object" ? data : {};
    this.name = typeof told.code === "string" ? told.code : "error";
    this.code = code;
    this.data = data;
    this.temporary = told.temporary === true;
    this.outcome = told.outcome ?? null;
    this.retryAfterMs = told.retryAfterMs ?? null;
  }
}

const failure = (code, name, message, outcome, rest) =>
  new CallError(code, message, { code: name, temporary: false, ...(outcome && { outcome }), ...rest });
const overloaded = (message) =>
  failure(-32009, "overloaded", message, "not_delivered", { temporary: true, retryAfterMs: RETRY_MIN });
const timedOut = (outcome) => failure(-32008, "timeout", "The deadline passed", outcome, { temporary: true });
const lost = () =>
  failure(OWN_CODE, "connection_lost", "The connection was lost before the answer", "unknown", { temporary: true });
const closed = (why) => failure(OWN_CODE, "closed", `The connection is closed: ${why}`, "not_delivered");

/** Whether a call has certainly not been run, and may succeed later. */
function mayBeSentAgain(error) {
  return error.temporary && (error.outcome ?? (REFUSALS.has(error.name) && "not_delivered")) === "not_delivered";
}

function encode(value) {
  const text = JSON.stringify(value);
  if (text !== undefined && LONE_SURROGATE.test(text)) throw new TypeError("a lone surrogate is no text");
  return text;
}

function encodeParams(params) {
  if (params === undefined || params === null) return undefined;
  if (typeof params !== "object") throw new TypeError("params must be an object or an array");
  return encode(params);
}

function notification(method, params) {
  return `{"jsonrpc":"2.0","method":${encode(method)}${params === undefined ? "" : `,"params":${params}`}}`;
}

function requestText(id, { method, params, node, deadline }, limits) {
  let asked = { method, params };
  if (node !== undefined) {
    const timeoutMs = Math.min(Math.max(Math.ceil(deadline - now()), 1), limits.maxCallTimeoutMs);
    const inner = params === undefined ? "" : `,"params":${params}`;
    const target = `"node":${encode(node)},"method":${encode(method)},"timeoutMs":${timeoutMs}`;
    asked = { method: "node.call", params: `{${target}${inner}}` };
  }
  return `{"id":${id},${notification(asked.method, asked.params).slice(1)}`;
}

/** Returns a promise for `work` that rejects after `time`, by a signal, or by the function that is returned with it. */
function limited(work, time, signal) {
  let stop;
  const promise = new Promise((resolve, reject) => {
    const end = (act, value) => {
      clearTimeout(late);
      signal?.removeEventListener("abort", abort);
      act(value);
    };
    const abort = () => end(reject, signal.reason);
    const late = timer(() => end(reject, timedOut(null)), time);
    stop = (error) => end(reject, error);
    work.then((value) => end(resolve, value), stop);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
  return [promise, stop];
}

function deferred() {
  const one = {};
  one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }));
  one.promise.catch(() => {}); // no complaint if no caller waits; one that does still sees the error
  return one;
}

/** Whether a pattern matches a topic: `*` is one part, a last `>` one or more. The gateway's own need `gateway.`. */
function meets(pattern, topic) {
  if (pattern.startsWith("gateway.") !== topic.startsWith("gateway.")) return false;
  const wanted = pattern.split(".");
  const parts = topic.split(".");
  const rest = wanted.at(-1) === ">";
  if (rest) wanted.pop();
  if (rest ? parts.length <= wanted.length : parts.length !== wanted.length) return false;
  return wanted.every((part, index) => part === "*" || part === parts[index]);
}

/** Requests in one message. `done` gets their outcomes, results or CallErrors, as soon as the last one has come. */
class Exchange {
  constructor(requests, done, { batch = false, onProgress } = {}) {
    Object.assign(this, { requests, done, batch, onProgress });
    this.ids = []; // empty: not sent
    this.outcomes = new Array(requests.length);
    this.left = requests.length;
  }

  answer(index, outcome) {
    if (index in this.outcomes) return;
    this.outcomes[index] = outcome;
    if (--this.left === 0) this.done(this.outcomes);
  }

  fail(error) {
    for (const index of this.requests.keys()) this.answer(index, error);
  }
}

/** The events of a subscription, in order, for one reader. */
class Subscription {
  #leave;
  #buffer;
  #positions; // topic to { epoch, offset } of its last message; the topic without news for longest is first
  #queue = [];
  #readers = [];
  #gaps = new Set(); // topics with messages that found no room, for which the gap had no room either
  #ended = null; // { error }; an error of null: it ended well
  #began = false;
  #catchingUp = new Set(); // topics asked for again, from their beginning; their messages are left out until then
  #forgot = false; // whether positions were dropped, because there were more than MAX_TOPICS
  #ready = deferred();
  active = false;

  constructor(topics, { since = {}, buffer = MAX_EVENTS }, leave) {
    this.topics = topics;
    this.#buffer = buffer;
    this.#leave = leave;
    this.#positions = new Map(Object.entries(since));
  }

  /** What to resume with, in at most so many bytes. For a topic that is left out there will be a gap. */
  since(bytes) {
    const since = {};
    for (const [topic, { epoch, offset }] of [...this.#positions].slice(-MAX_SINCE).reverse()) {
      bytes -= 3 * topic.length + epoch.length + 60;
      if (bytes < 0) break;
      since[topic] = { epoch, offset };
    }
    return since;
  }

  /**
   * Take the reply to a subscribe. It says where each topic is, and whether all that was missed follows. Returns what
   * to ask for again: the topics that began while there was no link, or null if there are none.
   */
  joined(topics) {
    const begun = {};
    this.active = true;
    this.#catchingUp.clear();
    for (const [topic, { epoch, offset, recovered }] of Object.entries(topics)) {
      if (recovered) continue;
      const position = this.#positions.get(topic);
      if (position?.epoch === epoch && position.offset === offset) continue;
      this.#move(topic, epoch, offset);
      if (position || (this.#began && this.#forgot)) this.#gap(topic);
      else if (this.#began && offset > 0) begun[topic] = { epoch, offset: 0 };
    }
    for (const topic of [...this.#positions.keys()]) {
      if (Object.hasOwn(topics, topic)) continue;
      this.#positions.delete(topic); // the gateway no longer knows it, and will begin it again
      this.#gap(topic);
    }
    this.#began = true;
    this.#ready.resolve();
    for (const topic of Object.keys(begun)) this.#catchingUp.add(topic);
    return this.#catchingUp.size ? begun : null;
  }

  /** Take the reply to that: either the first message and all others follow, or some are lost. */
  caughtUp(begun, topics) {
    for (const topic of Object.keys(begun)) {
      const { epoch, offset, recovered } = topics[topic] ?? {};
      if (recovered) this.#move(topic, epoch, 0);
      else if (epoch) this.#move(topic, epoch, offset);
      else this.#positions.delete(topic);
      if (!recovered) this.#gap(topic);
      this.#catchingUp.delete(topic);
    }
  }

  deliver(message) {
    const { topic, epoch } = message;
    const position = this.#positions.get(topic);
    if (!this.#advance(message)) return;
    if (position && position.epoch !== epoch) this.#gap(topic);
    if (this.#gaps.has(topic) || this.#queue.length >= this.#buffer) this.#gap(topic);
    else this.#give(message);
  }

  /** Take it that messages of a topic are lost, up to a position. */
  lost(gap) {
    if (this.#advance(gap)) this.#gap(gap.topic);
  }

  /** Move to the position of a message or a gap; false if that does not count here. */
  #advance({ topic, epoch, offset }) {
    if (!this.active || this.#catchingUp.has(topic) || !this.topics.some((pattern) => meets(pattern, topic))) return false;
    const position = this.#positions.get(topic);
    if (position?.epoch === epoch && offset <= position.offset) return false; // another subscription had missed it
    this.#move(topic, epoch, offset);
    return true;
  }

  #move(topic, epoch, offset) {
    this.#positions.delete(topic);
    this.#positions.set(topic, { epoch, offset });
    if (this.#positions.size <= MAX_TOPICS) return;
    this.#positions.delete(this.#positions.keys().next().value);
    this.#forgot = true;
  }

  #gap(topic) {
    if (this.#gaps.has(topic)) return;
    if (this.#queue.length < this.#buffer) this.#give({ gap: true, topic });
    else if (this.#gaps.size < MAX_TOPICS) this.#gaps.add(topic);
    else this.end(overloaded("The reader of a subscription is too slow"));
  }

  #give(item) {
    const reader = this.#readers.shift();
    if (reader) reader.resolve({ value: item, done: false });
    else if (!this.#ended) this.#queue.push(item);
  }

  /** Take no more. What has arrived can still be read. Calling it again has no effect. */
  end(error = null) {
    if (this.#ended) return;
    this.#ended = { error };
    this.active = false;
    this.#leave();
    this.#ready.reject(error ?? closed("nobody reads any more"));
    for (const reader of this.#readers.splice(0)) this.#finish(reader);
  }

  #finish({ resolve, reject }) {
    const { error } = this.#ended;
    this.#ended.error = null; // told once
    if (error) reject(error);
    else resolve({ value: undefined, done: true });
  }

  #next() {
    return new Promise((resolve, reject) => {
      const [topic] = this.#gaps;
      if (this.#queue.length > 0) resolve({ value: this.#queue.shift(), done: false });
      else if (this.#gaps.delete(topic)) resolve({ value: { gap: true, topic }, done: false });
      else if (this.#ended) this.#finish({ resolve, reject });
      else this.#readers.push({ resolve, reject });
    });
  }

  #return(value) {
    this.#queue.length = 0;
    this.#gaps.clear();
    this.end();
    return Promise.resolve({ value, done: true });
  }

  iterator() {
    const one = {
      ready: this.#ready.promise,
      next: () => this.#next(),
      return: (value) => this.#return(value),
      [Symbol.asyncIterator]: () => one,
    };
    return one;
  }
}

export class GatewayClient extends EventTarget {
  #url;
  #options;
  #state = "closed";
  #welcome = null;
  #principal = null;
  #running = null; // the promise of #run
  #closing = false;
  #why = "open() comes first";
  #wake = () => {}; // ends what #run waits for
  #link = null; // the link that is open, or being made
  #failures = 0;
  #lastId = 0;
  #pending = new Map(); // id to [exchange, index]: sent on this link
  #waiting = new Set(); // exchanges that are to be sent
  #methods = new Map();
  #serving = null; // { name, answer }
  #subscriptions = new Set();

  constructor(url, { token, reconnect = true, WebSocket = globalThis.WebSocket, random = Math.random } = {}) {
    super();
    if (!WebSocket) throw new TypeError("there is no WebSocket here: pass the one of the package ws");
    this.#url = String(url);
    this.#options = { token, reconnect, WebSocket, random };
  }

  get state() { return this.#state; }
  get welcome() { return this.#welcome; }
  get principal() { return this.#principal; }

  // The life of the client

  open({ timeout = TIMEOUT, signal } = {}) {
    if (this.#closing) return Promise.reject(closed("it is being closed"));
    this.#running ??= this.#run();
    if (this.#state === "waiting") this.#wake();
    const answer = deferred();
    const look = () => {
      if (this.#state === "open") answer.resolve(this.#welcome);
      else if (this.#state === "closed") answer.reject(closed(this.#why));
    };
    this.addEventListener("state", look);
    look();
    return limited(answer.promise, timeout, signal)[0].finally(() => this.removeEventListener("state", look));
  }

  async close({ timeout = CLOSE_TIMEOUT } = {}) {
    const running = this.#running;
    if (!running) return;
    this.#closing = true;
    this.#wake();
    const link = this.#link;
    link?.socket.close(1000);
    const late = timer(() => link?.end(1006, "closed without an answer"), timeout);
    await running;
    clearTimeout(late);
  }

  async #run() {
    this.#failures = 0;
    for (;;) {
      this.#become("connecting");
      const { code, reason, final, retryAfter } = await this.#once();
      const isFinal = final || FINAL_CODES.has(code) || (code >= 4500 && code <= 4999);
      if (this.#closing || isFinal || !this.#options.reconnect) return this.#finish(code, reason);
      const pause = retryAfter ?? this.#options.random() * Math.min(PAUSE_MAX, PAUSE_MIN * 2 ** this.#failures++);
      this.#become("waiting", { code, reason, pause });
      await new Promise((resolve) => {
        const ready = timer(resolve, pause);
        this.#wake = () => {
          clearTimeout(ready);
          resolve();
        };
      });
      if (this.#closing) return this.#finish(code, reason);
    }
  }

  #finish(code, reason) {
    const error = this.#closing ? null : closed(`${code} ${reason}`.trim());
    this.#why = this.#closing ? "close() was called" : `${code} ${reason}`.trim();
    this.#running = null;
    this.#closing = false;
    this.#serving?.answer.reject(closed(this.#why));
    this.#serving = null;
    for (const exchange of this.#takeWaiting()) exchange.fail(closed(this.#why));
    for (const subscription of [...this.#subscriptions]) subscription.end(error);
    this.#become("closed", { code, reason });
  }

  #become(state, detail) {
    this.#state = state;
    this.dispatchEvent(event("state", { state, ...detail }));
  }

  #tell(error) {
    this.dispatchEvent(event("error", error));
  }

  // One link

  async #once() {
    let token;
    try {
      token = await this.#token();
    } catch (error) {
      this.#tell(error);
      return { code: 1006, reason: "no token" };
    }
    if (this.#closing) return { code: 1000, reason: "" };
    return new Promise((ended) => this.#connect(token, ended));
  }

  #token() {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    const [promise, stop] = limited(Promise.resolve().then(token), TIMEOUT);
    this.#wake = () => stop(closed("close() was called"));
    return promise;
  }

  #connect(token, ended) {
    let socket;
    let problem = "";
    try {
      socket = new this.#options.WebSocket(this.#url);
    } catch (error) {
      ended({ code: 1006, reason: error.message, final: true }); // no attempt at this address could succeed
      return;
    }
    const link = { socket, token, opened: null, heard: now(), asked: false, doubted: false, running: new Map() };
    link.end = (code, reason) => {
      if (this.#link !== link) return;
      this.#link = null;
      if (socket.readyState < 3) socket.terminate ? socket.terminate() : socket.close();
      this.#lost(link);
      ended({ code, reason, retryAfter: link.comeBackAt === undefined ? undefined : link.comeBackAt - now() });
    };
    link.late = timer(() => link.end(1006, "no welcome in time"), CONNECT_TIMEOUT);
    this.#link = link;
    socket.addEventListener("message", ({ data }) => this.#link === link && this.#receive(link, data));
    socket.addEventListener("error", ({ message }) => (problem = message || problem));
    socket.addEventListener("close", ({ code, reason }) => link.end(code, reason || problem));
  }

  #lost(link) {
    clearTimeout(link.late);
    if (link.opened !== null && now() - link.opened >= SETTLED) this.#failures = 0;
    for (const subscription of this.#subscriptions) subscription.active = false;
    for (const stop of link.running.values()) stop.abort();
    const sent = new Set([...this.#pending.values()].map(([exchange]) => exchange));
    this.#pending.clear();
    for (const exchange of sent) exchange.fail(lost());
  }

  #welcomed(link, welcome) {
    this.#welcome = welcome;
    if (welcome.protocol !== PROTOCOL) link.end(1002, `protocol ${welcome.protocol} is not spoken here`);
    else if (welcome.principal) this.#opened(link, welcome.principal);
    else if (link.token === undefined || link.token === null) link.end(4500, "a token is needed");
    else this.#authenticate(link, link.token, (principal) => this.#opened(link, principal));
  }

  #authenticate(link, token, done) {
    this.#ask(link, "gateway.authenticate", { token }, (principal, error) => {
      if (!error) return done(principal);
      if (error.retryAfterMs !== null) link.comeBackAt = now() + error.retryAfterMs * (1 + this.#options.random());
      return this.#tell(error); // the gateway ends a link that is not open yet
    });
  }

  async #refresh(link) {
    if (typeof this.#options.token !== "function") return;
    try {
      const token = await this.#token();
      if (this.#link === link) this.#authenticate(link, token, (principal) => (this.#principal = principal));
    } catch (error) {
      this.#tell(error);
    }
  }

  #opened(link, principal) {
    clearTimeout(link.late);
    link.opened = now();
    this.#principal = principal;
    this.#beat(link);
    if (this.#serving) this.#register(link, [...this.#methods.values()]);
    for (const subscription of this.#subscriptions) this.#join(link, subscription);
    this.#become("open");
    this.#flush();
  }

  /** Browsers cannot send pings: after a silence the client asks, and without an answer the link is lost. */
  #beat(link) {
    const { interval, timeout } = this.#welcome.heartbeat;
    const left = interval * 1000 - (now() - link.heard);
    let next = left;
    if (!link.asked && left <= 0) {
      link.asked = true;
      this.#ask(link, "gateway.ping", undefined, () => {});
      next = timeout * 1000;
    } else if (link.doubted) {
      link.end(1006, "no answer to a ping");
      return;
    } else if (link.asked) {
      link.doubted = true; // but the machine may have slept: first read what has arrived meanwhile
      next = SECOND_LOOK;
    }
    link.late = timer(() => this.#beat(link), next);
  }

  // Incoming messages

  #receive(link, data) {
    link.heard = now();
    link.asked = link.doubted = false;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      link.end(1007, "what came is not JSON");
      return;
    }
    for (const one of Array.isArray(message) ? message : [message]) this.#handle(link, one);
  }

  #handle(link, message) {
    const { method, params } = message;
    switch (method) {
      case undefined:
        return this.#answered(message);
      case "event.message":
        for (const subscription of this.#subscriptions) subscription.deliver(params);
        return;
      case "event.gap":
        for (const subscription of this.#subscriptions) subscription.lost(params);
        return;
      case "rpc.progress":
        return this.#progressed(params);
      case "rpc.cancel":
        return link.running.get(params.id)?.abort();
      case "gateway.welcome":
        return this.#welcomed(link, params);
      case "gateway.expiring":
        this.#refresh(link);
        return;
      case "gateway.draining":
        link.comeBackAt = now() + params.reconnectAfterMs;
        this.#failures = 0;
        this.dispatchEvent(event("draining", params));
        return;
      default:
        this.#serve(link, message);
    }
  }

  #answered({ id, result, error }) {
    const found = this.#pending.get(id);
    const outcome = error ? new CallError(error.code, error.message, error.data) : result;
    if (found) {
      this.#pending.delete(id);
      found[0].answer(found[1], outcome);
      this.#flush();
    } else if (error && id === null) this.#tell(outcome);
  }

  #progressed({ id, value }) {
    try {
      this.#pending.get(id)?.[0].onProgress?.(value);
    } catch (error) {
      this.#tell(error);
    }
  }

  // Calls

  async call(method, params, { timeout = TIMEOUT, signal, node, retry = false, onProgress } = {}) {
    const deadline = now() + timeout;
    const request = { method, params: encodeParams(params), node, deadline };
    for (let attempt = 0; ; attempt++) {
      const [outcome] = await this.#exchange([request], { deadline, signal, onProgress });
      if (!(outcome instanceof CallError)) return outcome;
      const pause = this.#pause(outcome, attempt);
      if (!retry || !mayBeSentAgain(outcome) || now() + pause >= deadline) throw outcome;
      await limited(new Promise((resolve) => timer(resolve, pause)), MAX_TIMER, signal)[0];
    }
  }

  #pause(error, attempt) {
    return (error.retryAfterMs ?? 0) + this.#options.random() * Math.min(RETRY_MAX, RETRY_MIN * 2 ** attempt);
  }

  async batch(calls, { timeout = TIMEOUT, signal } = {}) {
    const requests = calls.map(([method, params]) => ({ method, params: encodeParams(params) }));
    return requests.length ? this.#exchange(requests, { batch: true, deadline: now() + timeout, signal }) : [];
  }

  publish(topic, data, options) {
    return this.call("event.publish", { topic, data: data ?? null }, options);
  }

  notify(method, params) {
    const text = notification(method, encodeParams(params));
    const link = this.#link;
    if (!this.#isReady(link)) throw closed(this.#state);
    this.#check(link, text);
    link.socket.send(text);
  }

  #post(method, params) {
    if (this.#isReady(this.#link)) this.#link.socket.send(notification(method, encode(params)));
  }

  #isReady(link) {
    return link !== null && link.opened !== null && link.socket.readyState === OPEN && !this.#closing;
  }

  /** Throws for a message that is too long: the gateway would end the link, and reconnecting would not help. */
  #check(link, text) {
    const { maxMessageBytes } = this.#welcome.limits;
    if (isOver(text, maxMessageBytes))
      throw failure(OWN_CODE, "message_too_big", `A message is over ${maxMessageBytes} bytes`, "not_delivered");
    if (link.socket.bufferedAmount > MAX_BUFFERED) throw overloaded("Too much waits for the network");
  }

  #exchange(requests, { deadline, signal, ...how }) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const done = (outcomes) => {
        clearTimeout(late);
        signal?.removeEventListener("abort", abort);
        resolve(outcomes);
      };
      const exchange = new Exchange(requests, done, how);
      const abort = () => {
        reject(signal.reason);
        this.#giveUp(exchange);
      };
      const late = timer(() => this.#giveUp(exchange), deadline - now());
      signal?.addEventListener("abort", abort, { once: true });
      if (!this.#running || this.#closing) exchange.fail(closed(this.#why));
      else if (this.#waiting.size >= MAX_WAITING) exchange.fail(overloaded("Too many calls wait for the connection"));
      else {
        this.#waiting.add(exchange);
        this.#flush();
      }
    });
  }

  #giveUp(exchange) {
    this.#waiting.delete(exchange);
    for (const id of exchange.ids) {
      if (this.#pending.delete(id)) this.#post("rpc.cancel", { id });
    }
    exchange.fail(timedOut(exchange.ids.length ? "unknown" : "not_delivered"));
    this.#flush();
  }

  /** Send what waits, as much as the gateway takes. */
  #flush() {
    const link = this.#link;
    for (const exchange of this.#waiting) {
      if (!this.#isReady(link) || link.comeBackAt !== undefined) return;
      const count = this.#pending.size;
      if (count > 0 && count + exchange.requests.length > this.#welcome.limits.maxInFlight) return;
      this.#waiting.delete(exchange);
      this.#send(link, exchange);
    }
  }

  #takeWaiting() {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    return waiting;
  }

  #send(link, exchange) {
    const { limits } = this.#welcome;
    const ids = exchange.requests.map(() => ++this.#lastId);
    const texts = exchange.requests.map((request, index) => requestText(ids[index], request, limits));
    const text = exchange.batch ? `[${texts.join()}]` : texts[0];
    try {
      if (texts.length > limits.maxBatch)
        throw failure(-32600, "invalid_request", `A batch of more than ${limits.maxBatch}`, "not_delivered");
      this.#check(link, text);
    } catch (error) {
      exchange.fail(error);
      return;
    }
    exchange.ids = ids;
    for (const [index, id] of ids.entries()) this.#pending.set(id, [exchange, index]);
    link.socket.send(text);
  }

  /** Ask on this link only, again if it is refused for a while. `done` gets result and error. */
  #ask(link, method, params, done, wanted = () => true, attempt = 0) {
    const again = () => this.#link === link && wanted() && this.#ask(link, method, params, done, wanted, attempt + 1);
    const late = timer(() => link.end(1006, `no answer to ${method}`), TIMEOUT);
    const answered = ([outcome]) => {
      clearTimeout(late);
      if (this.#link !== link) return;
      if (!(outcome instanceof CallError)) done(outcome, null);
      else if (link.opened !== null && mayBeSentAgain(outcome)) timer(again, this.#pause(outcome, attempt));
      else done(null, outcome);
    };
    this.#send(link, new Exchange([{ method, params: encode(params) }], answered));
  }

  // Events

  subscribe(topics, options = {}) {
    const { signal } = options;
    const abort = () => subscription.end(signal.reason);
    const subscription = new Subscription(typeof topics === "string" ? [topics] : [...topics], options, () => {
      signal?.removeEventListener("abort", abort);
      this.#leave(subscription);
    });
    this.#subscriptions.add(subscription);
    if (!this.#running || this.#closing) subscription.end(closed(this.#why));
    else if (signal?.aborted) abort();
    else {
      signal?.addEventListener("abort", abort, { once: true });
      if (this.#isReady(this.#link)) this.#join(this.#link, subscription);
    }
    return subscription.iterator();
  }

  #join(link, subscription) {
    // Half of a message: the topics themselves need room too.
    this.#askFor(link, subscription, subscription.since(this.#welcome.limits.maxMessageBytes / 2), (topics) => {
      const begun = Object.entries(subscription.joined(topics) ?? {});
      while (begun.length) {
        const some = Object.fromEntries(begun.splice(0, MAX_SINCE));
        this.#askFor(link, subscription, some, (again) => subscription.caughtUp(some, again));
      }
    });
  }

  #askFor(link, subscription, since, done) {
    const answered = (result, error) => (error ? subscription.end(error) : done(result.topics));
    const wanted = () => this.#subscriptions.has(subscription);
    this.#ask(link, "event.subscribe", { topics: subscription.topics, since }, answered, wanted);
  }

  #leave(subscription) {
    this.#subscriptions.delete(subscription);
    const others = new Set([...this.#subscriptions].flatMap((other) => other.topics));
    const topics = subscription.topics.filter((topic) => !others.has(topic));
    if (topics.length) this.#post("event.unsubscribe", { topics });
  }

  // Serving

  method(name, run, { summary, params } = {}) {
    const one = { name, run, summary, params };
    this.#methods.set(name, one);
    if (this.#serving && this.#isReady(this.#link)) this.#register(this.#link, [one]);
    return this;
  }

  serve({ name, timeout = TIMEOUT, signal } = {}) {
    if (this.#methods.size === 0) throw new TypeError("there is nothing to serve: method() comes first");
    if (!this.#running || this.#closing) return Promise.reject(closed(this.#why));
    this.#serving = { name, answer: deferred() };
    if (this.#isReady(this.#link)) this.#register(this.#link, [...this.#methods.values()]);
    return limited(this.#serving.answer.promise, timeout, signal)[0];
  }

  #register(link, all) {
    const serving = this.#serving;
    const { name, answer } = serving;
    const methods = all.map(({ name, summary, params }) => ({ name, summary, params }));
    this.#ask(link, "node.register", { name, methods, context: true }, (result, error) => {
      if (!error) {
        serving.registered = true;
        answer.resolve(result);
      } else if (serving.registered) this.#tell(error);
      else {
        this.#serving = null;
        answer.reject(error);
      }
    });
  }

  async #serve(link, { id, method, params, context }) {
    const served = this.#methods.get(method);
    if (!served && id === undefined) return; // a notification for no method
    const stop = new AbortController();
    const isWanted = () => this.#isReady(link) && this.#link === link && !stop.signal.aborted;
    if (id !== undefined) link.running.set(id, stop);
    const call = {
      caller: context?.caller ?? null,
      timeLeftMs: context?.timeLeftMs ?? null,
      signal: stop.signal,
      progress: (value) => {
        if (link.running.get(id) === stop && isWanted()) this.notify("rpc.progress", { id, value: value ?? null });
      },
    };
    const answer = await this.#answer(link, served, method, params, call);
    if (id === undefined) return;
    if (isWanted()) link.socket.send(`{"jsonrpc":"2.0","id":${id},${answer}}`);
    link.running.delete(id);
  }

  async #answer(link, served, method, params, call) {
    try {
      if (!served) throw failure(-32601, "method_not_found", `No such method: ${method}`);
      const answer = `"result":${encode(await served.run(params, call)) ?? "null"}`;
      if (this.#link === link) this.#check(link, answer.padEnd(answer.length + 100));
      return answer;
    } catch (error) {
      if (error instanceof CallError) {
        const { code, message, data } = error;
        return `"error":${encode({ code, message, data })}`;
      }
      if (!call.signal.aborted) this.#tell(error);
      const data = { code: "internal_error", temporary: false };
      return `"error":${encode({ code: -32603, message: "Internal error", data })}`;
    }
  }
}
