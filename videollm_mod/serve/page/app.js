// Buttons and keys, and how the page begins.
"use strict";

$("use-camera").onclick = useCamera;
$("use-screen").onclick = useScreen;
$("use-file").onclick = () => $("file").click();
$("file").onchange = () => { if ($("file").files[0]) useFile($("file").files[0]); $("file").value = ""; };
$("use-address").onclick = () => {
  if (S.info && !S.info.sources) { notice("This server watches no addresses: it was started without --allow-source."); return; }
  $("address-form").hidden = !$("address-form").hidden;
  $("address").focus();
};
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
window.addEventListener("resize", () => { drawOverlay(); drawSpark(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSpark);

document.addEventListener("click", (event) => { if (!$("export").contains(event.target)) $("export").open = false; });

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
    setState("idle", "Ready");
  } catch (error) {
    setState("lost", "Server not reached");
    notice(`The server cannot be reached. ${error.message}`, "Try again", () => location.reload());
  }
})();
