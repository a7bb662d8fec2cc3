// What the client is put through, in Node and in a browser alike. Each scenario gets `connect(options)`, which makes a
// client of the gateway under test, and the module itself; it returns what tests/system/test_javascript_client.py looks at.
// The methods `lab.*` are those of the node in that file.

const EAGER = { random: () => 0.001 };
const UNKEPT = { ...EAGER, keep: false };

const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));
const told = ({ code, name, message, data, temporary, outcome, retryAfterMs }) => ({
  ...{ code, name, message, data, temporary, outcome, retryAfterMs },
});
const failure = (promise) =>
  promise.then(
    (result) => ({ unexpected: result }),
    (error) => told(error),
  );

function states(gateway) {
  const seen = [];
  gateway.addEventListener("state", ({ detail }) => seen.push(detail));
  return seen;
}

function until(gateway, state) {
  return new Promise((resolve) => {
    const look = ({ detail }) => {
      if (detail.state !== state) return;
      gateway.removeEventListener("state", look);
      resolve(detail);
    };
    gateway.addEventListener("state", look);
  });
}

export async function asks({ connect, CallError }) {
  const gateway = connect();
  const seen = states(gateway);
  const before = await failure(gateway.call("gateway.ping"));
  const { connId } = await gateway.open();
  const progress = [];
  const asked = [["gateway.ping", [1]], ["nothing"], ["lab.echo", { n: 2 }], ["gateway.ping", null]];
  const batch = await gateway.batch(asked);
  const outcome = {
    before,
    named: connId === gateway.welcome.connId && gateway.principal.name,
    ping: await gateway.call("gateway.ping", { text: "\u{1F600} \u2028 \0" }),
    nothing: await failure(gateway.call("nothing")),
    refused: await failure(gateway.call("lab.refuse")),
    busy: await failure(gateway.call("lab.busy", {}, { retry: true })),
    badParams: await gateway.call("gateway.ping", 1).catch((error) => error instanceof TypeError),
    surrogate: await gateway.call("gateway.ping", ["\ud83d"]).catch((error) => error instanceof TypeError),
    backslash: await gateway.call("gateway.ping", ["\\ud83d"]),
    big: await failure(gateway.call("gateway.ping", ["x".repeat(2 ** 20)])),
    batch: batch.map((one) => (one instanceof CallError ? told(one) : one)),
    tooMany: (await gateway.batch(new Array(101).fill(["gateway.ping"]))).map((one) => one.name).at(-1),
    empty: await gateway.batch([]),
    counted: await gateway.call("lab.count", { to: 3 }, { onProgress: (value) => progress.push(value) }),
    progress,
    late: await failure(gateway.call("lab.slow", {}, { timeout: 100 })),
    lateThere: await failure(gateway.call("lab.slow", {}, { timeout: 200, node: "lab" })),
    many: (await Promise.all(Array.from({ length: 200 }, (_, n) => gateway.call("lab.echo", { n })))).map(({ n }) => n),
  };
  gateway.notify("lab.note", ["a note"]);
  outcome.notes = await gateway.call("lab.notes");
  await Promise.all([gateway.close(), gateway.close()]);
  outcome.after = await failure(gateway.call("gateway.ping"));
  try {
    gateway.notify("x");
  } catch (error) {
    outcome.noteAfter = told(error);
  }
  outcome.states = seen;
  return outcome;
}

export async function cancels({ connect }) {
  const gateway = connect();
  await gateway.open();
  const controller = new AbortController();
  const started = new Promise((resolve) => {
    const call = gateway.call("lab.slow", { tell: true }, { signal: controller.signal, onProgress: resolve });
    call.catch(() => {});
    controller.call = call;
  });
  await started;
  controller.abort(new Error("not wanted"));
  const reason = await controller.call.catch((error) => error.message);
  const never = AbortSignal.abort(new Error("never"));
  const early = await gateway.call("lab.slow", {}, { signal: never }).catch((error) => error.message);
  const cancelled = await gateway.call("lab.cancelled");
  await gateway.close();
  return { reason, early, cancelled };
}

