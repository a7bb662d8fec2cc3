// Clients by other authors, which know nothing of the gateway: `node foreign.mjs NAME URL` puts one through what
// tests/system/test_clients.py looks at, and prints it as JSON. The methods are those of tests/support/sample_methods.py.

import { createRequire } from "node:module";
import { CancellationTokenSource, ResponseError, createMessageConnection } from "vscode-jsonrpc";
import { WebSocketMessageReader, WebSocketMessageWriter, toSocket } from "vscode-ws-jsonrpc";
import WebSocket from "ws";

const { Client } = createRequire(import.meta.url)("rpc-websockets");

const TEXT = "\u{1F600} \u2028 \\ \" \u0000";
const fifty = Array.from({ length: 50 }, (_, n) => n);
const failure = (promise) =>
  promise.then(
    (result) => ({ unexpected: result }),
    ({ code, message, data }) => ({ code, message, data }),
  );

/** A connection of vscode-ws-jsonrpc that cancels as the gateway has it, and its complaints. */
async function connected(url) {
  const socket = new WebSocket(url);
  const transport = toSocket(socket);
  const complaints = [];
  const complain = (text) => complaints.push(text);
  const logger = { error: complain, warn: complain, info: complain, log: complain };
  const sender = {
    enableCancellation: () => {},
    sendCancellation: (connection, id) => connection.sendNotification("rpc.cancel", { id }),
    cleanup: () => {},
  };
  const receiver = { createCancellationTokenSource: () => new CancellationTokenSource() };
  const strategy = { cancellationStrategy: { receiver, sender } };
  const reader = new WebSocketMessageReader(transport);
  const connection = createMessageConnection(reader, new WebSocketMessageWriter(transport), logger, strategy);
  const welcomed = new Promise((resolve) => connection.onNotification("gateway.welcome", resolve));
  connection.listen();
  const close = () =>
    new Promise((resolve) => {
      socket.once("close", resolve);
      socket.close(1000, "done");
    });
  return { connection, welcome: await welcomed, complaints, close };
}

async function vscode(url) {
  const { connection, welcome, complaints, close } = await connected(url);
  const events = [];
  const three = new Promise((resolve) =>
    connection.onNotification("event.message", ({ data }) => events.push(data) === 3 && resolve()),
  );
  connection.onRequest("answer", (params) => ({ asked: params }));
  await connection.sendRequest("event.subscribe", { topics: ["foreign.*"] });
  for (const data of [1, 2, 3]) await connection.sendRequest("event.publish", { topic: "foreign.vscode", data });
  await three;
  const source = new CancellationTokenSource();
  const waiting = failure(connection.sendRequest("wait", source.token));
  source.cancel();
  await connection.sendNotification("update", { n: 1 });
  const found = {
    connId: welcome.connId,
    byPosition: await connection.sendRequest("subtract", 42, 23),
    byName: await connection.sendRequest("subtract", { subtrahend: 23, minuend: 42 }),
    withoutParams: await connection.sendRequest("get_data"),
    text: await connection.sendRequest("echo", { text: TEXT }),
    many: await Promise.all(fifty.map((n) => connection.sendRequest("echo", { n }))),
    called: await Promise.all(fifty.map((n) => connection.sendRequest("ask", { n }))),
    notFound: await failure(connection.sendRequest("nothing")),
    badParams: await failure(connection.sendRequest("subtract", { minuend: "a", subtrahend: 1 })),
    defect: await failure(connection.sendRequest("fail")),
    cancelled: await waiting,
    events,
  };
  await close();
  return { ...found, complaints };
}

