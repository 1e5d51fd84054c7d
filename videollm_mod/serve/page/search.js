// Asking, searching, taking home.
"use strict";

const SMALL_WORDS = new Set("a an and are at did do does from had has have how in is it of on the there to was were what when where which who".split(" "));

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
    const all = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [], telling = all.filter((word) => !SMALL_WORDS.has(word));
    const words = telling.length ? telling : all;
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
