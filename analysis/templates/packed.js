"use strict";

// From packed bytes to what the token view shows: typed arrays that each response has a part of.

// Streams of bytes, one after the other: the planes of a number lie apart, so that they pack well.
async function inflated(text, sizes) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let at = 0; at < packed.length; at += 1) bytes[at] = packed.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const found = {};
  let start = 0;
  for (const [name, size] of sizes) {
    found[name] = whole.subarray(start, start + size);
    start += size;
  }
  return found;
}

// Two or three planes of bytes to whole numbers.
function joined(streams, name) {
  const [low, middle, high] = [0, 1, 2].map((plane) => streams[`${name}.${plane}`]);
  const found = new Int32Array(low.length);
  for (let at = 0; at < low.length; at += 1) found[at] = low[at] | (middle[at] << 8) | (high ? high[at] << 16 : 0);
  return found;
}

// A measure: twelve bits on a logarithmic scale, a bit for the sign, and a code for no value.
function measured(codes, most) {
  const unit = most * 1e-5;
  const table = new Float32Array(8192);
  for (let code = 0; code < 4096; code += 1) {
    table[code] = unit * Math.expm1((code / 4095) * Math.log1p(1e5));
    table[code + 4096] = -table[code];
  }
  const found = new Float32Array(codes.length);
  for (let at = 0; at < codes.length; at += 1) found[at] = codes[at] > 8191 ? NaN : table[codes[at]];
  return found;
}

// The most likely tokens of both models, `first[i]` to `first[i + 1]` those of token i.
function listed(streams, count, few, many) {
  const first = new Int32Array(count + 1);
  for (let at = 0; at < count; at += 1) first[at + 1] = first[at] + (streams.full[at] ? many : few);
  const base = joined(streams, "base");
  const other = joined(streams, "other");
  const written = joined(streams, "written");
  const tuned = new Int32Array(base.length);
  const tunedCode = new Uint8Array(base.length);
  const tokens = new Int32Array(count);
  let [nextOther, nextWritten] = [0, 0];
  for (let at = 0; at < count; at += 1) {
    const start = first[at];
    for (let place = start; place < first[at + 1]; place += 1) {
      const same = streams.place[place];
      tuned[place] = same ? base[start + same - 1] : other[nextOther++];
      tunedCode[place] = streams.change[place] + (same ? streams.code[start + same - 1] : 0);
    }
    const own = streams.own[at];
    tokens[at] = own ? base[start + own - 1] : written[nextWritten++];
  }
  return { first, base, tuned, baseCode: streams.code, tunedCode, tokens };
}

async function unpack(data) {
  const { count, few, many, streams } = data.packed;
  const found = await inflated(data.packed.bytes, streams);
  const tops = listed(found, count, few, many);
  const values = data.columns.map((column, number) => measured(joined(found, `column${number}`), column.size));
  const changed = new Uint8Array(count);
  for (let at = 0; at < count; at += 1) changed[at] = tops.tuned[tops.first[at]] === tops.base[tops.first[at]] ? 0 : 1;
  let start = 0;
  for (const response of data.responses) {
    const end = start + response.size;
    response.start = start;
    response.tokens = tops.tokens.subarray(start, end);
    response.changed = changed.subarray(start, end);
    response.values = values.map((column) => column.subarray(start, end));
    start = end;
  }
  data.tops = tops;
  return data;
}
