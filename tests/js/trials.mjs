// What the client promises where it is easy to break it: `promises` are tried against a real gateway whose messages have
// at most 65,536 bytes, `hostilities` against servers of this file, and both are for Node. Each trial is a function, and
// what it returns is looked at by the test of its name in tests/system/test_javascript_promises.py.

import { setTimeout as sleep } from "node:timers/promises";
import { WebSocketServer } from "ws";

const EAGER = { random: () => 0.001 };
const UNKEPT = { ...EAGER, keep: false };
const TOO_LONG = "x".repeat(70_000);

const told = ({ code, name, message, temporary, outcome }) => ({ code, name, message, temporary, outcome });
export const failure = (promise) => promise.then((result) => ({ unexpected: result }), told);
const thrown = (act) => {
  try {
    return { unexpected: act() };
  } catch (error) {
    return { isTypeError: error instanceof TypeError, ...told(error) };
  }
};
const take = async (feed, count) => {
  const taken = [];
  while (taken.length < count) taken.push((await feed.next()).value);
  return taken;
};
export const numbers = (count) => Array.from({ length: count }, (_, n) => n);

export async function run(trials, given) {
  const results = Object.entries(trials).map(async ([name, trial]) => [name, await trial(given)]);
  return Object.fromEntries(await Promise.all(results));
}

export function states(gateway) {
  const seen = [];
  gateway.addEventListener("state", ({ detail }) => seen.push(detail));
  return seen;
}

export function until(gateway, state, count = 1) {
  return new Promise((resolve) => {
    const found = [];
    gateway.addEventListener("state", ({ detail }) => {
      if (detail.state === state && found.length < count && found.push(detail) === count) resolve(found);
    });
  });
}

// Promises

export async function promises({ connect, CallError, url, WebSocket, GatewayClient }) {
  const node = connect(EAGER);
  const caller = connect(EAGER);
  const lost = [...states(node), ...states(caller)];
  await Promise.all([node.open(), caller.open()]);
  const defects = [];
  node.addEventListener("error", ({ detail }) => defects.push(String(detail?.message ?? detail)));
  const given = { connect, CallError, url, WebSocket, GatewayClient, node, caller };
  const served = await Promise.all(Object.values(METHODS).map((declare) => declare(given)));
  await node.serve({ name: "kettle" });
  const found = await run(PROMISES, { ...given, served: Object.assign({}, ...served) });
  const alive = await caller.call("trial.echo", ["still there"]);
  const connIds = await caller.call("connection.list");
  await Promise.all([node.close(), caller.close()]);
  return { ...found, defects, alive, lost, links: connIds.connections.length };
}

const cycle = {};
cycle.itself = cycle;
const UNSENDABLE = {
  bigint: () => 1n,
  cycle: () => cycle,
  surrogate: () => "\ud83d",
  map: () => new Map([[1, 2]]),
  set: () => ({ deep: [new Set([1])] }),
  error: () => Object.assign(new Error("no"), { errno: -2 }),
  promise: () => [Promise.resolve(1)],
  bytes: () => new Uint8Array(2),
  function: () => () => 1,
  toJSON: () => ({ toJSON() { throw new Error("a secret"); } }),
  long: () => TOO_LONG,
};

const METHODS = {
  echo({ node }) {
    node.method("trial.echo", (params) => params);
    node.method("trial.slow", (params, { signal }) => new Promise((resolve) => signal.addEventListener("abort", resolve)));
  },
  results({ node }) {
    for (const [name, make] of Object.entries(UNSENDABLE)) node.method(`trial.result.${name}`, make);
  },
  errors({ node, CallError }) {
    for (const [name, make] of Object.entries(UNSENDABLE))
      node.method(`trial.error.${name}`, () => { throw new CallError(7, "no cup", make()); });
    node.method("trial.error.code", () => { throw new CallError(1.5, "no cup"); });
    node.method("trial.error.nothing", () => { throw null; });
  },
  nested({ node, CallError }) {
    const ran = { times: 0 };
    const data = { code: "overloaded", temporary: true, retryAfterMs: 1 };
    const refused = { outcome: { ...data, outcome: "not_delivered" } };
    for (const [name, told] of Object.entries(refused))
      node.method(`trial.nested.${name}`, () => {
        ran.times++;
        throw new CallError(-32009, "refused further in", told);
      });
    node.method("trial.long", () => {
      ran.times++;
      return TOO_LONG;
    });
    return { ran };
  },
  progress({ node }) {
    const refused = {};
    node.method("trial.report", async (params, call) => {
      for (const [name, make] of Object.entries(UNSENDABLE)) refused[name] = thrown(() => call.progress(make()));
      call.progress("fine");
      return refused;
    });
    node.method("trial.count", (params, call) => {
      for (const n of numbers(params.to)) call.progress(n);
    });
  },
};

