// The live page: a picture goes out over the WebSocket a few times a second; decisions, words and kept tokens come back.
// Plain JavaScript, no build step, no other host. The messages are described in docs/serve.md.
"use strict";

const $ = (id) => document.getElementById(id);
const VERSION = 1;
const PROTOCOL = "videollm-mod.v1";
const LONG_SIDE = 640; // px of the pictures sent; the model looks at fewer
const QUALITY = 0.85; // of their JPEG
const BUFFERED = 512 * 1024; // bytes on their way, above which a picture is left out
const REMEMBER = { pictures: 1200, bytes: 64 * 2 ** 20 }; // of a live source, to go back to
const BARS = 80; // frames in the small chart

const S = {
  token: "", info: null, socket: null, welcome: null, stream: null, last: 0, // last: number of the newest event
  kind: null, // camera, screen, file, address
  media: null, objectUrl: null, timer: null, zero: 0, tick: -1, encoding: false,
  paused: false, ended: true, review: null, retry: null, pause: 500, lostAt: 0,
  kept: null, sentAt: new Map(), past: [], pastBytes: 0, droppedHere: 0, dropped: 0, wishes: [], stores: false,
  draft: null, questions: [], pictureTimer: null, captionTimer: null,
};
const canvas = document.createElement("canvas");

// -- talking to the server --------------------------------------------------------------------------------------------

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

// -- what to watch ----------------------------------------------------------------------------------------------------

async function useCamera() {
  if (!mayCapture()) return;
  try {
    const media = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "environment" }, audio: false });
    await useMedia("camera", media, "Camera");
  } catch (error) { notice(whyNot(error, "camera"), "Try again", useCamera); }
}

async function useScreen() {
  if (!mayCapture()) return;
  try {
    await useMedia("screen", await navigator.mediaDevices.getDisplayMedia({ video: true, audio: false }), "Screen");
  } catch (error) { notice(whyNot(error, "screen"), "Try again", useScreen); }
}

function mayCapture() {
  if (navigator.mediaDevices && navigator.mediaDevices.getUserMedia) return true;
  notice("Browsers give camera and screen only to pages that come over https or from this machine. A video file works here.");
  return false;
}

function whyNot(error, what) {
  return {
    NotAllowedError: `The ${what} was refused. Allow it for this page in your browser's address bar, then try again.`,
    NotFoundError: `There is no ${what} here. Plug one in, or choose a video file.`,
    NotReadableError: `The ${what} is in use by another program. Close that, then try again.`,
  }[error.name] || `The ${what} cannot be opened (${error.message || error.name}).`;
}

async function useMedia(kind, media, title) {
  begin(kind, title);
  S.media = media;
  media.getVideoTracks()[0].addEventListener("ended", () => { if (S.media === media) finish(`The ${kind} was switched off.`); });
  const video = $("video");
  video.srcObject = media;
  video.muted = true;
  await video.play();
  connect();
}

async function useFile(file) {
  begin("file", file.name);
  const video = $("video");
  S.objectUrl = URL.createObjectURL(file);
  video.srcObject = null;
  video.src = S.objectUrl;
  video.muted = true;
  try {
    await new Promise((done, failed) => { video.onloadeddata = done; video.onerror = failed; });
  } catch {
    finish(null);
    notice("The browser cannot play that file. MP4 (H.264) and WebM work everywhere.");
    return;
  }
  video.onerror = null;
  video.onended = () => setTimeout(() => { if (S.kind === "file" && !S.review) setState("idle", "The video has ended"); }, 800);
  connect();
}

async function useAddress(address) {
  try {
    const body = JSON.stringify({ source: address, store_frames: wantsStored() });
    const stream = await (await api("streams", { method: "POST", body })).json();
    begin("address", address);
    S.stream = stream.id;
    connect();
  } catch (error) { notice(error.message); }
}

const wantsStored = () => $("store").checked && !$("store-row").hidden;

