// Runs the page's script in Node against a real server, with as much of a browser as it asks for: where no browser is
// installed, this still shows that script and server understand each other. Prints what came to be seen as JSON.
//     node --experimental-websocket tests/page_in_node.mjs http://127.0.0.1:8000/ FOLDER-OF-JPEGS
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import vm from "node:vm";

const [url, folder] = process.argv.slice(2);
const page = join(dirname(fileURLToPath(import.meta.url)), "..", "videollm_mod", "serve", "page");
const html = readFileSync(join(page, "index.html"), "utf8");
const pictures = readdirSync(folder).sort().map((name) => readFileSync(join(folder, name)));
const RealSocket = globalThis.WebSocket;

class Element {
  constructor(name = "") {
    Object.assign(this, { name, children: [], dataset: {}, style: {}, listeners: {}, className: "", value: "", src: "",
      hidden: false, disabled: false, checked: false, text: "", parent: null, drawn: [], scrollHeight: 0, scrollTop: 0,
      clientHeight: 0, clientWidth: 300, width: 0, height: 0, max: 0, open: false });
    this.classList = {
      add: (name) => { this.className += ` ${name}`; },
      remove: (name) => { this.className = this.className.split(" ").filter((one) => one !== name).join(" "); },
    };
  }
  get textContent() { return this.text + this.children.map((one) => (typeof one === "string" ? one : one.textContent)).join(""); }
  set textContent(text) { this.text = String(text); this.children = []; }
  append(...items) { for (const item of items) { if (item instanceof Element) item.parent = this; this.children.push(item); } }
  replaceChildren(...items) { this.text = ""; this.children = []; this.append(...items); }
  remove() { if (this.parent) this.parent.children = this.parent.children.filter((one) => one !== this); }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  setAttribute(name, value) { this[name] = value; }
  removeAttribute(name) { delete this[name]; }
  querySelector(selector) {
    for (const one of this.children) {
      if (!(one instanceof Element)) continue;
      if (one.className.split(" ").includes(selector.slice(1))) return one;
      const inner = one.querySelector(selector);
      if (inner) return inner;
    }
    return null;
  }
  matches() { return false; }
  getBoundingClientRect() { return { width: 640, height: 360 }; }
  getContext() {
    const drawn = this.drawn;
    return new Proxy({}, {
      get: (_, name) => (name === "measureText" ? () => ({ width: 90 }) : (...values) => { drawn.push([name, ...values]); }),
      set: (_, name, value) => { drawn.push([name, value]); return true; },
    });
  }
  toBlob(done) { done(new Blob([pictures[taken++ % pictures.length]])); }
  click() { if (this.onclick) this.onclick(); this.clicked = true; }
  focus() {} blur() {} pause() {} load() {} showModal() { this.shown = true; } scrollIntoView() {}
  async play() {}
}

let taken = 0;
const ids = Object.fromEntries([...html.matchAll(/ id="([^"]+)"/g)].map(([, id]) => [id, new Element(id)]));
Object.assign(ids.video, { readyState: 4, videoWidth: 448, videoHeight: 448, currentTime: 0 });
const formats = ["srt", "jsonl", "mp4"].map((format) => { const one = new Element("button"); one.dataset.format = format; return one; });
const body = new Element("body"), links = [];
const document = {
  body, documentElement: new Element("html"), addEventListener: () => {},
  getElementById: (id) => { if (!ids[id]) throw new Error(`index.html has no ${id}`); return ids[id]; },
  createElement: (name) => { const made = new Element(name); if (name === "a") links.push(made); return made; },
  querySelector: () => formats[2],
  querySelectorAll: (selector) => (selector === "[data-format]" ? formats : []),
};
const track = { addEventListener: () => {}, stop: () => {} };
const media = { getVideoTracks: () => [track], getTracks: () => [track] };
const address = Object.assign(new URL(url), { reload: () => {} });
const world = {
  document, location: address, history: { replaceState: () => {} }, console, URL: class extends URL { static createObjectURL() { return "blob:x"; } static revokeObjectURL() {} },
  sessionStorage: { getItem: () => null, setItem: () => {} }, navigator: { mediaDevices: { getUserMedia: async () => media } },
  getComputedStyle: () => ({ getPropertyValue: () => "" }), fetch: (path, options) => fetch(new URL(path, url), options),
  WebSocket: class extends RealSocket { get bufferedAmount() { return 0; } }, performance, setTimeout, clearTimeout, setInterval, clearInterval,
  Blob, DataView, ArrayBuffer, URLSearchParams, atob, btoa, devicePixelRatio: 1, addEventListener: () => {},
  matchMedia: () => ({ addEventListener: () => {} }),
};
world.window = world;
const scripts = [...html.matchAll(/<script src="([^"]+)" defer>/g)].map(([, name]) => readFileSync(join(page, name), "utf8"));
vm.runInNewContext(`${scripts.join("\n")}\n;globalThis.S = S;`, world);

const seen = { states: [] };
const until = async (check, what, seconds = 600) => {
  const end = performance.now() + 1000 * seconds;
  for (;;) {
    const state = ids["status-text"].textContent;
    if (seen.states.at(-1) !== state) seen.states.push(state);
    const value = check();
    if (value) return value;
    if (performance.now() > end) throw new Error(`${what}: ${JSON.stringify(seen)} ${ids["notice-text"].textContent}`);
    await new Promise((done) => { setTimeout(done, 20); });
  }
};
const said = (kind) => ids.timeline.children.filter((one) => one.className.split(" ").includes(kind));

await until(() => ids["status-text"].textContent === "Ready", "ready");
ids["show-kept"].checked = true;
ids["use-camera"].click();
await until(() => body.dataset.state === "live", "live");
await until(() => said("narration").length >= 2, "narration");
await until(() => world.S.kept, "kept tokens");
seen.overlays = [0, 1, 2].map((place) => {
  ids.overlay.drawn.length = 0;
  ids.layer.value = String(place);
  ids.layer.oninput();
  return JSON.stringify(ids.overlay.drawn.filter(([name]) => name === "fillStyle" || name === "fillText"));
});
ids.ask.value = "How many things are there?";
ids["ask-form"].onsubmit({ preventDefault: () => {} });
await until(() => said("answer").length, "answer");
seen.answer = said("answer")[0].textContent;
const stream = world.S.stream, watched = world.S.watched;
world.S.socket.close();
await until(() => body.dataset.state === "lost", "lost");
seen.notice = ids["notice-text"].textContent;
await until(() => body.dataset.state === "live" && world.S.watched > watched, "live again");
seen.same = world.S.stream === stream;
await until(() => ids["m-kv-of"].textContent.includes("%"), "meters");
seen.meters = [ids["m-fps"].textContent, ids["m-lag"].textContent, ids["m-kv"].textContent, ids["m-kv-of"].textContent];
ids.search.value = seen.words = said("narration")[0].querySelector(".words").textContent;
ids["search-form"].onsubmit({ preventDefault: () => {} });
await until(() => !ids.found.hidden && ids.found.textContent.includes("found"), "search");
await until(() => world.S.review, "jump");
ids.back.onclick();
seen.back = world.S.review === null && !ids.back.hidden === false;
formats[0].click();
await until(() => links.some((link) => link.clicked), "export");
seen.saved = links.at(-1).download;
seen.narration = said("narration").map((one) => [Number(one.dataset.time), one.querySelector(".words").textContent]);
seen.stream = stream;
ids.stop.click();
await until(() => ids["status-text"].textContent === "Ended", "end");
console.log(JSON.stringify(seen));
process.exit(0);
