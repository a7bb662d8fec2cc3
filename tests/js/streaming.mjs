// Streams, in Node: `streams` tries them against a real gateway that keeps little, `floods` against servers that are
// scripted, and `streamThroughCuts` through a proxy that cuts. What each trial returns is looked at by the test of its name
// in tests/system/test_javascript_streams.py.

import { setTimeout as sleep } from "node:timers/promises";
import { client, keeper, opened } from "./keeping.mjs";
import { failure, numbers, run, until } from "./trials.mjs";

const CREDIT = 16; // that a client gives by default
const UNRENEWED = { timeout: 600_000 }; // so that no renewal moves what would stand still

const told = (error) => ({ name: error?.name, code: error?.code, outcome: error?.outcome ?? null });
const nameOf = (promise) => promise.then(() => "none", (error) => error.name);

/** Read to the end. Returns the values, and the error that ended them or null. */
async function readAll(stream, values = []) {
  try {
    for await (const value of stream) values.push(value);
    return { values, error: null };
  } catch (error) {
    return { values, error: told(error) };
  }
}

/** A node that serves `NAME.run`, as the trial likes it, and a caller. */
async function pair(given, name, run, { node: nodeOptions, caller: callerOptions } = {}) {
  const node = await peer(given, nodeOptions);
  const caller = await peer(given, callerOptions);
  node.gateway.method(`${name}.run`, run);
  await node.gateway.serve({ name });
  /** Let all that is under way arrive, both ways. */
  const settle = async () => {
    for (const _ of numbers(3)) for (const { gateway } of [node, caller]) await gateway.call("gateway.ping");
  };
  const stop = () => Promise.all([node.gateway.close(), caller.gateway.close()]);
  return { node, caller: caller.gateway, calling: caller, settle, stop };
}

async function peer(given, options) {
  if (options?.keep !== false) return opened(given, options);
  const one = client(given, options);
  await one.gateway.open();
  return one;
}

export const streams = (given) => run(STREAMS, given);

