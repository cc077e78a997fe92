"use strict";
// Draws the explanations of a page. The values are those of explanation_page.py.
window.explanation = (() => {
const at = id => document.getElementById(id);
const data = JSON.parse(at("page-data").textContent);
const LARGEST = 5;  // weights that are listed in words
const SHOWN = 50;  // examples on one page of the list
const DECODED = 24;  // heads whose decoded weights are kept
const LINES = 2000;  // lines between tokens
const LINKED = 4096;  // weights up to which all lines are drawn at first
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const POSITIVE = [221, 93, 10], NEGATIVE = [46, 117, 230];
let numbered = 0;

// ---------------------------------------------------------------- elements and numbers

// `text` sets the content, names that begin with "on" add listeners, others are attributes.
function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function draw(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(key, value === true ? "" : value);
    }
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  const text = size < 0.0005 ? value.toExponential(1) :
    size < 10 ? value.toFixed(3) : value.toPrecision(4);
  return text.replace(/^-/, "−");
}

const percent = value => `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)} %`;

// Labels that would be invisible get a sign.
function visible(label) {
  if (label === "") return "∅";
  if (/\S/.test(label)) return label;
  return label.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

// A label within a sentence: isolated, because its direction may be that of another script.
function quoted(label) {
  const shown = visible(label);
  return `\u2068${/^[\p{L}\p{N}]/u.test(shown) ? shown : `“${shown}”`}\u2069`;
}

function direction(labels) {
  const found = labels.filter(label => RIGHT_TO_LEFT.test(label)).length;
  return found * 2 > labels.filter(label => /\p{L}/u.test(label)).length ? "rtl" : "ltr";
}

const isText = axis => axis.kind === "token" || axis.kind === "character";

// Largest absolute value; NaN and null count as 0.
function largest(values) {
  let most = 0;
  for (const value of values) if (Math.abs(value) > most) most = Math.abs(value);
  return most;
}

function order(values, count) {
  const found = [...values.keys()].filter(n => values[n]);
  return found.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, count);
}

function listed(values, labels) {
  const found = order(values, LARGEST).map(n => `${quoted(labels[n])} ${number(values[n])}`);
  return found.length ? found.join(", ") : "all are 0";
}

function scale(most, signed, solid) {
  return make("span", {class: `scale${signed ? " signed" : ""}${solid ? " solid" : ""}`},
    make("span", {text: signed ? `−${number(most)}` : "0"}), make("i"),
    make("span", {text: number(most)}));
}

// Areas of positions as fractions of the medium: listed, or the cells of a grid.
function areas(axis) {
  if (axis.areas) return axis.areas;
  if (!axis.grid) return null;
  const [rows, columns] = axis.grid;
  return axis.labels.map((_, n) => {
    const x = n % columns, y = Math.floor(n / columns);
    return [x / columns, y / rows, (x + 1) / columns, (y + 1) / rows];
  });
}

// A box that draws itself again when its width changes.
function responsive(drawn) {
  const box = make("div");
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth && box.clientWidth !== width) {
      width = box.clientWidth;
      box.replaceChildren(drawn(width));
    }
  }).observe(box);
  return {node: box, redraw: () => { if (width) box.replaceChildren(drawn(width)); }};
}

function scrolling(label, ...children) {
  return make("div", {class: "scroll", role: "group", tabindex: 0, "aria-label": label},
    ...children);
}

// Selects one of several elements by click, focus and arrow keys, as radio buttons.
// `step` gives the number of the element that a key leads to.
function radios(nodes, choose, step) {
  nodes.forEach((node, n) => {
    node.setAttribute("role", "radio");
    node.setAttribute("aria-checked", "false");
    node.tabIndex = n ? -1 : 0;
    node.addEventListener("click", () => { node.focus(); choose(n); });
    node.addEventListener("focus", () => choose(n));
    node.addEventListener("keydown", event => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const next = event.key === " " || event.key === "Enter" ? n : step(event.key, n);
      if (next === null) return;
      event.preventDefault();
      if (nodes[next]) nodes[next].focus();
    });
  });
  let current = -1;
  return chosen => {
    if (chosen === current) return;
    for (const [n, state] of [[current, "false"], [chosen, "true"]]) {
      if (!nodes[n]) continue;
      nodes[n].setAttribute("aria-checked", state);
    }
    if (nodes[current]) nodes[current].tabIndex = -1;
    if (nodes[0]) nodes[0].tabIndex = -1;
    if (nodes[Math.max(chosen, 0)]) nodes[Math.max(chosen, 0)].tabIndex = 0;
    current = chosen;
  };
}

function steps(count, reversed) {
  const forward = reversed ? "ArrowLeft" : "ArrowRight";
  const backward = reversed ? "ArrowRight" : "ArrowLeft";
  return (key, n) => {
    if (key === forward || key === "ArrowDown") return Math.min(n + 1, count - 1);
    if (key === backward || key === "ArrowUp") return Math.max(n - 1, 0);
    if (key === "Home") return 0;
    return key === "End" ? count - 1 : null;
  };
}

// ---------------------------------------------------------------- weights

const parsed = [new Map(), new Map()];

function load(run, index) {
  if (!parsed[run].has(index)) {
    const script = at(`run-${run}-${index}`);
    parsed[run].set(index, script && JSON.parse(script.textContent));
  }
  return parsed[run].get(index);
}

const bytes = text => Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
const decoded = new Map();

// Weights of a head, row after row; the format is documented in explanation_weights.py.
async function head(map, layer, n) {
  const [, N, T, S] = map.shape, index = layer * N + n, text = map.heads[index];
  if (decoded.has(text)) return decoded.get(text);
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer(), view = new DataView(buffer);
  const count = view.getUint32(2 * T, true), gaps = new Uint8Array(buffer, 2 * T + 4, count);
  const Kind = map.signed ? Int8Array : Uint8Array;
  const integers = new Kind(buffer, 2 * T + 4 + count), weights = new Float32Array(T * S);
  const unit = map.max[index] / 65535 / map.levels;
  let position = -1, next = 0;
  for (const gap of gaps) {
    position += gap;
    if (gap === 255) continue;
    position++;
    const row = Math.floor(position / S);
    weights[position] = integers[next++] * view.getUint16(2 * row, true) * unit;
  }
  if (decoded.size >= DECODED) decoded.delete(decoded.keys().next().value);
  decoded.set(text, weights);
  return weights;
}

// Weights of a query, or their mean over all queries if `query` is -1.
function row(weights, T, S, query) {
  if (query >= 0) return weights.subarray(query * S, (query + 1) * S);
  const mean = new Float32Array(S);
  for (let t = 0; t < T; t++) for (let s = 0; s < S; s++) mean[s] += weights[t * S + s] / T;
  return mean;
}

// ---------------------------------------------------------------- views of one axis
// Each view has a `node` and `update(values, query)`; `choose(n)` is called with a chosen position.

