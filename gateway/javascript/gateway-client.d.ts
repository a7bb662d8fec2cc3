/** A client of aisopod-gateway for browsers and Node. Times are milliseconds unless their name says otherwise. */

/** What JSON can hold, objects of your own types included. */
export type Params = object | readonly unknown[] | null;

export type Outcome = "not_delivered" | "unknown";

/**
 * A request has failed: by the gateway, by the node that was called, or in this client.
 *
 * `name` is the error's name in the gateway's table (`timeout`, `node_lost`, …), or `error` if a node gave none. Errors
 * that only this client has are `connection_lost`, `closed` and `message_too_big`, all with the `code` -32000.
 *
 * A served method throws a CallError to answer with its own error: `new CallError(7, "out of paper", {tray: 2})`. If it
 * lets an error of a call of its own through, the outcome that this error tells becomes `unknown` for its caller:
 * whatever became of the inner call, the method itself has run.
 */
export class CallError extends Error {
  constructor(code: number, message: string, data?: unknown);
  readonly code: number;
  readonly data: unknown;
  /** Whether the same request may succeed later. */
  readonly temporary: boolean;
  /** `not_delivered`: it was not run. `unknown`: it may have been run. null: the error does not say. */
  readonly outcome: Outcome | null;
  /** How long to wait before sending the same request again; null: the error does not say. */
  readonly retryAfterMs: number | null;
}

export interface Principal {
  name: string;
  role: string;
  scopes: string[];
  /** RFC 3339 in UTC; null: never. */
  expiresAt: string | null;
}

/** The params of `gateway.welcome`. */
export interface Welcome {
  connId: string;
  protocol: number;
  server: { name: string; version: string; instance: string };
  /** Seconds. */
  heartbeat: { interval: number; timeout: number };
  limits: {
    maxMessageBytes: number;
    maxInFlight: number;
    maxBatch: number;
    maxOutboxBytes: number;
    callTimeoutMs: number;
    maxCallTimeoutMs: number;
    rate: number;
    burst: number;
  };
  principal: Principal | null;
}

/**
 * `away`: the link is lost, but the connection is held, and the client tries to go on with it by another link. If it can,
 * `open` comes next, with `resumed`, and nothing was lost. Otherwise `waiting`, `connecting` or `closed` comes next, and the
 * calls that had been sent have failed.
 *
 * `waiting`: there is no connection, and the next attempt comes after a pause.
 */
export type State = "connecting" | "open" | "away" | "waiting" | "closed";

/**
 * `code` and `reason` say how the last link or attempt ended, in `away`, `waiting` and `closed`; `pause` is in `away` and
 * `waiting`, which are told again after each attempt. `resumed` is true in `open` if the connection went on. A code
 * below 1000 is the HTTP status of a refusal. Only a WebSocket like that of the package ws tells it, and `Retry-After`
 * beside it: a page, and Node's own WebSocket, see 1006 for any attempt that failed.
 */
export interface StateDetail {
  state: State;
  code?: number;
  reason?: string;
  pause?: number;
  resumed?: boolean;
}

/** The params of `gateway.draining`. */
export interface Draining {
  deadlineMs: number;
  reconnectAfterMs: number;
}

export interface ClientEvents {
  state: CustomEvent<StateDetail>;
  /** The gateway is about to close. Calls from now on wait for the next link; this connection is not held. */
  draining: CustomEvent<Draining>;
  /**
   * An error that no promise rejects with: from your methods, progress callbacks or token function, of an answer that
   * could not be sent, or a refusal.
   */
  error: CustomEvent<unknown>;
}

/** The part of the WebSocket interface that the client uses. Browsers and the package ws have it. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly bufferedAmount: number;
  addEventListener(type: "open" | "message" | "close" | "error", listener: (event: any) => void): void;
  send(text: string): void;
  close(code?: number): void;
  /** Ends it at once, whatever the other side does. Without it the next link waits, up to 35 s, until it is closed. */
  terminate?(): void;
  /** As in the package ws: tells of an answer with an HTTP status that is no upgrade. Without it any refusal is 1006. */
  on?(type: "unexpected-response", listener: (request: any, response: any) => void): unknown;
}

export interface ClientOptions {
  /**
   * A token or JSON Web Token, without the word Bearer. A function is called at each connect and again before the token
   * expires; it has 30 s. The token goes to the gateway in the first message, and never into the address. White space
   * around it does not count.
   */
  token?: string | null | (() => string | null | Promise<string | null>);
  /**
   * Reconnect after a loss; true by default. Never done after a close code that says to stay away, or an HTTP status
   * that the next attempt would get as well, such as 403 and 404.
   */
  reconnect?: boolean;
  /**
   * Have the gateway hold the connection after a loss, so that no call fails if the client is back in time; true by
   * default. Without effect if the gateway holds none, or without `reconnect`.
   */
  keep?: boolean;
  /** `globalThis.WebSocket` by default. In a Node without one, pass that of the package ws. */
  WebSocket?: new (url: string) => WebSocketLike;
  /** Returns numbers from 0 to below 1, for the pauses; `Math.random` by default. */
  random?: () => number;
  /** How many calls are served at once, 256 by default; more are refused as `overloaded`, and notifications dropped. */
  maxCalls?: number;
}

