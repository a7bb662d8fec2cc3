// Connections that outlive their links, in Node: `outlives` tries the promises against a real gateway, `impostors` against
// servers of this file, and `torture` runs all kinds of messages through a proxy that cuts. What each trial returns is
// looked at by the test of its name in tests/system/test_javascript_keeping.py.

import { setTimeout as sleep } from "node:timers/promises";
import { failure, numbers, plain, run, served, states, until } from "./trials.mjs";

const EAGER = { random: () => 0.001 };

/** A WebSocket that can be harmed. `harm.cuts(message)`: end at once instead of taking this; `harm.isAway`: connect to nothing. */
const harmed = (WebSocket, harm) =>
  class extends WebSocket {
    constructor(url) {
      super(harm.isAway ? "ws://127.0.0.1:1/ws" : url);
      harm.socket = this;
      harm.sent = [];
    }
    send(text) {
      harm.sent.push(JSON.parse(text));
      super.send(text);
    }
    emit(name, ...given) {
      if (name !== "message" || !harm.cuts?.(JSON.parse(given[0]))) return super.emit(name, ...given);
      this.terminate();
      return true;
    }
  };

/** A client with `harm`, all states that it tells, and what it has sent by its latest link. */
export function client({ connect, WebSocket, url }, options = {}, to = url) {
  const harm = { isAway: false, sent: [] };
  const gateway = connect({ ...EAGER, WebSocket: harmed(WebSocket, harm), ...options }, to);
  const seen = states(gateway);
  const names = () => seen.map(({ state, resumed }) => (resumed ? "resumed" : state));
  return { gateway, harm, seen, names, cut: () => harm.socket.terminate() };
}

/** Cut, and wait until it goes on. */
export async function cutAndBack({ gateway, cut }) {
  const open = until(gateway, "open");
  cut();
  await open;
}

/** Resolves when the gateway keeps the connection. */
async function kept({ gateway, harm }) {
  while (!harm.sent.some(({ method }) => method === "connection.ack")) await sleep(2);
  await gateway.call("gateway.ping"); // the acknowledgement is there
}

export async function opened(given, options) {
  const one = client(given, options);
  await one.gateway.open();
  await kept(one);
  return one;
}

/** A kept client that serves `NAME.wait`, which is answered by `answer(value)`; `begun` counts. */
async function waiter(given, name) {
  const one = await opened(given);
  const work = { begun: 0, stopped: 0 };
  const ready = new Promise((resolve) => {
    one.gateway.method(`${name}.wait`, (params, { signal, progress }) => {
      work.begun++;
      signal.addEventListener("abort", () => work.stopped++);
      return new Promise((answer) => resolve({ answer, progress }));
    });
  });
  await one.gateway.serve({ name });
  return { ...one, work, ready };
}

export const outlives = (given) => run(OUTLIVES, given);