function textView(axis, {choose = null, label, chips = false} = {}) {
  const {labels} = axis, sense = direction(labels);
  const kinds = [axis.kind === "character" ? "characters" : "", choose ? "pick" : "",
    chips ? "chips" : ""];
  const node = make("p", {class: `tokens ${kinds.join(" ")}`, dir: sense, "aria-label": label,
    role: choose ? "radiogroup" : "group"});
  const spans = labels.map(text => make("span", {text: visible(text)}));
  node.append(...spans);
  const check = choose ? radios(spans, choose, steps(labels.length, sense === "rtl")) : null;
  const box = labels.length > 150 ? make("div", {class: "tall", tabindex: 0, role: "group",
    "aria-label": label}, node) : node;
  return {
    node: box,
    update(values, query) {
      const most = values ? largest(values) || 1 : 1;
      spans.forEach((span, n) => {
        const value = values ? values[n] : 0;
        span.style.setProperty("--weight", (Math.abs(value) / most || 0).toFixed(3));
        span.classList.toggle("negative", value < 0);
        if (values) span.title = `${visible(labels[n])}: ${number(value)}`;
      });
      if (check) check(query);
    },
  };
}

function imageView(medium, axis, {choose = null, queries = null, label, wide = false} = {}) {
  const {width, height} = medium, cells = areas(axis), places = queries && areas(queries);
  const node = make("div", {class: `image${choose ? " pick" : ""}`});
  if (medium.type === "sound" || width > 3 * height) {
    node.style.width = "100%";
    node.style.height = `clamp(5rem, ${(100 * height / width).toFixed(1)}vw, 11rem)`;
  } else {
    node.style.width = `min(100%, ${wide ? 30 : 21}rem, ${(34 * width / height).toFixed(2)}rem)`;
    node.style.aspectRatio = `${width} / ${height}`;
  }
  const image = make("img", {src: medium.image, alt: "", class: width < 200 ? "pixels" : null});
  const canvas = make("canvas", {role: "img", "aria-label": label});
  const [rows, columns] = axis.grid || [0, 0];
  canvas.width = columns || 900;
  canvas.height = rows || 300;
  const lines = draw("svg", {viewBox: "0 0 1 1", preserveAspectRatio: "none",
    "aria-hidden": "true"});
  node.append(image);
  for (const mask of medium.masks) node.append(make("img", {src: mask.image, alt: ""}));
  node.append(canvas, lines);
  const rectangle = ([x1, y1, x2, y2], kind, color) => draw("rect", {class: kind, x: x1, y: y1,
    width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), stroke: color});
  medium.boxes.forEach(({label: name, box}, n) => {
    const color = `var(--line-${n % 6 + 1})`;
    lines.append(rectangle(box, "outline dark"), rectangle(box, "box", color));
    const tag = make("span", {class: "tag", text: name});
    tag.style.left = `${100 * Math.max(box[0], 0)}%`;
    tag.style.top = `${100 * Math.max(box[1], 0)}%`;
    tag.style.setProperty("--tag", color);
    node.append(tag);
  });
  medium.masks.forEach(({label: name, color}, n) => {
    if (medium.boxes.some(box => box.label === name)) return;
    const tag = make("span", {class: "tag", text: name});
    tag.style.bottom = `${1.3 * n}em`;
    tag.style.left = "0";
    tag.style.setProperty("--tag", color);
    node.append(tag);
  });
  const chosen = draw("g");
  lines.append(chosen);
  if (choose) {
    node.addEventListener("click", event => {
      const frame = node.getBoundingClientRect();
      const x = (event.clientX - frame.left) / frame.width;
      const y = (event.clientY - frame.top) / frame.height;
      let found = -1, size = Infinity;
      places.forEach(([x1, y1, x2, y2], n) => {
        const inside = x >= x1 && x <= x2 && y >= y1 && y <= y2, area = (x2 - x1) * (y2 - y1);
        if (inside && area < size) [found, size] = [n, area];
      });
      if (found >= 0) choose(found);
    });
  }
  return {
    node,
    lines,
    update(values, query) {
      const context = canvas.getContext("2d"), most = values ? largest(values) || 1 : 1;
      context.clearRect(0, 0, canvas.width, canvas.height);
      image.classList.toggle("gray", Boolean(values) && largest(values) > 0);
      // Where areas overlap, the largest weight is drawn last, in place of the others.
      for (const n of values ? order(values, Infinity).reverse() : []) {
        const color = values[n] < 0 ? NEGATIVE : POSITIVE, [x1, y1, x2, y2] = cells[n];
        const box = [x1 * canvas.width, y1 * canvas.height, (x2 - x1) * canvas.width,
          (y2 - y1) * canvas.height];
        const alpha = 0.8 * Math.abs(values[n]) / most;
        context.clearRect(...box);
        context.fillStyle = `rgb(${color.join(" ")} / ${alpha.toFixed(3)})`;
        context.fillRect(...box);
      }
      if (values) {
        canvas.setAttribute("aria-label", `${label}. Largest: ${listed(values, axis.labels)}`);
      }
      chosen.replaceChildren();
      if (places && query >= 0) {
        chosen.append(rectangle(places[query], "outline dark"), rectangle(places[query], "outline"));
      }
    },
  };
}

// A spectrogram with playback, the time that is played, and playback of what has weight.
function soundView(medium, axis, options) {
  const inner = imageView(medium, axis, options), cells = areas(axis);
  const player = make("audio", {controls: true, src: medium.sound, preload: "metadata",
    "aria-label": "Recording"});
  const now = draw("line", {class: "now", y1: 0, y2: 1, visibility: "hidden"});
  inner.lines.append(now);
  let range = null, stop = Infinity;
  function follow() {
    const x = player.currentTime / medium.seconds;
    now.setAttribute("x1", x);
    now.setAttribute("x2", x);
    now.setAttribute("visibility", "visible");
    if (player.currentTime >= stop) player.pause();
    if (!player.paused) requestAnimationFrame(follow);
  }
  player.addEventListener("play", follow);
  player.addEventListener("seeked", follow);
  player.addEventListener("pause", () => { stop = Infinity; });
  const button = make("button", {type: "button", text: "Play the region", disabled: true,
    onclick: () => {
      player.currentTime = range[0] * medium.seconds;
      player.play().then(() => { stop = range[1] * medium.seconds; });
    }});
  return {
    node: make("div", {}, inner.node,
      make("div", {class: "bar-of-controls"}, player, button)),
    update(values, query) {
      inner.update(values, query);
      // The shortest region of positions with at least half of the largest weight.
      const most = values ? largest(values) : 0;
      const inside = most ? [...values.keys()].filter(n => Math.abs(values[n]) >= most / 2) : [];
      range = inside.length ? [Math.min(...inside.map(n => cells[n][0])),
        Math.max(...inside.map(n => cells[n][2]))] : null;
      button.disabled = !range;
      if (range) {
        const [first, last] = range.map(x => (x * medium.seconds).toFixed(2));
        button.textContent = `Play ${first} s to ${last} s`;
      }
    },
  };
}

// Ticks of an axis of numbers.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high * (1 + 1e-9) + 1e-12; n++) found.push(n * step);
  return found;
}