export interface Wait {
  /** How long to wait, 30,000 by default, before the CallError `timeout`. */
  timeout?: number;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface CallOptions extends Wait {
  /** The node to call, if several have the method. The gateway gives it this timeout too; otherwise `callTimeoutMs`. */
  node?: string;
  /** Send it again, after a pause and within the timeout, if it was refused for a while and certainly not run. */
  retry?: boolean;
  /**
   * Gets the values that the node reports, in order, before the result. If it is async it runs for one value at a time,
   * and the call waits for it, within the timeout. Up to 256 values wait meanwhile; after that the oldest are dropped,
   * and `missed` says how many were, just before this value.
   */
  onProgress?: (value: any, missed: number) => unknown;
}

export interface StreamOptions extends Wait {
  /**
   * How long the stream may wait to be sent, 30,000 by default. With `node` it is also the deadline that the gateway gives
   * it, otherwise that is `callTimeoutMs`. That deadline counts from the last value or grant, and the client renews it: once
   * it is sent, a stream goes on until the node answers, it is cancelled, or the connection is over.
   */
  timeout?: number;
  /** The node to call, if several have the method. */
  node?: string;
  /** How long the gateway lets the stream wait for that node, if the node is not there yet. */
  waitMs?: number;
  /** How many values may be under way, or wait here to be read: 1 to 1,024, by default 16. */
  credit?: number;
  /**
   * How many bytes they may have together, 1 MiB by default, and at most half of `maxOutboxBytes`. The last one may be
   * longer than what is left.
   */
  bytes?: number;
}

/**
 * A call whose values come as fast as they are read, and no faster, for one reader. A loop over it ends with the answer, or
 * throws what `result` rejects with. Leaving the loop cancels the call. A stream whose values are not read stands still as
 * soon as `credit` or `bytes` are used up.
 */
export interface Stream<T = any, R = any> extends AsyncIterableIterator<T> {
  /**
   * Push a value to the node. Resolves when it is sent, for which it waits until the node reads. Rejects with a CallError if
   * it is too long, and with the reason if the stream is over. Throws a TypeError at once if the value is no JSON, and
   * `overloaded` if 256 values wait.
   */
  send(value: unknown): Promise<void>;
  /** Tell the node, after all values, that no more are pushed. Resolves when that is told, or the stream is over. */
  end(): Promise<void>;
  /** The answer of the method. Rejects with a CallError, or the reason of `cancel` or the signal. */
  result(): Promise<R>;
  /** End it, here and at the node. What has not been read is dropped. No effect if it is over. */
  cancel(reason?: unknown): void;
  return(value?: any): Promise<IteratorResult<T>>;
}

/** A message of a topic. */
export interface GatewayEvent<T = any> {
  gap?: undefined;
  topic: string;
  /** Grows within an epoch; by one, unless several gateways share the topics. */
  offset: number;
  epoch: string;
  /** RFC 3339 in UTC, milliseconds. */
  time: string;
  data: T;
}

/** Messages of this topic are lost: read again what they would have told. The next ones follow. */
export interface Gap {
  gap: true;
  /** A pattern, if gateways of a cluster cannot tell which topics have lost messages. */
  topic: string;
}

export interface SubscribeOptions {
  /** The last message that was seen, by topic. What was missed since comes first, or a gap. */
  since?: Record<string, { epoch: string; offset: number }>;
  /** Ends the subscription; the reader gets the signal's reason. */
  signal?: AbortSignal;
  /** How many messages may wait for their reader, 1,000 by default and at least 1; a gap stands for those beyond. */
  buffer?: number;
}

/** Messages and gaps in order, for one reader. Ends with the loop that reads it, or when the client is closed. */
export interface Subscription<T = any> extends AsyncIterableIterator<GatewayEvent<T> | Gap> {
  /** Resolves when the gateway has taken the subscription for the first time; rejects if it ends before. */
  readonly ready: Promise<void>;
  return(value?: any): Promise<IteratorResult<GatewayEvent<T> | Gap>>;
}

/** What a served method gets in addition to its params. */
export interface ServedCall {
  /** The name of the caller's principal; null if the gateway itself calls. */
  readonly caller: string | null;
  /** How long the caller will wait, from the beginning of the call; of a stream: after its last value. null: not known. */
  readonly timeLeftMs: number | null;
  /**
   * Aborted when the call is cancelled or out of time, or when the connection is over, with a CallError `cancelled` or
   * `connection_lost` as its reason. While the connection is `away` it is not.
   */
  readonly signal: AbortSignal;
  /**
   * Report to the caller. In a call that is no stream it is done at once; it does nothing for a notification, or once the
   * call is over. Throws a TypeError for a value that is no JSON, and otherwise as `notify` does.
   *
   * In a stream it returns a promise that resolves when the value is sent, which is when the caller has granted it, and
   * rejects with the reason when the call is over. At most 256 values wait; more throw `overloaded`. The answer of a method
   * that does not await them waits for them.
   */
  progress(value: unknown): void | Promise<void>;
  /**
   * What the caller of a stream pushes, for one reader; nothing is granted before it is read. The loop ends when the caller
   * has pushed all, and throws the reason when the call is over. It may be left, and read on later. Throws a TypeError at
   * once if the call is no stream.
   */
  [Symbol.asyncIterator](): AsyncIterator<any>;
}

export interface MethodOptions {
  summary?: string;
  /** Describes the params, usually as a JSON Schema. */
  params?: unknown;
}

export class GatewayClient extends EventTarget {
  /**
   * Does not connect yet; `open` does. The path is `/ws` if the address has none. Throws a TypeError for an address that
   * is none of a gateway or has a credential in it, and for a token with a line break inside.
   */
  constructor(url: string | URL, options?: ClientOptions);

