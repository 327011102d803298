"use strict";

// Curves as SVG. The step under the pointer is marked in all of them, and their legends show the values there.

const charts = (() => {
  const data = readData("chart-data");
  const HEIGHT = 128;
  // The left and the right edge are as wide as the numbers there need, but at least this, so that charts line up.
  const EDGE = { left: 40, right: 6, top: 8, bottom: 16 };
  // Letters of a name: what fits above a column of values, and beside others in a line of the legend.
  const ABOVE = 8;
  const BESIDE = 12;
  const drawn = [];

  function svg(name, attributes = {}) {
    const found = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    return found;
  }

  function label(x, y, anchor, text) {
    const found = svg("text", { x, y, "text-anchor": anchor });
    found.textContent = text;
    return found;
  }

  // Round numbers within the range, at most about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const size = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
    const found = [];
    for (let n = Math.ceil(low / size - 1e-9); n * size <= high + size * 1e-9; n += 1) found.push(n * size);
    return found;
  }

  function figure(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(Number(value.toPrecision(3)));
    return text.replaceAll("-", "−");
  }

  function padded(values) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (low > high) return [0, 1];
    if (low === high) return low ? [Math.min(0, 2 * low), Math.max(0, 2 * low)] : [0, 1];
    const room = (high - low) * 0.06;
    return [low >= 0 && low < room ? 0 : low - room, high + room];
  }

  function nearest(steps, step) {
    let best = 0;
    steps.forEach((other, place) => {
      if (Math.abs(other - step) < Math.abs(steps[best] - step)) best = place;
    });
    return best;
  }

  function sample(colour, dash) {
    const key = svg("svg", { class: `key c${colour % 8}`, viewBox: "0 0 14 8", "aria-hidden": "true" });
    key.append(svg("line", { x1: 0, x2: 14, y1: 5, y2: 5, class: `d${dash % 4}` }));
    return key;
  }

  // A name that may go on in the next line after each of its parts.
  function name(text) {
    const found = element("span", { class: "name" });
    text.split(/(?<=[-_/.])/).forEach((part, place) => found.append(...(place ? [element("wbr")] : []), part));
    return found;
  }

  function dashes(styles) {
    const head = element("li", { class: "styles" }, element("span"));
    styles.forEach((dash, style) => {
      const key = sample(0, dash);
      key.setAttribute("class", "key");
      head.append(element("span", { class: "value" }, key, name(style)));
    });
    return head;
  }

  // One entry per colour with the values of all its lines; where there are dashes, the first entry says what they are.
  function legend(lines) {
    const list = element("ul", { class: "keys" });
    const styles = new Map(lines.filter((line) => line.style).map((line) => [line.style, line.dash]));
    if (styles.size) list.append(dashes(styles));
    list.classList.toggle("plain", styles.size === 0);
    list.classList.toggle("matrix", styles.size === 2);
    list.classList.toggle("listed", [...styles.keys()].some((style) => style.length > ABOVE));
    const items = new Map();
    const outputs = lines.map((line) => {
      if (!items.has(line.label)) {
        items.set(line.label, element("li", {}, name(line.label)));
        list.append(items.get(line.label));
      }
      const output = element("output", { "aria-live": "off" });
      const number = element("span", { class: "number" }, sample(line.colour, line.dash), output);
      const broken = line.broken ? [` (${line.broken} not finite)`] : [];
      items.get(line.label).append(element("span", { class: "value" }, number, ...broken));
      return output;
    });
    return { list, outputs };
  }

  // How wide the widest of the numbers is, in the font of the chart.
  function widest(root, values) {
    const widths = values.map((value) => {
      const text = label(0, 0, "start", figure(value));
      root.append(text);
      const width = text.getComputedTextLength();
      text.remove();
      return width;
    });
    return Math.max(0, ...widths);
  }

  // The numbers at the axes, and edges in which they have room.
  function axes(root, width, [first, last], [low, high]) {
    const levels = ticks(low, high, 4.5);
    const steps = first === last ? [first] : ticks(first, last, Math.max(2, width / 50)).filter(Number.isInteger);
    const left = Math.max(EDGE.left, Math.ceil(widest(root, levels)) + 7);
    const right = Math.max(EDGE.right, Math.ceil(widest(root, steps) / 2) + 1);
    return { levels, steps, left, right: width - right };
  }

  function frame(root, x, y, { levels, steps, left, right }) {
    for (const value of levels) {
      const at = y(value);
      root.append(svg("line", { x1: left, x2: right, y1: at, y2: at, class: value ? "rule" : "zero" }));
      root.append(label(left - 5, at + 3.5, "end", figure(value)));
    }
    for (const step of steps) root.append(label(x(step), HEIGHT - 3, "middle", figure(step)));
  }

  function draw(chart) {
    const width = Math.max(160, chart.box.clientWidth - 24);
    // The legend changes the height, not the width: no reason to draw again.
    if (width === chart.width) return;
    chart.width = width;
    const [first, last] = chart.range;
    const [low, high] = padded(chart.lines.flatMap((line) => line.values));
    chart.root.replaceChildren();
    chart.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const found = axes(chart.root, width, chart.range, [low, high]);
    const { left, right } = found;
    const x = (step) => left + ((step - first) / (last - first || 1)) * (right - left);
    const y = (value) => EDGE.top + ((high - value) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
    frame(chart.root, x, y, found);
    for (const line of chart.lines) {
      const points = line.at.map((step, place) => [x(step).toFixed(1), y(line.values[place]).toFixed(1)]);
      chart.root.append(svg("path", { d: points.length ? `M${points.join("L")}` : "", class: `c${line.colour % 8} d${line.dash % 4}` }));
      if (points.length > 0 && points.length <= 8) {
        for (const [cx, cy] of points) chart.root.append(svg("circle", { cx, cy, r: 2, class: `c${line.colour % 8}` }));
      }
    }
    chart.cursor = svg("line", { y1: EDGE.top, y2: HEIGHT - EDGE.bottom, class: "cursor", visibility: "hidden" });
    chart.root.append(chart.cursor);
    chart.x = x;
    chart.stepAt = (px) => first + ((px - left) / (right - left)) * (last - first);
  }

  // Mark a step in every chart; null goes back to the last values.
  function mark(step) {
    for (const chart of drawn) {
      const outside = step === null || step < chart.range[0] || step > chart.range[1];
      chart.cursor?.setAttribute("visibility", outside ? "hidden" : "visible");
      if (!outside && chart.cursor) {
        chart.cursor.setAttribute("x1", chart.x(step));
        chart.cursor.setAttribute("x2", chart.x(step));
      }
      chart.lines.forEach((line, number) => {
        const place = step === null ? line.values.length - 1 : nearest(line.at, step);
        chart.outputs[number].textContent = line.values.length ? figure(line.values[place]) : "";
      });
    }
  }

  function follow(chart) {
    const steps = [...new Set(chart.lines.flatMap((line) => line.at))].sort((a, b) => a - b);
    if (!steps.length) return;
    let place = steps.length - 1;
    chart.root.addEventListener("pointermove", (event) => {
      const step = chart.stepAt(event.clientX - chart.root.getBoundingClientRect().left);
      place = nearest(steps, step);
      mark(steps[place]);
    });
    chart.root.addEventListener("pointerleave", () => mark(null));
    chart.root.addEventListener("blur", () => mark(null));
    chart.root.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      place = Math.max(0, Math.min(steps.length - 1, place + (event.key === "ArrowLeft" ? -1 : 1)));
      mark(steps[place]);
      event.preventDefault();
    });
  }

  function spoken(title, lines) {
    const parts = lines.map((line) => {
      const values = line.values;
      return values.length ? `${line.label} ${line.style} from ${figure(values[0])} to ${figure(values.at(-1))}` : "";
    });
    return `${title}: ${parts.filter(Boolean).join("; ")}`;
  }

  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) if (entry.contentRect.width) draw(entry.target.chart);
  });

  const names = data.charts.flatMap(({ lines }) => lines.flatMap((line) => [line.label, line.style]));
  document.getElementById("panels")?.classList.toggle("roomy", names.some((text) => text.length > BESIDE));

  document.querySelectorAll("[data-chart]").forEach((box) => {
    const { title, lines } = data.charts[Number(box.dataset.chart)];
    lines.forEach((line) => (line.at = data.steps[line.steps]));
    const all = lines.flatMap((line) => [line.at[0], line.at.at(-1)]).filter((step) => step !== undefined);
    const root = svg("svg", { role: "img", tabindex: "0", "aria-label": spoken(title, lines) });
    const { list, outputs } = legend(lines);
    const chart = { box, root, lines, outputs, range: [Math.min(...all), Math.max(...all)] };
    box.chart = chart;
    box.append(root, list);
    drawn.push(chart);
    follow(chart);
    resized.observe(box);
  });
  mark(null);
  return { mark };
})();