// The path of a line that is interrupted where values are missing.
function path(values, x, y) {
  let text = "", pen = "M";
  values.forEach((value, n) => {
    if (value === null) pen = "M";
    else {
      text += `${pen}${x(n).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  });
  return text;
}

// Parts of a time axis with the position of largest weight among those that cover them.
function spans(cells, values) {
  const ends = [...new Set(cells.flatMap(([x1, , x2]) => [x1, x2]))].sort((a, b) => a - b);
  const found = cells.flatMap(([x1, , x2], n) => (x1 === x2 && values[n] ? [[x1, x2, n]] : []));
  for (let k = 0; k + 1 < ends.length; k++) {
    let best = -1;
    cells.forEach(([x1, , x2], n) => {
      if (x1 > ends[k] || x2 < ends[k + 1]) return;
      if (best < 0 || Math.abs(values[n]) > Math.abs(values[best])) best = n;
    });
    if (best >= 0 && values[best]) found.push([ends[k], ends[k + 1], best]);
  }
  return found;
}

function seriesView(medium, axis, {label} = {}) {
  const {past, forecast, truth, times} = medium, all = past.length + forecast.length;
  const cells = axis ? areas(axis) : null;
  let shown = null;
  const known = [...past, ...forecast, ...(truth || [])].filter(value => value !== null);
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 1, high + 1];
  const spare = (high - low) * 0.05;
  [low, high] = [low - spare, high + spare];
  const {node, redraw} = responsive(width => {
    const height = 250, left = 52, right = 8, top = 10, bottom = 34;
    const x = n => left + (width - left - right) * n / Math.max(all - 1, 1);
    const y = value => top + (height - top - bottom) * (high - value) / (high - low);
    const across = fraction => left + (width - left - right) * fraction;
    const svg = draw("svg", {class: "chart", viewBox: `0 0 ${width} ${height}`, width, height,
      role: "img", "aria-label": shown ? `${label}. Largest: ${listed(shown, axis.labels)}` :
        `${medium.name} past and forecast`});
    for (const tick of ticks(low, high, 5)) {
      svg.append(draw("path", {class: "grid", d: `M${left} ${y(tick)}H${width - right}`}),
        draw("text", {class: "end", x: left - 6, y: y(tick) + 4, text: shortened(tick)}));
    }
    if (shown && cells) {
      const most = largest(shown) || 1;
      for (const [x1, x2, n] of spans(cells, shown)) {
        const wide = Math.max(across(x2) - across(x1), 2);
        svg.append(draw("rect", {class: shown[n] < 0 ? "shade negative" : "shade",
          x: across((x1 + x2) / 2) - wide / 2, width: wide, y: top,
          height: height - top - bottom, opacity: (0.6 * Math.abs(shown[n]) / most).toFixed(3)},
          draw("title", {text: `${axis.labels[n]}: ${number(shown[n])}`})));
      }
    }
    const start = past.length - 1, later = values => [past[start] ?? null, ...values];
    svg.append(draw("path", {class: "line", stroke: "var(--ink)", d: path(past, x, y)}));
    if (truth) {
      svg.append(draw("path", {class: "line", stroke: "var(--line-3)", "stroke-dasharray": "5 3",
        d: path(later(truth), n => x(start + n), y)}));
    }
    svg.append(
      draw("path", {class: "line", stroke: "var(--line-1)",
        d: path(later(forecast), n => x(start + n), y)}),
      draw("path", {class: "now", "stroke-dasharray": "3 3",
        d: `M${x(start)} ${top}V${height - bottom}`}));
    const count = Math.max(2, Math.min(all, Math.floor(width / 170)));
    for (let n = 0; n < count; n++) {
      const step = Math.round(n * (all - 1) / (count - 1));
      svg.append(draw("text", {class: n === 0 ? "" : n === count - 1 ? "end" : "mid", x: x(step),
        y: height - bottom + 18, text: times[step] ?? `${step - start}`}));
    }
    return svg;
  });
  const legend = make("ul", {class: "legend"});
  const names = [["past", "var(--ink)"], ["forecast", "var(--line-1)"]];
  if (truth) names.push(["truth", "var(--line-3)"]);
  for (const [name, color] of names) {
    const line = make("span", {class: "swatch-line"});
    line.style.borderTopColor = color;
    if (name === "truth") line.style.borderTopStyle = "dashed";
    legend.append(make("li", {}, line, name));
  }
  const title = medium.name ? make("p", {class: "note", text: medium.name}) : null;
  return {
    node: make("div", {}, title, node, legend),
    update(values) {
      shown = values;
      redraw();
    },
  };
}

const shortened = value => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ?
  value.toExponential(0) : `${+value.toPrecision(4)}`);

// Positions with bars: all in their order, or a chart of all and the largest ones.
function barsView(axis, {choose = null, label} = {}) {
  const {labels} = axis, few = labels.length <= 30;
  const list = make("ol", {class: "bars", "aria-label": label});
  let shown = new Float32Array(labels.length);
  const all = few ? null : responsive(width => {
    const most = largest(shown) || 1, signed = shown.some(value => value < 0);
    const zero = signed ? 45 : 85, room = signed ? 40 : 80, step = width / labels.length;
    const drawn = ["", ""];
    shown.forEach((value, n) => {
      if (value) drawn[+(value < 0)] += `M${(n * step).toFixed(2)} ${zero}` +
        `v${(-room * value / most).toFixed(2)}h${Math.max(step * 0.9, 0.5).toFixed(2)}V${zero}z`;
    });
    return draw("svg", {class: "chart", viewBox: `0 0 ${width} 90`, width, height: 90, role: "img",
      "aria-label": `${label}, ${labels.length} positions. Largest: ${listed(shown, labels)}`},
      draw("path", {class: "shade", d: drawn[0]}),
      draw("path", {class: "shade negative", d: drawn[1]}),
      draw("path", {class: "grid", d: `M0 ${zero}H${width}`}));
  });
  const note = few ? null : make("p", {class: "note"});
  return {
    node: make("div", {}, all && all.node, note, list),
    update(values, query) {
      shown = Array.from(values);
      const most = largest(values) || 1;
      const chosen = few ? [...labels.keys()] : order(values, 15);
      if (note) note.textContent = `The largest ${chosen.length} of ${labels.length}:`;
      list.replaceChildren(...chosen.map(n => {
        const bar = make("i", {class: values[n] < 0 ? "negative" : ""});
        bar.style.setProperty("--weight", (Math.abs(values[n]) / most || 0).toFixed(3));
        return make("li", {}, make("span", {text: visible(labels[n]), dir: "auto"}),
          make("span", {}, bar), make("span", {class: "number", text: number(values[n])}));
      }));
      if (all) all.redraw();
    },
  };
}

const isDrawn = (medium, axis) => medium && (axis.areas || axis.grid);

// The view of an axis: in its medium if it has areas, else as text or as a list.
function viewOf(explanation, axis, options) {
  const {medium} = explanation;
  if (isDrawn(medium, axis)) {
    if (medium.type === "series") return seriesView(medium, axis, options);
    return (medium.type === "sound" ? soundView : imageView)(medium, axis, options);
  }
  if (isText(axis)) return textView(axis, options);
  return barsView(axis, options);
}

// ---------------------------------------------------------------- views of a map

// Tokens of queries on the left, of keys on the right, and lines by weight.
function linksView(queries, keys, choose) {
  const lists = [queries, keys].map(axis => make("ol", {}, ...axis.labels.map(label =>
    make("li", {text: visible(label), dir: "auto", title: visible(label)}))));
  const size = 24 * Math.max(queries.labels.length, keys.labels.length);
  const svg = draw("svg", {viewBox: `0 0 100 ${size}`, height: size, preserveAspectRatio: "none",
    "aria-hidden": "true"});
  [...lists[0].children].forEach((item, n) => item.addEventListener("click", () => choose(n)));
  const node = make("div", {class: "links"}, lists[0], svg, lists[1]);
  const box = make("div", {class: "tall", tabindex: 0, role: "group",
    "aria-label": "Lines between queries on the left and keys on the right"}, node);
  return {
    node: box,
    update(weights, values, query) {
      const S = keys.labels.length, T = queries.labels.length, most = largest(weights) || 1;
      let found = [];
      for (let t = query < 0 ? 0 : query; t < (query < 0 ? T : query + 1); t++) {
        for (let s = 0; s < S; s++) {
          const share = Math.abs(weights[t * S + s]) / most;
          if (share > (query < 0 ? 0.03 : 0.004)) found.push([share, t, s]);
        }
      }
      if (found.length > LINES) found = found.sort((a, b) => b[0] - a[0]).slice(0, LINES);
      svg.replaceChildren(...found.map(([share, t, s]) => draw("line", {x1: 0, x2: 100,
        y1: 24 * t + 12, y2: 24 * s + 12, opacity: (share ** 0.8).toFixed(3),
        class: weights[t * S + s] < 0 ? "negative" : null})));
      const strongest = largest(values) || 1;
      [...lists[1].children].forEach((item, n) => {
        item.style.setProperty("--weight", (Math.abs(values[n]) / strongest || 0).toFixed(3));
        item.classList.toggle("negative", values[n] < 0);
      });
      [...lists[0].children].forEach((item, n) => item.classList.toggle("chosen", n === query));
    },
  };
}

// All weights of a head as a matrix; `preview(n)` is called with the row under the pointer.
function matrixView(explanation, queries, keys, choose, preview) {
  const T = queries.labels.length, S = keys.labels.length, {medium} = explanation;
  const wide = S > 40 || isDrawn(medium, keys);
  const high = T > 200 ? 600 / T : Math.max(3, Math.min(20, Math.floor(520 / T)));
  const node = make("div", {class: `matrix${wide ? " wide" : ""}${T > 600 ? " smooth" : ""}`});
  const cells = make("div", {class: "cells"}), canvas = make("canvas", {role: "img"});
  const mark = make("div", {class: "row", hidden: true});
  const left = make("div", {class: "left", "aria-hidden": "true"});
  const top = make("div", {class: "top", "aria-hidden": "true"});
  const readout = make("p", {class: "note", text: "Queries downwards, keys to the right. Point at " +
    "a row to preview it, click to choose it."});
  canvas.width = S;
  canvas.height = T;
  cells.style.height = `${high * T}px`;
  if (!wide) cells.style.width = `${Math.max(16, Math.min(26, 600 / S)) * S}px`;
  cells.append(canvas, mark);
  if (high >= 13) {
    left.append(...queries.labels.map((label, n) => {
      const item = make("span", {text: visible(label), dir: "auto", onclick: () => choose(n)});
      item.style.height = item.style.lineHeight = `${high}px`;
      return item;
    }));
  }
  if (!wide) {
    top.style.width = cells.style.width;
    top.style.gridTemplateColumns = `repeat(${S}, minmax(0, 1fr))`;
    top.append(...keys.labels.map(label => make("span", {text: visible(label)})));
  }
  const upright = keys.grid && keys.grid[0] === 1 && medium && medium.image;
  if (upright) node.append(make("div"), make("img", {class: "strip", src: medium.image, alt: ""}));
  else node.append(make("div"), top);
  node.append(left, cells);
  let shown = null, under = -1;
  const pointed = event => {
    const frame = cells.getBoundingClientRect();
    const t = Math.floor((event.clientY - frame.top) / frame.height * T);
    const s = Math.floor((event.clientX - frame.left) / frame.width * S);
    return [Math.max(0, Math.min(t, T - 1)), Math.max(0, Math.min(s, S - 1))];
  };
  cells.addEventListener("pointermove", event => {
    const [t, s] = pointed(event);
    readout.textContent = `${quoted(queries.labels[t])} → ${quoted(keys.labels[s])}: ` +
      number(shown ? shown[t * S + s] : null);
    if (t !== under) preview(t);
    under = t;
  });
  cells.addEventListener("pointerleave", () => { under = -1; preview(null); });
  cells.addEventListener("click", event => choose(pointed(event)[0]));
  return {
    node: make("div", {}, scrolling("Matrix of weights", node), readout),
    update(weights, values, query) {
      if (shown !== weights) {
        shown = weights;
        paint(canvas, weights, largest(weights) || 1);
      }
      canvas.setAttribute("aria-label", `Matrix of ${T} queries by ${S} keys. Largest weights of ` +
        `the chosen query: ${listed(values, keys.labels)}`);
      mark.hidden = query < 0;
      mark.style.top = `${100 * query / T}%`;
      mark.style.height = `${100 / T}%`;
      [...left.children].forEach((item, n) => item.classList.toggle("chosen", n === query));
    },
  };
}

// Colors the pixels of a canvas by values, of either sign, relative to the largest.
function paint(canvas, values, most) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width,
    canvas.height);
  for (let n = 0; n < values.length; n++) {
    const [red, green, blue] = values[n] < 0 ? NEGATIVE : POSITIVE;
    image.data[4 * n] = red;
    image.data[4 * n + 1] = green;
    image.data[4 * n + 2] = blue;
    // The square root makes small weights visible.
    image.data[4 * n + 3] = Math.round(255 * Math.sqrt(Math.abs(values[n]) / most));
  }
  context.putImageData(image, 0, 0);
}

// The grid of all heads: small maps, chosen by click and by arrow keys.
function headGrid(map, choose) {
  const [L, N] = map.shape, {rows, columns} = map.small, pixels = bytes(map.small.data);
  const node = make("div", {class: `heads${rows === 1 ? " strips" : ""}`, role: "radiogroup",
    "aria-label": "Layer and head"});
  node.style.setProperty("--heads", N);
  if (N > 1) {
    node.append(make("small", {"aria-hidden": "true", text: ""}));
    for (let n = 0; n < N; n++) node.append(make("small", {"aria-hidden": "true", text: n}));
  }
  const cells = [];
  for (let layer = 0; layer < L; layer++) {
    node.append(make("small", {"aria-hidden": "true", text: layer}));
    for (let n = 0; n < N; n++) {
      const canvas = make("canvas", {"aria-hidden": "true"}), start = cells.length * rows * columns;
      canvas.width = columns;
      canvas.height = rows;
      paint(canvas, pixels.subarray(start, start + rows * columns), 255);
      const name = `layer ${layer}, head ${n}`;
      const cell = make("div", {"aria-label": name, title: name}, canvas);
      cells.push(cell);
      node.append(cell);
    }
  }
  const keys = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: N, ArrowUp: -N};
  const check = radios(cells, n => choose(Math.floor(n / N), n % N), (key, n) => {
    if (key === "Home") return 0;
    if (key === "End") return cells.length - 1;
    if (!(key in keys)) return null;
    const next = n + keys[key];
    return next < 0 || next >= cells.length ? n : next;
  });
  return {node, update: (layer, n) => check(layer * N + n)};
}

// Statistics of the chosen head, and of all heads of its layer.
function statistics(map, layer, n, inCells) {
  const box = make("div"), facts = make("dl"), names = Object.keys(map.statistics);
  const [, N, , S] = map.shape;
  const units = {entropy: ` nats (uniform: ${number(Math.log(S))})`,
    "mean distance": inCells ? " cells" : " positions"};
  for (const name of names) {
    const value = map.statistics[name][layer][n];
    facts.append(make("dt", {text: name}),
      make("dd", {text: typeof value === "string" ? value || "none" : number(value) + (units[name] || "")}));
  }
  const similar = map.similarity && map.similarity[layer][n];
  if (similar) {
    const others = [...similar.keys()].filter(other => other !== n && similar[other] !== null);
    others.sort((a, b) => similar[a] - similar[b]);
    if (others.length) {
      facts.append(make("dt", {text: "most similar"}), make("dd", {
        text: `head ${others[0]} (Jensen-Shannon divergence ${number(similar[others[0]])} nats)`}));
    }
  }
  if (facts.childElementCount) box.append(facts);
  if (N > 1 && (names.length || similar)) {
    const head = make("tr", {}, make("th", {scope: "col", text: "head"}),
      ...names.map(name => make("th", {scope: "col", text: name})));
    if (similar) head.append(make("th", {scope: "col", text: `divergence from head ${n}`}));
    const lines = Array.from({length: N}, (_, other) => {
      const cells = names.map(name => map.statistics[name][layer][other]);
      if (similar) cells.push(similar[other]);
      return make("tr", {class: other === n ? "own" : null}, make("td", {text: other}),
        ...cells.map(value => make("td", {text: typeof value === "string" ? value : number(value)})));
    });
    box.append(make("details", {}, make("summary", {text: `Heads of layer ${layer}`}),
      scrolling(`Statistics of the heads of layer ${layer}`,
        make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)))));
  }
  return box;
}

// Sentences about what the page holds of the weights.
function precision(map) {
  const unit = `Weights are rounded to 1/${map.levels} of the largest weight of their query, so ` +
    `the error of a shown weight is at most 1/${2 * map.levels} of the largest weight of its head.`;
  const lost = map.missing_most < 5e-5 ? "" : ` They make up at most ${percent(map.missing_most)} ` +
    `of the weight of a query, ${percent(map.missing_mean)} on average.`;
  let kept = " All weights are shown.";
  if (map.always !== null) {
    kept = ` To keep the page small, the ${map.always} largest weights of each query are shown, if ` +
      `they do not round to 0, and all larger than ${number(map.largest_missing)}; the others are ` +
      `shown as 0.${lost}`;
  } else if (lost) {
    kept = ` Weights that round to 0 are at most ${number(map.largest_missing)}.${lost}`;
  }
  const strange = map.nonfinite ? ` ${map.nonfinite} weights are not finite and shown as 0.` : "";
  return unit + kept + strange;
}

// ---------------------------------------------------------------- attention

// The attention of one explanation, with its own map, head and query.
class Panel {
  constructor(explanation, title, group, chosen = {}) {
    Object.assign(this, {explanation, group, map: 0, layer: 0, head: 0, query: null}, chosen);
    this.turn = 0;
    this.node = make("article", {"aria-label": title || "Attention"});
    this.heading = title ? make("h4", {text: title}) : null;
    this.build();
  }

  get current() { return this.explanation.maps[this.map]; }
  get keys() { return this.explanation.axes[this.current.keys]; }
  get queries() {
    const {queries} = this.current;
    return queries === null ? null : this.explanation.axes[queries];
  }

  build() {
    const {explanation, current: map, keys, queries} = this, [L, N, T, S] = map.shape;
    this.layer = Math.min(this.layer, L - 1);
    this.head = Math.min(this.head, N - 1);
    // The mean of an alignment says little: its first query is shown at first.
    if (T === 1) this.query = 0;
    else if (this.query === null) this.query = map.queries === map.keys ? -1 : 0;
    else if (this.query >= T) this.query = -1;
    const choose = n => this.choose(n);
    const side = make("div"), body = make("div");
    if (explanation.maps.length > 1) {
      const select = make("select", {onchange: () => {
        this.map = select.selectedIndex;
        this.query = null;
        this.build();
        this.node.querySelector("select").focus();
      }}, ...explanation.maps.map(each => make("option", {text: each.title})));
      select.selectedIndex = this.map;
      side.append(make("label", {class: "bar-of-controls"}, "Attention", select));
    } else {
      side.append(make("p", {class: "note", text: `Attention: ${map.title}`}));
    }
    this.grid = null;
    if (L * N > 1) {
      this.grid = headGrid(map, (layer, n) => this.chooseHead(layer, n));
      side.append(make("p", {class: "note", text: `${L} ${L > 1 ? "layers (rows)" : "layer"}, ${N} ` +
        `${N > 1 ? "heads (columns)" : "head"}, numbered from 0. Choose one by click or arrow keys.`}),
        this.grid.node);
    }
    this.facts = make("div");
    side.append(this.facts);
    this.status = make("p", {class: "note status", role: "status"});
    this.views = [];
    if (T > 1) {
      const same = map.queries === map.keys;
      const reading = isText(keys) && !isDrawn(explanation.medium, keys);
      const onImage = isDrawn(explanation.medium, keys) && explanation.medium.type !== "series";
      const shared = same && (reading || onImage);
      body.append(this.slider());
      if (!shared) {
        const drawn = isDrawn(explanation.medium, queries) && explanation.medium.type !== "series" &&
          !(explanation.medium.type === "sound");
        const options = {choose, label: "Queries: choose one", queries, chips: !isText(queries)};
        const view = drawn ? imageView(explanation.medium, queries, options) :
          textView(queries, options);
        body.append(make("p", {class: "note", text: "Queries"}), view.node);
        this.views.push((weights, values, query) => view.update(null, query));
      }
      const view = viewOf(explanation, keys, {label: "Weights of the keys",
        choose: shared ? choose : null, queries: shared ? queries : null, wide: true});
      body.append(make("p", {class: "note", text: shared ?
        "Shaded by the weights of the keys. Click to choose a query." : "Weights of the keys"}),
        view.node);
      this.views.push((weights, values, query) => view.update(values, query));
    } else {
      const view = viewOf(explanation, keys, {label: "Weights of the keys", wide: true});
      body.append(view.node);
      this.views.push((weights, values, query) => view.update(values, -1));
    }
    this.legend = make("span");
    body.append(this.legend, this.status);
    if (T > 1 && S > 1) {
      const linked = isText(queries) && isText(keys) && !isDrawn(explanation.medium, keys);
      if (linked) {
        this.fold(body, "Lines from queries to keys", T * S <= LINKED,
          () => linksView(queries, keys, choose));
      }
      const open = !(linked && T * S <= LINKED) && !(map.queries === map.keys && keys.grid);
      this.fold(body, "Matrix of queries and keys", open,
        () => matrixView(explanation, queries, keys, choose, n => this.preview(n)));
    }
    body.append(make("p", {class: "note", text: precision(map)}));
    const sides = make("div", {class: L * N > 1 ? "sides" : "sides single"}, side, body);
    this.node.replaceChildren(...(this.heading ? [this.heading] : []), sides);
    this.update();
  }

  // A view that is made when it is opened first.
  fold(body, title, open, build) {
    let view = null;
    const box = make("details", {}, make("summary", {text: title}));
    const show = () => {
      if (!view) {
        view = build();
        box.append(view.node);
      }
      view.update(...this.shown);
    };
    this.views.push(() => { if (box.open) show(); });
    box.addEventListener("toggle", () => { if (box.open && this.shown) show(); });
    box.open = open;
    body.append(box);
  }

  slider() {
    const {labels} = this.queries, id = `query-${numbered++}`;
    this.input = make("input", {type: "range", min: 0, max: labels.length - 1, step: 1, id,
      oninput: () => this.choose(Number(this.input.value))});
    this.name = make("output", {for: id, dir: "auto"});
    this.all = make("button", {type: "button", text: "Mean of all queries", "aria-pressed": "false",
      onclick: () => this.choose(-1)});
    return make("div", {class: "query"}, make("label", {for: id, text: "Query"}), this.input,
      this.name, this.all);
  }

  choose(query) {
    if (query === this.query) return;
    this.query = query;
    this.update();
    const labels = JSON.stringify(this.queries && this.queries.labels);
    for (const other of this.group) {
      if (other === this || other.query === query || !other.queries) continue;
      if (JSON.stringify(other.queries.labels) === labels) other.choose(query);
    }
  }

  chooseHead(layer, n) {
    if (layer === this.layer && n === this.head) return;
    [this.layer, this.head] = [layer, n];
    this.update();
  }

  // Shows a query without choosing it; the chosen one again if null.
  preview(query) {
    if (!this.shown) return;
    const [weights] = this.shown, [, , T, S] = this.current.shape;
    const at = query === null ? this.query : query;
    this.shown = [weights, row(weights, T, S, at), at];
    for (const view of this.views) view(...this.shown);
    this.tell(at);
  }

  async update() {
    const turn = ++this.turn, map = this.current, [, , T, S] = map.shape;
    this.node.setAttribute("aria-busy", "true");
    if (this.grid) this.grid.update(this.layer, this.head);
    const opened = this.facts.querySelector("details[open]");
    this.facts.replaceChildren(statistics(map, this.layer, this.head, this.keys.grid && this.keys.grid[0] > 1));
    if (opened && this.facts.querySelector("details")) {
      this.facts.querySelector("details").open = true;
    }
    if (this.queries && T > 1) {
      this.input.value = Math.max(this.query, 0);
      const label = this.query < 0 ? "mean of all" : quoted(this.queries.labels[this.query]);
      this.input.setAttribute("aria-valuetext", label);
      this.name.textContent = this.query < 0 ? "mean of all" : label;
      this.all.setAttribute("aria-pressed", String(this.query < 0));
    }
    let weights;
    try {
      weights = await head(map, this.layer, this.head);
    } catch (error) {
      this.status.textContent = `The weights cannot be decoded: ${error.message}`;
      this.node.removeAttribute("aria-busy");
      return;
    }
    if (turn !== this.turn) return;
    const values = row(weights, T, S, this.query);
    this.shown = [weights, values, this.query];
    for (const view of this.views) view(...this.shown);
    const solid = isDrawn(this.explanation.medium, this.keys) || !isText(this.keys);
    this.legend.replaceChildren(scale(largest(values), map.signed, solid));
    this.tell(this.query);
    this.node.removeAttribute("aria-busy");
    if (!document.documentElement.dataset.drawn) {
      document.documentElement.dataset.drawn = Math.round(performance.now());
    }
  }

  tell(query) {
    const {current: map, queries} = this, [L, N, T] = map.shape, [, values] = this.shown;
    const where = L * N > 1 ? `Layer ${this.layer}, head ${this.head}. ` : "";
    const name = T === 1 ? "" : query < 0 ? "Mean of all queries. " :
      `Query ${quoted(queries.labels[query])}. `;
    const sum = values.reduce((total, value) => total + value, 0);
    this.status.textContent = `${where}${name}Largest weights: ${listed(values, this.keys.labels)}. ` +
      `Sum ${number(sum)}.`;
  }
}

function attentionSection(explanation, other) {
  const section = make("section", {}, make("h3", {text: "Attention"}));
  const group = [], box = make("div", {class: "attention"});
  const add = (source, title, chosen) => {
    const panel = new Panel(source, title, group, chosen);
    group.push(panel);
    box.append(panel.node);
    box.classList.toggle("two", group.length > 1);
    return panel;
  };
  const compared = other && other.maps.length;
  if (explanation.maps.length) add(explanation, compared ? data.names[0] : "");
  if (compared) add(other, data.names[1]);
  const [first] = group, map = first.current;
  section.append(box);
  if (!compared && first.explanation.maps.some(each => each.shape[0] * each.shape[1] > 1 ||
      first.explanation.maps.length > 1)) {
    const button = make("button", {type: "button", text: "Compare with a second head",
      onclick: () => {
        if (group.length > 1) {
          group.pop().node.remove();
          box.classList.remove("two");
          button.textContent = "Compare with a second head";
          return;
        }
        const {layer, head: n, query, map: chosen} = first;
        add(explanation, "Second head", {layer, head: n, query, map: chosen});
        button.textContent = "Remove the second head";
      }});
    section.insertBefore(make("div", {class: "bar-of-controls"}, button), box);
  }
  return section;
}

// ---------------------------------------------------------------- attributions

/** Color of a method; controls, which have curves but no attribution, are gray. */
function strokeOf(explanation, method) {
  const index = explanation.attributions.findIndex(each => each.method === method);
  return index < 0 ? "var(--soft)" : `var(--line-${index % 6 + 1})`;
}

function attributionSection(explanation, name) {
  const section = make("section", {}, make("h3", {text: `Attributions${name ? `: ${name}` : ""}`}));
  section.append(make("p", {class: "note", text: `Contribution of each position to the ` +
    `${explanation.explained}. Orange is for, blue is against it` + (explanation.replacement ?
    `; positions are replaced by ${explanation.replacement}.` : ".")}));
  const grid = make("div", {class: "methods"});
  explanation.attributions.forEach(each => {
    const axis = explanation.axes[each.axis], signed = each.values.some(value => value < 0);
    const label = `Attribution by ${each.method}`;
    const view = viewOf(explanation, axis, {label});
    view.update(each.values.map(value => value ?? 0), -1);
    const line = make("span", {class: "swatch-line"});
    line.style.borderTopColor = strokeOf(explanation, each.method);
    const numbers = Object.entries(each.numbers);
    const solid = isDrawn(explanation.medium, axis) || !isText(axis);
    grid.append(make("div", {class: "method"},
      make("h4", {}, explanation.curves.length ? line : null, title(each.method)),
      view.node, scale(largest(each.values), signed, solid),
      make("p", {class: "note", text: `Largest: ${listed(each.values, axis.labels)}`}),
      numbers.length ? make("p", {class: "note", text: numbers.map(([key, value]) =>
        `${title(key)} ${number(value)}`).join(", ")}) : null));
  });
  section.append(grid);
  return section;
}

const title = name => name.replace(/_/g, " ");

const MEANINGS = {
  deletion: "Deletion: the score while the most important positions are replaced first. The " +
    "faster it falls, the smaller the area, and the better the attribution.",
  insertion: "Insertion: the score while the most important positions are shown first. The " +
    "faster it rises, the larger the area, and the better the attribution.",
};

function curveSection(explanation, name) {
  const section = make("section", {},
    make("h3", {text: `Deletion and insertion${name ? `: ${name}` : ""}`}));
  const methods = [...new Set([...explanation.attributions.map(each => each.method),
    ...explanation.curves.map(each => each.method)])];
  const grid = make("div", {class: "methods"});
  for (const kind of new Set(explanation.curves.map(each => each.kind))) {
    const curves = explanation.curves.filter(each => each.kind === kind);
    const scores = curves.flatMap(each => each.scores).filter(value => value !== null);
    let [low, high] = [Math.min(...scores, 0), Math.max(...scores)];
    if (!scores.length || low === high) [low, high] = [low - 0.5, low + 0.5];
    const chart = responsive(width => {
      const height = 220, left = 46, right = 10, top = 8, bottom = 36;
      const x = value => left + (width - left - right) * value;
      const y = value => top + (height - top - bottom) * (high - value) / (high - low);
      const svg = draw("svg", {class: "chart", viewBox: `0 0 ${width} ${height}`, width, height,
        role: "img", "aria-label": `${kind} curves. ` + curves.map(each => `${title(each.method)}: ` +
          `from ${number(each.scores[0])} to ${number(each.scores.at(-1))}`).join("; ")});
      for (const tick of ticks(low, high, 5)) {
        svg.append(draw("path", {class: "grid", d: `M${left} ${y(tick)}H${width - right}`}),
          draw("text", {class: "end", x: left - 6, y: y(tick) + 4, text: shortened(tick)}));
      }
      for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
        svg.append(draw("text", {class: tick ? tick === 1 ? "end" : "mid" : "", x: x(tick),
          y: height - bottom + 16, text: `${100 * tick} %`}));
      }
      svg.append(draw("text", {class: "mid", x: x(0.5), y: height - 3,
        text: kind === "insertion" ? "positions shown" : "positions replaced"}));
      const dashes = ["none", "6 3", "2 3", "8 3 2 3", "12 4", "4 6"];
      for (const each of curves) {
        svg.append(draw("path", {class: "line", stroke: strokeOf(explanation, each.method),
          "stroke-dasharray": dashes[methods.indexOf(each.method) % 6],
          d: path(each.scores, n => x(each.fractions[n]), y)}));
      }
      return svg;
    });
    const legend = make("ul", {class: "legend"}, ...curves.map(each => {
      const line = make("span", {class: "swatch-line"});
      line.style.borderTopColor = strokeOf(explanation, each.method);
      return make("li", {}, line, title(each.method));
    }));
    grid.append(make("div", {class: "method"}, make("h4", {text: title(kind)}), chart.node, legend,
      make("p", {class: "note", text: MEANINGS[kind] || ""})));
  }
  section.append(grid);
  return section;
}

// ---------------------------------------------------------------- an example

function badge(kind) {
  return kind ? make("span", {class: `badge ${kind.split(" ")[0]}`, text: kind}) : null;
}

function facts(explanation, other) {
  const list = make("dl", {class: "facts"});
  const add = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    list.append(make("dt", {text: name}), make("dd", {text: value, dir: "auto",
      class: String(value).length > 500 ? "long" : null,
      tabindex: String(value).length > 500 ? 0 : null}));
  };
  add("input", explanation.input);
  add("target", explanation.target);
  [explanation, other].forEach((each, run) => {
    if (!each) return;
    const suffix = other ? ` of ${data.names[run]}` : "";
    add(`prediction${suffix}`, each.prediction);
    add(`confidence${suffix}`, each.confidence === null ? null : number(each.confidence));
    add(`${data.metric}${suffix}`, each.score === null ? null : number(each.score));
  });
  return list;
}

let opened = -1;

function open(index) {
  const box = at("example"), explanation = load(0, index);
  const pair = data.ids[1].indexOf(explanation.id), other = pair < 0 ? null : load(1, pair);
  opened = index;
  const several = data.ids[0].length, alone = several === 1 && data.rows.id.length === 1;
  const go = (text, target) => make("button", {type: "button", text,
    disabled: target < 0 || target >= several, onclick: () => navigate(target)});
  const heading = make("h2", {tabindex: -1}, "Example ", make("code", {text: explanation.id}), " ",
    badge(explanation.kind));
  box.replaceChildren(
    ...(alone ? [] : [make("nav", {class: "bar-of-controls", "aria-label": "Examples"},
      make("button", {type: "button", text: "← All examples", onclick: () => navigate(-1)}),
      go("Previous", index - 1), go("Next", index + 1))]),
    heading, facts(explanation, other),
    ...explanation.notes.map(note => make("p", {class: "note", text: note})));
  const runs = other ? [[explanation, data.names[0]], [other, data.names[1]]] : [[explanation, ""]];
  let contents = 0;
  // An image is shown without weights too; a sound or a series only if there are no weights.
  const drawn = explanation.attributions.length || explanation.maps.length;
  if (explanation.medium && (!drawn || explanation.medium.type === "image")) {
    const {medium} = explanation, empty = {labels: [], areas: []};
    const view = {series: seriesView, sound: soundView, image: imageView}[medium.type](
      medium, empty, {label: "Input"});
    view.update(medium.type === "series" ? null : [], -1);
    box.append(view.node);
  }
  for (const [each, name] of runs) {
    if (each.attributions.length) box.append(attributionSection(each, name));
    contents += each.attributions.length + each.maps.length;
  }
  for (const [each, name] of runs) if (each.curves.length) box.append(curveSection(each, name));
  if (explanation.maps.length || (other && other.maps.length)) {
    box.append(attentionSection(explanation.maps.length ? explanation : other,
      explanation.maps.length ? other : null));
  }
  if (!contents) {
    box.append(make("p", {text: "There are neither attention weights nor attributions."}));
  }
  at("list").hidden = true;
  if (at("summary")) at("summary").hidden = true;
  box.hidden = false;
  if (!explanation.maps.length && !document.documentElement.dataset.drawn) {
    document.documentElement.dataset.drawn = Math.round(performance.now());
  }
  return heading;
}

// ---------------------------------------------------------------- list of examples

const TITLES = {id: "id", kind: "kind", input: "input", prediction: "prediction",
  target: "target", confidence: "confidence", score: data.metric};
const COLUMNS = ["kind", "input", "prediction", "target", "confidence", "score", "id"];
const view = {column: null, descending: false, text: "", kind: "", explained: false, page: 0};
let texts = null;

function chosenRows() {
  const {rows} = data, all = rows.id.length;
  if (!texts) {
    texts = rows.id.map((id, n) =>
      `${id}\n${rows.input[n]}\n${rows.prediction[n]}\n${rows.target[n]}`.toLowerCase());
  }
  const found = [], wanted = view.text.toLowerCase();
  for (let n = 0; n < all; n++) {
    if (view.kind && rows.kind[n] !== view.kind) continue;
    if (view.explained && rows.explained[n] < 0) continue;
    if (wanted && !texts[n].includes(wanted)) continue;
    found.push(n);
  }
  if (!view.column) return found;
  const values = rows[view.column], collator = new Intl.Collator("en", {numeric: true});
  const sign = view.descending ? -1 : 1;
  const missing = value => value === null || value === "";
  return found.sort((a, b) => {
    const [one, two] = [values[a], values[b]];
    if (missing(one) || missing(two)) return missing(one) - missing(two) || a - b;
    const compared = typeof one === "number" ? one - two : collator.compare(one, two);
    return sign * compared || a - b;
  });
}

function buildList() {
  const {rows} = data, box = at("list");
  const present = COLUMNS.filter(key => rows[key].some(value => value !== null && value !== ""));
  const kinds = [...new Set(rows.kind.filter(Boolean))].sort();
  const some = rows.explained.some(index => index >= 0) && rows.explained.some(index => index < 0);
  const body = make("tbody"), status = make("p", {class: "note", role: "status"});
  const changed = change => event => {
    change(event.target);
    view.page = 0;
    show();
  };
  const search = make("input", {type: "search", placeholder: "text, label or id",
    oninput: changed(node => { view.text = node.value; })});
  const select = make("select", {onchange: changed(node => { view.kind = node.value; })},
    make("option", {value: "", text: "all"}), ...kinds.map(kind => make("option", {value: kind,
      text: `${kind} (${rows.kind.filter(each => each === kind).length.toLocaleString("en")})`})));
  const only = make("input", {type: "checkbox",
    onchange: changed(node => { view.explained = node.checked; })});
  const heads = present.map(key => make("th", {scope: "col", "aria-sort": "none",
    class: ["confidence", "score"].includes(key) ? null : "left"}, make("button", {type: "button",
    text: TITLES[key], onclick: () => {
      view.descending = view.column === key ? !view.descending : false;
      view.column = key;
      view.page = 0;
      show();
    }})));
  const back = make("button", {type: "button", text: "Previous page",
    onclick: () => { view.page--; show(); }});
  const forth = make("button", {type: "button", text: "Next page",
    onclick: () => { view.page++; show(); }});
  const pager = make("nav", {class: "bar-of-controls", "aria-label": "Pages of the list"}, back, forth);
  function show() {
    const found = chosenRows(), first = view.page * SHOWN;
    present.forEach((key, n) => heads[n].setAttribute("aria-sort", view.column !== key ? "none" :
      view.descending ? "descending" : "ascending"));
    const last = Math.min(first + SHOWN, found.length);
    status.textContent = found.length ? `Examples ${(first + 1).toLocaleString("en")} to ` +
      `${last.toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "No example matches.";
    back.disabled = !view.page;
    forth.disabled = last >= found.length;
    pager.hidden = found.length <= SHOWN;
    body.replaceChildren(...found.slice(first, last).map(n => {
      const index = rows.explained[n], line = make("tr", {class: index >= 0 ? "open" : null});
      for (const key of present) {
        const value = rows[key][n];
        if (key === "kind") line.append(make("td", {}, badge(value)));
        else if (key === "confidence" || key === "score") {
          line.append(make("td", {text: value === null ? "" : number(value)}));
        } else if (key === "id") line.append(make("td", {class: "words"}, make("code", {text: value})));
        else if (key === "input" && index >= 0) {
          line.append(make("td", {class: "words"}, make("button", {type: "button", dir: "auto",
            class: "clip", text: value || rows.id[n]})));
        } else line.append(make("td", {class: "words"}, make("span", {class: "clip", text: value,
          dir: "auto"})));
      }
      if (index >= 0) {
        if (!line.querySelector("button")) {
          line.lastChild.append(" ", make("button", {type: "button", text: "open"}));
        }
        line.addEventListener("click", () => navigate(index));
      }
      return line;
    }));
  }
  box.append(make("h2", {tabindex: -1, text: "Examples"}),
    make("div", {class: "bar-of-controls"}, make("label", {}, "Find", search),
      kinds.length > 1 ? make("label", {}, "Kind", select) : null,
      some ? make("label", {}, only, "only with explanation") : null,
      at("summary") ? make("a", {href: "#summary", text: "Summary",
        onclick: event => {
          event.preventDefault();
          at("summary").scrollIntoView();
        }}) : null),
    status, scrolling("Examples", make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)),
    pager);
  show();
}

function openList() {
  const box = at("list");
  if (!box.childElementCount) buildList();
  box.hidden = false;
  at("example").hidden = true;
  at("example").replaceChildren();
  if (at("summary")) at("summary").hidden = false;
  opened = -1;
  if (!document.documentElement.dataset.drawn) {
    document.documentElement.dataset.drawn = Math.round(performance.now());
  }
  return box.querySelector("h2");
}

// ---------------------------------------------------------------- navigation

// The address of an example is its id, so that other pages can refer to it.
function navigate(index) {
  const hash = index < 0 ? "#list" : `#${encodeURIComponent(data.ids[0][index])}`;
  const focused = index < 0 ? openList() : open(index);
  focused.focus({preventScroll: true});
  window.scrollTo(0, 0);
  try {
    history.pushState(null, "", hash);
  } catch {
    // Pages inside other pages may have no history.
  }
}

function follow() {
  const id = decodeURIComponent(location.hash.slice(1)), index = data.ids[0].indexOf(id);
  if (index >= 0) open(index);
  else if (data.ids[0].length === 1 && data.rows.id.length === 1) open(0);
  else openList();
}

window.addEventListener("popstate", follow);
follow();

return {
  ids: data.ids,
  open: navigate,
  /** Returns the weights of a head, an array [T, S]; `example` is an id or an index. */
  async weights(example, map, layer, n, run = 0) {
    const index = typeof example === "string" ? data.ids[run].indexOf(example) : example;
    const found = load(run, index).maps[map], [, , T, S] = found.shape;
    const flat = await head(found, layer, n);
    return Array.from({length: T}, (_, t) => Array.from(flat.subarray(t * S, (t + 1) * S)));
  },
};
})();
