"use strict";

// Curves as SVG. The step under the pointer is marked in all of them, and their legends show the values there.

const charts = (() => {
  const data = readData("chart-data");
  const HEIGHT = 128;
  const EDGE = { left: 40, right: 6, top: 6, bottom: 16 };
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

  // One entry per colour with the values of all its lines; where there are dashes, the first entry says what they are.
  function legend(lines) {
    const list = element("ul", { class: "keys" });
    const styles = new Map(lines.filter((line) => line.style).map((line) => [line.style, line.dash]));
    const head = element("li", { class: "styles" }, element("span"));
    styles.forEach((dash, style) => {
      const key = sample(0, dash);
      key.setAttribute("class", "key");
      head.append(element("span", {}, key, style));
    });
    if (styles.size) list.append(head);
    list.classList.toggle("matrix", styles.size === 2);
    const items = new Map();
    const outputs = lines.map((line) => {
      if (!items.has(line.label)) {
        items.set(line.label, element("li", {}, element("span", {}, line.label)));
        list.append(items.get(line.label));
      }
      const output = element("output", { "aria-live": "off" });
      const broken = line.broken ? ` (${line.broken} not finite)` : "";
      items.get(line.label).append(element("span", {}, sample(line.colour, line.dash), output, broken));
      return output;
    });
    return { list, outputs };
  }

  function frame(root, x, y, width, [first, last], [low, high]) {
    for (const value of ticks(low, high, 4.5)) {
      const at = y(value);
      root.append(svg("line", { x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at, class: value ? "rule" : "zero" }));
      root.append(label(EDGE.left - 5, at + 3.5, "end", figure(value)));
    }
    const marks = first === last ? [first] : ticks(first, last, Math.max(2, width / 50)).filter(Number.isInteger);
    for (const step of marks) root.append(label(x(step), HEIGHT - 3, "middle", figure(step)));
  }

  function draw(chart) {
    const width = Math.max(160, chart.box.clientWidth - 24);
    // The legend changes the height, not the width: no reason to draw again.
    if (width === chart.width) return;
    chart.width = width;
    const [first, last] = chart.range;
    const [low, high] = padded(chart.lines.flatMap((line) => line.values));
    const x = (step) => EDGE.left + ((step - first) / (last - first || 1)) * (width - EDGE.left - EDGE.right);
    const y = (value) => EDGE.top + ((high - value) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
    chart.root.replaceChildren();
    chart.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    frame(chart.root, x, y, width, chart.range, [low, high]);
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
    chart.stepAt = (px) => first + ((px - EDGE.left) / (width - EDGE.left - EDGE.right)) * (last - first);
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
