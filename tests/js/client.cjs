// A client made of packages that know nothing of the gateway: ws and json-rpc-2.0. `node client.cjs URL` calls the
// methods of tests/support/sample_methods.py, and prints what has come of it as one JSON object.

const { JSONRPCClient, JSONRPCServer, JSONRPCServerAndClient } = require("json-rpc-2.0");
const WebSocket = require("ws");

const socket = new WebSocket(process.argv[2]);
const peer = new JSONRPCServerAndClient(
  new JSONRPCServer(),
  new JSONRPCClient(async (message) => socket.send(JSON.stringify(message))),
);

const welcomed = new Promise((resolve) => peer.addMethod("gateway.welcome", resolve));
peer.addMethod("answer", (params) => ({ asked: params }));
peer.addMethod("gateway.draining", () => null);

socket.on("message", (data, isBinary) => {
  if (isBinary) throw new Error("a binary message");
  peer.receiveAndSend(JSON.parse(data.toString()));
});
socket.on("close", (code, reason) => peer.rejectAllPendingRequests(`closed with ${code} ${reason}`));

const failure = (promise) =>
  promise.then(
    (result) => ({ unexpected: result }),
    ({ code, message, data }) => ({ code, message, data }),
  );

async function main() {
  const outcome = { connId: (await welcomed).connId };
  outcome.byPosition = await peer.request("subtract", [42, 23]);
  outcome.byName = await peer.request("subtract", { subtrahend: 23, minuend: 42 });
  outcome.withoutParams = await peer.request("get_data");
  outcome.nothing = await peer.request("gateway.ping");
  outcome.text = await peer.request("echo", ["\u{1F600} \u2028 \\ \" \u0000"]);
  outcome.many = await Promise.all(Array.from({ length: 50 }, (_, n) => peer.request("echo", [n])));
  peer.notify("update", [1, 2, 3]);
  peer.notify("nothing");
  outcome.notFound = await failure(peer.request("nothing"));
  outcome.badParams = await failure(peer.request("subtract", { minuend: "a", subtrahend: 1 }));
  outcome.defect = await failure(peer.request("fail"));
  outcome.batch = await peer.requestAdvanced([
    { jsonrpc: "2.0", id: "sum", method: "sum", params: [1, 2, 4] },
    { jsonrpc: "2.0", method: "update", params: [4] },
    { jsonrpc: "2.0", id: "echo", method: "echo", params: { a: null } },
    { jsonrpc: "2.0", id: "none", method: "nothing" },
  ]);
  outcome.called = await peer.request("ask", { question: 1 });
  const slow = peer.requestAdvanced({ jsonrpc: "2.0", id: "slow", method: "wait" });
  peer.notify("rpc.cancel", { id: "slow" });
  outcome.cancelled = await slow;
  socket.close(1000, "done");
  await new Promise((resolve) => socket.once("close", resolve));
  console.log(JSON.stringify(outcome));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
  socket.terminate();
});
