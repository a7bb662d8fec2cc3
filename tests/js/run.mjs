// Puts the client through one scenario in Node: `node run.mjs NAME '{"url": …}'` prints what it returns as JSON.

import * as module from "../../gateway/javascript/gateway-client.js";
import * as keeping from "./keeping.mjs";
import * as scenarios from "./scenarios.mjs";
import * as streaming from "./streaming.mjs";
import * as trials from "./trials.mjs";
import WebSocket from "ws";

const [name, given] = process.argv.slice(2);
const options = JSON.parse(given);
const connect = (more = {}, url = options.url) => new module.GatewayClient(url, { WebSocket, ...more });
const all = { ...scenarios, ...trials, ...keeping, ...streaming };
console.log(JSON.stringify(await all[name]({ ...module, ...options, connect, WebSocket })));