const STREAMS = {
  /** A slow reader: how far the node is ahead of it, at most, by number and by bytes. */
  async slowReader(given) {
    let sent = 0;
    const make = async ({ to, size }, call) => {
      for (sent = 0; sent < to; sent++) await call.progress([sent, "x".repeat(size)]);
      return "done";
    };
    const { caller, settle, stop } = await pair(given, "tap", make);
    const found = [];
    for (const [size, how] of [[0, { credit: 4 }], [0, { credit: 1 }], [400, { credit: 50, bytes: 1_000 }]]) {
      const stream = caller.stream("tap.run", { to: 20, size }, how);
      const one = { values: [], ahead: 0 };
      await settle();
      for await (const [n] of stream) {
        one.values.push(n);
        await settle();
        one.ahead = Math.max(one.ahead, sent - one.values.length);
      }
      found.push({ ...one, result: await stream.result() });
    }
    await stop();
    return found;
  },

  /** A slow node: how far the caller is ahead of it. */
  async slowNode(given) {
    let taken = 0;
    const slow = async (_params, call) => {
      const values = [];
      for await (const value of call) {
        taken = values.push(value);
        await settle();
      }
      return values;
    };
    const { caller, settle, stop } = await pair(given, "drain", slow);
    const stream = caller.stream("drain.run");
    let ahead = 0;
    for (const n of numbers(50)) {
      await stream.send(n);
      ahead = Math.max(ahead, n + 1 - taken);
    }
    await stream.end();
    const late = await nameOf(stream.send("late"));
    const found = { ahead, late, values: await stream.result() };
    await stop();
    return found;
  },

  async echoes(given) {
    const echo = async (_params, call) => {
      let count = 0;
      for await (const value of call) {
        await call.progress(value);
        count++;
      }
      return count;
    };
    const { caller, calling, stop } = await pair(given, "echo", echo);
    const values = numbers(200).map((n) => [n, "ä\n\u2028😀".repeat(n % 7), { null: null }]);
    const stream = caller.stream("echo.run", [], { node: "echo", credit: 5 });
    const pushing = (async () => {
      for (const value of values) await stream.send(value);
      await stream.end();
    })();
    const { values: read, error } = await readAll(stream);
    await pushing;
    const granted = calling.harm.sent.filter(({ method }) => method === "rpc.credit").map(({ params }) => params);
    const sum = (key) => granted.reduce((before, params) => before + params[key], 0);
    const cost = (some) => some.reduce((before, value) => before + Buffer.byteLength(JSON.stringify(value)), 0);
    const found = { error, count: await stream.result(), same: JSON.stringify(read) === JSON.stringify(values) };
    found.grants = [granted.length, sum("credit"), sum("bytes") === cost(values.slice(0, sum("credit")))];
    await stop();
    return found;
  },

  /** A method that does not wait: its values wait for it, and its answer for them. */
  async hasty(given) {
    const refused = [];
    const hurry = ({ to }, call) => {
      for (const n of numbers(to)) {
        try {
          call.progress(n);
        } catch ({ name }) {
          refused.push([n, name]);
        }
      }
      return "done";
    };
    const { caller, stop } = await pair(given, "hasty", hurry);
    const few = caller.stream("hasty.run", { to: 100 }, { credit: 3 });
    const found = { few: await readAll(few), result: await few.result() };
    found.many = (await readAll(caller.stream("hasty.run", { to: 300 }, { credit: 3 }))).values.length;
    await stop();
    return { ...found, refused: [refused[0], refused.length] };
  },

  /** The loop of the caller is left. */
  async left(given) {
    const { promise, endless } = endlessly();
    const { caller, stop } = await pair(given, "spring", endless);
    const stream = caller.stream("spring.run", undefined, { credit: 2 });
    stream.send("which nothing waits for"); // no promise may be rejected unseen: that would end this process
    for await (const n of stream) if (n === 5) break;
    const found = { node: await promise, result: await failure(stream.result()), next: await nameOf(stream.next()) };
    found.send = await nameOf(stream.send(1));
    await stop();
    return found;
  },

  async cancelled(given) {
    const { promise, endless } = endlessly();
    const { caller, stop } = await pair(given, "geyser", endless);
    const found = {};
    for (const how of ["cancel", "signal"]) {
      const controller = new AbortController();
      const stream = caller.stream("geyser.run", { rests: true }, { signal: controller.signal });
      const [reading, sending] = [nameOf(stream.next()), nameOf(stream.send("nobody wants it"))];
      await caller.call("gateway.ping");
      if (how === "cancel") stream.cancel();
      else controller.abort(new Error("enough"));
      found[how] = [await reading, await sending, await nameOf(stream.result())];
    }
    found.node = await promise;
    await stop();
    return found;
  },

  async failed(given) {
    const { CallError } = given;
    const fail = async (_params, call) => {
      await call.progress(1);
      await call.progress(2);
      throw new CallError(7, "out of paper");
    };
    const { caller, stop } = await pair(given, "printer", fail);
    const stream = caller.stream("printer.run", null, { credit: 2 });
    const result = await failure(stream.result());
    const found = { result: [result.code, result.message], ...(await readAll(stream)), send: await nameOf(stream.send(1)) };
    stream.cancel();
    await stream.end();
    await stop();
    return found;
  },

  /** A value that cannot be sent harms nothing but itself. */
  async unsendable(given) {
    const seen = [];
    const bad = async (_params, call) => {
      for (const value of [1n, new Map(), "x".repeat(70_000)]) {
        try {
          await call.progress(value);
        } catch ({ name }) {
          seen.push(name);
        }
      }
      await call.progress("fine");
    };
    const { caller, stop } = await pair(given, "clumsy", bad);
    const { values, error } = await readAll(caller.stream("clumsy.run", [], { credit: 1 }));
    await stop();
    return { values, error, seen };
  },

  /** A node that does not say that it knows streams, and a call that is none. */
  async unknown({ WebSocket, url, ...given }) {
    const socket = new WebSocket(url);
    const asked = { name: "old", methods: [{ name: "old.run" }] };
    await new Promise((resolve) => {
      socket.on("message", (data) => JSON.parse(data).id === 1 && resolve());
      socket.on("open", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "node.register", params: asked })));
    });
    const iterate = async (_params, call) => {
      const progress = call.progress(1);
      try {
        for await (const value of call) return value;
      } catch (error) {
        return [error instanceof TypeError, progress === undefined];
      }
    };
    const { caller, stop } = await pair({ WebSocket, url, ...given }, "new", iterate);
    const found = { old: await readAll(caller.stream("old.run")), plain: await caller.call("new.run") };
    const stream = caller.stream("old.run");
    found.result = told(await stream.result().catch((error) => error));
    found.wrong = [{ credit: 0 }, { credit: 2000 }, { bytes: 0 }, { waitMs: 5 }].map((options) => {
      try {
        return caller.stream("new.run", [], options);
      } catch ({ name }) {
        return name;
      }
    });
    await stop();
    socket.close();
    return found;
  },

  async waits(given) {
    const early = await opened(given);
    const stream = early.gateway.stream("late.run", [], { node: "late", waitMs: 60_000, bytes: 2 ** 40 });
    const ended = stream.end();
    const late = stream.send("too late").catch(({ name }) => name);
    const { stop } = await pair(given, "late", async (_params, call) => {
      for await (const value of call) await call.progress(value);
      await call.progress("here");
      return call.timeLeftMs;
    });
    await ended;
    const found = { ...(await readAll(stream)), timeLeftMs: await stream.result(), late: await late };
    await Promise.all([early.gateway.close(), stop()]);
    return found;
  },

  /** Without a connection that is kept a loss is the end: to the one that lost it, and to the other. */
  async lost(given) {
    const found = {};
    for (const side of ["node", "caller"]) {
      const { promise, endless } = endlessly();
      const trio = await pair(given, `lost-${side}`, endless, { [side]: { keep: false } });
      const stream = trio.caller.stream(`lost-${side}.run`, { quiet: true });
      await stream.send("hello");
      const back = until((side === "node" ? trio.node : trio.calling).gateway, "open");
      (side === "node" ? trio.node : trio.calling).cut();
      const { error } = await readAll(stream);
      found[side] = { error, node: await promise, send: await nameOf(stream.send(1)) };
      await back;
      await trio.stop();
    }
    return found;
  },

  /** Streams for which together more could be sent at once than is kept: what does not fit waits, and a cut is no loss. */
  async muchIsKept(given) {
    const calls = [];
    const burst = async (_params, call) => {
      calls.push(call);
      if (calls.length < callers.length) return new Promise(() => {});
      const values = numbers(40).map((n) => `${n} ${"x".repeat(2_000)}`);
      const sent = Promise.all(calls.flatMap(({ progress }) => values.map((value) => progress(value))));
      node.cut(); // before anything has been acknowledged
      return sent.then(() => "sent");
    };
    const { node, caller, stop } = await pair(given, "heap", burst);
    const others = await Promise.all([opened(given), opened(given)]);
    const callers = [caller, ...others.map(({ gateway }) => gateway)];
    const streams = callers.map((one) => one.stream("heap.run", [], { ...UNRENEWED, node: "heap", credit: 1024, bytes: 2 ** 21 }));
    const read = await Promise.all(streams.map(async (stream) => (await takeSome(stream, 40)).map(Number.parseFloat)));
    const results = await Promise.race(streams.map((stream) => stream.result()));
    await Promise.all([stop(), ...others.map(({ gateway }) => gateway.close())]);
    return { read, results, states: [...new Set(node.names())] };
  },

  /** Values that both sides send while they are away, when nothing else moves. */
  async fromAfar(given) {
    let progress;
    const wait = async (_params, call) => {
      ({ progress } = call);
      for await (const value of call) return value;
    };
    const { node, calling, caller, settle, stop } = await pair(given, "afar", wait);
    const stream = caller.stream("afar.run", [], { node: "afar", ...UNRENEWED });
    const found = { sent: [] };
    await settle();
    for (const [name, one, send] of [["node", node, () => progress(1)], ["caller", calling, () => stream.send(2)]]) {
      one.harm.isAway = true;
      const away = until(one.gateway, "away");
      one.cut();
      await away;
      const sending = send().then(() => found.sent.push([name, one.gateway.state]));
      one.harm.isAway = false;
      await sending;
    }
    found.values = [(await stream.next()).value, await stream.result()];
    await stop();
    return found;
  },

  /** A method leaves its loop, and reads on later. */
  async readsOn(given) {
    const twice = async (_params, call) => {
      const values = [[], []];
      for await (const value of call) if (values[0].push(value) === 3) break;
      for await (const value of call) values[1].push(value);
      return values;
    };
    const { caller, stop } = await pair(given, "pause", twice);
    const stream = caller.stream("pause.run");
    for (const n of numbers(40)) await stream.send(n);
    await stream.end();
    const result = await stream.result();
    await stop();
    return result;
  },

  /** A value waits if very much waits for the network, though nothing tells when it is less. */
  async networkIsFull(given) {
    const wait = async (_params, call) => {
      for await (const value of call) return value;
    };
    const { calling, caller, settle, stop } = await pair(given, "full", wait, { caller: { keep: false } });
    const stream = caller.stream("full.run", [], { node: "full", ...UNRENEWED });
    await settle();
    let buffered = 2 ** 25;
    Object.defineProperty(calling.harm.socket, "bufferedAmount", { get: () => buffered });
    const sending = stream.send("late").then(() => buffered);
    await new Promise((resolve) => setTimeout(resolve));
    buffered = 0;
    const found = [await sending, await stream.result()];
    await stop();
    return found;
  },
};