const PROMISES = {
  async results({ caller }) {
    const names = Object.keys(UNSENDABLE);
    const found = await Promise.all(names.map((name) => failure(caller.call(`trial.result.${name}`))));
    return Object.fromEntries(names.map((name, index) => [name, found[index]]));
  },

  async errors({ caller }) {
    const names = [...Object.keys(UNSENDABLE), "code", "nothing"];
    const found = await Promise.all(names.map((name) => failure(caller.call(`trial.error.${name}`))));
    return Object.fromEntries(names.map((name, index) => [name, found[index]]));
  },

  async nested({ caller, served }) {
    const options = { retry: true, timeout: 10_000 };
    const found = [];
    for (const method of ["trial.nested.outcome", "trial.long"])
      found.push(await failure(caller.call(method, {}, options)));
    return { outcomes: found.map(({ outcome }) => outcome), ran: served.ran.times };
  },

  async progress({ caller }) {
    const values = [];
    const refused = await caller.call("trial.report", {}, { onProgress: (value) => values.push(value) });
    return { values, refused };
  },

  async tooLong({ connect }) {
    const gateway = connect(EAGER);
    const seen = states(gateway);
    await gateway.open();
    gateway.method("long.one", () => 1, { summary: TOO_LONG });
    const many = numbers(3_000).map((n) => `a.topic.with.a.long.name.${n}`);
    const feed = gateway.subscribe(many);
    const found = {
      call: await failure(gateway.call("gateway.ping", [TOO_LONG])),
      batch: told((await gateway.batch([["gateway.ping", [TOO_LONG]]]))[0]),
      notify: thrown(() => gateway.notify("nothing", [TOO_LONG])),
      publish: await failure(gateway.publish("a.b", TOO_LONG)),
      subscribe: await failure(feed.next()),
      ready: await failure(feed.ready),
      register: await failure(gateway.serve({ name: "long" })),
    };
    const alive = await gateway.call("gateway.ping", [1]);
    await gateway.close();
    const token = connect({ ...EAGER, token: TOO_LONG }); // mode none: it is never sent
    await token.open();
    await token.close();
    return { found, alive, states: seen.map(({ state }) => state) };
  },

  async misused({ connect, caller }) {
    const gateway = connect();
    const call = (...of) => caller.call(...of).catch((error) => error instanceof TypeError);
    return {
      address: ["", "127.0.0.1:8765", "ftp://127.0.0.1/ws", "ws://me:secret@127.0.0.1/ws"].map(
        (url) => thrown(() => connect({}, url)).isTypeError,
      ),
      token: thrown(() => connect({ token: "a\nb" })).isTypeError,
      method: thrown(() => gateway.method("a.b", () => 1, { params: cycle })).isTypeError,
      topics: [[1], ["\ud83d"]].map((topics) => thrown(() => caller.subscribe(topics)).isTypeError),
      since: thrown(() => caller.subscribe("a.b", { since: { "a.b": { epoch: "e", offset: 1n } } })).isTypeError,
      buffer: thrown(() => caller.subscribe("a.b", { buffer: 0 })).message,
      calls: await Promise.all([call("\ud83d"), call("trial.echo", new Map()), call("trial.echo", {}, { node: 1n })]),
    };
  },

  async resubscribes({ caller }) {
    const heard = [];
    for (const n of numbers(20)) {
      const first = caller.subscribe(["again.a", "again.*"]);
      if (n % 2) await first.ready;
      await first.return();
      const second = caller.subscribe("again.a");
      await second.ready;
      await caller.publish("again.a", n);
      heard.push((await take(second, 1))[0].data);
      await second.return();
    }
    return heard;
  },

  async queues({ connect }) {
    const gateway = connect(EAGER);
    await gateway.open();
    const many = await Promise.all(numbers(300).map((n) => gateway.call("trial.echo", [n])));
    // Cancelled ones still run at the gateway when the next are sent.
    const controllers = numbers(64).map(() => new AbortController());
    const given = controllers.map(({ signal }) => gateway.call("trial.slow", {}, { signal }).catch(() => "gone"));
    const next = numbers(64).map((n) => gateway.call("trial.echo", [n]));
    await sleep(20);
    for (const controller of controllers) controller.abort();
    const after = await Promise.all(next);
    const gone = await Promise.all(given);
    await gateway.close();
    return { many: many.flat(), after: after.flat(), gone: gone.length };
  },

  async isBusy({ connect, caller }) {
    const node = connect({ ...EAGER, maxCalls: 2 });
    await node.open();
    let begun = 0;
    let end;
    const over = new Promise((resolve) => (end = resolve));
    node.method("busy.wait", () => {
      begun++;
      return over;
    });
    await node.serve({ name: "busy" });
    caller.notify("busy.wait");
    const first = caller.call("busy.wait");
    caller.notify("busy.wait");
    const refused = await failure(caller.call("busy.wait")); // and so the notification is through
    end("over");
    const results = [await first, await caller.call("busy.wait")];
    await node.close();
    return { refused, results, begun };
  },

  async reports({ caller }) {
    const seen = [];
    let running = 0;
    let most = 0;
    const onProgress = async (value, missed) => {
      most = Math.max(most, ++running);
      seen.push([value, missed]);
      await sleep(1);
      running--;
    };
    await caller.call("trial.count", { to: 40 }, { onProgress });
    const few = seen.splice(0);
    await caller.call("trial.count", { to: 1_000 }, { onProgress });
    const plain = [];
    await caller.call("trial.count", { to: 1_000 }, { onProgress: (value) => plain.push(value) });
    return { few, many: seen, most, plain };
  },

  async lags({ caller }) {
    const feed = caller.subscribe("lag.a", { buffer: 20 });
    await feed.ready;
    const seen = [];
    for (const n of numbers(100)) {
      await Promise.all(numbers(5).map((m) => caller.publish("lag.a", 5 * n + m)));
      seen.push(...(await take(feed, 1)));
    }
    await feed.return();
    return seen.map(({ gap, offset }) => (gap ? "gap" : offset));
  },

  async addresses({ connect, url, WebSocket }) {
    const { host } = new URL(url);
    const foreign = class extends WebSocket {
      constructor(address) {
        super(address, { origin: "http://elsewhere.example" });
      }
    };
    const tried = {
      bare: connect({}, `ws://${host}`),
      http: connect({}, `http://${host}/`),
      nothing: connect({}, `ws://${host}/nothing`),
      page: connect({}, `ws://${host}/healthz`),
      origin: connect({ WebSocket: foreign }),
    };
    const found = {};
    for (const [name, gateway] of Object.entries(tried)) {
      const seen = states(gateway);
      const outcome = await gateway.open().then(() => "open", told);
      found[name] = { outcome, why: gateway.why, states: seen.map(({ state }) => state) };
      await gateway.close();
    }
    return found;
  },
};