export async function loses({ connect }) {
  const gateway = connect(UNKEPT);
  const seen = states(gateway);
  await gateway.open();
  const connIds = [gateway.welcome.connId];
  const opened = until(gateway, "open");
  const unknown = await Promise.all([
    failure(gateway.call("lab.slow")),
    failure(gateway.call("lab.slow", {}, { retry: true })),
    failure(gateway.call("lab.cut")),
    gateway.batch([["lab.slow"], ["lab.slow"]]).then((all) => all.map(told)),
  ]);
  const waiting = gateway.call("lab.echo", { n: 5 }); // not sent yet: it waits for the next connection
  await opened;
  const waited = (await waiting).n;
  connIds.push(gateway.welcome.connId);
  const closing = until(gateway, "waiting");
  await failure(gateway.call("lab.away", { time: 1.5 }));
  await closing;
  const notDelivered = await failure(gateway.call("lab.echo", { n: 6 }, { timeout: 150 }));
  const result = await gateway.call("lab.echo", { n: 7 });
  const swallowed = until(gateway, "waiting");
  await gateway.call("lab.stall").catch(() => {});
  const { code } = await swallowed;
  await gateway.call("lab.echo", { n: 8 });
  await gateway.close();
  const names = seen.map(({ state }) => state);
  const fresh = new Set(connIds).size;
  return { unknown, waited, fresh, notDelivered, result, stall: code, names };
}

export async function serves({ connect, CallError }) {
  const node = connect(UNKEPT);
  await node.open();
  const stopped = [];
  node.method("tea.make", async ({ cups }, call) => {
    call.progress(0.5);
    return { cups, for: call.caller, inTime: call.timeLeftMs > 0 };
  });
  node.method("tea.spill", () => {
    throw new CallError(7, "no cup", { code: "spilled", temporary: false, on: "floor" });
  }, { summary: "Spill it", params: { type: "object" } });
  node.method("tea.break", () => { throw new TypeError("a secret"); });
  node.method("tea.flood", () => "x".repeat(2 ** 20));
  node.method("tea.wait", (params, call) => new Promise((resolve) => call.signal.addEventListener("abort", resolve))
    .then(() => stopped.push("stopped")));
  const defects = [];
  node.addEventListener("error", ({ detail }) => defects.push(detail.message));
  const registration = await node.serve({ name: "kettle" });
  node.method("tea.late", () => "late");
  const caller = connect(UNKEPT);
  await caller.open();
  const ask = async () => ({
    made: await caller.call("tea.make", { cups: 2 }),
    spilled: await failure(caller.call("tea.spill")),
    broken: await failure(caller.call("tea.break")),
    flooded: await failure(caller.call("tea.flood")),
    waited: (await failure(caller.call("tea.wait", {}, { timeout: 100 }))).name,
    late: await caller.call("tea.late"),
  });
  const first = await ask();
  const { methods } = await caller.call("node.get", { name: "kettle" });
  const again = Promise.all([until(node, "open"), until(caller, "open")]);
  await failure(caller.call("lab.cut"));
  await again;
  await caller.call("lab.online", { node: "kettle" });
  const second = await ask();
  await caller.close();
  await node.close();
  return { registration, methods, first, second, stopped, defects };
}

export async function subscribes({ connect }) {
  const gateway = connect(EAGER);
  await gateway.open();
  const all = gateway.subscribe("lab.>");
  const some = gateway.subscribe(["lab.a", "lab.b"]);
  const small = gateway.subscribe(["lab.a"], { buffer: 3 });
  await Promise.all([all.ready, some.ready, small.ready]);
  for (const n of [1, 2, 3, 4, 5]) await gateway.publish("lab.a", { n });
  await gateway.publish("lab.c", { n: 1 });
  const take = async (feed, count) => {
    const taken = [];
    while (taken.length < count) {
      const { value } = await feed.next();
      taken.push(value.gap ? `${value.topic} gap` : `${value.topic} ${value.offset} ${value.data.n}`);
    }
    return taken;
  };
  const outcome = { all: await take(all, 6), some: await take(some, 5), small: await take(small, 4) };
  await gateway.call("lab.away", { time: 0.2, publish: { "lab.a": 3, "lab.new": 2 } });
  outcome.recovered = await take(all, 4);
  outcome.dedup = await take(some, 3);
  await gateway.call("lab.away", { time: 0.3, publish: { "lab.a": 150 } });
  await gateway.publish("lab.a", { n: "after" });
  outcome.gone = (await take(some, 2)).map((text) => text.replace(/[0-9]+/, "#"));
  const controller = new AbortController();
  const place = (await gateway.call("event.subscribe", { topics: ["lab.a"] })).topics["lab.a"];
  const since = { "lab.a": { epoch: place.epoch, offset: place.offset - 2 }, "lab.none": { epoch: "x", offset: 1 } };
  const old = gateway.subscribe(["lab.a"], { since, signal: controller.signal });
  outcome.since = (await take(old, 3)).map((text) => text.replace(/ [0-9]+/, ""));
  const ending = old.next().catch((error) => error.message);
  controller.abort(new Error("enough"));
  outcome.aborted = await ending;
  outcome.over = await old.next();
  outcome.forbidden = await failure(gateway.subscribe(["not a topic"]).next());
  for await (const event of all) if (event.data?.n === "after" || event.gap) break;
  const reading = some.next();
  await gateway.close();
  outcome.closed = await reading;
  outcome.afterwards = (await failure(gateway.subscribe("lab.a").next())).name;
  return outcome;
}

