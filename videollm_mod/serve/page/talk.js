// Talking to the server: HTTP with a token, the WebSocket that comes back when it is lost, its messages. docs/serve.md.
"use strict";

async function api(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (S.token) headers.Authorization = `Bearer ${S.token}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    await login(Boolean(S.token));
    return api(path, options);
  }
  if (!answer.ok) {
    let message = `The server answered ${answer.status}.`;
    try { message = (await answer.json()).error.message; } catch { /* no JSON: the number must do */ }
    throw new Error(sentence(message));
  }
  return answer;
}

function login(wrong) {
  $("login-wrong").hidden = !wrong;
  $("token").value = "";
  $("login").showModal();
  return new Promise((done) => {
    $("login").addEventListener("close", () => {
      S.token = $("token").value.trim();
      sessionStorage.setItem("token", S.token);
      done();
    }, { once: true });
  });
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function connect() {
  clearTimeout(S.retry);
  const address = new URL("live", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.hash = "";
  const words = [PROTOCOL];
  if (S.token) words.push("token." + btoa(S.token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
  const socket = new WebSocket(address, words);
  S.socket = socket;
  socket.onopen = () => {
    const wish = { type: "open", version: VERSION, kept: $("show-kept").checked, after: S.last };
    if (S.stream) wish.stream = S.stream;
    if (S.stores) wish.store_frames = true;
    if (!S.stream && S.title) wish.title = S.title.slice(0, 200);
    socket.send(JSON.stringify(wish));
  };
  socket.onmessage = (message) => { if (socket === S.socket) hear(JSON.parse(message.data)); };
  socket.onclose = () => { if (socket === S.socket) lost(); };
}

function send(message) {
  if (S.socket && S.socket.readyState === WebSocket.OPEN && S.welcome) S.socket.send(JSON.stringify(message));
}

function lost() {
  S.welcome = null;
  enableAsk(false);
  if (S.ended) return;
  if (!S.lostAt) S.lostAt = performance.now();
  const wait = S.pause;
  S.pause = Math.min(S.pause * 2, 8000);
  setState("lost", "Connection lost");
  notice(`The connection was lost. Trying again in ${Math.max(1, Math.round(wait / 1000))} s; it goes on in the same stream.`,
    "Try now", connect);
  S.retry = setTimeout(connect, wait);
}

function hear(message) {
  ({
    welcome: onWelcome, delta: onDelta, event: onEvent, decision: onDecision, kept: onKept, meters: onMeters,
    state: onState, error: onError, closed: onClosed,
  }[message.type] || (() => {}))(message);
}

function onWelcome(message) {
  const again = Boolean(S.stream);
  S.welcome = message;
  S.stream = message.stream;
  S.pause = 500;
  notice(null);
  setState("live", S.paused ? "Paused" : "Watching");
  enableAsk(true);
  setLayers(message.routed);
  if (again && S.kind !== "address") {
    const seconds = S.lostAt ? ((performance.now() - S.lostAt) / 1000).toFixed(0) : 0;
    note(message.reopened
      ? "The server that watched was lost, and this goes on in a new one. It knows what was said last, but not what it saw."
      : `The connection was lost for ${seconds} s, and has come back.`);
  }
  S.lostAt = 0;
  if (again) S.tick = Math.max(S.tick, Math.floor(message.time * message.fps));
  for (const text of S.wishes.splice(0)) ask(text);
  startCapture();
}

function onError(message) {
  if (message.code === "full") {
    S.ended = true;
    setState("refused", "Server full");
    const wait = Math.ceil(message.retry_after || 30);
    notice(`${sentence(message.message)} There may be room in ${wait} s.`, "Try again", () => { S.ended = false; connect(); });
    return;
  }
  if (message.code === "ended" || message.code === "unknown_stream") {
    note("The stream has ended on the server. A new one begins.");
    S.stream = null;
    S.last = 0;
    S.pause = 500;
    return;
  }
  if (message.code === "taken") {
    S.ended = true;
    stopMedia();
    setState("refused", "Taken over");
    notice("This stream was taken up in another window.");
    return;
  }
  if (message.code === "too_fast" || message.code === "bad_frame") { S.droppedHere += 1; return; }
  notice(sentence(message.message));
}

function onClosed(message) {
  if (S.ended) return;
  finish(sentence(message.reason));
}

function onState(message) {
  const words = { connecting: "Connecting to the source", watching: "Watching", waiting: "Source lost", ended: "Source ended" };
  setState(message.state === "watching" ? "live" : message.state === "waiting" ? "lost" : "idle", words[message.state]);
  if (message.state === "waiting") notice(sentence(message.text) + ".");
  else notice(null);
}
