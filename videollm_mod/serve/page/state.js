// The page's state, which all its scripts share: index.html loads them in order, and there is no build step.
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