async function takeSome(stream, count) {
  const values = [];
  while (values.length < count) values.push((await stream.next()).value);
  return values;
}

/** A method that sends numbers until it cannot, reads if it is `quiet`, or rests; `promise` resolves to how it ended. */
function endlessly() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  const endless = async ({ quiet, rests } = {}, call) => {
    try {
      if (rests) await new Promise((stopped) => call.signal.addEventListener("abort", stopped));
      if (quiet) for await (const _ of call) continue;
      for (let n = 0; ; n++) await call.progress(n);
    } catch (error) {
      resolve([error.name, call.signal.aborted, call.signal.reason === error]);
      throw error;
    }
  };
  return { promise, endless };
}

export const floods = (given) => run(FLOODS, given);

const FLOODS = {
  /** A stream on which nothing moves, with a deadline of 60 ms. */
  async renews(given) {
    const server = await keeper(() => {}, () => undefined, null, { limits: { callTimeoutMs: 60 } });
    const { gateway } = client(given, { keep: false }, server.url);
    await gateway.open();
    const stream = gateway.stream("quiet.run");
    const grants = () => server.links[0].filter(({ method }) => method === "rpc.credit");
    while (grants().length < 4) await sleep(5);
    stream.cancel();
    const [begin] = server.links[0];
    await gateway.close();
    server.stop();
    return { begin: begin.stream, grants: grants().slice(0, 4).map(({ params }) => [params.id === begin.id, params.credit, params.bytes]) };
  },

  /** The same, while the connection is away for long, twice. Returns how many renewals were made meanwhile. */
  async renewsFromAfar(given) {
    const answers = ({ method }) => (method === "connection.resume" ? { connId: "1", received: 0 } : undefined);
    const server = await keeper(() => {}, answers, undefined, { limits: { callTimeoutMs: 300 } });
    const one = client(given, {}, server.url);
    const grants = () => one.harm.sent.filter(({ method }) => method === "rpc.credit").length;
    await one.gateway.open();
    while (!one.harm.sent.some(({ method }) => method === "connection.ack")) await sleep(2);
    const stream = one.gateway.stream("quiet.run");
    const found = [];
    for (const _ of numbers(2)) {
      while (grants() < 2) await sleep(5);
      const away = until(one.gateway, "away");
      one.harm.isAway = true;
      const before = grants();
      one.cut();
      await away;
      await sleep(600);
      const back = until(one.gateway, "open");
      one.harm.isAway = false;
      await back;
      found.push(grants() - before); // all that came before is sent again
    }
    while (grants() < 10) await sleep(5); // it goes on
    stream.cancel();
    await one.gateway.close();
    server.stop();
    return found;
  },

  /** Values that come in a batch, with blanks that are none of theirs. */
  async inABatch(given) {
    const server = await keeper(({ message: { id, stream }, socket }) => {
      if (!stream) return;
      const values = [1, "ä", { a: null }].map((value) => ({ jsonrpc: "2.0", method: "rpc.progress", params: { id, value } }));
      socket.send(JSON.stringify(values, null, 2));
    }, () => undefined, null);
    const { gateway } = client(given, { keep: false }, server.url);
    await gateway.open();
    const values = await takeSome(gateway.stream("some.run", [], { credit: 6 }), 3);
    while (!server.links[0].some(({ method }) => method === "rpc.credit")) await sleep(2);
    await gateway.close();
    server.stop();
    const { credit, bytes } = server.links[0].find(({ method }) => method === "rpc.credit").params;
    return { values, credit, bytes };
  },

  /** Gateways that bring more than was granted. */
  async overruns(given) {
    const found = {};
    const flood = (tell, method, id) => {
      for (const value of numbers(CREDIT + 1)) tell(method, { id, value });
    };
    const scripts = {
      progress: ({ message: { id, stream }, tell }) => stream && flood(tell, "rpc.progress", id),
      push: ({ message: { method, params }, tell }) => method === "rpc.demand" && flood(tell, "rpc.push", params.id),
    };
    for (const [name, script] of Object.entries(scripts)) {
      const registered = ({ method }, { tell, socket }) => {
        if (method !== "node.register") return undefined;
        setTimeout(() => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 5, method: "pool.run", stream: { credit: 1, bytes: 1 } })), 5);
        return { name: "pool", methods: ["pool.run"] };
      };
      const server = await keeper(script, registered, null);
      const { gateway } = client(given, { keep: false }, server.url);
      await gateway.open();
      const closed = until(gateway, "closed");
      gateway.method("pool.run", async (_params, call) => {
        const iterator = call[Symbol.asyncIterator]();
        await new Promise((resolve) => call.signal.addEventListener("abort", resolve));
        await iterator.next();
      });
      if (name === "push") await gateway.serve({ name: "pool" });
      else gateway.stream("some.run");
      const [{ code }] = await closed;
      found[name] = code;
      server.stop();
    }
    return found;
  },
};