// Node's own WebSocket, which tells less

export async function builtin({ GatewayClient, url }) {
  const gateway = new GatewayClient(url);
  await gateway.open();
  const pong = await gateway.call("gateway.ping", [1]);
  await gateway.close();
  const away = new GatewayClient("ws://127.0.0.1:1/ws", { random: () => 0 });
  const waiting = until(away, "waiting", 3);
  away.open().catch(() => {});
  const seen = await waiting;
  const call = await failure(away.call("gateway.ping", [], { timeout: 10 }));
  const opened = await failure(away.open({ timeout: 10 }));
  await away.close();
  return { pong, reasons: seen.map(({ code, reason }) => [code, reason !== ""]), call, opened };
}

// Hostilities

const HEARTBEAT = { interval: 30, timeout: 10 };
const ANYBODY = { name: "anonymous", expiresAt: null };
const WELCOME = { protocol: 1, connId: "1", heartbeat: HEARTBEAT, limits: {}, principal: ANYBODY };

/** A server that does with each connection what `script` says. `count.all`: how many there were. */
export async function served(script, how = {}) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", ...how });
  const count = { all: 0 };
  server.on("connection", (socket) => {
    count.all++;
    socket.on("error", () => {});
    const tell = (method, params) => socket.send(JSON.stringify({ jsonrpc: "2.0", method, params }));
    script({ socket, tell, welcome: (more) => tell("gateway.welcome", { ...WELCOME, ...more }) });
  });
  await new Promise((resolve) => server.once("listening", resolve));
  const stop = () => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  };
  return { url: `ws://127.0.0.1:${server.address().port}/ws`, count, stop };
}