export async function authenticates({ connect, tokens, wrong }) {
  const asked = [];
  const give = async () => tokens[Math.min(asked.push("asked"), tokens.length) - 1];
  const gateway = connect({ ...EAGER, token: give });
  await gateway.open();
  const first = gateway.principal;
  const welcomed = gateway.welcome.principal;
  while (asked.length < 2 || gateway.principal.expiresAt === first.expiresAt) await sleep(10);
  const refreshed = { ...gateway.principal, asked: asked.length };
  const opened = until(gateway, "open");
  await failure(gateway.call("lab.cut"));
  await opened;
  const after = asked.length;
  await gateway.close();
  const stranger = connect({ ...EAGER, token: wrong });
  const seen = states(stranger);
  const refused = await failure(stranger.open());
  const nobody = await failure(connect(EAGER).open());
  return { welcomed, first, refreshed, after, refused, nobody, stranger: seen };
}

export async function heeds({ connect, url, codes }) {
  const outcome = {};
  for (const code of codes) {
    const gateway = connect({ ...EAGER }, `${url}?code=${code}`);
    const seen = [until(gateway, "waiting"), until(gateway, "closed")];
    await gateway.open();
    outcome[code] = (await Promise.race(seen)).state;
    await gateway.close();
  }
  const once = connect({ reconnect: false }, `${url}?code=4001`);
  const ended = until(once, "closed");
  await once.open();
  outcome.once = (await ended).code;
  const silent = connect(EAGER, `${url}?heartbeat=0.1`);
  const given = until(silent, "waiting");
  const begun = performance.now();
  await silent.open();
  const { code, reason } = await given;
  outcome.silent = { code, reason, time: performance.now() - begun };
  await silent.close();
  const strange = connect({}, `${url}?protocol=2`);
  outcome.protocol = (await failure(strange.open())).message;
  return outcome;
}

export async function pauses({ connect }) {
  const gateway = connect({ random: () => 0.01 });
  const found = [];
  const reasons = new Set();
  const waiting = new Promise((resolve) => {
    gateway.addEventListener("state", ({ detail }) => {
      if (detail.state !== "waiting") return;
      reasons.add(detail.reason);
      if (found.push(detail.pause) === 9) resolve();
    });
  });
  const opening = failure(gateway.open({ timeout: 30 }));
  await waiting;
  await gateway.close();
  return { found, opening: (await opening).name, state: gateway.state, reasons: [...reasons] };
}

export async function drains({ connect }) {
  const gateway = connect();
  await gateway.open();
  const draining = new Promise((resolve) => gateway.addEventListener("draining", ({ detail }) => resolve(detail)));
  const waiting = until(gateway, "waiting");
  gateway.notify("lab.drain");
  const { reconnectAfterMs, deadlineMs } = await draining;
  const begun = performance.now();
  const held = failure(gateway.call("gateway.info", {}, { timeout: 100 }));
  const { code, pause } = await waiting;
  const sum = performance.now() - begun + pause;
  const outcome = await held; // before close() could end it
  await gateway.close();
  return { code, deadlineMs, off: Math.abs(sum - reconnectAfterMs), held: outcome };
}

