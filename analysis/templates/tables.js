"use strict";

// Tables that are sorted by a press on a heading: numbers from the largest, texts from the first.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = Array.from(table.querySelectorAll("thead th"));
  const body = table.tBodies[0];
  heads.forEach((head, number) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      const keyed = Array.from(body.rows, (row) => {
        const text = row.cells[number].textContent;
        return { row, text, value: parseFloat(text.replaceAll("−", "-")) };
      });
      const numbers = number > 0 && keyed.some(({ value }) => !Number.isNaN(value));
      const order = (value) => (Number.isNaN(value) ? -Infinity : value);
      keyed.sort((a, b) => (numbers ? order(b.value) - order(a.value) : a.text.localeCompare(b.text)) * (down ? 1 : -1));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...keyed.map(({ row }) => row));
    });
  });
});
