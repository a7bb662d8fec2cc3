// One end of a long stream, with the JavaScript client: `node --expose-gc stream_end.mjs node|caller URL`. It does the
// same as tests/soak/stream_end.py, and says how many bytes are `held`, by the heap and outside of it, when the garbage is
// collected: V8's resident memory says more about how long it puts that off.

import { createInterface } from "node:readline";
import { GatewayClient } from "../../gateway/javascript/gateway-client.js";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const [role, url] = process.argv.slice(2);
const gateway = new GatewayClient(url, { WebSocket });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function say(said) {
  globalThis.gc();
  const { heapUsed, external } = process.memoryUsage();
  console.log(JSON.stringify({ ...said, held: heapUsed + external }));
}

async function serve() {
  gateway.method("soak.stream", async ({ values, size, every }, call) => {
    for (let number = 0; number < values; number++) {
      await call.progress(`${number}:`.padEnd(size, "x"));
      if (number % every === 0) say({ sent: number });
    }
    return values;
  });
  await gateway.serve({ name: "streamer" });
  say({ ready: true });
}

async function read() {
  await gateway.call("gateway.ping");
  say({ ready: true });
  const { values, size, pause, every, timeout } = JSON.parse((await lines.next()).value);
  const stream = gateway.stream("soak.stream", { values, size, every }, { timeout: timeout * 1000 });
  let read = 0;
  for await (const value of stream) {
    if (value.length !== size || !value.startsWith(`${read}:`)) throw new Error(`value ${read} is ${value.slice(0, 20)}`);
    if (++read % every === 0) say({ read });
    await sleep(pause * 1000);
  }
  if ((await stream.result()) !== read || read !== values) throw new Error(`${read} of ${values} values came`);
  say({ done: read });
}

await gateway.open();
await (role === "node" ? serve() : read());
await lines.next();
await gateway.close();
