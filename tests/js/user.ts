// A program of somebody who uses the client, for the type checker: `tsc` says whether gateway-client.d.ts allows it.

import { CallError, GatewayClient } from "../../gateway/javascript/gateway-client.js";
import type { Gap, GatewayEvent, Stream, WebSocketLike, Welcome } from "../../gateway/javascript/gateway-client.js";

interface Picture {
  size: number;
}

const gateway = new GatewayClient("ws://127.0.0.1:8765/ws", { token: async () => "secret", WebSocket, keep: false });
gateway.addEventListener("state", ({ detail }) => console.log(detail.state, detail.code ?? "", detail.pause ?? 0));
gateway.addEventListener("draining", ({ detail }) => console.log(detail.reconnectAfterMs + detail.deadlineMs));

async function main(signal: AbortSignal): Promise<void> {
  const welcome: Welcome = await gateway.open({ timeout: 5_000 });
  console.log(gateway.why.length, welcome.limits.maxBatch, gateway.principal?.name.toUpperCase(), gateway.state === "open");
  try {
    const options = { signal, retry: true, node: "kitchen-pi", onProgress: told };
    const picture = await gateway.call<Picture>("camera.snap", { width: 640 }, options);
    console.log(picture.size + 1);
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    if (error.outcome === "not_delivered") console.log(error.retryAfterMs ?? 0, error.temporary, error.code + 1);
  }
  gateway.notify("camera.wake");
  const [first, second] = await gateway.batch([["gateway.ping", [1]], ["gateway.info"]]);
  console.log(first, second);
  gateway.method("tea.make", async ({ cups }, call) => {
    call.progress({ boiling: true });
    if (call.signal.aborted || cups > 2) throw new CallError(7, "no water", { for: call.caller });
    return { cups };
  });
  gateway.method("tea.pour", async (_params, call) => {
    for await (const cup of call) await call.progress({ full: cup });
  });
  console.log((await gateway.serve({ name: "kettle" })).methods.join());
  const pouring: Stream<{ full: number }, string> = gateway.stream("tea.pour", {}, { node: "kettle", credit: 4, waitMs: 5 });
  await pouring.send(1);
  await pouring.end();
  for await (const { full } of pouring) if (full > 1) pouring.cancel();
  console.log((await pouring.result()).length);
  const { offset } = await gateway.publish("tea.ready", { cups: 1 });
  for await (const event of gateway.subscribe<{ cups: number }>(["tea.*"], { signal, since: {} })) {
    const told: string = event.gap ? gone(event) : seen(event);
    console.log(told, offset);
    break;
  }
  if (gateway.state === "away") console.log("held");
  // @ts-expect-error a state that there is not
  console.log(gateway.state === "asleep");
  // @ts-expect-error params are an object or an array
  await gateway.call("camera.snap", 640);
  // @ts-expect-error nobody but the client sets it
  gateway.principal = null;
  await gateway.close();
  watched(new WebSocket("ws://127.0.0.1:8765/ws"));
}

/** A WebSocket of the user's own, which is told what the client listens to. */
const watched = (socket: WebSocketLike): void => {
  for (const type of ["open", "message", "close", "error"] as const) socket.addEventListener(type, () => console.log(type));
  socket.on?.("unexpected-response", (_request, { statusCode, headers }) => console.log(statusCode, headers["retry-after"]));
};

const told = async (value: number, missed: number): Promise<void> => console.log(value + 1, missed > 0);
const gone = ({ topic }: Gap): string => topic;
const seen = ({ topic, data }: GatewayEvent<{ cups: number }>): string => `${topic} ${data.cups}`;

void main(AbortSignal.timeout(1_000));