/** The bytes that are held when the garbage is collected, by the heap and outside of it; 0 in a browser. */
function held() {
  globalThis.gc?.();
  const { heapUsed = 0, external = 0 } = globalThis.process?.memoryUsage() ?? {};
  return heapUsed + external;
}

/** How many bytes more than `early` are held, once that are few, or after ten seconds: sockets that were cut go later. */
async function settled(early) {
  for (let n = 0; held() - early > 2_000_000 && n < 100; n++) await sleep(100);
  return held() - early;
}

export const storms = ({ connect }) => together([0, 1, 2, 3].map(() => connect(UNKEPT)), false);

export const tortures = ({ connect }) => together([0, 1].map(() => connect(UNKEPT)), true);

async function together(gateways, disturbed) {
  const found = await Promise.all(gateways.map((gateway, number) => storm(gateway, number * 1_000_000, disturbed)));
  const more = disturbed ? await settled(Math.min(...found.map(({ others }) => others.early))) : 0;
  await Promise.all(gateways.map((gateway) => gateway.close()));
  return found.map((one) => ({ ...one, more }));
}

async function storm(gateway, first, disturbed) {
  await gateway.open({ timeout: 100_000 });
  const calls = { answered: [], unknown: [], notDelivered: [], other: [] };
  const events = { seen: 0, gaps: 0, untold: [], last: false };
  const reading = (async () => {
    let expected = null;
    for await (const event of gateway.subscribe("storm.*")) {
      if (event.gap) {
        events.gaps++;
        expected = null;
        continue;
      }
      events.seen++;
      if (expected !== null && event.offset !== expected) events.untold.push([expected, event.offset]);
      expected = event.offset + 1;
      if (event.data.last) break;
    }
    events.last = true;
  })();
  let next = first;
  let more = true;
  const work = async () => {
    while (more) {
      const n = next++;
      try {
        const reply = await gateway.call("lab.echo", { n }, { retry: n % 2 === 0 });
        calls[reply.n === n ? "answered" : "other"].push(n);
        more &&= reply.more;
      } catch (error) {
        const kind = { unknown: "unknown", not_delivered: "notDelivered" }[error.outcome] ?? "other";
        calls[kind].push(kind === "other" ? String(error) : n);
      }
    }
  };
  const others = { heard: 0, deaf: 0, cancelled: 0, big: 0, tooBig: 0, wrong: [], early: 0 };
  const disturbing = disturbed && disturb(gateway, others, () => more);
  await Promise.all([work(), work(), work(), work()]);
  await disturbing;
  await gateway.call("lab.last");
  await reading;
  return { first, next, calls, events, others };
}

/** What goes on beside the calls of a storm: subscriptions come and go, calls are cancelled, messages are big. */
function disturb(gateway, others, goesOn) {
  const wrong = (error) => others.wrong.push(String(error));
  const repeat = async (step) => {
    while (goesOn()) await step().catch(wrong);
  };
  const subscribe = async () => {
    const feed = gateway.subscribe(["storm.*", "storm.tick"]);
    const first = feed.next().then(() => others.heard++);
    const begun = performance.now();
    let isOver = false;
    first.finally(() => (isOver = true)).catch(() => {});
    while (!isOver && goesOn() && performance.now() - begun < 30_000) await sleep(1);
    if (!isOver && goesOn()) others.deaf++;
    await feed.return();
    await first;
  };
  const cancel = async () => {
    const controller = new AbortController();
    const call = gateway.call("lab.slow", {}, { signal: controller.signal });
    setTimeout(() => controller.abort("enough"), 2);
    await call.catch((error) => (error === "enough" || error.outcome === "unknown" ? others.cancelled++ : wrong(error)));
  };
  const big = async () => {
    const text = "x".repeat(300_000);
    await gateway.call("gateway.ping", [text]).catch((error) => error.outcome === "unknown" || wrong(error));
    if (++others.big === 2) others.early = held();
    await gateway.call("gateway.ping", [text, text, text, text]).catch(({ name }) => (name === "message_too_big" ? others.tooBig++ : wrong(name)));
    await sleep(20);
  };
  return Promise.all([repeat(subscribe), repeat(cancel), repeat(big)]);
}
