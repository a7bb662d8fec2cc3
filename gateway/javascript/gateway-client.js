// A client of aisopod-gateway for browsers and Node, without dependencies. gateway-client.d.ts beside it says what each
// public name means. All times in here are milliseconds.

const TIMEOUT = 30_000; // of whatever is asked, by default
const CONNECT_TIMEOUT = 10_000; // from the first packet to the principal of the welcome
const CLOSE_TIMEOUT = 2_000;
const PAUSE_MIN = 500; // before a reconnect; doubled with each failure
const PAUSE_MAX = 30_000;
const PAUSE_FLOOR = 100; // the least, even if the gateway asks for less
const PAUSE_MOST = 300_000; // the longest that the gateway can ask for
const AWAY_MIN = 250; // the same while the connection is held
const AWAY_MAX = 4_000;
const SPREAD = [500, 10_000]; // after a gateway has shut down without saying when to come back
const LINGER = 35_000; // how long the next link waits for the last socket: ws gives up a close frame after 30 s
const RETRY_MIN = 100; // before a call is sent again; doubled with each refusal
const RETRY_MAX = 5_000;
const SETTLED = 10_000; // the loss of a link that was open so long is no failure
const SECOND_LOOK = 100;
const MAX_TIMER = 2 ** 31 - 1; // setTimeout takes anything longer as 1
const MAX_WAITING = 1_000; // calls and batches that wait for a link or for their turn
const MAX_BUFFERED = 16 * 2 ** 20; // bytes that wait for the network
const MAX_EVENTS = 1_000; // events that wait for their reader
const MAX_CALLS = 256; // that are served at once; as many as a gateway gives a node by default
const MAX_PROGRESS = 256; // values of a call's progress that wait for its callback
const CREDIT = 16; // values that one side of a stream may send, and their bytes, by default
const CREDIT_BYTES = 2 ** 20;
const MAX_CREDIT = 1024;
const MAX_SENDS = 256; // values of a stream that wait to be sent
const MAX_TOPICS = 10_000; // of one subscription: as many as a gateway has by default
const MAX_SINCE = 1000; // positions in one request
const ACK_EVERY = 64; // messages, after which they are acknowledged at the latest
const ACK_WITHIN = 2_000; // of a message that came
const KEPT_BYTES = 8 * 2 ** 20; // that may be kept, until the gateway has said how many
const PROTOCOL = 1;
const OPEN = 1; // WebSocket.OPEN
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1010]); // not 1009, which is about one message
const TEMPORARY_STATUSES = new Set([408, 425, 429]);
const STATUSES = {
  200: "what answers there is no WebSocket of a gateway",
  300: "it is at another address now",
  401: "the credential was refused",
  403: "the gateway does not allow this origin",
  404: "there is no gateway at this path",
  421: "the gateway does not answer to this name of a host",
  426: "the upgrade has not arrived; a proxy on the way may not pass WebSockets on",
  429: "too many connections from this address",
  503: "the gateway is full or draining",
};
const UNTOLD = "no connection; this platform does not tell why";
const OWN_CODE = -32000; // of this client's own errors, which are never on the wire
const NO_LIMITS = { maxMessageBytes: Infinity, maxInFlight: Infinity, maxBatch: Infinity, maxOutboxBytes: Infinity };
const LIMITS = { ...NO_LIMITS, callTimeoutMs: TIMEOUT, maxCallTimeoutMs: 600_000 };
const HEARTBEAT = { interval: 30, timeout: 10 }; // seconds, as in the welcome
const KEEPS_NOTHING = new Set(["Map", "Set", "Error"]); // JSON has no form for them, whatever else they carry
const UNCOUNTED = new Set(["event.message", "event.gap"]); // and what is the gateway's own
const BOXED = new Set(["Number", "String", "Boolean"]);
const LONE_SURROGATE = /(?<!\\)(?:\\\\)*\\ud[89a-f]/; // JSON.stringify escapes no other

const now = () => performance.now();
const timer = (act, time) => setTimeout(act, Math.min(Math.max(time, 0), MAX_TIMER));
const event = (name, detail) => new CustomEvent(name, { detail });
const bytesOf = (text) => new TextEncoder().encode(text).length;
const isOver = (text, bytes) => 3 * text.length > bytes && bytesOf(text) > bytes;

export class CallError extends Error {
  constructor(code, message, data) {
    super(message);
    const told = data !== null && typeof data === "object" ? data : {};
    this.name = typeof told.code === "string" ? told.code : "error";
    this.code = code;
    this.data = data;
    this.temporary = told.temporary === true;
    this.outcome = outcomeOf(told);
    this.retryAfterMs = told.retryAfterMs >= 0 && Number.isFinite(told.retryAfterMs) ? told.retryAfterMs : null;
  }
}

/** What is known of the call. A word of the node's own, `nodeOutcome`, shows that the node has seen the call. */
function outcomeOf({ outcome, nodeOutcome }) {
  if (outcome === "not_delivered" || outcome === "unknown") return outcome;
  return nodeOutcome === undefined ? null : "unknown";
}

const failure = (code, name, message, outcome, rest) =>
  new CallError(code, message, { code: name, temporary: false, ...(outcome && { outcome }), ...rest });
const overloaded = (message) =>
  failure(-32009, "overloaded", message, "not_delivered", { temporary: true, retryAfterMs: RETRY_MIN });
const timedOut = (outcome, why) =>
  failure(-32008, "timeout", `The deadline passed${why ? `: ${why}` : ""}`, outcome, { temporary: true });
const lost = () =>
  failure(OWN_CODE, "connection_lost", "The connection was lost before the answer", "unknown", { temporary: true });
const cancelled = () => failure(-32800, "cancelled", "The call was cancelled", "unknown");
const closed = (why) => failure(OWN_CODE, "closed", `The connection is closed: ${why}`, "not_delivered");

/** Whether a call has certainly not been run, and may succeed later. */
function mayBeSentAgain(error) {
  return error.temporary && error.outcome === "not_delivered";
}

/** A value that JSON cannot hold. Its message may be told to others, because it repeats nothing of the value. */
class NoJson extends TypeError {}

/** Returns the value. Throws for what JSON.stringify would empty without a word. */
function kept(_key, value) {
  if (typeof value === "bigint") throw new NoJson("JSON has no form for a bigint");
  if (value === null || typeof value !== "object") return value;
  const kind = Object.prototype.toString.call(value).slice(8, -1);
  if (kind === "Object" || kind === "Array" || BOXED.has(kind)) return value;
  const isEmptied = KEEPS_NOTHING.has(kind) || ArrayBuffer.isView(value) || Object.keys(value).length === 0;
  if (isEmptied) throw new NoJson(`JSON has no form for this kind of object: ${kind}`);
  return value;
}

/** Returns the JSON, or undefined for undefined. Throws NoJson, or what a toJSON throws. */
function encode(value) {
  const text = JSON.stringify(value, kept);
  if (text === undefined && value !== undefined) throw new NoJson(`JSON has no form for a ${typeof value}`);
  if (text !== undefined && LONE_SURROGATE.test(text)) throw new NoJson("a lone surrogate is no text");
  return text;
}

function encodeParams(params) {
  if (params === undefined || params === null) return undefined;
  if (typeof params !== "object") throw new TypeError("params must be an object or an array");
  const text = encode(params);
  if (text[0] !== "{" && text[0] !== "[") throw new TypeError("params must become an object or an array in JSON");
  return text;
}

function encodeName(name) {
  if (typeof name !== "string") throw new TypeError("a name must be a string");
  return encode(name);
}

/** The parts are JSON texts. */
function notification(method, params) {
  return `{"jsonrpc":"2.0","method":${method}${params === undefined ? "" : `,"params":${params}`}}`;
}

/**
 * A request before it has an id, all of it JSON: sending it later cannot fail because of what is in it. With `stream`,
 * { credit, bytes, timeout, waitMs }, it is a stream, whose time does not begin before it is sent.
 */