function begin(kind, title) {
  stopMedia();
  notice(null);
  Object.assign(S, {
    kind, title, stream: null, last: 0, welcome: null, ended: false, paused: false, review: null, tick: -1, zero: 0,
    kept: null, past: [], pastBytes: 0, droppedHere: 0, dropped: 0, draft: null, questions: [], stores: wantsStored(), lostAt: 0,
  });
  S.sentAt.clear();
  bars.length = 0;
  $("timeline").replaceChildren();
  $("empty").hidden = false;
  $("found").hidden = true;
  $("welcome").hidden = true;
  $("bar").hidden = $("meters").hidden = $("badge").hidden = false;
  $("back").hidden = $("still").hidden = $("caption").hidden = true;
  $("video").style.visibility = "";
  $("pause").textContent = "Pause";
  $("pause").setAttribute("aria-pressed", "false");
  $("pause").disabled = kind === "address";
  const mp4 = document.querySelector("[data-format=mp4]");
  mp4.disabled = !S.stores;
  mp4.title = S.stores ? "" : "Only of streams whose pictures are kept on the server";
  setState("idle", "Connecting");
}

function stopMedia() {
  clearInterval(S.timer);
  clearInterval(S.pictureTimer);
  clearTimeout(S.retry);
  S.timer = S.pictureTimer = null;
  if (S.media) S.media.getTracks().forEach((track) => track.stop());
  S.media = null;
  const video = $("video");
  video.pause();
  video.onended = null;
  video.srcObject = null;
  video.removeAttribute("src");
  video.load();
  if (S.objectUrl) URL.revokeObjectURL(S.objectUrl);
  S.objectUrl = null;
  const socket = S.socket;
  S.socket = null;
  if (socket) socket.close();
}

function finish(why) {
  S.ended = true;
  stopMedia();
  S.welcome = null;
  enableAsk(false);
  $("welcome").hidden = false;
  $("bar").hidden = !S.stream;
  $("pause").disabled = true;
  $("meters").hidden = $("badge").hidden = $("caption").hidden = $("back").hidden = $("still").hidden = true;
  clearOverlay();
  setState("idle", "Ended");
  if (why) note(why);
}

async function stop() {
  if (S.ended) return;
  if (S.kind === "address") { try { await api(`streams/${S.stream}/end`, { method: "POST" }); } catch { /* it had ended */ } }
  else send({ type: "close" });
  finish("You ended the stream.");
}

// -- pictures out -----------------------------------------------------------------------------------------------------

function startCapture() {
  if (S.kind === "address") {
    clearInterval(S.pictureTimer);
    S.pictureTimer = setInterval(fetchPicture, 1000 / S.welcome.fps);
    return;
  }
  if (S.timer) return;
  if (!S.zero) S.zero = performance.now();
  if (S.kind === "file" && !S.paused) $("video").play();
  S.timer = setInterval(capture, Math.min(50, 250 / S.welcome.fps));
}

const now = () => (S.kind === "file" ? $("video").currentTime : (performance.now() - S.zero) / 1000);

function capture() {
  const video = $("video");
  if (!S.review) $("badge-text").textContent = `${S.kind === "file" ? "FILE" : "LIVE"}  ${clock(now())}`;
  if (!S.welcome || S.paused || S.review || S.encoding || video.readyState < 2 || !video.videoWidth) return;
  const fps = S.welcome.fps, tick = Math.floor(now() * fps + 1e-6);
  if (tick <= S.tick || !S.socket || S.socket.readyState !== WebSocket.OPEN) return;
  if (S.tick >= 0 && tick > S.tick + 1 && S.kind !== "file") S.droppedHere += tick - S.tick - 1;
  S.tick = tick;
  if (S.socket.bufferedAmount > BUFFERED) { S.droppedHere += 1; return; }
  const scale = Math.min(1, LONG_SIDE / Math.max(video.videoWidth, video.videoHeight));
  canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
  canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const time = tick / fps, began = performance.now();
  S.encoding = true;
  canvas.toBlob((picture) => {
    S.encoding = false;
    if (!picture || !S.welcome || S.socket.readyState !== WebSocket.OPEN) return;
    S.socket.send(new Blob([header(time), picture]));
    S.sentAt.set(time, began);
    if (S.kind !== "file") remember(time, picture);
  }, "image/jpeg", QUALITY);
}

function header(time) {
  const bytes = new DataView(new ArrayBuffer(12));
  [..."VMF1"].forEach((letter, place) => bytes.setUint8(place, letter.charCodeAt(0)));
  bytes.setFloat64(4, time, true);
  return bytes.buffer;
}

