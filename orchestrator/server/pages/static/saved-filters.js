// Filters of a list under names of one's own, kept in this browser alone.
//
// What is kept may have been written by anybody who can run script under this origin, or by an older version: all of it
// is read as text, and of a query only the fields that the list's own form has. A link is always this list's path.
"use strict";

(() => {
  const part = document.querySelector("[data-saved-filters]");
  const form = document.querySelector("form.filters");
  const PATH = location.pathname;
  if (!part || !form || !/^\/ui\/[a-z]+$/.test(PATH)) return;

  const KEY = `orchestrator.filters:${PATH}`;
  const MOST = 50;
  const LONGEST_NAME = 60;
  const LONGEST_VALUE = 500;

  const list = part.querySelector("ul");
  const naming = part.querySelector("form");
  const field = part.querySelector("input");
  const status = part.querySelector("[role=status]");
  const fields = new Set([...form.elements].map((each) => each.name).filter(Boolean));

  // The query that the form would ask, whatever else is in `entries`; the order of the fields does not matter.
  const queryOf = (entries) => {
    const query = new URLSearchParams();
    for (const [name, value] of entries) {
      const text = String(value).trim();
      if (fields.has(name) && !query.has(name) && text && text.length <= LONGEST_VALUE) query.set(name, text);
    }
    query.sort();
    return query.toString();
  };

  const cleaned = (each) => {
    if (typeof each?.name !== "string" || typeof each.query !== "string") return null;
    const name = each.name.trim().slice(0, LONGEST_NAME);
    const query = queryOf(new URLSearchParams(each.query));
    return name && query ? { name, query } : null;
  };

  const kept = () => {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(found) ? found.map(cleaned).filter(Boolean).slice(0, MOST) : [];
    } catch {
      return [];
    }
  };

  const keep = (filters) => {
    try {
      localStorage.setItem(KEY, JSON.stringify(filters));
      return true;
    } catch {
      return false;
    }
  };

  const made = (tag, words, attributes) => {
    const element = document.createElement(tag);
    element.textContent = words;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  const shown = ({ name, query }) => {
    const present = query === queryOf(new URLSearchParams(location.search));
    const link = made("a", name, { href: `${PATH}?${query}`, ...(present ? { "aria-current": "true" } : {}) });
    const button = made("button", "×", { type: "button", "aria-label": `Remove the saved filter ${name}` });
    button.title = "Remove";
    button.addEventListener("click", () => remove(name));
    const item = document.createElement("li");
    item.append(link, button);
    return item;
  };

  const show = () => list.replaceChildren(...kept().map(shown));

  const remove = (name) => {
    const place = kept().findIndex((each) => each.name === name);
    const done = keep(kept().filter((each) => each.name !== name));
    show();
    (list.querySelectorAll("button")[place] ?? [...list.querySelectorAll("button")].pop() ?? field).focus();
    status.textContent = done ? `${name} is removed.` : "This browser does not let it be removed.";
  };

  const save = (name, query) => {
    const others = kept();
    const same = others.findIndex((each) => each.name === name);
    if (!name) return "Give it a name first.";
    if (!query) return "Nothing is filtered here: fill in a field first.";
    if (same < 0 && others.length >= MOST) return `There are ${MOST} already: remove one first.`;
    others.splice(same < 0 ? others.length : same, same < 0 ? 0 : 1, { name, query });
    if (!keep(others)) return "This browser keeps nothing for this site.";
    field.value = "";
    show();
    return same < 0 ? `${name} is saved in this browser.` : `${name} is replaced.`;
  };

  naming.addEventListener("submit", (event) => {
    event.preventDefault();
    status.textContent = save(field.value.trim().slice(0, LONGEST_NAME), queryOf(new FormData(form)));
  });
  addEventListener("storage", (event) => {
    if (event.key === KEY || event.key === null) show();
  });

  show();
  part.hidden = false;
})();