const OUTLIVES = {
  /** A call survives many links of both sides, and so do its progress and a call that waited meanwhile. */
  async survives(given) {
    const node = await waiter(given, "survivor");
    const caller = await opened(given);
    const { connId } = caller.gateway.welcome;
    const values = [];
    const call = caller.gateway.call("survivor.wait", {}, { onProgress: (value) => values.push(value) });
    const { answer, progress } = await node.ready;
    for (const n of numbers(3)) {
      caller.cut();
      progress(n); // to a caller that is away
      await until(caller.gateway, "open");
      await cutAndBack(node);
    }
    node.harm.isAway = true;
    const away = until(node.gateway, "away");
    node.cut();
    await away;
    progress("from afar");
    answer("over");
    node.harm.isAway = false;
    const found = { result: await call, values, begun: node.work.begun, stopped: node.work.stopped };
    found.isSame = caller.gateway.welcome.connId === connId;
    found.ping = await caller.gateway.call("gateway.ping", [1]);
    await Promise.all([node.gateway.close(), caller.gateway.close()]);
    return { ...found, states: caller.names(), methods: node.harm.sent.map(({ method }) => method ?? "") };
  },

  /** New calls wait, a cancelled one is cancelled there, and a subscription goes on. */
  async waits(given) {
    const node = await waiter(given, "patient");
    const caller = await opened(given);
    const feed = caller.gateway.subscribe("patient.news");
    await feed.ready;
    const controller = new AbortController();
    const unwanted = caller.gateway.call("patient.wait", {}, { signal: controller.signal }).catch(() => "gone");
    await node.ready;
    caller.harm.isAway = true;
    const away = until(caller.gateway, "away", 2);
    caller.cut();
    const [{ code }, { pause }] = await away;
    const late = failure(caller.gateway.call("gateway.ping", [1], { timeout: 5 }));
    const waiting = caller.gateway.call("gateway.ping", [2]);
    controller.abort();
    await node.gateway.publish("patient.news", "missed");
    caller.gateway.notify("patient.note", ["while away"]);
    const noted = new Promise((resolve) => node.gateway.method("patient.note", ([text]) => resolve(text)));
    await node.gateway.call("gateway.ping"); // it is registered
    await late;
    caller.harm.isAway = false;
    const found = { late: await late, waiting: await waiting, unwanted: await unwanted, noted: await noted };
    found.news = (await feed.next()).value.data;
    while (node.work.stopped === 0) await sleep(2);
    await Promise.all([node.gateway.close(), caller.gateway.close()]);
    return { ...found, code, isEager: pause < 1000, states: caller.names().filter((name) => name !== "away") };
  },

  async keepReplyIsLost(given) {
    let lost = 0;
    const one = client(given);
    one.harm.cuts = (message) => message.result?.session && ++lost === 1;
    const node = await waiter(given, "unlucky");
    one.gateway.open();
    const call = failure(one.gateway.call("unlucky.wait"));
    await until(one.gateway, "open", 2);
    const { name, outcome } = await call;
    await kept(one);
    await cutAndBack(one);
    await Promise.all([one.gateway.close(), node.gateway.close()]);
    return { name, outcome, states: one.names() };
  },

  async resumeIsCut(given) {
    const node = await waiter(given, "stubborn");
    const caller = await opened(given);
    const call = caller.gateway.call("stubborn.wait");
    const { answer } = await node.ready;
    let cuts = 0;
    const attempts = [];
    for (const { harm } of [node, caller])
      harm.cuts = (message) => {
        if (message.result?.received === undefined) return false;
        attempts.push(harm.sent.at(-1).params.attempt);
        return ++cuts <= 6;
      };
    await Promise.all([cutAndBack(node), cutAndBack(caller)]);
    answer("once");
    const found = { result: await call, begun: node.work.begun };
    await Promise.all([node.gateway.close(), caller.gateway.close()]);
    return { ...found, attempts: attempts.length, last: Math.max(...attempts), states: caller.names().filter((name) => name !== "away") };
  },

  async closedWhileAway(given) {
    const one = await opened(given);
    const other = await opened(given);
    const node = await waiter(given, "closer");
    const call = failure(one.gateway.call("closer.wait"));
    await node.ready;
    one.harm.isAway = true;
    const away = until(one.gateway, "away");
    one.cut();
    await away;
    const { connId } = one.gateway.welcome;
    while (!(await other.gateway.call("connection.get", { connId })).held) await sleep(5);
    await other.gateway.call("connection.close", { connId });
    const closed = until(one.gateway, "closed");
    one.harm.isAway = false;
    const [{ code, reason }] = await closed;
    await Promise.all([other.gateway.close(), node.gateway.close()]);
    return { code, reason, call: await call };
  },

  async isUnkept(given) {
    const one = client(given, { keep: false });
    await one.gateway.open();
    const node = await waiter(given, "plain");
    const call = failure(one.gateway.call("plain.wait"));
    await node.ready;
    const asked = one.harm.sent.map(({ method }) => method);
    await cutAndBack(one);
    const found = { call: await call, asked, states: one.names() };
    await Promise.all([one.gateway.close(), node.gateway.close()]);
    return found;
  },

  /** More than may be kept, while it is away. */
  async overruns(given) {
    const node = await waiter(given, "verbose");
    const caller = await opened(given);
    const call = failure(caller.gateway.call("verbose.wait"));
    const { answer } = await node.ready;
    node.harm.isAway = true;
    const away = until(node.gateway, "away");
    node.cut();
    await away;
    const text = "x".repeat(50_000);
    const refused = [];
    while (refused.length === 0) {
      try {
        node.gateway.notify("nothing.much", [text]);
      } catch ({ name, outcome }) {
        refused.push(name, outcome);
      }
    }
    const isAway = [node.gateway.state === "away"];
    answer("x".repeat(60_000));
    while (node.work.stopped === 0) await sleep(1);
    isAway.push(node.gateway.state === "away");
    const over = until(node.gateway, "open");
    node.harm.isAway = false;
    await over;
    const found = { refused, isAway, call: await call, states: node.names().filter((name) => name !== "away") };
    await Promise.all([node.gateway.close(), caller.gateway.close()]);
    return found;
  },

  async closesWhileAway(given) {
    const one = await opened(given);
    one.harm.isAway = true;
    const away = until(one.gateway, "away");
    one.cut();
    await away;
    await one.gateway.close();
    return { states: one.names().filter((name) => name !== "away") };
  },
};