/** A stream that ends by its own renewal, which is more than may be kept. A timer that is left would keep Node running. */
export async function endsByItsRenewal(given) {
  const server = await keeper(() => {}, () => undefined, { session: "s", holdMs: 30_000, maxBytes: 150 }, { limits: { callTimeoutMs: 900 } });
  const one = client(given, {}, server.url);
  await one.gateway.open();
  while (!one.harm.sent.some(({ method }) => method === "connection.ack")) await sleep(2);
  const stream = one.gateway.stream("quiet.run");
  one.harm.isAway = true;
  one.cut();
  const result = await nameOf(stream.result());
  const states = one.names();
  await one.gateway.close();
  server.stop();
  return { result, states };
}

/** Echo until both sides have come back so often. Values, order and ends are what there would be without a cut. */
export async function streamThroughCuts(given) {
  const seen = [];
  const echo = async (_params, call) => {
    for await (const value of call) {
      seen.push(value);
      await call.progress(value);
    }
    return seen.length;
  };
  const { node, caller, calling, stop } = await pair(given, "wire", echo);
  const resumed = ({ names }) => names().filter((name) => name === "resumed").length;
  const stream = caller.stream("wire.run", [], { node: "wire", credit: 8, timeout: 300_000 });
  let sent = 0;
  const pushing = (async () => {
    while (Math.min(resumed(node), resumed(calling)) < given.cuts) {
      await stream.send(sent++);
      if (sent % 50 === 0) await sleep(5);
    }
    await stream.end();
  })();
  const { values, error } = await readAll(stream);
  await pushing;
  const inOrder = (some) => some.every((value, n) => value === n);
  const found = { error, sent, result: await stream.result(), resumed: Math.min(resumed(node), resumed(calling)) };
  await stop();
  const states = [...new Set([...node.names(), ...calling.names()])];
  return { ...found, values: [values.length, inOrder(values)], seen: [seen.length, inOrder(seen)], states };
}