function remember(time, picture) {
  S.past.push({ time, picture });
  S.pastBytes += picture.size;
  while (S.past.length > REMEMBER.pictures || S.pastBytes > REMEMBER.bytes) S.pastBytes -= S.past.shift().picture.size;
}

async function fetchPicture() {
  if (S.encoding || S.review) return;
  S.encoding = true;
  try {
    const headers = S.token ? { Authorization: `Bearer ${S.token}` } : {};
    const answer = await fetch(`streams/${S.stream}/picture`, { headers });
    if (answer.ok && S.kind === "address") {
      const picture = await answer.blob();
      remember(S.watched || 0, picture);
      showStill(picture);
      $("badge-text").textContent = `LIVE  ${clock(S.watched || 0)}`;
    }
  } catch { /* the next one may come */ } finally { S.encoding = false; }
}

function showStill(picture) {
  const still = $("still"), old = still.src;
  still.src = URL.createObjectURL(picture);
  still.hidden = false;
  if (old.startsWith("blob:")) URL.revokeObjectURL(old);
}

function togglePause() {
  if (S.ended || S.kind === "address") return;
  S.paused = !S.paused;
  $("pause").textContent = S.paused ? "Go on" : "Pause";
  $("pause").setAttribute("aria-pressed", String(S.paused));
  if (S.paused) $("video").pause(); else if (!S.review) $("video").play();
  if (S.welcome) setState("live", S.paused ? "Paused" : "Watching");
}

// -- decisions and words in -------------------------------------------------------------------------------------------

const bars = [];

function onDecision(message) {
  S.watched = message.time;
  for (const [time, sent] of S.sentAt) {
    if (time > message.time) break;
    if (time === message.time) $("m-lag").textContent = Math.round(performance.now() - sent);
    S.sentAt.delete(time);
  }
  if (S.kind === "address") $("m-lag").textContent = Math.round(1000 * message.lag);
  bars.push({ wish: 1 - message.silence, speaks: message.speaks });
  if (bars.length > BARS) bars.shift();
  drawSpark();
}

function onDelta(message) {
  if (!S.draft) {
    S.draft = entry({ time: S.watched || 0, text: "", kind: "draft", question: S.questions[0] });
    S.draft.classList.add("draft");
    append(S.draft);
  }
  S.draft.querySelector(".words").textContent += message.text;
  follow();
}

function onEvent(message) {
  S.last = Math.max(S.last, message.id);
  if (S.draft) S.draft.remove();
  S.draft = null;
  if (message.kind === "answer") S.questions.shift();
  const item = entry(message);
  item.classList.add("new");
  append(item);
  follow();
  caption(message.text);
}

function onMeters(message) {
  S.dropped = message.dropped;
  $("m-fps").textContent = message.fps.toFixed(1);
  $("m-dropped").textContent = S.dropped + S.droppedHere;
  const share = message.kv_bytes_dense ? message.kv_bytes / message.kv_bytes_dense : 0;
  $("m-kv").textContent = bytes(message.kv_bytes);
  $("m-kv-of").textContent = message.kv_bytes_dense ? `of ${bytes(message.kv_bytes_dense)} (${Math.round(100 * share)} %)` : "";
  $("m-kv-bar").style.width = `${Math.min(100, 100 * share)}%`;
}