/** The next pauses of a client there. */
async function pauses(connect, url, count, options) {
  const gateway = connect(options, url);
  const waiting = until(gateway, "waiting", count);
  gateway.open().catch(() => {});
  const seen = await waiting;
  await gateway.close();
  return seen.map(({ code, pause, reason }) => ({ code, pause, reason }));
}

export const hostilities = (given) => run(HOSTILITIES, given);

/** What a browser's WebSocket has, and no more. `count`: how many are not closed, now and at most. */
export const plain = (WebSocket, count) =>
  class {
    #socket;
    constructor(url) {
      this.#socket = new WebSocket(url, { closeTimeout: 100 });
      count.most = Math.max(count.most, ++count.now);
      this.#socket.on("close", () => count.now--);
    }
    get readyState() { return this.#socket.readyState; }
    get bufferedAmount() { return this.#socket.bufferedAmount; }
    addEventListener(...given) { this.#socket.addEventListener(...given); }
    send(text) { this.#socket.send(text); }
    close(code) { this.#socket.close(code); }
  };

const HOSTILITIES = {
  async drainsAtOnce({ connect }) {
    const server = await served(({ socket, tell, welcome }) => {
      welcome();
      tell("gateway.draining", { deadlineMs: 1, reconnectAfterMs: 0 });
      socket.close(1001);
    });
    const least = await pauses(connect, server.url, 3, { random: () => 0 });
    const drawn = await pauses(connect, server.url, 3, { random: () => 0.5 });
    server.stop();
    return { least: least.map(({ pause }) => pause), drawn: drawn.map(({ pause }) => pause) };
  },

  async shutsDown({ connect }) {
    const server = await served(({ socket, welcome }) => {
      welcome();
      socket.close(1001);
    });
    const found = [0, 0.5, 0.999].map((chance) => pauses(connect, server.url, 1, { random: () => chance }));
    const seen = (await Promise.all(found)).map(([{ pause }]) => pause);
    server.stop();
    return seen;
  },

  async refuses({ connect }) {
    const found = {};
    for (const [name, status, after] of [["full", 503, "7"], ["many", 429, "3600"], ["date", 503, "Thu, 01 Jan"], ["broken", 500, ""]]) {
      const verifyClient = (_, answer) => answer(false, status, "no", after && { "Retry-After": after });
      const server = await served(() => {}, { verifyClient });
      [found[name]] = await pauses(connect, server.url, 1, { random: () => 0.1 });
      server.stop();
    }
    return found;
  },

  async hangs({ connect, WebSocket }) {
    const server = await served(({ socket, welcome }) => {
      welcome({ heartbeat: { interval: 0.02, timeout: 0.02 } });
      setTimeout(() => socket._socket.pause(), 10);
    });
    const count = { now: 0, most: 0 };
    await pauses(connect, server.url, 4, { WebSocket: plain(WebSocket, count), random: () => 0 });
    server.stop();
    return { ...count, all: server.count.all };
  },

  async isTooBig({ connect }) {
    let links = 0;
    const server = await served(({ socket, welcome }) => {
      welcome();
      socket.on("message", (data) => {
        const { id, params } = JSON.parse(data);
        if (params[0] === "big") socket.close(1009);
        else socket.send(JSON.stringify({ jsonrpc: "2.0", id, result: ++links }));
      });
    });
    const gateway = connect(UNKEPT, server.url);
    await gateway.open();
    const found = [await failure(gateway.call("gateway.ping", ["big"])), await gateway.call("gateway.ping", ["small"])];
    await gateway.close();
    server.stop();
    return { found, all: server.count.all };
  },

  async isRefused({ connect }) {
    const refusals = { gateway: { outcome: "not_delivered", retryAfterMs: 20 }, node: { nodeOutcome: "not_delivered" }, foreign: {} };
    const found = {};
    for (const [name, more] of Object.entries(refusals)) {
      let asked = 0;
      const error = { code: -32009, message: "later", data: { code: "overloaded", temporary: true, ...more } };
      const server = await served(({ socket, welcome }) => {
        welcome();
        socket.on("message", (data) => {
          const answer = ++asked > 3 ? { result: asked } : { error };
          socket.send(JSON.stringify({ jsonrpc: "2.0", id: JSON.parse(data).id, ...answer }));
        });
      });
      const gateway = connect(UNKEPT, server.url);
      await gateway.open();
      const outcome = await gateway.call("lab.busy", {}, { retry: true }).catch(({ outcome }) => outcome);
      found[name] = { outcome, asked };
      await gateway.close();
      server.stop();
    }
    return found;
  },

  /** What a node says by itself: a gateway would mend it. */
  async letsThrough({ connect, CallError }) {
    const inner = { code: "overloaded", temporary: true };
    const thrown = {
      refused: { ...inner, outcome: "not_delivered", retryAfterMs: 100 },
      served: { ...inner, nodeOutcome: "not_delivered", nodeRetryAfterMs: 100 },
      own: { ...inner, retryAfterMs: 100 },
    };
    const names = [...Object.keys(thrown), "bigint"];
    const said = {};
    let over;
    const all = new Promise((resolve) => (over = resolve));
    const server = await served(({ socket, welcome }) => {
      welcome();
      socket.on("message", (text) => {
        const { id, method, error } = JSON.parse(text);
        if (error) said[id] = error.data;
        if (names.every((name) => name in said)) over();
        if (method !== "node.register") return;
        socket.send(JSON.stringify({ jsonrpc: "2.0", id, result: {} }));
        for (const name of names) socket.send(JSON.stringify({ jsonrpc: "2.0", id: name, method: `outer.${name}` }));
      });
    });
    const node = connect(UNKEPT, server.url);
    for (const [name, data] of Object.entries(thrown))
      node.method(`outer.${name}`, () => { throw new CallError(-32009, "refused further in", data); });
    node.method("outer.bigint", () => 1n);
    await node.open();
    await node.serve({ name: "outer" });
    await all;
    await node.close();
    server.stop();
    return said;
  },

  async babbles({ connect }) {
    const nonsense = [null, 1, "x", [], [null], {}, { method: "rpc.progress" }, { method: "event.message" }, { id: 1 }];
    const strange = { id: 1, error: { code: -32009, message: "", data: { code: "overloaded", temporary: true, retryAfterMs: "x" } } };
    const server = await served(({ socket, welcome, tell }) => {
      welcome();
      for (const one of [...nonsense, { method: "gateway.welcome", params: WELCOME }]) socket.send(JSON.stringify(one));
      for (const method of ["rpc.cancel", "event.gap", "gateway.draining", "gateway.expiring"]) tell(method, null);
      socket.on("message", (data) => socket.send(JSON.stringify({ ...strange, id: JSON.parse(data).id })));
    });
    const gateway = connect(EAGER, server.url);
    const errors = [];
    gateway.addEventListener("error", ({ detail }) => errors.push(detail.message));
    await gateway.open();
    const found = await failure(gateway.call("gateway.ping", [], { timeout: 300 }));
    await gateway.close();
    server.stop();
    return { found, errors: [...new Set(errors)] };
  },

  async losesItKnowsNotWhat({ connect }) {
    const asked = [];
    const server = await served(({ socket, welcome, tell }) => {
      welcome();
      socket.on("message", (data) => {
        const { id, method, params } = JSON.parse(data);
        if (method === "event.subscribe") asked.push(params.since);
        socket.send(JSON.stringify({ jsonrpc: "2.0", id, result: { topics: {} } }));
        for (const topic of ["a.*", "b.>", "a.*"]) tell("event.gap", { topic, epoch: "x", offset: 7 });
        if (asked.length === 1) socket.close(4001);
      });
    });
    const gateway = connect(UNKEPT, server.url);
    gateway.open().catch(() => {});
    const feed = gateway.subscribe("a.*");
    const seen = [];
    for await (const event of feed) if (seen.push(event) === 4) break;
    await gateway.close();
    server.stop();
    return { seen, asked };
  },

  /** A topic began while the client was away, and the link is lost again before the client has caught up with it. */
  async isLostAgainInTheMiddle({ connect }) {
    const found = {};
    for (const recovered of [true, false]) {
      const asked = [];
      const script = ({ socket, welcome, tell }) => {
        const link = server.count.all;
        const place = { epoch: "e", offset: 5 };
        welcome();
        socket.on("message", (data) => {
          const { id, method, params } = JSON.parse(data);
          if (method !== "event.subscribe") return;
          asked.push(params.since);
          if (link === 2 && asked.length === 3) return socket.close(4001);
          const topics = { 1: {}, 2: { "a.new": place }, 3: { "a.new": { ...place, recovered } } }[link];
          socket.send(JSON.stringify({ jsonrpc: "2.0", id, result: { topics } }));
          if (link === 1) return socket.close(4001);
          const first = link === 3 && recovered ? params.since["a.new"].offset + 1 : 6;
          for (const offset of numbers(7).slice(first)) tell("event.message", { topic: "a.new", epoch: "e", offset });
        });
      };
      const server = await served(script);
      const gateway = connect(UNKEPT, server.url);
      gateway.open().catch(() => {});
      const seen = [];
      for await (const { gap, offset } of gateway.subscribe("a.*")) if (seen.push(gap ? "gap" : offset) && offset === 6) break;
      await gateway.close();
      server.stop();
      found[recovered ? "kept" : "gone"] = { seen, asked: asked.at(-1) };
    }
    return found;
  },

  /** Clients whose listeners to `state` close them, or have them try at once, while they would wait for very long. */
  async isToldByItsListeners({ connect }) {
    const verifyClient = (_, answer) => answer(false, 503, "no", { "Retry-After": "300" });
    const server = await served(() => {}, { verifyClient });
    const never = () => new Promise(() => {});
    const after = (state, act, token) => {
      const gateway = connect({ token }, server.url);
      const seen = states(gateway);
      const acting = new Promise((resolve) => {
        const look = ({ detail }) => {
          if (detail.state !== state) return;
          gateway.removeEventListener("state", look);
          resolve(act(gateway, seen));
        };
        gateway.addEventListener("state", look);
      });
      gateway.open().catch(() => {});
      return Promise.race([acting, sleep(10_000).then(() => "it hangs")]);
    };
    const close = (gateway) => gateway.close().then(() => gateway.state);
    let asked = 0;
    const laterNever = () => (asked++ === 0 ? "secret" : never());
    /** Have it try at once, and close it in the midst of that. */
    const wake = async (gateway) => {
      gateway.open().catch(() => {});
      await until(gateway, "connecting");
      return close(gateway);
    };
    const wakeThenClose = (gateway) => {
      gateway.open().catch(() => {});
      return new Promise((resolve) =>
        gateway.addEventListener("state", ({ detail }) => detail.state === "connecting" && resolve(close(gateway))),
      );
    };
    const openAgain = (gateway, seen) => {
      gateway.open().catch(() => {});
      return close(gateway).then(() => seen.map(({ state }) => state));
    };
    const found = {
      connecting: await after("connecting", close),
      withoutToken: await after("connecting", close, never),
      waiting: await after("waiting", close),
      woken: await after("waiting", wake),
      wokenWithoutToken: await after("waiting", wakeThenClose, laterNever),
      opened: await after("connecting", openAgain),
    };
    server.stop();
    return { ...found, asked };
  },

  async isNoGateway({ connect }) {
    const found = [];
    for (const text of ["hello", '{"jsonrpc":"2.0","method":"hello"}', "null"]) {
      const server = await served(({ socket }) => socket.send(text));
      found.push(await failure(connect({}, server.url).open()));
      server.stop();
    }
    return found;
  },

  async isAway({ connect }) {
    const gateway = connect({ random: () => 0 }, "ws://127.0.0.1:1");
    const waiting = until(gateway, "waiting");
    gateway.open().catch(() => {});
    const [{ code, reason }] = await waiting;
    const call = await failure(gateway.call("gateway.ping", [], { timeout: 10 }));
    const opened = await failure(gateway.open({ timeout: 10 }));
    await gateway.close();
    return { code, reason, opened: opened.message, call };
  },

  async hasNoToken({ connect }) {
    const server = await served(({ tell, welcome }) => welcome({ principal: null }));
    const found = [];
    for (const token of [() => 7, () => "a\nb", () => { throw new Error("none today"); }])
      found.push(...(await pauses(connect, server.url, 1, { token, random: () => 0 })));
    server.stop();
    return found;
  },

  async expiresSoon({ connect }) {
    const server = await served(({ socket, tell, welcome }) => {
      welcome({ principal: null });
      socket.on("message", (data) => {
        const { id } = JSON.parse(data);
        socket.send(JSON.stringify({ jsonrpc: "2.0", id, result: { name: "page" } }));
        tell("gateway.expiring", { leftMs: 600_000 });
      });
    });
    let asked = 0;
    const gateway = connect({ ...EAGER, token: () => `t${++asked}\n` }, server.url);
    await gateway.open();
    while (asked < 2) await sleep(5);
    await sleep(50);
    await gateway.close();
    server.stop();
    return asked;
  },
};
