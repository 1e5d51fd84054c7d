// The OpenAPI description as a list, without anything from another host.
"use strict";

(async () => {
  const api = await (await fetch("openapi.json")).json();
  const place = document.getElementById("routes"), groups = new Map();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, route] of Object.entries(verbs)) {
      const tag = (route.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ path, verb, route });
    }
  }
  for (const [tag, routes] of groups) {
    const title = document.createElement("h2");
    title.textContent = tag;
    place.append(title);
    for (const { path, verb, route } of routes) {
      const card = document.createElement("article"), name = document.createElement("span");
      const code = document.createElement("code"), about = document.createElement("p");
      name.className = "verb";
      name.textContent = verb.toUpperCase();
      code.textContent = path;
      about.textContent = route.description || route.summary || "";
      card.append(name, code, about);
      place.append(card);
    }
  }
})();