function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  let unit = 0;
  while (count >= 1000 && unit < 3) { count /= 1000; unit += 1; }
  return `${count < 10 && unit ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6)), part = Math.floor((Math.max(0, seconds) - whole) * 10 + 1e-6);
  const two = (number) => String(number).padStart(2, "0"), hours = Math.floor(whole / 3600);
  return `${hours ? hours + ":" : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${Math.max(0, part)}`;
}

function entry(event, words = []) {
  const item = document.createElement("li"), button = document.createElement("button");
  const time = document.createElement("time"), body = document.createElement("span"), text = document.createElement("span");
  item.className = event.kind;
  item.dataset.time = event.time;
  button.type = "button";
  time.textContent = clock(event.time);
  if (event.question) {
    const question = document.createElement("span");
    question.className = "question";
    question.textContent = event.question;
    body.append(question);
  }
  text.className = "words";
  text.append(...marked(event.text, words));
  body.append(text);
  button.append(time, body);
  button.addEventListener("click", () => jump(event.time, item));
  item.append(button);
  return item;
}

function marked(text, words) {
  if (!words.length) return [text];
  const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").slice(0, Math.max(3, word.length - 2)));
  return text.split(new RegExp(`\\b((?:${escaped.join("|")})\\w*)`, "gi")).map((part, place) => {
    if (place % 2 === 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

function note(text) {
  append(entry({ time: S.watched || 0, text, kind: "note" }));
  follow();
}

function append(item) {
  $("empty").hidden = true;
  $("timeline").append(item);
}

function atEnd() {
  const list = $("timeline");
  return list.scrollHeight - list.scrollTop - list.clientHeight < 140;
}

function follow() {
  const list = $("timeline");
  if (atEnd()) list.scrollTop = list.scrollHeight; else $("newest").hidden = false;
}

function caption(text) {
  if (S.review) return;
  $("caption").textContent = text;
  $("caption").hidden = !text;
  clearTimeout(S.captionTimer);
  S.captionTimer = setTimeout(() => { $("caption").hidden = true; }, 6000);
}

function setState(state, text) {
  document.body.dataset.state = state;
  $("status-text").textContent = text;
}

function notice(text, action, then) {
  $("notice").hidden = !text;
  $("notice-text").textContent = text || "";
  $("notice-action").hidden = !action;
  $("notice-action").textContent = action || "";
  $("notice-action").onclick = () => { notice(null); then(); };
}

// -- going back -------------------------------------------------------------------------------------------------------

function jump(time, item) {
  document.querySelectorAll("li.here").forEach((other) => other.classList.remove("here"));
  if (S.ended) return;
  const video = $("video");
  if (S.kind === "file") {
    if (!S.review) S.review = { now: video.currentTime };
    video.pause();
    video.currentTime = time;
  } else {
    let best = null;
    for (const one of S.past) if (!best || Math.abs(one.time - time) < Math.abs(best.time - time)) best = one;
    if (!best || Math.abs(best.time - time) > 3) { notice("The picture of that time is no longer here."); return; }
    S.review = S.review || {};
    showStill(best.picture);
    video.style.visibility = "hidden";
  }
  if (item) item.classList.add("here");
  clearOverlay();
  $("caption").textContent = item ? item.querySelector(".words").textContent : "";
  $("caption").hidden = !item;
  clearTimeout(S.captionTimer);
  $("badge").classList.add("past");
  $("badge-text").textContent = `BACK AT  ${clock(time)}`;
  $("back").hidden = false;
}

function backToNow() {
  if (!S.review) return;
  const video = $("video");
  if (S.kind === "file") video.currentTime = S.review.now;
  if (S.kind !== "address") $("still").hidden = true;
  S.review = null;
  video.style.visibility = "";
  if (!S.paused && S.kind !== "address") video.play();
  document.querySelectorAll("li.here").forEach((other) => other.classList.remove("here"));
  $("badge").classList.remove("past");
  $("back").hidden = $("caption").hidden = true;
}

// -- kept tokens over the picture -------------------------------------------------------------------------------------

function setLayers(routed) {
  S.layers = routed;
  $("layer").max = routed.length;
  $("layer-row").hidden = !routed.length;
  nameLayer();
}

function nameLayer() {
  const place = Number($("layer").value);
  const name = place ? String(S.layers[place - 1]) : "all";
  $("layer-name").textContent = name;
  $("layer").setAttribute("aria-valuetext", place ? `layer ${name}` : "all routed layers");
}

function onKept(message) {
  const [h, w] = S.welcome.grid;
  const layers = new Map();
  for (const [layer, packed] of Object.entries(message.layers)) {
    const raw = atob(packed);
    layers.set(Number(layer), Array.from({ length: 1 + h * w }, (_, bit) => (raw.charCodeAt(bit >> 3) >> (7 - (bit & 7))) & 1));
  }
  S.kept = { time: message.time, layers };
  drawOverlay();
}

function shownPicture() {
  const video = $("video"), still = $("still");
  if (!still.hidden && still.naturalWidth) return [still.naturalWidth, still.naturalHeight];
  return video.videoWidth ? [video.videoWidth, video.videoHeight] : null;
}

function clearOverlay() {
  const layer = $("overlay");
  layer.getContext("2d").clearRect(0, 0, layer.width, layer.height);
}

function drawOverlay() {
  const layer = $("overlay"), box = $("stage").getBoundingClientRect(), dense = window.devicePixelRatio || 1;
  layer.width = Math.round(box.width * dense);
  layer.height = Math.round(box.height * dense);
  const size = shownPicture();
  if (!size || !S.kept || !S.welcome || S.review || !$("show-kept").checked) return;
  const pen = layer.getContext("2d");
  const scale = Math.min(layer.width / size[0], layer.height / size[1]);
  const wide = size[0] * scale, tall = size[1] * scale, left = (layer.width - wide) / 2, top = (layer.height - tall) / 2;
  // the model's view is letterboxed: a square around the centre, as long as the picture's longer side
  const side = Math.max(wide, tall), x0 = (layer.width - side) / 2, y0 = (layer.height - side) / 2;
  const [h, w] = S.welcome.grid, place = Number($("layer").value);
  const chosen = place ? [S.kept.layers.get(S.layers[place - 1])] : [...S.kept.layers.values()];
  if (!chosen.length || !chosen[0]) return;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, wide, tall);
  pen.clip();
  for (let cell = 0; cell < h * w; cell += 1) {
    const share = chosen.reduce((sum, bits) => sum + bits[1 + cell], 0) / chosen.length;
    const x = x0 + (cell % w) * side / w, y = y0 + Math.floor(cell / w) * side / h;
    pen.fillStyle = `rgb(4 12 12 / ${0.66 * (1 - share)})`;
    pen.fillRect(x, y, side / w + 0.5, side / h + 0.5);
    if (share > 0) {
      pen.strokeStyle = `rgb(94 234 212 / ${0.35 + 0.65 * share})`;
      pen.lineWidth = 2 * dense;
      pen.strokeRect(x + dense, y + dense, side / w - 2 * dense, side / h - 2 * dense);
    }
  }
  pen.restore();
  const summary = chosen.reduce((sum, bits) => sum + bits[0], 0);
  const kept = chosen.reduce((sum, bits) => sum + bits.reduce((a, b) => a + b, 0), 0) / chosen.length;
  const words = `${place ? `layer ${S.layers[place - 1]}` : "all routed layers"}: ${Math.round(kept)} of ${1 + h * w} tokens` +
    ` · summary ${summary ? "kept" : "dropped"}`;
  pen.font = `${12 * dense}px ${getComputedStyle(document.body).getPropertyValue("--mono") || "monospace"}`;
  const width = pen.measureText(words).width + 20 * dense;
  pen.fillStyle = "rgb(0 0 0 / .66)";
  pen.fillRect(layer.width - width, layer.height - 26 * dense, width, 26 * dense);
  pen.fillStyle = "#b9f3ea";
  pen.fillText(words, layer.width - width + 10 * dense, layer.height - 9 * dense);
}

function drawSpark() {
  const chart = $("spark"), dense = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  chart.width = Math.round((chart.clientWidth || 320) * dense);
  chart.height = Math.round(36 * dense);
  const pen = chart.getContext("2d"), step = chart.width / BARS;
  bars.forEach((bar, place) => {
    const tall = Math.max(1.5 * dense, bar.wish * chart.height);
    pen.fillStyle = style.getPropertyValue(bar.speaks ? "--accent" : "--soft");
    pen.globalAlpha = bar.speaks ? 1 : 0.45;
    pen.fillRect(chart.width - (bars.length - place) * step, chart.height - tall, Math.max(1, step - dense), tall);
  });
  if (!S.welcome) return;
  pen.globalAlpha = 0.6;
  pen.fillStyle = style.getPropertyValue("--soft");
  pen.fillRect(0, chart.height * S.welcome.threshold, chart.width, dense);
}

// -- asking, searching, taking home -----------------------------------------------------------------------------------

function enableAsk(on) {
  $("ask").disabled = $("ask-send").disabled = !on;
}

function ask(text) {
  S.questions.push(text);
  send({ type: "ask", text });
}

async function search(text) {
  const found = $("found");
  if (!text.trim()) { found.hidden = true; return; }
  try {
    const place = S.stream ? `&stream=${encodeURIComponent(S.stream)}` : "";
    const hits = (await (await api(`search?q=${encodeURIComponent(text)}${place}`)).json()).events;
    found.hidden = false;
    found.replaceChildren(hits.length ? `${hits.length} found, best first. ` : "Nothing was said with these words. ");
    const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
    for (const hit of hits.slice(0, 5)) {
      const list = document.createElement("ol");
      list.className = "timeline hits";
      list.append(entry(hit.event, words));
      found.append(list);
    }
    if (hits.length && !S.ended && hits[0].stream === S.stream) {
      const item = [...$("timeline").children].find((one) => Number(one.dataset.time) === hits[0].event.time);
      jump(hits[0].event.time, item);
      if (item) item.scrollIntoView({ block: "center" });
    }
  } catch (error) { notice(error.message); }
}

async function download(format) {
  $("export").open = false;
  if (!S.stream) return;
  try {
    const blob = await (await api(`streams/${S.stream}/export/${format}`)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `narration-${S.stream.slice(0, 8)}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) { notice(error.message); }
}

