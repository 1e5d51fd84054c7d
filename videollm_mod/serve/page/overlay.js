// Kept tokens over the picture, layer by layer, and the small chart of how much the model wanted to speak.
"use strict";

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
  $("stage").classList.remove("legend");
}

function drawOverlay() {
  const layer = $("overlay"), box = $("stage").getBoundingClientRect(), dense = window.devicePixelRatio || 1;
  layer.width = Math.round(box.width * dense);
  layer.height = Math.round(box.height * dense);
  $("stage").classList.remove("legend");
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
  $("stage").classList.add("legend");
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
