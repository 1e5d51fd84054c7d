// What is watched: camera, screen, file or address; begun and ended.
"use strict";

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
  if (!$("welcome").hidden) return; // it has ended; one that was refused has not
  if (S.kind === "address") { try { await api(`streams/${S.stream}/end`, { method: "POST" }); } catch { /* it had ended */ } }
  else send({ type: "close" });
  finish("You ended the stream.");
}
