// JSON-RPC with Node's ws and default settings: `node node_ws.cjs`. Needs the package ws (npm install ws, or NODE_PATH).
'use strict';

const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, path: '/ws' }, () => {
  const listeners = [`127.0.0.1:${server.address().port}`];
  console.log(JSON.stringify({ event: 'server.started', listeners }));
});

server.on('connection', (socket) => {
  socket.on('message', (data) => {
    const call = JSON.parse(data.toString());
    socket.send(JSON.stringify({ jsonrpc: '2.0', id: call.id, result: call.params ?? null }));
  });
});