/** Against a gateway that holds for 0.5 s. */
export async function isTooLate(given) {
  const one = await opened(given);
  const node = await waiter(given, "late");
  const call = failure(one.gateway.call("late.wait"));
  await node.ready;
  one.harm.isAway = true;
  one.cut();
  const found = await call;
  const { state } = one.gateway;
  const waiting = one.gateway.call("gateway.ping", [1]);
  one.harm.isAway = false;
  const pong = await waiting;
  const seen = one.names();
  await Promise.all([one.gateway.close(), node.gateway.close()]);
  return { found, state, pong, states: seen.filter((name, n) => name !== seen[n - 1]) };
}

/** Against a gateway that holds nothing. */
export async function isOld(given) {
  const one = client(given);
  const errors = [];
  one.gateway.addEventListener("error", ({ detail }) => errors.push(String(detail)));
  await one.gateway.open();
  await one.gateway.call("gateway.ping");
  await cutAndBack(one);
  const states = one.names();
  await one.gateway.close();
  return { states, errors };
}

/** While the gateway is killed, and another comes in its place. */
export async function restarts(given) {
  const node = await waiter(given, "settler");
  const caller = await opened(given);
  const feed = caller.gateway.subscribe("settler.news");
  await feed.ready;
  const back = [node, caller].map(({ gateway }) => until(gateway, "open"));
  const call = failure(caller.gateway.call("settler.wait"));
  await node.ready;
  const flag = client(given, { reconnect: false }).gateway;
  await flag.open();
  await flag.method("flag.up", () => 1).serve({ name: "flag" }); // the test has waited for this
  await Promise.all(back);
  node.gateway.method("settler.again", () => "here");
  await node.gateway.call("gateway.ping");
  const found = { call: await call, again: await caller.gateway.call("settler.again"), stopped: node.work.stopped };
  await caller.gateway.publish("settler.news", "fresh");
  for await (const event of feed) if (!event.gap) { found.news = event.data; break; }
  await Promise.all([node.gateway.close(), caller.gateway.close()]);
  const seen = caller.names();
  return { ...found, states: seen.filter((name, n) => name !== seen[n - 1]) };
}

// Impostors

const SESSION = { session: "s", holdMs: 30_000, maxBytes: 100_000 };

/** A server that keeps connections. `links`: the messages of each. `answers` makes a result, or undefined for none. */
export async function keeper(script, answers = () => undefined, session = SESSION, welcomed = {}) {
  const links = [];
  const server = await served(({ socket, tell, welcome }) => {
    const heard = [];
    links.push(heard);
    const link = { socket, tell, number: links.length };
    link.answer = (id, rest) => socket.send(JSON.stringify({ jsonrpc: "2.0", id, ...rest }));
    socket.on("message", (data) => {
      const message = JSON.parse(data);
      heard.push(message);
      const result = message.method === "connection.keep" ? session : answers(message, link);
      if (result !== undefined) link.answer(message.id, { result });
      script({ message, ...link });
    });
    welcome(welcomed);
  });
  return { ...server, links };
}

export const impostors = (given) => run(IMPOSTORS, given);

const methodsOf = (links) => links.map((heard) => heard.map(({ method }) => method ?? "reply"));