  readonly state: State;
  /** Of the latest link, with the `connId` of the connection; null before the first. */
  readonly welcome: Welcome | null;
  readonly principal: Principal | null;
  /** For people: how the latest link or attempt ended. */
  readonly why: string;

  /**
   * Connect, and stay connected. Resolves when the connection is open. A failed attempt is followed by others, which go
   * on even after this promise has timed out; the error then says how the latest ended, as `why` and the event `state`
   * do at once. Rejects with a CallError if the client is closed instead, because no attempt could succeed. Another call is
   * harmless, and makes a waiting client try at once. A closed client can be opened again.
   */
  open(options?: Wait): Promise<Welcome>;

  /**
   * Close the connection: calls fail, subscriptions end. The gateway has `timeout` (2,000) to answer. Repeatable. While the
   * connection is `away` the gateway cannot be told, and holds it until its time is over.
   */
  close(options?: { timeout?: number }): Promise<void>;

  /**
   * Call a method of the gateway or of a node. Without a link, and beyond the gateway's `maxInFlight`, the call waits
   * for its turn within the timeout. Rejects with a CallError, whose `outcome` is `unknown` if the connection ended
   * before the answer; with a TypeError for params that are no JSON. A signal cancels the call, at the node too.
   *
   * JSON is what `JSON.stringify` makes, here and wherever else values are sent; but lone surrogates and objects that it
   * would empty (Map, Set, Error, Promise, typed arrays, …) are refused.
   */
  call<T = any>(method: string, params?: Params, options?: CallOptions): Promise<T>;

  /**
   * Send a notification, which has no answer. While the connection is `away`, the next link takes it. Throws a CallError
   * if there is no connection, or it cannot take more.
   */
  notify(method: string, params?: Params): void;

  /** Send requests in one message. Resolves to their results or CallErrors, in the same order. */
  batch(calls: readonly (readonly [method: string, params?: Params])[], options?: Wait): Promise<any[]>;

  /**
   * Call a method of a node as a stream: values flow both ways, each as fast as its receiver takes it. The call waits for
   * its turn as with `call`. Over a connection that is kept nothing of it is lost. A node that does not know streams is
   * `invalid_params`, `not_delivered`. Throws a TypeError for params that are no JSON or `waitMs` without a node, a
   * RangeError for a credit out of bounds.
   */
  stream<T = any, R = any>(method: string, params?: Params, options?: StreamOptions): Stream<T, R>;

  publish(topic: string, data: unknown, options?: CallOptions): Promise<{ offset: number; epoch: string }>;

  /**
   * Messages of topics and patterns, from now on: `*` is one part of a topic, a last `>` one or more. After a reconnect
   * the subscription continues where it was; if messages are lost, a gap says so. Throws a TypeError or a RangeError for
   * topics or options of another form.
   */
  subscribe<T = any>(topics: string | Iterable<string>, options?: SubscribeOptions): Subscription<T>;

  /**
   * Declare a method to serve, before or after `serve`. The answer is what `run` returns, or the CallError that it
   * throws; anything else that it throws is an `error` event, and answered with -32603. So is an answer that is no JSON or
   * is longer than the gateway takes: its caller gets -32603 with the outcome `unknown`. Throws a TypeError for a name or
   * a description that is no JSON.
   */
  method(name: string, run: (params: any, call: ServedCall) => unknown, options?: MethodOptions): this;

  /** Register the methods, which take streams too, now and for each new connection. `name` is needed if the gateway asks for no credentials. */
  serve(options?: { name?: string } & Wait): Promise<{ name: string; methods: string[] }>;

  addEventListener<K extends keyof ClientEvents>(
    type: K,
    listener: (event: ClientEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof ClientEvents>(
    type: K,
    listener: (event: ClientEvents[K]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
