"use strict";

// The token view: responses as heat maps. Only responses near the viewport hold elements for their tokens.

let view = null;

function showTokens(data) {
  const { columns, responses, texts } = data;
  const byId = (id) => document.getElementById(id);
  const kinds = ["run", "step", "side", "prompt"].filter(byId);
  const filters = Object.fromEntries([...kinds, "find"].map((name) => [name, byId(name)]));
  const coloured = columns.map((column, number) => number).filter((number) => columns[number].coloured);
  const cards = [];
  let chosen = coloured[0];

  // How a value is painted: a class for the colour, a share of it.
  function tint(column, value) {
    if (!column) return { tone: "", share: 0 };
    if (value === null || value === undefined || Number.isNaN(value)) return { tone: "none", share: 0 };
    if (column.kind === "labels") return { tone: `label c${value % 8}`, share: 1 };
    if (typeof value === "string") return { tone: "odd", share: 1 };
    if (column.kind === "constant" || column.limit === column.neutral) return { tone: "", share: 0 };
    const share = Math.max(-1, Math.min(1, (value - column.neutral) / (column.limit - column.neutral)));
    const tone = column.kind === "sequential" ? "amount" : share > 0 ? "above" : "below";
    return { tone, share: Math.abs(share) };
  }

  function paint(target, kind, column, value) {
    const { tone, share } = tint(column, value);
    target.className = `${kind} ${tone}`;
    // The square root lets small values show; the legend is painted by the same rule.
    target.style.setProperty("--strength", `${Math.round(100 * Math.sqrt(share))}%`);
  }

  // Where the response has no such column at all, nothing is marked: its heading says so.
  function paintToken(span, card, place) {
    const values = card.response.values[chosen];
    const kind = card.response.changed?.[place] ? "t changed" : "t";
    if (values && !(data.hidden?.(card.response, place))) paint(span, kind, columns[chosen], values[place]);
    else paint(span, kind);
  }

  function valueOf(response, number, token) {
    const value = response.values[number]?.[token] ?? null;
    if (Number.isNaN(value)) return null;
    if (data.packed && value !== null) return Number(value.toPrecision(3));
    return columns[number].kind === "labels" && value !== null ? columns[number].labels[value] : value;
  }

  // A card holds its tokens only while it is near the viewport; its height keeps the page from jumping.
  function draw(card) {
    if (card.drawn) return;
    card.drawn = true;
    const { response, list } = card;
    const fragment = document.createDocumentFragment();
    response.tokens.forEach((text, place) => {
      const span = element("span", { role: "option", tabindex: place === card.place ? 0 : -1 });
      paintToken(span, card, place);
      fragment.append(fill(span, texts[text]));
    });
    list.replaceChildren(fragment);
    list.style.minHeight = "";
  }

  function clear(card) {
    if (!card.drawn || card.list.contains(document.activeElement)) return;
    card.list.style.minHeight = `${card.list.offsetHeight}px`;
    card.list.replaceChildren();
    card.drawn = false;
  }

  const nearby = new IntersectionObserver(
    (entries) => entries.forEach((entry) => (entry.isIntersecting ? draw : clear)(entry.target.card)),
    { rootMargin: "1000px" },
  );

  function heading(response) {
    const parts = [element("b"), element("span"), element("span"), element("span"), element("span")];
    const step = response.step === null ? "" : `step ${response.step}`;
    const words = [response.title, response.side, step, response.run, `${response.tokens.length} tokens`];
    parts.forEach((part, number) => words[number] && fill(part, words[number]));
    const mean = element("span", { class: "mean" });
    return { mean, row: element("h3", {}, ...parts.filter((part) => part.textContent), mean) };
  }

  function addCard(response, sides) {
    const { mean, row } = heading(response);
    const list = element("div", { class: "list", role: "listbox", "aria-orientation": "horizontal", dir: "auto" });
    list.setAttribute("aria-label", [response.title, response.side, "tokens"].filter(Boolean).join(", "));
    const box = element("article", { class: "response" }, row, list);
    const card = { response, box, list, mean, place: 0, number: cards.length, drawn: false };
    box.card = card;
    cards.push(card);
    sides.append(box);
    return card;
  }

  // Roughly how high a response will be, before its tokens are laid out.
  function reserve(card, width) {
    const letters = card.response.tokens.reduce((sum, text) => sum + texts[text].length, 0);
    card.list.style.minHeight = `${Math.ceil(letters / Math.max(20, width / 7.9)) * 22.4}px`;
  }

  function build() {
    const root = byId("groups");
    const fragment = document.createDocumentFragment();
    let group = null;
    for (const response of responses) {
      const key = response.group && JSON.stringify([response.group, response.step, response.run]);
      if (!group || !key || group.key !== key) {
        const sides = element("div", { class: "sides" });
        const words = texts[response.prompt].trim();
        const prompt = words ? fill(element("p", { class: "prompt", dir: "auto" }), words) : "";
        group = { key, sides, box: element("section", { class: "group" }, prompt, sides), cards: [] };
        fragment.append(group.box);
      }
      const card = addCard(response, group.sides);
      card.group = group;
      group.cards.push(card);
    }
    root.replaceChildren(fragment);
    const width = cards[0].list.clientWidth;
    cards.forEach((card) => reserve(card, width));
    cards.forEach((card) => nearby.observe(card.box));
  }

  function offer(name, values, label) {
    const options = [...new Set(values)].filter((value) => value !== null && value !== "");
    if (options.length < 2) return;
    byId(`${name}-filter`).hidden = false;
    filters[name].append(new Option("all", ""), ...options.map((value) => new Option(label(value), value)));
  }

  function searchable(card) {
    const tokens = Array.from(card.response.tokens, (text) => texts[text]).join("");
    return [card.response.title, texts[card.response.prompt], tokens].join("\n").toLowerCase();
  }

  // Text is looked for in a whole group: a pair stays together.
  function filter() {
    const wanted = filters.find.value.toLowerCase();
    let count = 0;
    const groups = new Set(cards.map((card) => card.group));
    for (const group of groups) {
      const hit = !wanted || group.cards.some((card) => (card.words ??= searchable(card)).includes(wanted));
      let any = false;
      for (const card of group.cards) {
        const fits = kinds.every(
          (name) => !filters[name].value || String(card.response[name]) === filters[name].value,
        );
        card.box.hidden = !(hit && fits);
        any ||= !card.box.hidden;
        count += card.box.hidden ? 0 : 1;
      }
      group.box.hidden = !any;
    }
    byId("count").textContent = `${count} of ${cards.length} responses`;
    byId("nothing").hidden = count > 0;
  }

  function legend() {
    const column = columns[chosen];
    const root = byId("legend");
    root.replaceChildren();
    if (column.kind === "labels") {
      column.labels.slice(0, 12).forEach((text, number) => {
        const chip = element("span");
        paint(chip, "t chip", column, number);
        chip.textContent = spelt(text);
        root.append(chip);
      });
      if (column.labels.length > 12) root.append(`and ${column.labels.length - 12} more`);
      root.setAttribute("aria-label", "one colour per text");
      return;
    }
    if (column.kind === "constant") {
      root.append(column.neutral === null ? "no value" : `${shown(column.neutral)} everywhere`);
      root.setAttribute("aria-label", root.textContent);
      return;
    }
    const { neutral, limit, least, most } = column;
    const from = column.kind === "diverging" ? -limit : Math.min(neutral, limit);
    const to = Math.max(neutral, limit);
    const cells = element("span", { class: "cells" });
    for (let step = 0; step <= 12; step += 1) {
      const cell = element("i");
      paint(cell, "t", column, from + ((to - from) * step) / 12);
      cells.append(cell);
    }
    const low = (least < from ? "≤ " : "") + shown(from);
    const high = (most > to ? "≥ " : "") + shown(to);
    root.append(low, cells, high);
    root.setAttribute("aria-label", `colours from ${low} to ${high}`);
  }

  function means() {
    for (const card of cards) {
      let [sum, count] = [0, 0];
      for (const value of card.response.values[chosen] ?? []) {
        if (typeof value !== "number" || Number.isNaN(value)) continue;
        sum += value;
        count += 1;
      }
      const numbers = columns[chosen].kind !== "labels" && count;
      card.mean.textContent = numbers ? `mean ${shown(Number((sum / count).toPrecision(3)))}` : "";
      if (!card.response.values[chosen]) card.mean.textContent = `no ${columns[chosen].name}`;
    }
  }

  function repaint() {
    for (const card of cards.filter((candidate) => candidate.drawn)) {
      Array.from(card.list.children).forEach((span, place) => paintToken(span, card, place));
    }
  }

  function choose(number) {
    chosen = number;
    dispatchEvent(new CustomEvent("column", { detail: number }));
    byId("column").value = String(number);
    byId("meaning").textContent = columns[number].meaning;
    legend();
    means();
    repaint();
  }

  coloured.forEach((number, place) => {
    byId("column").append(new Option(place < 9 ? `${place + 1} ${columns[number].name}` : columns[number].name, number));
  });
  const start = columns.findIndex((column) => column.name === byId("column").dataset.start);
  build();
  offer("run", responses.map((response) => response.run), String);
  offer("step", responses.map((response) => response.step), String);
  offer("side", responses.map((response) => response.side), String);
  if (filters.prompt) {
    offer("prompt", responses.map((response) => response.prompt), (place) => spelt(texts[place].slice(0, 60)));
  }
  // The last step is what one comes to see.
  if (filters.step.options.length) filters.step.value = String(responses.reduce((last, { step }) => Math.max(last, step), 0));
  filter();
  if (coloured.length) choose(start >= 0 ? start : chosen);
  document.querySelector(".bar").classList.toggle("uncoloured", !coloured.length);

  byId("column").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const target of Object.values(filters)) target.addEventListener("input", filter);
  byId("spaces").addEventListener("change", (event) => {
    byId("groups").classList.toggle("plain-spaces", !event.target.checked);
  });
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("tokens-shown")));

  return { cards, columns, coloured, data, texts, draw, choose, repaint, paint, valueOf, chosen: () => chosen };
}