/** One is the node, the other its caller. */
async function vscodeNode(url) {
  const [node, caller] = await Promise.all([connected(url), connected(url)]);
  const { connection } = node;
  const cancelled = new Promise((resolve) => connection.onNotification("rpc.cancel", resolve));
  const started = new Promise((resolve) =>
    connection.onRequest("kettle.wait", () => {
      resolve();
      return new Promise(() => {});
    }),
  );
  connection.onRequest("kettle.boil", ({ cups }) => ({ cups, text: TEXT }));
  connection.onRequest("kettle.break", () => {
    throw new ResponseError(7, "no water", { on: "floor" });
  });
  connection.onRequest("kettle.nothing", () => null);
  const methods = ["boil", "break", "nothing", "wait"].map((name) => ({ name: `kettle.${name}` }));
  const registered = await connection.sendRequest("node.register", { name: "kettle", methods });
  const call = (...given) => caller.connection.sendRequest(...given);
  const source = new CancellationTokenSource();
  const waiting = failure(call("kettle.wait", source.token));
  await started;
  source.cancel();
  const found = {
    registered,
    many: await Promise.all(fifty.map((n) => call("kettle.boil", { cups: n }))),
    refused: await failure(call("kettle.break", {})),
    nothing: await call("node.call", { node: "kettle", method: "kettle.nothing" }),
    cancelled: await waiting,
    told: typeof (await cancelled).id,
  };
  await node.close();
  found.gone = await failure(call("kettle.boil", { cups: 1 }));
  await caller.close();
  return { ...found, complaints: [...node.complaints, ...caller.complaints] };
}

async function rpcWebsockets(url) {
  const client = new Client(url, { reconnect: false });
  const welcomed = new Promise((resolve) => client.once("gateway.welcome", resolve));
  const events = [];
  const three = new Promise((resolve) => client.on("event.message", ({ data }) => events.push(data) === 3 && resolve()));
  const { connId } = await welcomed;
  await client.call("event.subscribe", { topics: ["foreign.*"] });
  for (const data of [1, 2, 3]) await client.call("event.publish", { topic: "foreign.rpc", data });
  await three;
  await client.notify("update", [1]);
  const found = {
    connId,
    byPosition: await client.call("subtract", [42, 23]),
    byName: await client.call("subtract", { subtrahend: 23, minuend: 42 }),
    withoutParams: await client.call("get_data"),
    text: await client.call("echo", { text: TEXT }),
    many: await Promise.all(fifty.map((n) => client.call("echo", { n }))),
    notFound: await failure(client.call("nothing")),
    badParams: await failure(client.call("subtract", { minuend: "a", subtrahend: 1 })),
    defect: await failure(client.call("fail")),
    events,
  };
  const closed = new Promise((resolve) => client.once("close", resolve));
  client.close(1000, "done");
  await closed;
  return found;
}

/**
 * It keeps its own calls and those of the gateway in one table, by their ids, and takes a call for an answer if it finds
 * one there. It tells of a call as of an event, and cannot answer it, so what asks it stays pending.
 */
async function rpcWebsocketsCalled(url) {
  const client = new Client(url, { reconnect: false });
  await new Promise((resolve) => client.once("gateway.welcome", resolve));
  const asked = [];
  const twenty = Array.from({ length: 20 }, (_, n) => n);
  let heard = () => {};
  client.on("answer", (params) => heard(asked.push(params.n)));
  const until = (count) => new Promise((resolve) => (heard = (length) => length === count && resolve()));
  const settled = [];
  const pending = (name, promise) =>
    promise.then(
      () => settled.push(name),
      (error) => error instanceof Error && settled.push(`${name}: ${error.message}`), // the library's, not the gateway's
    );
  pending("wait", client.call("wait"));
  const first = until(1);
  pending("ask", client.call("ask", { n: 0 }));
  await first;
  const alone = [...settled];
  const all = until(1 + twenty.length);
  const echoes = Promise.all(
    twenty.flatMap((n) => {
      pending("ask", client.call("ask", { n: n + 1 }));
      return [client.call("echo", { n }), client.call("subtract", [n, 1])];
    }),
  );
  await all;
  const found = { alone, echoes: await echoes, asked, together: [...settled] };
  client.close(1000, "done");
  return found;
}

const [name, url] = process.argv.slice(2);
console.log(JSON.stringify(await { vscode, vscodeNode, rpcWebsockets, rpcWebsocketsCalled }[name](url)));
