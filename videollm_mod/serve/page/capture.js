// Pictures out: a few a second over the WebSocket as JPEG; those of a source that the server watches come in.
"use strict";

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
  const watched = document.body.dataset.state === "live" || S.kind === "file";
  if (!S.review) $("badge-text").textContent = `${watched ? S.kind === "file" ? "FILE" : "LIVE" : "NOT WATCHED"}  ${clock(now())}`;
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