function requestOf(method, params, { node, deadline, stream } = {}) {
  const target = node === undefined ? undefined : encodeName(node);
  return { method: encodeName(method), params: encodeParams(params), node: target, deadline, stream };
}

/** The time that the gateway gives to the call of a certain node. */
const timeoutMs = (time, { maxCallTimeoutMs }) => Math.min(Math.max(Math.ceil(time), 1), maxCallTimeoutMs);

/** The bytes of a grant, as many as the gateway takes. */
const grantable = (bytes, { maxOutboxBytes }) => Math.min(bytes, Math.max(1, Math.floor(maxOutboxBytes / 2)));

function requestText(id, { method, params, node, deadline, stream }, limits) {
  let asked = { method, params };
  let flow = "";
  if (stream) flow = `,"stream":{"credit":${stream.credit},"bytes":${grantable(stream.bytes, limits)}}`;
  if (node !== undefined) {
    const wait = stream?.waitMs === undefined ? "" : `,"waitMs":${stream.waitMs}`;
    const time = timeoutMs(stream ? stream.timeout : deadline - now(), limits);
    const inner = params === undefined ? "" : `,"params":${params}`;
    const called = `{"node":${node},"method":${method},"timeoutMs":${time}${wait}${inner}${flow}}`;
    asked = { method: '"node.call"', params: called };
    flow = "";
  }
  return `{"id":${id}${flow},${notification(asked.method, asked.params).slice(1)}`;
}

/** What one value of a stream has cost its sender: the bytes of its JSON, in the message whose text this is. */
function costOf(message, text = JSON.stringify(message)) {
  const around = JSON.stringify({ ...message, params: { ...message.params, value: null } });
  return bytesOf(text) - bytesOf(around) + "null".length;
}

/** The data of an error, which may be that of a call that the method has made. Its outcome is not that of this call. */
function toldOf({ data, outcome }) {
  if (outcome === null) return data;
  const { nodeOutcome, retryAfterMs, ...rest } = data;
  return { ...rest, outcome: "unknown" };
}

/** The member `error` of a response. */
function errorMember(error) {
  const { code, message } = error;
  if (!Number.isSafeInteger(code)) throw new NoJson("the code of an error must be an integer");
  const told = toldOf(error);
  const more = told === undefined ? "" : `,"data":${encode(told)}`;
  return `"error":{"code":${code},"message":${encode(String(message))}${more}}`;
}

/** The error of a call that this node has not begun. It tells no outcome, because only the gateway may. */
const busy = () => `"error":${JSON.stringify({
  code: -32009,
  message: "Too many calls are running",
  data: { code: "overloaded", temporary: true, retryAfterMs: RETRY_MIN },
})}`;

function internalError(why) {
  const data = { code: "internal_error", temporary: false, outcome: "unknown" };
  return `"error":${JSON.stringify({ code: -32603, message: `Internal error${why ? `: ${why}` : ""}`, data })}`;
}

/** What the caller may know of an answer that could not be sent. */
function unsendable(error) {
  if (error.name === "message_too_big") return "the answer is larger than the gateway takes";
  return error instanceof NoJson ? error.message : "the answer cannot be sent as JSON";
}

/** The address of a gateway: `/ws` is added where there is no path, as the command line does. */
function addressOf(given) {
  let url;
  try {
    url = new URL(given, globalThis.location?.href);
  } catch {
    throw new TypeError(`no address of a gateway: "${given}"; such as ws://127.0.0.1:8765/ws`);
  }
  if (url.protocol === "ws+unix:") return url.href; // of the package ws
  if (!/^(ws|http)s?:$/.test(url.protocol)) throw new TypeError(`no address of a gateway: "${given}"; ws: or wss: begins one`);
  if (url.username || url.password) throw new TypeError("a credential does not belong in a URL: give it as token");
  url.protocol = url.protocol.replace("http", "ws");
  if (url.pathname === "/") url.pathname = "/ws";
  url.hash = "";
  return url.href;
}

/** A token without the white space around it, such as the line break at the end of a file. */
function bare(token) {
  if (token === undefined || token === null) return null;
  if (typeof token !== "string") throw new TypeError(`a token is a string, not a ${typeof token}`);
  const text = token.trim();
  if (/[\0-\x1f\x7f]/.test(text)) throw new TypeError("the token has a line break inside, or another control character");
  return text;
}

/** Whether another attempt would end in the same way, until something has changed. Below 1000 it is an HTTP status. */
function isFinal(code) {
  if (code < 1000) return code < 500 && !TEMPORARY_STATUSES.has(code);
  return FINAL_CODES.has(code) || (code >= 4500 && code <= 4999);
}

const asText = ({ code, reason }) => `${code < 1000 ? "HTTP " : ""}${code} ${reason}`.trim();

/** The end of an attempt that got this HTTP answer. `Retry-After` counts in seconds only, not as a date. */
function refusal({ statusCode, headers }) {
  const kind = statusCode < 400 ? statusCode - (statusCode % 100) : statusCode;
  const value = (headers["retry-after"] ?? "").trim();
  const retryAfter = /^[0-9]{1,9}$/.test(value) ? Math.min(Number(value) * 1000, PAUSE_MOST) : 0;
  return { code: statusCode, reason: STATUSES[kind] ?? "the connection was refused", retryAfter };
}

/** What an error event says, in words; Node wraps the errors of several addresses in one without a message. */
const problemOf = ({ message, error }) =>
  message || error?.message || error?.errors?.[0]?.message || error?.cause?.message || error?.code || "";

