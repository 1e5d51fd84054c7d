// Decisions and words in; and going back to the picture of which something was said.
"use strict";

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
