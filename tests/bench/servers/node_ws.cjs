// JSON-RPC with Node's ws and default settings: `node node_ws.cjs json|relay|fanout`.
// Needs the package ws (npm install ws, or NODE_PATH).
'use strict';

const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, path: '/ws' }, () => {
  const listeners = [`127.0.0.1:${server.address().port}`];
  console.log(JSON.stringify({ event: 'server.started', listeners }));
});

const nodes = new Map();
const waiting = new Map();
const subscribers = new Set();
let last = 0;

const answer = (socket, id, result) => socket.send(JSON.stringify({ jsonrpc: '2.0', id, result }));

const handlers = {
  // Answer every request with its params.
  json(socket, call) {
    answer(socket, call.id, call.params ?? null);
  },
  // Register nodes, send calls on to them under ids of its own, and the answers back.
  relay(socket, message) {
    if (message.method === undefined) {
      const call = waiting.get(message.id);
      waiting.delete(message.id);
      message.id = call.id;
      call.socket.send(JSON.stringify(message));
    } else if (message.method === 'node.register') {
      for (const served of message.params.methods) nodes.set(served.name, socket);
      answer(socket, message.id, {});
    } else {
      const node = nodes.get(message.method);
      waiting.set(++last, { socket, id: message.id });
      message.id = last;
      node.send(JSON.stringify(message));
    }
  },
  // Take subscribers, and send them what is published.
  fanout(socket, message) {
    if (message.method === 'event.subscribe') {
      subscribers.add(socket);
      socket.on('close', () => subscribers.delete(socket));
    } else {
      const text = JSON.stringify(message.params.data);
      for (const subscriber of subscribers) subscriber.send(text);
    }
    answer(socket, message.id, {});
  },
};
const handle = handlers[process.argv[2]];

server.on('connection', (socket) => {
  socket.on('message', (data) => handle(socket, JSON.parse(data.toString())));
});