const IMPOSTORS = {
  async drains(given) {
    const server = await keeper(({ message, socket, tell, number }) => {
      if (message.method !== "connection.ack" || number > 1) return;
      tell("gateway.draining", { deadlineMs: 1000, reconnectAfterMs: 0 });
      setTimeout(() => socket.terminate(), 20);
    });
    const one = client(given, {}, server.url);
    const open = until(one.gateway, "open", 2);
    one.gateway.open();
    const call = failure(one.gateway.call("gateway.ping"));
    await open;
    await sleep(20);
    await one.gateway.close();
    server.stop();
    return { call: await call, second: methodsOf(server.links)[1][0], states: one.names() };
  },

  /** A session that has ended meanwhile, by a code after which the client comes back. */
  async drainsMeanwhile(given) {
    const data = { code: "not_found", temporary: false, cause: "shutdown", closeCode: 1001 };
    const server = await keeper(({ message: { id, method }, socket, number, answer }) => {
      if (method === "connection.ack" && number === 1) socket.terminate();
      if (method === "connection.resume") answer(id, { error: { code: -32004, message: "the session has ended", data } });
    });
    const one = client(given, {}, server.url);
    const open = until(one.gateway, "open", 2);
    one.gateway.open();
    const call = failure(one.gateway.call("gateway.ping"));
    await open;
    await sleep(20);
    await one.gateway.close();
    server.stop();
    const [{ code, reason }] = one.seen.filter(({ state }) => state === "waiting");
    return { call: await call, code, reason, first: methodsOf(server.links).map(([method]) => method), states: one.names() };
  },

  /** What is numbered, what is sent again, and in which order. The gateway has had the first two. */
  async sendsAgain(given) {
    const server = await keeper(
      ({ message, socket, number }) => {
        if (number === 1 && message.params?.[0] === 3) socket.terminate();
      },
      ({ method, params }) => (method === "connection.resume" ? { connId: "1", received: 2 } : params?.[0]),
    );
    const one = client(given, {}, server.url);
    await one.gateway.open();
    while (server.links[0].length < 2) await sleep(2);
    const { gateway } = one;
    const pings = [1, 2, 3, 4].map((n) => gateway.call("gateway.ping", [n]));
    gateway.notify("a.note", [5]);
    await until(gateway, "open");
    gateway.notify("a.note", [6]);
    const answers = await Promise.all(pings.slice(2));
    const [first, second] = server.links;
    await gateway.close();
    server.stop();
    const resume = second[0].params;
    return { first: first.map(({ method, params }) => params?.[0] ?? method), resume, answers, second: second.map(({ method, params }) => params?.[0] ?? method) };
  },

  async acknowledges(given) {
    const server = await keeper(({ message, tell }) => {
      if (message.method !== "connection.ack") return;
      if (message.params.received !== 0) return;
      for (const n of numbers(130)) tell("nothing.much", [n]);
      tell("gateway.expiring", { leftMs: 1 });
      tell("event.message", { topic: "a.b", offset: 1, epoch: "e" });
    });
    const one = client(given, {}, server.url);
    await one.gateway.open();
    while (server.links[0].filter(({ method }) => method === "connection.ack").length < 4) await sleep(10);
    await one.gateway.close();
    server.stop();
    return server.links[0].filter(({ method }) => method === "connection.ack").map(({ params }) => params.received);
  },

  /** A message that ends each link that it is sent by, a connection that cannot be kept any longer for that. */
  async poisons(given) {
    const server = await keeper(
      ({ message, socket }) => {
        if (message.method === "a.poison") socket.terminate();
      },
      ({ method }) => (method === "connection.resume" ? { connId: "1", received: 0 } : undefined),
      { ...SESSION, holdMs: 200 },
    );
    const one = client(given, {}, server.url);
    await one.gateway.open();
    while (server.links[0].length < 2) await sleep(2);
    const call = await failure(one.gateway.call("a.poison", {}, { timeout: 20_000 }));
    await one.gateway.close();
    server.stop();
    return { call, links: server.links.length > 2 };
  },

  /** As in a page, which cannot end a lost link without a close frame: that would end the connection, if it arrived. */
  async leavesOpen(given) {
    const seen = [];
    const server = await keeper(
      ({ message, socket, number }) => {
        if (message.method === "connection.keep") socket.once("close", () => seen.push(`closed ${number}`));
        if (message.method === "connection.resume") seen.push("resume");
      },
      ({ id, method }, { number }) => {
        if (method === "connection.resume") return { connId: "1", received: 0 };
        return number > 1 && id !== undefined ? null : undefined; // the first link says nothing any more
      },
      SESSION,
      { heartbeat: { interval: 0.2, timeout: 0.2 } },
    );
    const gateway = given.connect({ ...EAGER, WebSocket: plain(given.WebSocket, { now: 0, most: 0 }) }, server.url);
    const resumed = until(gateway, "open", 2);
    await gateway.open();
    const [, { resumed: isResumed }] = await resumed;
    while (!seen.includes("closed 1")) await sleep(5);
    await gateway.close();
    server.stop();
    return { isResumed, order: [seen.indexOf("resume"), seen.indexOf("closed 1")] };
  },

  async lies(given) {
    const found = {};
    for (const [name, received] of [["resume", 9], ["ack", 9]]) {
      const server = await keeper(
        ({ message, socket, tell, number }) => {
          if (message.method !== "connection.ack" || number > 1) return;
          if (name === "ack") tell("connection.ack", { received });
          else socket.terminate();
        },
        ({ method }) => (method === "connection.resume" ? { connId: "1", received } : undefined),
      );
      const one = client(given, {}, server.url);
      const closed = until(one.gateway, "closed");
      one.gateway.open().catch(() => {});
      const [{ code, reason }] = await closed;
      found[name] = [code, reason];
      server.stop();
    }
    return found;
  },
};

