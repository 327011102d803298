"use strict";

// What only the page of a comparison has: a threshold, both models' lists, the next large difference, files of plots.

function shifted(data) {
  const DEFAULT = 0.1;
  const MOST = Math.LN2;
  const js = data.columns.findIndex((column) => column.name === data.packed.measure);
  const slider = document.getElementById("threshold");
  const output = document.getElementById("above");
  let threshold = 0;
  let view = null;

  data.hidden = (response, place) => response.values[js][place] < threshold;

  // A probability from its code: 255 steps of its log-odds, from −10 to 10.
  function probability(code) {
    const value = 1 / (1 + Math.exp(10 - code / 12.75));
    return value < 0.01 ? value.toExponential(0).replace("-", "−") : value > 0.99 ? value.toFixed(3) : value.toFixed(2);
  }

  data.details = (response, number) => {
    const at = response.start + number;
    const { first, base, tuned, baseCode, tunedCode, tokens } = data.tops;
    const rows = [element("tr", {}, ...["base", "p", "tuned", "p"].map((text) => element("th", { scope: "col" }, text)))];
    for (let place = first[at]; place < first[at + 1]; place += 1) {
      const cells = [[base, baseCode], [tuned, tunedCode]].flatMap(([ids, codes]) => {
        const name = element("td", { class: ids[place] === tokens[at] ? "own" : undefined });
        name.textContent = spelt(data.texts[ids[place]]);
        const value = element("td");
        value.textContent = probability(codes[place]);
        return [name, value];
      });
      rows.push(element("tr", {}, ...cells));
    }
    return [element("table", { class: "tops" }, element("tbody", {}, ...rows))];
  };

  // The next token above the threshold, from the one that has the focus, over all responses that are shown.
  function jump(direction, now, go) {
    const least = threshold || DEFAULT;
    const cards = view.cards.filter((card) => !card.box.hidden);
    let index = now ? cards.indexOf(now.card) : direction > 0 ? 0 : cards.length - 1;
    let place = now ? now.card.place + direction : direction > 0 ? 0 : Infinity;
    for (; cards[index]; index += direction, place = direction > 0 ? 0 : Infinity) {
      const values = cards[index].response.values[js];
      for (place = Math.min(place, values.length - 1); place >= 0 && place < values.length; place += direction) {
        if (values[place] > least) {
          cards[index].box.scrollIntoView({ block: "nearest" });
          go(cards[index], place);
          return;
        }
      }
    }
  }
  data.keys = { j: (now, go) => jump(1, now, go), k: (now, go) => jump(-1, now, go) };

  function count() {
    let above = 0;
    for (const { values } of data.responses) for (let at = 0; at < values[js].length; at += 1) above += values[js][at] > threshold;
    const all = data.packed.count;
    output.textContent = `${threshold ? shown(Number(threshold.toPrecision(2))) : "0"} · ${above.toLocaleString("en")} of ${all.toLocaleString("en")}`;
  }

  function slide() {
    const share = Number(slider.value) / 100;
    threshold = share ? MOST * 10 ** (-4 * (1 - share)) : 0;
    count();
    view.repaint();
  }

  function buttons() {
    const box = document.querySelector(".metrics");
    view.coloured.forEach((number) => {
      const button = element("button", { type: "button", "aria-pressed": String(number === view.chosen()) });
      button.textContent = view.columns[number].name;
      button.addEventListener("click", () => view.choose(number));
      addEventListener("column", (event) => button.setAttribute("aria-pressed", String(event.detail === number)));
      box.append(button);
    });
  }

  data.begun = (started) => {
    view = started;
    buttons();
    count();
    slider.addEventListener("input", slide);
  };
  return data;
}

// Plots as files: the drawing with the looks that it has here.
{
  const LOOKS = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "font", "text-anchor", "visibility"];

  function drawing(root) {
    const copy = root.cloneNode(true);
    const nodes = [root, ...root.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((node, place) => {
      const looks = getComputedStyle(nodes[place]);
      for (const name of LOOKS) node.style.setProperty(name, looks.getPropertyValue(name));
    });
    const { width, height } = root.getBoundingClientRect();
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.style.background = getComputedStyle(root.closest(".chart")).backgroundColor;
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  }

  function save(blob, name) {
    const link = element("a", { download: name });
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function picture({ text, width, height }, name) {
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = element("canvas", { width: 2 * width, height: 2 * height });
      canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
      canvas.toBlob((blob) => save(blob, name));
    });
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  document.querySelectorAll(".chart").forEach((box) => {
    const name = box.querySelector("b").textContent.replaceAll(/\W+/g, "-").toLowerCase();
    const root = box.querySelector("svg[role=img]");
    const vector = element("button", { type: "button" }, "SVG");
    const raster = element("button", { type: "button" }, "PNG");
    vector.addEventListener("click", () => save(new Blob([drawing(root).text], { type: "image/svg+xml" }), `${name}.svg`));
    raster.addEventListener("click", () => picture(drawing(root), `${name}.png`));
    box.append(element("div", { class: "save" }, vector, raster));
  });
}