/** Returns a promise for `work` that rejects after `time`, by a signal, or by the function that is returned with it. */
function limited(work, time, signal, why = () => "") {
  let stop;
  const promise = new Promise((resolve, reject) => {
    const end = (act, value) => {
      clearTimeout(late);
      signal?.removeEventListener("abort", abort);
      act(value);
    };
    const abort = () => end(reject, signal.reason);
    const late = timer(() => end(reject, timedOut(null, why())), time);
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
  constructor(requests, done, { batch = false, reporter, stream } = {}) {
    Object.assign(this, { requests, done, batch, reporter, stream });
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

  /** `cost` makes the bytes of the value. */
  report(value, cost) {
    if (this.left === 0) return;
    this.reporter?.put(value);
    this.stream?.put(value, cost());
  }
}

/** What is to be sent in one direction of a stream: in order, and as much as the other side has granted. */
class Outflow {
  #write;
  #hasRoom;
  #queue = []; // { text, resolve, reject }; a text of null is the end
  #ended = null; // { reason } after which nothing is sent
  #finished = null;
  #idle = null; // what waits for the end of the queue

  /** `write(text)` sends a value, or the end if it is null, and throws if it cannot. `hasRoom` says whether it may now. */
  constructor(write, hasRoom, { credit = 0, bytes = 0 } = {}) {
    this.#write = write;
    this.#hasRoom = hasRoom;
    Object.assign(this, { credit, bytes });
  }

  granted({ credit, bytes }) {
    this.credit += Number(credit) || 0;
    this.bytes += Number(bytes) || 0;
    this.flush();
  }

  /** Resolves when the value is sent. Throws if it is no JSON, or too many values wait. */
  send(value) {
    const text = encode(value ?? null);
    if (this.#queue.length >= MAX_SENDS) throw overloaded("Too many values wait for the other side of the stream");
    return this.#put(text);
  }

  /** Tell the end, after all values. Resolves when it is told, or nothing can be told any more. */
  finish() {
    this.#finished ??= this.#put(null).catch(() => {});
    return this.#finished;
  }

  #put(text) {
    const one = { text, ...deferred() };
    if (this.#ended) one.reject(this.#ended.reason);
    else this.#queue.push(one);
    this.flush();
    return one.promise;
  }

  /** Send what waits, as much as may be. */
  flush() {
    while (this.#queue.length > 0 && this.#mayGo(this.#queue[0]) && this.#hasRoom()) this.#go(this.#queue.shift());
    if (this.#queue.length === 0) this.#idle?.resolve();
  }

  #mayGo({ text }) {
    return text === null || (this.credit > 0 && this.bytes > 0);
  }

  #go({ text, resolve, reject }) {
    try {
      this.#write(text);
    } catch (error) {
      return reject(error);
    }
    resolve();
    if (text === null) return this.end(closed("the end was told"));
    this.credit--;
    this.bytes -= bytesOf(text);
  }

  /** Resolves when nothing waits any more. */
  drained() {
    if (this.#queue.length === 0) return undefined;
    this.#idle ??= deferred();
    return this.#idle.promise;
  }

  end(reason) {
    this.#ended ??= { reason };
    for (const { reject } of this.#queue.splice(0)) reject(this.#ended.reason);
    this.#idle?.resolve();
  }
}

/** What comes in one direction of a stream, for one reader. It never holds more than was granted. */
class Inflow {
  #grant;
  #queue = []; // [value, cost]
  #readers = [];
  #ended = null; // { reason }; a reason of null: it ended well
  #due = 0; // values that were granted and have not come
  #taken = { credit: 0, bytes: 0 }; // and not granted again

  /** `grant({ credit, bytes })` tells the other side that it may send more. */
  constructor(grant) {
    this.#grant = grant;
  }

  /** Take it that so much was granted. It is granted again in halves, as it is taken; at most `bytes` at a time. */
  open(credit, bytes) {
    this.window = { credit, bytes };
    this.#due = credit;
  }

  /** Take a value. Returns false if it was not granted. */
  put(value, cost) {
    if (this.#ended) return true;
    if (--this.#due < 0) return false;
    const reader = this.#readers.shift();
    if (reader === undefined) this.#queue.push([value, cost]);
    else reader.resolve(this.#give(value, cost));
    return true;
  }

  #give(value, cost) {
    const { credit, bytes } = this.#taken;
    this.#taken = { credit: credit + 1, bytes: bytes + cost };
    const isHalf = 2 * this.#taken.credit >= this.window.credit || 2 * this.#taken.bytes >= this.window.bytes;
    if (isHalf && !this.#ended) this.#grantAgain();
    return { value, done: false };
  }

  #grantAgain() {
    let { credit, bytes } = this.#taken;
    this.#taken = { credit: 0, bytes: 0 };
    this.#due += credit;
    for (; credit > 0 || bytes > 0; credit = 0) {
      const some = Math.min(bytes, this.window.bytes);
      this.#grant({ credit, bytes: some });
      bytes -= some;
    }
  }

  next() {
    return new Promise((resolve, reject) => {
      if (this.#queue.length > 0) resolve(this.#give(...this.#queue.shift()));
      else if (this.#ended) this.#finish({ resolve, reject });
      else this.#readers.push({ resolve, reject });
    });
  }

  /** Take no more. What has come can still be read. */
  end(reason = null) {
    this.#ended ??= { reason };
    for (const reader of this.#readers.splice(0)) this.#finish(reader);
  }

  /** The same, but nothing that has come is wanted any more. */
  drop(reason) {
    this.#queue.length = 0;
    this.end(reason);
  }

  #finish({ resolve, reject }) {
    const { reason } = this.#ended;
    if (reason === null) resolve({ value: undefined, done: true });
    else reject(reason);
  }
}

/** Gives the values of a call's progress to its callback: in order, and one at a time even if it is async. */
class Reporter {
  #queue = [];
  #missed = 0; // values that were dropped before the first of the queue
  #isBusy = false;
  #idle = null; // who waits for the end of the queue

  constructor(run, failed, signal) {
    Object.assign(this, { run, failed, signal });
  }

  put(value) {
    if (this.#queue.length >= MAX_PROGRESS) {
      this.#queue.shift();
      this.#missed++;
    }
    this.#queue.push(value);
    this.#next();
  }

  #next() {
    while (!this.#isBusy && this.#queue.length && !this.signal?.aborted) {
      const missed = this.#missed;
      this.#missed = 0;
      this.#give(this.#queue.shift(), missed);
    }
    if (this.#isBusy) return;
    this.#idle?.resolve();
    this.#idle = null;
  }

  #give(value, missed) {
    try {
      const given = this.run(value, missed);
      if (typeof given?.then !== "function") return;
      this.#isBusy = true;
      Promise.resolve(given).catch(this.failed).then(() => {
        this.#isBusy = false;
        this.#next();
      });
    } catch (error) {
      this.failed(error);
    }
  }

  /** Resolves once all values are through, or at the deadline. */
  async settled(deadline) {
    if (!this.#isBusy) return;
    this.#idle ??= deferred();
    await limited(this.#idle.promise, deadline - now(), this.signal)[0].catch(() => this.signal?.throwIfAborted());
  }
}

/** Whether a message of the gateway has a number, once the connection is kept. A batch is one message. */
function isCounted({ method, id }) {
  if (typeof method !== "string") return true;
  return !(method.startsWith("gateway.") || UNCOUNTED.has(method) || (method === "connection.ack" && id === undefined));
}

/**
 * What a connection has beyond its link: calls both ways and, once it is kept, the numbers of the messages both ways and
 * those that the gateway has not acknowledged. Sizes are in characters, which is about what a string takes of memory.
 */
class Session {
  #kept = []; // the texts of the messages up to number `sent`
  #size = 0; // of what is kept
  #isCounting = false;
  #heard = 0; // size of what came since the last acknowledgement
  #ackLate;
  pending = new Map(); // id to [exchange, index]: sent, and not answered
  running = new Map(); // id to { stop, inflow, outflow }: calls that are served; the flows are those of a stream
  outflows = new Set(); // of all streams, because what waits in one may have to wait for the link
  secret = null; // null: a loss of the link is its end
  holdMs = 0;
  maxBytes = KEPT_BYTES;
  attempt = 0;
  late = null; // the timer that ends it while it is held
  losses = 0; // of links
  sent = 0; // numbers: of our last message, of the last that was acknowledged, of the last that came, and was told
  acked = 0;
  received = 0;
  told = 0;
  stuck = null; // { acked, since }: at a loss messages were kept, and from then on none was acknowledged
  sockets = []; // of lost links that pages can only end with a close frame, which would be the end of the session too

  constructor(link) {
    this.link = link; // null while it is held
  }

  /** Number the messages from now on: the gateway has just been asked to keep the connection. */
  count() {
    this.#isCounting = true;
  }

  /** Number no messages any more, or not yet. */
  uncount() {
    this.#isCounting = false;
    this.#drop(this.#kept.length);
    this.sent = 0;
  }

  /** Take the reply to that. From now on the messages of the gateway have numbers too. False: it is no such reply. */
  established(reply) {
    const { session, holdMs, maxBytes } = reply ?? {};
    if (typeof session !== "string" || !(holdMs >= 0 && maxBytes > 0)) return false;
    Object.assign(this, { secret: session, holdMs, maxBytes });
    return true;
  }

  /** Number a message and keep it. If that is too much, the oldest go, and a loss of the link is the end. */
  keep(text) {
    if (!this.#isCounting) return;
    this.sent++;
    this.#kept.push(text);
    this.#size += text.length;
    let count = 0;
    for (let size = this.#size; size > this.maxBytes; count++) size -= this.#kept[count].length;
    this.#drop(count);
  }

  #drop(count) {
    for (const text of this.#kept.splice(0, count)) this.#size -= text.length;
  }

  /** Keep no more what the gateway has had, up to this number. False: it was never sent. */
  acknowledged(number) {
    if (!(number <= this.sent)) return false;
    this.#drop(Math.max(0, number - this.sent + this.#kept.length));
    this.acked = Math.max(this.acked, number);
    return true;
  }

  /** Whether half of what may be kept is. */
  get isCrowded() {
    return this.#size > this.maxBytes / 2;
  }

  /** Whether it may go on by another link: all that the gateway has not acknowledged is there. */
  get isWhole() {
    return this.secret !== null && this.#kept.length === this.sent - this.acked;
  }

  /** Take it that a message has come, and have `acknowledge` called, at once or soon. */
  heard(size, acknowledge) {
    this.received++;
    this.#heard += size;
    if (this.received - this.told >= ACK_EVERY || this.#heard >= this.maxBytes / 4) acknowledge();
    else this.#ackLate ??= timer(acknowledge, ACK_WITHIN);
  }

  /** Returns the number to acknowledge, which is told now. */
  tell() {
    clearTimeout(this.#ackLate);
    this.#ackLate = undefined;
    this.#heard = 0;
    return (this.told = this.received);
  }

  /** Let the streams go on: there is room again, perhaps. */
  flush() {
    for (const outflow of this.outflows) outflow.flush();
  }

  detach() {
    this.tell(); // by the resume
    this.link = null;
    this.losses++;
  }

  /** Take it that the link is lost. Returns for how long the gateway has then had nothing new, though it was sent. */
  stuckFor() {
    if (this.#kept.length === 0 || this.stuck?.acked !== this.acked) this.stuck = { acked: this.acked, since: now() };
    return now() - this.stuck.since;
  }

  /** Go on by another link. Returns what the gateway has not had, in order. */
  attach(link) {
    this.link = link;
    return [...this.#kept];
  }

  /** The connection is over: the calls of both sides end. */
  end(error) {
    this.detach();
    this.secret = null;
    this.uncount();
    for (const socket of this.sockets.splice(0)) socket.close();
    for (const { stop } of this.running.values()) stop.abort(error);
    const sent = new Set([...this.pending.values()].map(([exchange]) => exchange));
    this.pending.clear();
    for (const exchange of sent) exchange.fail(error);
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
    if (!(buffer >= 1)) throw new RangeError("the buffer of a subscription holds one event at least");
    this.topics = topics;
    this.names = `[${topics.map(encodeName).join()}]`; // as JSON
    this.#buffer = buffer;
    this.#leave = leave;
    for (const { epoch, offset } of Object.values(since))
      if (typeof epoch !== "string" || !Number.isSafeInteger(offset)) throw new TypeError("since: no epoch and offset");
    this.#positions = new Map(Object.entries(since));
  }

  /** What to resume with, in a message of at most so many bytes. For a topic that is left out there will be a gap. */
  since(bytes) {
    bytes -= new TextEncoder().encode(this.names).length + 200;
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
      const isNew = !position && this.#began && !this.#forgot && offset > 0;
      this.#move(topic, epoch, isNew ? 0 : offset); // a loss before the second reply must not skip what it would bring
      if (isNew) begun[topic] = { epoch, offset: 0 };
      else if (position || (this.#began && this.#forgot)) this.#gap(topic);
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

  /** Take it that messages of a topic are lost, up to a position, or of all topics of a pattern. */
  lost(gap) {
    if (/[*>]/.test(gap.topic)) {
      if (this.active && this.topics.includes(gap.topic)) this.#gap(gap.topic); // there is no position to remember
    } else if (this.#advance(gap)) this.#gap(gap.topic);
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

/** A stream as its caller has it. `port` is what it needs of the client; the stream is sent as its `exchange`. */
class Stream {
  #port;
  #signal;
  #shape; // what the caller asked for: { credit, bytes, timeout, waitMs }
  #inflow = new Inflow((grant) => this.#grant(grant));
  #answer = deferred();
  #moved; // when something of it last went or came
  #late; // the timer of its beginning, then that of the next renewal
  #abort = () => this.cancel(this.#signal.reason);

  constructor(request, signal, port) {
    this.#port = port;
    this.#signal = signal;
    this.#shape = request.stream;
    this.outflow = new Outflow(
      (text) => this.#write(text),
      () => this.exchange.ids.length > 0 && port.hasRoom(this.exchange.session),
    );
    this.exchange = new Exchange([request], ([outcome]) => this.#done(outcome), { stream: this });
    this.#late = timer(() => port.giveUp(this.exchange), request.stream.timeout);
    signal?.addEventListener("abort", this.#abort, { once: true });
  }

  /** Take it that the call has been sent. From now on the gateway counts its time, which is renewed if nothing moves. */
  sent() {
    const { exchange, outflow } = this;
    const { session } = exchange;
    const { credit, bytes, timeout } = this.#shape;
    const limits = this.#port.limits();
    const isNamed = exchange.requests[0].node !== undefined;
    const third = (isNamed ? timeoutMs(timeout, limits) : limits.callTimeoutMs) / 3;
    let losses; // of links, when it was last renewed: what is said without a link waits for the next one
    const renew = () => {
      const isWaiting = session.link === null && losses === session.losses;
      if (!isWaiting && now() - this.#moved >= third) {
        losses = session.losses;
        this.#grant({ credit: 0, bytes: 0 });
      }
      if (exchange.left === 0) return; // that was more than may be kept, and so the end
      const rest = this.#moved + third - now();
      this.#late = timer(renew, rest > 0 ? rest : third);
    };
    clearTimeout(this.#late);
    this.#moved = now();
    this.#inflow.open(credit, grantable(bytes, limits));
    session.outflows.add(outflow);
    renew();
    outflow.flush();
  }

  /** Take a value of the node's. */
  put(value, cost) {
    this.#moved = now();
    if (!this.#inflow.put(value, cost)) this.#port.overrun(this.exchange.session);
  }

  #grant({ credit, bytes }) {
    this.#say("rpc.credit", `"credit":${credit},"bytes":${bytes}`);
  }

  #say(name, rest) {
    const { ids, session } = this.exchange;
    this.#moved = now();
    this.#port.say(session, name, `{"id":${ids[0]},${rest}}`);
  }

  #write(text) {
    if (text === null) return this.#say("rpc.push", '"end":true');
    const { ids, session } = this.exchange;
    this.#port.transmit(session, notification('"rpc.push"', `{"id":${ids[0]},"value":${text}}`));
    this.#moved = now();
  }

  #done(outcome) {
    if (outcome instanceof CallError) this.#answer.reject(outcome);
    else this.#answer.resolve(outcome);
    this.#over(outcome instanceof CallError ? outcome : null);
  }

  #over(reason) {
    clearTimeout(this.#late);
    this.#signal?.removeEventListener("abort", this.#abort);
    this.exchange.session?.outflows.delete(this.outflow);
    this.outflow.end(reason ?? closed("the stream is over"));
    this.#inflow.end(reason);
  }

  /** End it, here and at the node. What has come is not wanted any more. No effect if it is over. */
  cancel(reason = cancelled()) {
    if (this.exchange.left === 0) return;
    this.#inflow.drop(reason);
    this.outflow.end(reason);
    this.#answer.reject(reason);
    this.#port.giveUp(this.exchange);
  }

  /** What the caller gets. */
  handle() {
    const one = {
      send: (value) => this.outflow.send(value),
      end: () => this.outflow.finish(),
      result: () => this.#answer.promise,
      cancel: (reason) => this.cancel(reason),
      next: () => this.#inflow.next(),
      return: async (value) => {
        this.cancel();
        return { value, done: true };
      },
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
  #limits = LIMITS;
  #principal = null;
  #running = null; // resolves when #run is over
  #closing = false;
  #why = "open() comes first";
  #wake = () => {}; // ends what #run waits for
  #link = null; // the link that is open, or being made
  #held = null; // the session that has lost its link, and may go on by the next
  #phase = {}; // the state apart from that
  #gone = Promise.resolve(); // the end of the last link's socket, which may come long after the link's
  #failures = 0;
  #lastId = 0;
  #waiting = new Set(); // exchanges that are to be sent
  #methods = new Map();
  #serving = null; // { named, answer, registered }
  #served = 0; // calls and notifications that run, those that nobody waits for any more included
  #subscriptions = new Set();

  constructor(url, options = {}) {
    super();
    const { token, reconnect = true, WebSocket = globalThis.WebSocket, random = Math.random } = options;
    const { maxCalls = MAX_CALLS, keep = true } = options;
    if (!WebSocket) throw new TypeError("there is no WebSocket here: pass the one of the package ws");
    this.#url = addressOf(url);
    const given = typeof token === "function" ? token : bare(token);
    this.#options = { token: given, reconnect, keep: keep && reconnect, WebSocket, random, maxCalls };
  }

  get state() { return this.#state; }
  get welcome() { return this.#welcome; }
  get principal() { return this.#principal; }
  get why() { return this.#why; }

  // The life of the client

  open({ timeout = TIMEOUT, signal } = {}) {
    if (this.#closing) return Promise.reject(closed("it is being closed"));
    if (this.#running === null) this.#start();
    if (this.#state === "waiting" || this.#state === "away") this.#wake();
    const answer = deferred();
    const look = () => {
      if (this.#state === "open") answer.resolve(this.#welcome);
      else if (this.#state === "closed") answer.reject(closed(this.#why));
    };
    this.addEventListener("state", look);
    look();
    const [opened] = limited(answer.promise, timeout, signal, () => `there is no connection: ${this.#why}`);
    return opened.finally(() => this.removeEventListener("state", look));
  }

  async close({ timeout = CLOSE_TIMEOUT } = {}) {
    const running = this.#running;
    if (!running) return;
    this.#closing = true;
    this.#wake();
    const link = this.#link;
    link?.socket.close(1000);
    const late = timer(() => link?.end({ code: 1006, reason: "closed without an answer" }), timeout);
    await running;
    clearTimeout(late);
  }

  /** Run, and say so before the first listener is called: it may call open() and close(). */
  #start() {
    const over = deferred();
    this.#running = over.promise;
    this.#run().finally(over.resolve);
  }

  async #run() {
    this.#failures = 0;
    this.#why = "no attempt has ended yet";
    for (;;) {
      this.#become("connecting");
      const end = await this.#once();
      this.#why = asText(end);
      const { code, reason } = end;
      if (this.#closing || end.final || isFinal(code) || !this.#options.reconnect) return this.#finish(code, reason);
      const pause = this.#pauseAfter(end);
      const rested = this.#rest(pause);
      this.#become("waiting", { code, reason, pause });
      await rested;
      if (this.#closing) return this.#finish(code, reason);
    }
  }

  /** Wait for so long, or until #wake is called: by a listener to the state `waiting` too, because it is there at once. */
  #rest(pause) {
    const { promise, resolve } = deferred();
    const ready = timer(resolve, pause);
    this.#wake = () => {
      clearTimeout(ready);
      resolve();
    };
    return promise;
  }

  /** Wait for a part of an attempt. If the client is being closed, or will be, this rejects at once. */
  #unlessClosed(work, time) {
    const [promise, stop] = limited(work, time);
    this.#wake = () => this.#closing && stop(closed("close() was called"));
    this.#wake();
    return promise;
  }

  /** How long to rest after the end of a link or of an attempt: whatever the gateway asks for, never without a floor. */
  #pauseAfter({ code, retryAfter = 0, comeBackAt }) {
    const { random } = this.#options;
    const [least, most] = SPREAD;
    // All other clients have lost their links at the same moment.
    if (code === 1001 && comeBackAt === undefined) return least + random() * (most - least);
    const [first, last] = this.#held ? [AWAY_MIN, AWAY_MAX] : [PAUSE_MIN, PAUSE_MAX];
    const drawn = random() * Math.min(last, first * 2 ** this.#failures++);
    return comeBackAt === undefined ? retryAfter + drawn : Math.max(comeBackAt - now(), PAUSE_FLOOR, drawn);
  }

  #finish(code, reason) {
    const error = this.#closing ? null : closed(this.#why);
    if (this.#closing) this.#why = "close() was called";
    this.#running = null;
    this.#closing = false;
    this.#serving?.answer.reject(closed(this.#why));
    this.#serving = null;
    this.#abandon();
    for (const exchange of this.#takeWaiting()) exchange.fail(closed(this.#why));
    for (const subscription of [...this.#subscriptions]) subscription.end(error);
    this.#become("closed", { code, reason });
  }

  /** Waiting and connecting are one state while the connection is held, `away`; of its attempts only the end is told. */
  #become(state, detail) {
    this.#phase = { state, detail, at: now() };
    const isAway = this.#held !== null && (state === "waiting" || state === "connecting");
    if (isAway && state === "connecting" && this.#state === "away") return;
    this.#state = isAway ? "away" : state;
    this.dispatchEvent(event("state", { state: this.#state, ...detail }));
  }

  #tell(error) {
    this.dispatchEvent(event("error", error));
  }

  // One link

  async #once() {
    let token;
    if (this.#closing) return { code: 1000, reason: "" }; // by a listener
    try {
      await this.#apart();
      token = await this.#token();
    } catch (error) {
      if (this.#closing) return { code: 1000, reason: "" };
      this.#tell(error);
      return { code: 1006, reason: `no token: ${error?.message ?? error}` };
    }
    if (this.#closing) return { code: 1000, reason: "" };
    return new Promise((ended) => this.#connect(token, ended));
  }

  /** Wait for the last socket, so that there is one connection at a time. A WebSocket without terminate() takes long. */
  #apart() {
    if (this.#held) return undefined; // the gateway cuts the last one itself
    return this.#unlessClosed(this.#gone, LINGER).catch((error) => {
      if (this.#closing) throw error;
    });
  }

  async #token() {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    return bare(await this.#unlessClosed(Promise.resolve().then(token), TIMEOUT));
  }

  #connect(token, ended) {
    let socket;
    try {
      socket = new this.#options.WebSocket(this.#url);
    } catch (error) {
      ended({ code: 1006, reason: error.message, final: true }); // no attempt at this address could succeed
      return;
    }
    const link = { socket, token, opened: null, heard: now(), asked: false, doubted: false };
    link.session = new Session(link);
    link.end = (end) => {
      if (this.#link !== link) return;
      this.#link = null;
      this.#lost(link, end);
      if (socket.terminate && socket.readyState < 3) socket.terminate();
      else if (this.#held && socket.readyState === OPEN) this.#held.sockets.push(socket);
      else if (socket.readyState < 3) socket.close();
      ended({ comeBackAt: link.comeBackAt, ...end });
    };
    link.late = timer(() => link.end({ code: 1006, reason: "no welcome in time" }), CONNECT_TIMEOUT);
    this.#link = link;
    this.#gone = this.#listen(link);
  }

  /** Heed what the socket tells. Resolves when it is gone, which is sometimes long after the link has been given up. */
  #listen(link) {
    const { socket } = link;
    const gone = deferred();
    let problem = "";
    let isOpen = false;
    const end = ({ code, reason }) => {
      gone.resolve();
      link.end({ code: code >= 1000 ? code : 1006, reason: reason || problem || (isOpen ? "" : UNTOLD) });
    };
    socket.addEventListener("open", () => (isOpen = true));
    socket.addEventListener("message", ({ data }) => this.#link === link && this.#receive(link, data));
    socket.addEventListener("close", end);
    socket.addEventListener("error", (event) => {
      problem = problemOf(event) || problem;
      if (!isOpen) end({ code: 1006 }); // Node's own WebSocket tells of no close then
    });
    // The package ws tells of a refusal as no page can; heeding it means that the attempt is ended here.
    if (typeof socket.on === "function") socket.on("unexpected-response", (_, answer) => link.end(refusal(answer)));
    return gone.promise;
  }

  #lost(link, end) {
    const { session } = link;
    clearTimeout(link.late);
    clearTimeout(link.resting?.late);
    link.resting?.resolve();
    const isSettled = link.opened !== null && now() - link.opened >= SETTLED;
    if (isSettled || session.acked + session.received > link.begun) this.#failures = 0;
    for (const subscription of this.#subscriptions) subscription.active = false;
    if (this.#outlives(link, end)) this.#hold(session);
    else session.end(lost());
  }

  // What outlives a link

  /** The session of the open connection, or of the one that is held; null if there is none. */
  get #session() {
    return this.#held ?? (this.#link !== null && this.#link.opened !== null ? this.#link.session : null);
  }

  #isCurrent(session) {
    return session !== null && (this.#held === session || this.#link?.session === session);
  }

  /** Ask the gateway to keep the connection. What is sent after this has a number. */
  #keep(link) {
    const { session } = link;
    session.uncount();
    const kept = (result, error) => {
      if (error === null && session.established(result)) return this.#acknowledge(session); // before that a loss is the end
      session.uncount();
      if (error === null) this.#tell(new Error("the gateway keeps the connection, but does not say how"));
      else if (error.temporary) timer(() => this.#link === link && this.#keep(link), this.#pause(error, 0));
      else if (error.code !== -32601) this.#tell(error); // that is a gateway that keeps none
    };
    this.#ask(session, "connection.keep", () => "{}", kept, { link, once: true });
    session.count();
  }

  #acknowledge(session) {
    if (!this.#isReady(session.link)) return;
    const text = notification('"connection.ack"', `{"received":${session.tell()}}`);
    this.#transmit(session, text, { urgent: true, counted: false });
  }

  /** Whether the connection goes on without this link, which has ended so: without a word of either side. */
  #outlives(link, { code, final }) {
    if (code !== 1006 || final || this.#closing || link.opened === null || link.isDraining) return false;
    // A message that ends each link that it is sent by must not do so for ever.
    return link.session.isWhole && link.session.stuckFor() <= link.session.holdMs;
  }

  #hold(session) {
    this.#held = session;
    session.detach();
    session.late = timer(() => this.#giveUpHeld("the connection was away for too long"), session.holdMs);
  }

  /** End the session that is held, and begin anew with the next link. */
  #giveUpHeld(why) {
    const { state, detail, at } = this.#phase;
    if (this.#link?.isResuming) this.#link.socket.close(1000, why); // the gateway may have put it in its place already
    this.#abandon();
    const pause = detail?.pause === undefined ? undefined : Math.max(0, detail.pause - (now() - at));
    if (this.#state === "away") this.#become(state, { ...detail, ...(pause !== undefined && { pause }) });
  }

  #abandon() {
    const session = this.#held;
    this.#held = null;
    clearTimeout(session?.late);
    session?.end(lost());
  }

  /** Let the connection that is held go on by this link: the first thing that is said there, and until the reply all. */
  #resume(link, principal) {
    const session = this.#held;
    const params = { session: session.secret, received: session.received, attempt: ++session.attempt };
    const answered = (result, error) => {
      link.isResuming = false;
      if (this.#held !== session) return; // given up; the link is being closed
      if (error === null) this.#resumed(link, session, result, principal);
      else if (error.data?.closeCode >= 1000) {
        this.#abandon(); // as if a close frame had come
        link.end({ code: error.data.closeCode, reason: String(error.data.cause) });
      } else if (error.temporary && error.name !== "draining") link.end({ code: 1006, reason: error.message });
      else {
        this.#giveUpHeld();
        this.#opened(link, principal);
      }
    };
    link.isResuming = true;
    this.#ask(link.session, "connection.resume", () => encode(params), answered, { link, once: true });
  }

  #resumed(link, session, { connId, received }, principal) {
    const before = session.acked;
    if (received < before || !session.acknowledged(received)) {
      link.end({ code: 1002, reason: `${received} messages have come to the gateway, ${session.sent} were sent` });
      return;
    }
    clearTimeout(session.late);
    this.#held = null;
    this.#welcome = { ...this.#welcome, connId };
    link.session = session;
    link.begun = before + session.received;
    for (const text of session.attach(link)) this.#transmit(session, text, { urgent: true, counted: false });
    for (const socket of session.sockets.splice(0)) socket.close();
    this.#opened(link, principal, true);
  }

  #welcomed(link, welcome) {
    link.welcomed = true;
    this.#welcome = welcome;
    this.#limits = { ...LIMITS, ...welcome.limits };
    if (welcome.protocol !== PROTOCOL)
      link.end({ code: 1002, reason: `protocol ${welcome.protocol} is not spoken here` });
    else if (welcome.principal) this.#admitted(link, welcome.principal);
    else if (link.token === null) link.end({ code: 4500, reason: "a token is needed" });
    else this.#authenticate(link, link.token, (principal) => this.#admitted(link, principal));
  }

  #admitted(link, principal) {
    if (this.#held) this.#resume(link, principal);
    else this.#opened(link, principal);
  }

  #authenticate(link, token, done) {
    const answered = (principal, error) => {
      if (!error) return done(principal);
      if (error.retryAfterMs !== null) this.#comeBack(link, error.retryAfterMs * (1 + this.#options.random()));
      return this.#tell(error); // the gateway ends a link that is not open yet
    };
    const once = link.opened === null;
    this.#ask(link.session, "gateway.authenticate", () => encode({ token }), answered, { link, once });
  }

  #comeBack(link, pause) {
    link.comeBackAt = now() + Math.min(Math.max(Number(pause) || 0, 0), PAUSE_MOST);
  }

  async #refresh(link, leftMs) {
    if (typeof this.#options.token !== "function" || link.resting) return;
    try {
      // A credential that lives briefly is announced again at once, each time.
      const pause = link.refreshed ? (Number(leftMs) || 0) / 2 : 0;
      link.refreshed = true;
      if (pause > 0) await new Promise((resolve) => (link.resting = { resolve, late: timer(resolve, pause) }));
      link.resting = null;
      if (this.#link !== link) return;
      const token = await this.#token();
      if (this.#link === link) this.#authenticate(link, token, (principal) => (this.#principal = principal));
    } catch (error) {
      this.#tell(error);
    }
  }

  /** `resumed`: the connection has gone on, with all that it had but the subscriptions. */
  #opened(link, principal, resumed = false) {
    clearTimeout(link.late);
    link.opened = now();
    link.begun ??= 0; // of messages both ways, to see whether the link has helped
    this.#principal = principal;
    if (this.#options.keep && !resumed) this.#keep(link);
    this.#beat(link);
    if (this.#serving && !resumed) this.#register(link.session, [...this.#methods.values()]);
    for (const subscription of [...this.#subscriptions]) this.#join(link, subscription);
    this.#become("open", resumed ? { resumed } : undefined);
    this.#flush();
    link.session.flush();
  }

  /** Browsers cannot send pings: after a silence the client asks, and without an answer the link is lost. */
  #beat(link) {
    const { interval, timeout } = { ...HEARTBEAT, ...this.#welcome.heartbeat };
    const left = interval * 1000 - (now() - link.heard);
    let next = left;
    if (!link.asked && left <= 0) {
      link.asked = true;
      this.#ask(link.session, "gateway.ping", () => undefined, () => {}, { link });
      next = timeout * 1000;
    } else if (link.doubted) {
      link.end({ code: 1006, reason: "no answer to a ping" });
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
      link.end({ code: 1002, reason: "what came is not JSON" });
      return;
    }
    const { session } = link;
    if (session.secret !== null && isCounted(message)) session.heard(data.length, () => this.#acknowledge(session));
    if (!Array.isArray(message)) this.#take(link, message, data);
    else for (const one of message) this.#take(link, one);
  }

  /** Whatever a peer sends, nothing is thrown into the WebSocket that brought it: in Node that would end the process. */
  #take(link, message, text) {
    if (this.#link !== link) return;
    if (!link.welcomed && message?.method !== "gateway.welcome") {
      link.end({ code: 1002, reason: "the first message is no gateway.welcome: this is no gateway" });
      return;
    }
    try {
      this.#handle(link, message, text);
    } catch (cause) {
      this.#tell(new Error("a message of the gateway cannot be read", { cause }));
    }
  }

  #handle(link, message, text) {
    const { method, params } = message;
    const { session } = link;
    switch (method) {
      case undefined:
        return this.#answered(session, message);
      case "connection.ack":
        if (session.acknowledged(params.received)) session.flush();
        else link.end({ code: 1002, reason: `message ${params.received} was acknowledged, ${session.sent} were sent` });
        return;
      case "event.message":
        for (const subscription of this.#subscriptions) subscription.deliver(params);
        return;
      case "event.gap":
        for (const subscription of this.#subscriptions) subscription.lost(params);
        return;
      case "rpc.progress":
        session.pending.get(params.id)?.[0].report(params.value, () => costOf(message, text));
        return;
      case "rpc.credit":
        return session.running.get(params.id)?.outflow?.granted(params);
      case "rpc.demand":
        return session.pending.get(params.id)?.[0].stream?.outflow.granted(params);
      case "rpc.push":
        return this.#pushed(session, message, text);
      case "rpc.cancel":
        return session.running.get(params.id)?.stop.abort(cancelled());
      case "gateway.welcome":
        if (!link.welcomed) this.#welcomed(link, params);
        return;
      case "gateway.expiring":
        this.#refresh(link, params.leftMs);
        return;
      case "gateway.draining":
        link.isDraining = true;
        this.#comeBack(link, params.reconnectAfterMs);
        this.dispatchEvent(event("draining", params));
        return;
      default:
        this.#serve(session, message);
    }
  }

  #answered({ pending }, { id, result, error }) {
    const found = pending.get(id);
    const outcome = error ? new CallError(error.code, error.message, error.data) : result;
    if (found) {
      pending.delete(id);
      found[0].answer(found[1], outcome);
      this.#flush();
    } else if (error && id === null) this.#tell(outcome);
  }

  #pushed(session, message, text) {
    const { id, value, end } = message.params;
    const inflow = session.running.get(id)?.inflow;
    if (end === true) inflow?.end();
    else if (inflow?.put(value, costOf(message, text)) === false) this.#overrun(session);
  }

  #overrun(session) {
    session.link?.end({ code: 1002, reason: "a stream has brought more than was granted" });
  }

  // Calls

  async call(method, params, { timeout = TIMEOUT, signal, node, retry = false, onProgress } = {}) {
    const deadline = now() + timeout;
    const request = requestOf(method, params, { node, deadline });
    const reporter = onProgress && new Reporter(onProgress, (error) => this.#tell(error), signal);
    for (let attempt = 0; ; attempt++) {
      const [outcome] = await this.#exchange([request], { deadline, signal, reporter });
      await reporter?.settled(deadline);
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
    const requests = calls.map(([method, params]) => requestOf(method, params));
    return requests.length ? this.#exchange(requests, { batch: true, deadline: now() + timeout, signal }) : [];
  }

  stream(method, params, { node, waitMs, timeout = TIMEOUT, credit = CREDIT, bytes = CREDIT_BYTES, signal } = {}) {
    if (!(Number.isSafeInteger(credit) && credit >= 1 && credit <= MAX_CREDIT))
      throw new RangeError(`the credit of a stream is 1 to ${MAX_CREDIT} values`);
    if (!(Number.isSafeInteger(bytes) && bytes >= 1)) throw new RangeError("the bytes of a stream are 1 at least");
    if (waitMs !== undefined && !(Number.isSafeInteger(waitMs) && waitMs >= 0 && node !== undefined))
      throw new TypeError("waitMs is a whole number, for a node that is named");
    const request = requestOf(method, params, { node, stream: { credit, bytes, timeout, waitMs } });
    const stream = new Stream(request, signal, {
      say: (...what) => this.#say(...what),
      transmit: (...what) => this.#transmit(...what),
      hasRoom: (session) => this.#hasRoom(session),
      overrun: (session) => this.#overrun(session),
      giveUp: (exchange) => this.#giveUp(exchange),
      limits: () => this.#limits,
    });
    if (signal?.aborted) stream.cancel(signal.reason);
    else this.#queue(stream.exchange);
    return stream.handle();
  }

  publish(topic, data, options) {
    return this.call("event.publish", { topic, data: data ?? null }, options);
  }

  notify(method, params) {
    const text = notification(encodeName(method), encodeParams(params));
    if (!this.#maySend(this.#session)) throw closed(this.#state);
    this.#transmit(this.#session, text);
  }

  #isReady(link) {
    return link !== null && link.opened !== null && link.socket.readyState === OPEN && !this.#closing;
  }

  /** Whether a value of a stream may leave now. If not, the session's `flush` is called when it may. */
  #hasRoom(session) {
    if (!this.#isCurrent(session) || !this.#isReady(session.link) || session.isCrowded) return false;
    if (session.link.socket.bufferedAmount <= MAX_BUFFERED) return true;
    session.again ??= timer(() => {
      session.again = undefined;
      session.flush();
    }, SECOND_LOOK); // nothing tells when it is less
    return false;
  }

  /** Whether a message has a way to the gateway, now or by the next link. */
  #maySend(session) {
    return this.#isCurrent(session) && !this.#closing && (session.secret !== null || this.#isReady(session.link));
  }

  /**
   * The one way out: every message leaves here, in the order of these calls. Throws a CallError, with the outcome
   * `not_delivered`, for a message that is not sent: the gateway would end the link for one that is too long.
   * Without a link it is sent by the next one. `owed`: even if half is full of what may wait for that. `urgent`, for
   * short ones: even if much waits for the network. `counted`: whether it has a number where the connection is kept.
   */
  #transmit(session, text, { urgent = false, owed = urgent, counted = true } = {}) {
    const { maxMessageBytes } = this.#limits;
    const socket = session.link?.socket;
    if (isOver(text, maxMessageBytes))
      throw failure(OWN_CODE, "message_too_big", `A message is over ${maxMessageBytes} bytes`, "not_delivered");
    if (session.secret !== null && socket?.readyState !== OPEN) {
      if (!owed && session.isCrowded) throw overloaded("Too much waits for the connection");
    } else {
      if (!urgent && socket.bufferedAmount > MAX_BUFFERED) throw overloaded("Too much waits for the network");
      try {
        socket.send(text);
      } catch (error) {
        throw failure(OWN_CODE, "connection_lost", String(error), "not_delivered", { temporary: true });
      }
    }
    if (counted) session.keep(text);
    if (this.#held === session && !session.isWhole) this.#giveUpHeld("too much waits for the connection");
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
      this.#queue(exchange);
    });
  }

  #queue(exchange) {
    if (!this.#running || this.#closing) exchange.fail(closed(this.#why));
    else if (this.#waiting.size >= MAX_WAITING) exchange.fail(overloaded("Too many calls wait for the connection"));
    else {
      this.#waiting.add(exchange);
      this.#flush();
    }
  }

  /** Cancel what was sent. Its ids stay until the gateway has answered them: as long, they count in its `maxInFlight`. */
  #giveUp(exchange) {
    this.#waiting.delete(exchange);
    for (const id of exchange.ids) if (exchange.session.pending.has(id)) this.#say(exchange.session, "rpc.cancel", `{"id":${id}}`);
    if (exchange.ids.length) exchange.fail(timedOut("unknown"));
    else exchange.fail(timedOut("not_delivered", this.#state === "open" ? "" : `there is no connection: ${this.#why}`));
    this.#flush();
  }

  /** Say something short about a call. */
  #say(session, name, params) {
    try {
      if (this.#maySend(session)) this.#transmit(session, notification(`"${name}"`, params), { urgent: true });
    } catch {
      // the link is about to end, and the call with it
    }
  }

  /** Send what waits, as much as the gateway takes. */
  #flush() {
    const link = this.#link;
    for (const exchange of this.#waiting) {
      if (!this.#isReady(link) || link.comeBackAt !== undefined) return;
      const count = link.session.pending.size;
      if (count > 0 && count + exchange.requests.length > this.#limits.maxInFlight) return;
      this.#waiting.delete(exchange);
      this.#send(link.session, exchange);
    }
  }

  #takeWaiting() {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    return waiting;
  }

  #send(session, exchange) {
    const ids = exchange.requests.map(() => ++this.#lastId);
    const texts = exchange.requests.map((request, index) => requestText(ids[index], request, this.#limits));
    try {
      if (texts.length > this.#limits.maxBatch)
        throw failure(-32600, "invalid_request", `A batch of more than ${this.#limits.maxBatch}`, "not_delivered");
      this.#transmit(session, exchange.batch ? `[${texts.join()}]` : texts[0]);
    } catch (error) {
      exchange.fail(error);
      return;
    }
    Object.assign(exchange, { ids, session });
    for (const [index, id] of ids.entries()) session.pending.set(id, [exchange, index]);
    exchange.stream?.sent();
  }

  /**
   * Ask for this client itself, again if it is refused for a while, unless it is `once`. `params` makes their JSON, for
   * each attempt; `done` gets result and error, as long as the session lasts, or the `link` if one is given.
   */
  #ask(session, method, params, done, { link = null, once = false, wanted = () => true, attempt = 0 } = {}) {
    const isCurrent = () => (link === null ? this.#isCurrent(session) : this.#link === link);
    if (!isCurrent() || !wanted()) return;
    const again = () => this.#ask(session, method, params, done, { link, once, wanted, attempt: attempt + 1 });
    let late;
    const watch = (by) => {
      const look = () => {
        if (by === null || session.link !== by) watch(session.link);
        else by.end({ code: 1006, reason: `no answer to ${method}` });
      };
      late = timer(look, TIMEOUT);
    };
    const answered = ([outcome]) => {
      clearTimeout(late);
      if (!isCurrent()) return;
      if (!(outcome instanceof CallError)) done(outcome, null);
      else if (!once && outcome.temporary) timer(again, this.#pause(outcome, attempt));
      else done(null, outcome);
    };
    watch(session.link);
    this.#send(session, new Exchange([{ method: encode(method), params: params() }], answered));
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
    const { maxMessageBytes } = this.#limits;
    this.#askFor(link, subscription, () => subscription.since(maxMessageBytes), (topics) => {
      const begun = Object.entries(subscription.joined(topics) ?? {});
      while (begun.length) {
        const some = Object.fromEntries(begun.splice(0, MAX_SINCE));
        this.#askFor(link, subscription, () => some, (again) => subscription.caughtUp(some, again));
      }
    });
  }

  #askFor(link, subscription, since, done) {
    const params = () => `{"topics":${subscription.names},"since":${encode(since())}}`;
    const answered = (result, error) => (error ? subscription.end(error) : done(result.topics));
    const wanted = () => this.#subscriptions.has(subscription);
    this.#ask(link.session, "event.subscribe", params, answered, { link, wanted });
  }

  /** End a subscription, at the gateway too; but not its topics that another has, now or when this is sent again. */
  #leave(subscription) {
    this.#subscriptions.delete(subscription);
    const session = this.#session;
    if (!this.#maySend(session)) return;
    const unwanted = () => {
      const others = new Set([...this.#subscriptions].flatMap((other) => other.topics));
      return subscription.topics.filter((topic) => !others.has(topic));
    };
    const params = () => encode({ topics: unwanted() });
    this.#ask(session, "event.unsubscribe", params, () => {}, { wanted: () => unwanted().length > 0 });
  }

  // Serving

  method(name, run, { summary, params } = {}) {
    encodeName(name);
    const one = { run, description: encode({ name, summary, params }) };
    this.#methods.set(name, one);
    if (this.#serving && this.#maySend(this.#session)) this.#register(this.#session, [one]);
    return this;
  }

  serve({ name, timeout = TIMEOUT, signal } = {}) {
    if (this.#methods.size === 0) throw new TypeError("there is nothing to serve: method() comes first");
    const named = name === undefined ? "" : `"name":${encodeName(name)},`;
    if (!this.#running || this.#closing) return Promise.reject(closed(this.#why));
    const answer = deferred();
    this.#serving = { named, answer };
    if (this.#maySend(this.#session)) this.#register(this.#session, [...this.#methods.values()]);
    return limited(answer.promise, timeout, signal)[0];
  }

  #register(session, all) {
    const serving = this.#serving;
    const methods = all.map(({ description }) => description).join();
    const params = `{${serving.named}"methods":[${methods}],"context":true,"streams":true}`;
    this.#ask(session, "node.register", () => params, (result, error) => {
      if (!error) {
        serving.registered = true;
        serving.answer.resolve(result);
      } else if (serving.registered) this.#tell(error);
      else {
        this.#serving = null;
        serving.answer.reject(error);
      }
    });
  }

  async #serve(session, { id, method, params, context, stream }) {
    const served = this.#methods.get(method);
    if (this.#served >= this.#options.maxCalls) {
      if (id !== undefined) this.#reply(session, id, busy);
      return;
    }
    if (!served && id === undefined) return; // a notification for no method
    const stop = new AbortController();
    const one = { stop };
    if (stream && id !== undefined) Object.assign(one, this.#flows(session, id, stream, stop.signal));
    if (id !== undefined) session.running.set(id, one);
    const isWanted = () => this.#maySend(session) && !stop.signal.aborted;
    const isRunning = () => session.running.get(id) === one;
    const report = (value) => {
      const text = notification('"rpc.progress"', `{"id":${JSON.stringify(id)},"value":${encode(value ?? null)}}`);
      if (isRunning() && isWanted()) this.#transmit(session, text);
    };
    const call = {
      caller: context?.caller ?? null,
      timeLeftMs: context?.timeLeftMs ?? null,
      signal: stop.signal,
      progress: (value) => (one.outflow ? one.outflow.send(value) : report(value)),
      [Symbol.asyncIterator]: () => {
        if (!one.inflow) throw new TypeError("the call is no stream, so that nothing is pushed to it");
        return one.read();
      },
    };
    this.#served++;
    const outcome = await this.#outcome(served, method, params, call);
    await one.outflow?.drained();
    this.#served--;
    if (id === undefined) return;
    if (isWanted()) this.#reply(session, id, outcome);
    if (isRunning()) session.running.delete(id);
    one.close?.();
  }

  /** The flows of a stream that is served. Both end when it is cancelled or lost, or by `close`. */
  #flows(session, id, granted, signal) {
    const key = JSON.stringify(id);
    const grant = ({ credit, bytes }) =>
      this.#say(session, "rpc.demand", `{"id":${key},"credit":${credit},"bytes":${bytes}}`);
    const write = (text) => this.#transmit(session, notification('"rpc.progress"', `{"id":${key},"value":${text}}`));
    const inflow = new Inflow(grant);
    const outflow = new Outflow(write, () => this.#hasRoom(session), granted);
    const close = (reason = closed("the call has been answered")) => {
      session.outflows.delete(outflow);
      outflow.end(reason);
      inflow.drop(reason);
    };
    const read = () => {
      if (!inflow.window) {
        inflow.open(CREDIT, grantable(CREDIT_BYTES, this.#limits));
        grant(inflow.window);
      }
      return { next: () => inflow.next() };
    };
    session.outflows.add(outflow);
    signal.addEventListener("abort", () => close(signal.reason), { once: true });
    return { inflow, outflow, read, close };
  }

  /** Run a method. Returns what makes the member of the response; that may throw. */
  async #outcome(served, method, params, call) {
    try {
      if (!served) throw failure(-32601, "method_not_found", `No such method: ${method}`);
      const result = await served.run(params, call);
      return () => `"result":${encode(result) ?? "null"}`;
    } catch (error) {
      if (error instanceof CallError) return () => errorMember(error);
      if (!call.signal.aborted) this.#tell(error);
      return () => internalError();
    }
  }

  /** Answer a request: the one place that does. It cannot fail: what cannot be encoded or sent is answered as such. */
  #reply(session, id, outcome) {
    const head = `{"jsonrpc":"2.0","id":${JSON.stringify(id)}`;
    try {
      this.#transmit(session, `${head},${outcome()}}`, { owed: true });
      return;
    } catch (error) {
      this.#tell(error);
      try {
        this.#transmit(session, `${head},${internalError(unsendable(error))}}`, { urgent: true });
      } catch (again) {
        this.#tell(again); // the link is about to end
      }
    }
  }
}
