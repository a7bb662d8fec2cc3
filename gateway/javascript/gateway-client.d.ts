/** A client of aisopod-gateway for browsers and Node. Times are milliseconds unless their name says otherwise. */

/** What JSON can hold; objects of your own types fit too. */
export type Params = object | readonly unknown[] | null;

export type Outcome = "not_delivered" | "unknown";

/**
 * A request has failed: by the gateway, by the node that was called, or in this client.
 *
 * `name` is the error's name in the gateway's table (`timeout`, `node_lost`, …), or `error` where a node has none. This
 * client's own have the `code` -32000: `connection_lost`, `closed`, `message_too_big`.
 *
 * A method that is served throws one to answer with an error of its own: `new CallError(7, "out of paper", {tray: 2})`.
 */
export class CallError extends Error {
  constructor(code: number, message: string, data?: unknown);
  readonly code: number;
  readonly data: unknown;
  /** Whether the same request may succeed later. */
  readonly temporary: boolean;
  /** `not_delivered`: nobody has run it. `unknown`: it may have been run. null: nothing is said about it. */
  readonly outcome: Outcome | null;
  /** How long to wait before the same request is sent again. */
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

/** `waiting`: the connection is lost, and the next attempt comes after a pause. */
export type State = "connecting" | "open" | "waiting" | "closed";

/** `code` and `reason` say how the last connection ended; `pause` is there while waiting. */
export interface StateDetail {
  state: State;
  code?: number;
  reason?: string;
  pause?: number;
}

/** The params of `gateway.draining`. */
export interface Draining {
  deadlineMs: number;
  reconnectAfterMs: number;
}

export interface ClientEvents {
  state: CustomEvent<StateDetail>;
  /** The gateway is about to close. What is asked from now on waits for the next connection. */
  draining: CustomEvent<Draining>;
  /** What nobody waits for: a method or a progress callback of yours that threw, a refused token or registration. */
  error: CustomEvent<unknown>;
}

/** The part of the WebSocket interface that is used: that of browsers, and of the package ws. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly bufferedAmount: number;
  addEventListener(type: "message" | "close" | "error", listener: (event: any) => void): void;
  send(text: string): void;
  close(code?: number): void;
}

export interface ClientOptions {
  /**
   * A token or JSON Web Token, without the word Bearer. A function is asked at each connect, and again before the token
   * expires; it has 30 s. It goes to the gateway in the first message, and never into the address.
   */
  token?: string | null | (() => string | null | Promise<string | null>);
  /** Come back after a lost connection; true by default. Never after a close code that says to stay away. */
  reconnect?: boolean;
  /** `globalThis.WebSocket` by default; in a Node that has none, the one of the package ws. */
  WebSocket?: new (url: string) => WebSocketLike;
  /** From 0 to below 1: the chance in pauses. */
  random?: () => number;
}

export interface Wait {
  /** How long to wait; 30,000 by default. A CallError `timeout` then. */
  timeout?: number;
  /** Rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface CallOptions extends Wait {
  /** Call this node, whichever else has the method. The gateway then gives it the same time, else `callTimeoutMs`. */
  node?: string;
  /** Within the timeout send it again, after a pause, where it was refused for a while and certainly not run. */
  retry?: boolean;
  /** Gets what the node reports, in order, before the result. */
  onProgress?: (value: any) => void;
}

/** A message of a topic. */
export interface GatewayEvent<T = any> {
  gap?: undefined;
  topic: string;
  /** From 1 on, in each epoch. */
  offset: number;
  epoch: string;
  /** RFC 3339 in UTC, milliseconds. */
  time: string;
  data: T;
}

/** Messages of this topic are gone: read anew what they would have told. The next ones follow. */
export interface Gap {
  gap: true;
  topic: string;
}

export interface SubscribeOptions {
  /** The last message that was seen, by topic: what was missed since comes first, or else a gap. */
  since?: Record<string, { epoch: string; offset: number }>;
  /** Ends it: the reader gets the signal's reason. */
  signal?: AbortSignal;
  /** How many messages may wait for their reader, 1,000 by default; of those beyond, a gap tells. */
  buffer?: number;
}

/** Messages and gaps in order, for one reader. It ends with the loop that reads it, or with the client. */
export interface Subscription<T = any> extends AsyncIterableIterator<GatewayEvent<T> | Gap> {
  /** Resolves when the gateway has taken the subscription for the first time. */
  readonly ready: Promise<void>;
  return(value?: any): Promise<IteratorResult<GatewayEvent<T> | Gap>>;
}

/** What a served method gets beside its params. */
export interface ServedCall {
  /** The name of the caller's principal; null in a call of the gateway itself, and in a notification of it. */
  readonly caller: string | null;
  readonly timeLeftMs: number | null;
  /** Aborted when nobody waits any more: cancelled, out of time, the connection lost. */
  readonly signal: AbortSignal;
  /** Report to the caller. Does nothing once the call is over, and for a notification. */
  progress(value: unknown): void;
}

export interface MethodOptions {
  summary?: string;
  /** A JSON Schema of the params, by custom. */
  params?: unknown;
}

export class GatewayClient extends EventTarget {
  /** Does not connect yet: see `open`. */
  constructor(url: string | URL, options?: ClientOptions);

  readonly state: State;
  /** Of the last connection; null before the first. */
  readonly welcome: Welcome | null;
  readonly principal: Principal | null;

  /**
   * Connect, and stay connected. Resolves when the connection is open; a failed attempt is followed by others, and the
   * end of this wait is not the end of them. Rejects with a CallError where the client is closed instead. Again is
   * harmless: while the client waits for its next attempt, that comes at once. A closed client can be opened again.
   */
  open(options?: Wait): Promise<Welcome>;

  /** End all: calls in flight fail, subscriptions end. The gateway has `timeout` (2,000) to answer. May be repeated. */
  close(options?: { timeout?: number }): Promise<void>;

  /**
   * Call a method of the gateway or of a node. Without a connection, and beyond the gateway's `maxInFlight`, it waits
   * for its turn within the timeout. Rejects with a CallError; its `outcome` is `unknown` where the connection was lost
   * before the answer. A signal cancels the call at the node too. TypeError for params that are no JSON.
   */
  call<T = any>(method: string, params?: Params, options?: CallOptions): Promise<T>;

  /** Ask for nothing back. Throws a CallError where there is no connection. */
  notify(method: string, params?: Params): void;

  /** Send requests in one message: their results or CallErrors, in the order asked. */
  batch(calls: readonly (readonly [method: string, params?: Params])[], options?: Wait): Promise<any[]>;

  publish(topic: string, data: unknown, options?: CallOptions): Promise<{ offset: number; epoch: string }>;

  /**
   * Messages of topics and patterns (`a.*` one part, `a.>` the rest), from now on. After a reconnect it goes on where
   * it was; where that cannot be, it says so with a gap.
   */
  subscribe<T = any>(topics: string | Iterable<string>, options?: SubscribeOptions): Subscription<T>;

  /** Declare a method to serve, before or after `serve`. What `run` returns, or throws as a CallError, is answered. */
  method(name: string, run: (params: any, call: ServedCall) => unknown, options?: MethodOptions): this;

  /** Register the methods, again after each reconnect. `name` is needed where the gateway asks for no credentials. */
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