// -- buttons and keys -------------------------------------------------------------------------------------------------

$("use-camera").onclick = useCamera;
$("use-screen").onclick = useScreen;
$("use-file").onclick = () => $("file").click();
$("file").onchange = () => { if ($("file").files[0]) useFile($("file").files[0]); $("file").value = ""; };
$("use-address").onclick = () => { $("address-form").hidden = !$("address-form").hidden; $("address").focus(); };
$("address-form").onsubmit = (event) => { event.preventDefault(); useAddress($("address").value.trim()); };
$("pause").onclick = togglePause;
$("stop").onclick = stop;
$("back").onclick = backToNow;
$("newest").onclick = () => { $("timeline").scrollTop = $("timeline").scrollHeight; $("newest").hidden = true; };
$("timeline").onscroll = () => { if (atEnd()) $("newest").hidden = true; };
$("notice-close").onclick = () => notice(null);
$("show-kept").onchange = () => { send({ type: "show", kept: $("show-kept").checked }); if (!$("show-kept").checked) clearOverlay(); else drawOverlay(); };
$("layer").oninput = () => { nameLayer(); drawOverlay(); };
$("ask-form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("ask").value.trim();
  if (!text) return;
  ask(text);
  $("ask").value = "";
};
$("search-form").onsubmit = (event) => { event.preventDefault(); search($("search").value); };
$("search").oninput = () => { if (!$("search").value) $("found").hidden = true; };
document.querySelectorAll("[data-format]").forEach((button) => { button.onclick = () => download(button.dataset.format); });
window.addEventListener("resize", drawOverlay);

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], input[type=search], input[type=password]");
  if (event.key === "Escape") { if (typing) event.target.blur(); else if ($("export").open) $("export").open = false; else backToNow(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("login").open) return;
  const pressed = event.key.toLowerCase();
  if (pressed === " " && !event.target.matches("button, summary, input")) { event.preventDefault(); togglePause(); }
  else if (pressed === "/") { event.preventDefault(); $("search").focus(); }
  else if (pressed === "a") { event.preventDefault(); $("ask").focus(); }
  else if (pressed === "k") $("show-kept").click();
  else if ((pressed === "arrowleft" || pressed === "arrowright") && event.target !== $("layer") && S.layers) {
    $("layer").value = Number($("layer").value) + (pressed === "arrowright" ? 1 : -1);
    $("layer").oninput();
  }
});

(async () => {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) history.replaceState(null, "", location.pathname + location.search); // not in the history, nor on a screen
  S.token = given || sessionStorage.getItem("token") || "";
  if (given) sessionStorage.setItem("token", given);
  try {
    S.info = await (await api("info")).json();
    $("model").textContent = `model ${S.info.model}, ${S.info.fps} frames/s`;
    $("ask").maxLength = S.info.question_characters;
    $("store-row").hidden = !S.info.store_frames;
    $("use-address").disabled = !S.info.sources;
    if (!S.info.sources) $("use-address").title = "This server was started without --allow-source";
    setState("idle", "Ready");
  } catch (error) {
    setState("lost", "Server not reached");
    notice(`The server cannot be reached. ${error.message}`, "Try again", () => location.reload());
  }
})();
