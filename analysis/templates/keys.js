"use strict";

// Moving between tokens, and the details of one.

function bindKeys(view) {
  const { cards, columns, coloured, texts } = view;
  const tip = document.getElementById("tip");
  const help = document.getElementById("help");
  const find = document.getElementById("find");
  const spaces = document.getElementById("spaces");
  const root = document.getElementById("groups");

  const cardOf = (node) => node.closest(".response").card;
  const visibleCards = () => cards.filter((card) => !card.box.hidden && card.response.tokens.length);

  let shownFor = null;

  function place(span) {
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const width = tip.offsetWidth;
    const height = tip.offsetHeight;
    const below = box.bottom + 7;
    const top = below + height + 4 > innerHeight ? Math.max(4, box.top - height - 7) : below;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  function details(card, number) {
    const name = element("span");
    name.textContent = spelt(texts[card.response.tokens[number]]);
    const where = element("span", { class: "muted" });
    where.textContent = `${number + 1} / ${card.response.tokens.length}`;
    const rows = columns.map((column, index) => {
      const cell = element("td");
      const value = view.valueOf(card.response, index, number);
      if (column.coloured && value !== null) {
        const swatch = element("i");
        view.paint(swatch, "t", column, card.response.values[index][number]);
        cell.append(swatch);
      }
      cell.append(typeof value === "string" ? spelt(value) : shown(value));
      const head = element("th", { scope: "row" });
      head.textContent = column.name;
      return element("tr", { class: index === view.chosen() ? "chosen" : undefined }, head, cell);
    });
    const more = view.data.details?.(card.response, number) ?? [];
    return [element("p", {}, name, where), element("table", {}, element("tbody", {}, ...rows)), ...more];
  }

  function show(span) {
    const card = cardOf(span);
    const number = Array.prototype.indexOf.call(card.list.children, span);
    tip.replaceChildren(...details(card, number));
    tip.hidden = false;
    shownFor = span;
    place(span);
    return { card, number };
  }

  function hide() {
    tip.hidden = true;
  }

  // One token per response is in the tab order; the arrows move it.
  function go(card, number) {
    view.draw(card);
    const spans = card.list.children;
    if (!spans.length) return;
    const next = spans[Math.max(0, Math.min(number, spans.length - 1))];
    spans[card.place]?.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    show(next);
  }

  root.addEventListener("focusin", (event) => {
    const span = event.target.closest(".t");
    if (!span) return;
    const { card, number } = show(span);
    card.list.children[card.place]?.setAttribute("tabindex", "-1");
    card.place = number;
    span.setAttribute("tabindex", "0");
    span.setAttribute("aria-describedby", "tip");
    const value = coloured.length ? `, ${shown(view.valueOf(card.response, view.chosen(), number))}` : "";
    span.setAttribute("aria-label", spelt(texts[card.response.tokens[number]]) + value);
  });
  root.addEventListener("focusout", hide);
  root.addEventListener("pointerover", (event) => {
    const span = event.target.closest(".t");
    if (span) show(span);
  });
  root.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && !event.relatedTarget?.closest?.(".t")) hide();
  });
  root.addEventListener("click", (event) => event.target.closest(".t")?.focus());
  addEventListener("scroll", () => tip.hidden || place(shownFor), { passive: true, capture: true });

  // The token nearest in the line above or below; past the edge of the response there is none.
  function vertical(span, direction) {
    const from = span.getClientRects()[0];
    let best = null;
    for (const other of cardOf(span).list.children) {
      const box = other.getClientRects()[0];
      if (!box) continue;
      const rise = (box.top - from.top) * direction;
      if (rise < 4) continue;
      const score = rise * 1000 + Math.abs(box.left - from.left);
      if (!best || score < best.score) best = { span: other, score };
    }
    return best?.span;
  }

  function current() {
    const span = document.activeElement?.closest?.(".t");
    return span ? { span, card: cardOf(span) } : null;
  }

  function neighbour(direction) {
    const list = visibleCards();
    const now = current();
    const index = now ? list.indexOf(now.card) + direction : direction > 0 ? firstInView(list) : firstInView(list) - 1;
    if (!list[index]) return;
    list[index].box.scrollIntoView({ block: "nearest" });
    go(list[index], 0);
  }

  function firstInView(list) {
    const index = list.findIndex((card) => card.box.getBoundingClientRect().bottom > 60);
    return index < 0 ? list.length - 1 : index;
  }

  function arrow(key, now) {
    const { card, span } = now;
    const size = card.list.children.length;
    const back = getComputedStyle(card.list).direction === "rtl" ? 1 : -1;
    if (key === "ArrowLeft") go(card, card.place + back);
    else if (key === "ArrowRight") go(card, card.place - back);
    else if (key === "Home") go(card, 0);
    else if (key === "End") go(card, size - 1);
    else {
      const next = vertical(span, key === "ArrowDown" ? 1 : -1);
      if (next) go(card, Array.prototype.indexOf.call(card.list.children, next));
    }
  }

  const letters = {
    n: () => neighbour(1),
    p: () => neighbour(-1),
    w: () => spaces.click(),
    "/": () => find.focus(),
    "?": () => help.showModal(),
  };

  function recolour(number) {
    view.choose(number);
    const now = current();
    if (now && !tip.hidden) show(now.span);
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.key === "Escape") {
      hide();
      if (event.target === find) find.blur();
      return;
    }
    if (event.target.closest?.("input:not([type=checkbox]), select")) return;
    const now = current();
    if (now && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
      arrow(event.key, now);
    } else if (!document.getElementById("letters").checked) {
      return;
    } else if (letters[event.key]) {
      letters[event.key]();
    } else if (view.data.keys?.[event.key]) {
      view.data.keys[event.key](now, go);
    } else if (/^[1-9]$/.test(event.key) && coloured[event.key - 1] !== undefined) {
      recolour(coloured[event.key - 1]);
    } else {
      return;
    }
    event.preventDefault();
  });
  document.getElementById("help-button").addEventListener("click", () => help.showModal());
  document.getElementById("help-close").addEventListener("click", () => help.close());
}

function begin(data) {
  if (!data.responses.length) return;
  view = showTokens(data);
  bindKeys(view);
  data.begun?.(view);
}

{
  const data = readData("token-data");
  if (data.packed) unpack(data).then(shifted).then(begin);
  else begin(data);
}