// Torture

/**
 * Calls from one client to another through a proxy that cuts, until there were `calls` and each side has been away `cuts`
 * times. Beside them go cancelled calls, progress, notifications, batches and a subscription.
 */
export async function torture(given) {
  const { calls, cuts } = given;
  const [node, caller] = await Promise.all([opened(given), opened(given)]);
  const found = { ran: [], answers: [], notes: [], news: [], cancelled: [], batches: [], wrong: [], gaps: 0 };
  for (const { gateway } of [node, caller])
    gateway.addEventListener("error", ({ detail }) => found.wrong.push(String(detail?.message ?? detail)));
  node.gateway.method("rack.turn", async ([n], { progress }) => {
    found.ran.push(n);
    progress(n);
    if (n % 7 === 0) await sleep(n % 50);
    progress(n + 0.5);
    return n;
  });
  node.gateway.method("rack.note", ([n]) => void found.notes.push(n));
  node.gateway.method("rack.hang", ([n], { signal }) => new Promise((resolve) => signal.addEventListener("abort", resolve)));
  node.gateway.method("rack.call", ([n]) => node.gateway.call("back.turn", [n], { timeout: 300_000 }));
  caller.gateway.method("back.turn", ([n]) => n);
  await Promise.all([node.gateway.serve({ name: "rack" }), caller.gateway.serve({ name: "back" })]); // now the cuts begin
  const reading = (async () => {
    for await (const event of node.gateway.subscribe("torture.*")) {
      if (event.gap) found.gaps++;
      else if (event.data === "end") break;
      else found.news.push(event.data);
    }
  })();
  const away = ({ names }) => names().filter((name) => name === "resumed").length;
  const isDone = () => next >= calls && Math.min(away(node), away(caller)) >= cuts;
  const wrong = (error) => found.wrong.push(`${error.name} ${error.outcome} ${error.message}`);
  const timeout = 300_000;
  let next = 0;
  const work = async () => {
    while (!isDone()) {
      const n = next++;
      let last = -1;
      const onProgress = (value) => (value > last && value - n < 1 ? (last = value) : found.wrong.push(`progress ${value} of ${n}`));
      await caller.gateway.call(n % 10 === 9 ? "rack.call" : "rack.turn", [n], { timeout, onProgress }).then((value) => found.answers.push([n, value]), wrong);
      if (n >= calls) await sleep(20);
    }
  };
  const beside = async () => {
    for (let n = 0; !isDone(); n++) {
      caller.gateway.notify("rack.note", [n]);
      found.sent = n + 1;
      const controller = new AbortController();
      const hung = caller.gateway.call("rack.hang", [n], { signal: controller.signal, timeout });
      setTimeout(() => controller.abort("enough"), 5 + (n % 30));
      found.cancelled.push(await hung.catch((error) => error));
      await caller.gateway.publish("torture.news", n, { timeout }).catch(wrong);
      const batch = await caller.gateway.batch(numbers(3).map((m) => ["gateway.ping", [n, m]]), { timeout });
      if (JSON.stringify(batch) !== JSON.stringify(numbers(3).map((m) => [n, m]))) wrong({ name: "batch", message: JSON.stringify(batch) });
      await sleep(10);
    }
  };
  await Promise.all([...numbers(8).map(work), beside()]);
  await caller.gateway.publish("torture.news", "end", { timeout });
  await reading;
  const pending = await caller.gateway.call("gateway.ping", ["last"], { timeout });
  await Promise.all([node.gateway.close(), caller.gateway.close()]);
  const states = [...new Set([...node.names(), ...caller.names()])];
  return { ...found, next, pending, resumed: [away(node), away(caller)], states };
}
