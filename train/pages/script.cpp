#include "train/pages/script.h"

namespace weft::train {
namespace {

// A chart names its axes' ranges in data-x and data-y, and its box in data-box. The points of a
// curve are read back from its path.
constexpr std::string_view kScript = R"js(
'use strict';
const round = v => Number(v.toPrecision(5)).toLocaleString('en', {maximumSignificantDigits: 5});
const numbers = s => s.split(' ').map(Number);
const svg = (name, attributes) => {
  const e = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  return e;
};
for (const chart of document.querySelectorAll('svg.chart')) {
  const [x0, y0, w, h] = numbers(chart.dataset.box), [xa, xb] = numbers(chart.dataset.x),
        out = chart.parentNode.querySelector('output');
  let points = [];
  const read = () => {
    points = [];
    for (const c of chart.querySelectorAll('[data-name]')) {
      const list = (c.getAttribute('d') || '').match(/[-\d.e]+ [-\d.e]+/g) || [];
      for (const p of list) points.push([...numbers(p), c]);
    }
    points.sort((a, b) => a[0] - b[0]);
  };
  read();
  chart.addEventListener('redrawn', read);  // by a page that draws its curves anew
  if (!points.length) continue;
  const mark = svg('circle', {r: 4, class: 'cursor', visibility: 'hidden'});
  chart.append(mark);
  let at = -1;
  const shown = p => getComputedStyle(p[2]).display !== 'none';
  const show = i => {
    at = i;
    const [x, y, c] = points[i], [ya, yb] = numbers(chart.dataset.y);
    mark.setAttribute('cx', x); mark.setAttribute('cy', y);
    mark.setAttribute('visibility', 'visible');
    out.textContent = `${c.dataset.name}: ${round(ya + (y0 + h - y) / h * (yb - ya))} at ` +
      `${round(xa + (x - x0) / w * (xb - xa))} ${chart.dataset.unit}`;
  };
  chart.addEventListener('pointermove', e => {
    const box = chart.getBoundingClientRect(), k = chart.viewBox.baseVal.width / box.width;
    const x = (e.clientX - box.left) * k, y = (e.clientY - box.top) * k;
    let best = -1, least = Infinity;
    points.forEach((p, i) => {
      const d = Math.hypot(p[0] - x, (p[1] - y) / 3);
      if (d < least && shown(p)) { least = d; best = i; }
    });
    if (best >= 0) show(best);
  });
  chart.addEventListener('keydown', e => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (!step) return;
    e.preventDefault();
    for (let i = at + step; i >= 0 && i < points.length; i += step)
      if (shown(points[i])) { show(i); break; }
  });
}

// Matrices: data.matrices[i] holds the lower triangle as signed 16-bit numbers of `scale`.
const source = document.getElementById('data'), box = document.getElementById('large');
const data = source ? JSON.parse(source.textContent) : {};
if (box) {
  const cache = {};
  const cells = i => {
    if (!cache[i]) {
      const bytes = Uint8Array.from(atob(data.matrices[i].cells), c => c.charCodeAt(0));
      cache[i] = new DataView(bytes.buffer);
    }
    return cache[i];
  };
  const value = (i, t, s) => s > t ? 0 :
    cells(i).getInt16(2 * (t * (t + 1) / 2 + s), true) / 32767 * data.matrices[i].scale;
  const stage = box.querySelector('.stage'), out = box.querySelector('output'),
        head = box.querySelector('h2');
  let now = 0, t = 0, s = 0, cursor = null, tokens = [];
  const word = (k) => `${k + 1} “${tokens[k]}”`;
  const show = () => {
    cursor.setAttribute('x', s); cursor.setAttribute('y', t);
    out.textContent = `token ${word(t)} takes ${round(value(now, t, s))} of token ${word(s)}`;
  };
  const open = i => {
    now = i;
    const m = data.matrices[i], T = (tokens = data.texts[m.text]).length, side = 1000 / T;
    head.textContent = m.label;
    const size = Math.min(22, Math.max(9, side)), every = Math.ceil(size / side * .9);
    const names = tokens.map(k => k.replaceAll(' ', '·').slice(0, 8));
    const longest = Math.max(...names.map(k => k.length)), edge = 12 + longest * size * .65;
    const big = svg('svg', {viewBox: `${-edge} ${-edge} ${1010 + edge} ${1010 + edge}`,
                            tabindex: 0, role: 'img', 'aria-label': m.label});
    const copy = svg('svg', {x: 0, y: 0, width: 1000, height: 1000, viewBox: `0 0 ${T} ${T}`,
                             preserveAspectRatio: 'none'});
    copy.innerHTML = document.querySelector(`[data-matrix="${i}"] svg`).innerHTML;
    cursor = svg('rect', {width: 1, height: 1, class: 'cursor', 'stroke-width': T / 300});
    copy.append(cursor);
    big.append(copy);
    for (let k = 0; k < T; k += every) {
      const at = (k + .5) * side, turned = longest > 1 ? ' rotate(-90)' : '';
      const a = svg('text', {x: -6, y: at + size / 3, class: 'end', 'font-size': size}),
            b = svg('text', {transform: `translate(${at + (turned ? size / 3 : 0)},-6)${turned}`,
                             class: turned ? '' : 'mid', 'font-size': size});
      a.textContent = b.textContent = names[k];
      big.append(a, b);
    }
    stage.replaceChildren(big);
    t = T - 1; s = T - 1;
    big.addEventListener('pointermove', e => {
      const r = copy.getBoundingClientRect();
      const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(big.getScreenCTM().inverse());
      const a = Math.floor(p.x / side), b = Math.floor(p.y / side);
      if (a >= 0 && b >= 0 && a < T && b < T) { s = a; t = b; show(); }
    });
    big.addEventListener('keydown', e => {
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
      if (!move[e.key]) return;
      e.preventDefault();
      t = Math.min(T - 1, Math.max(0, t + move[e.key][0]));
      s = Math.min(T - 1, Math.max(0, s + move[e.key][1]));
      show();
    });
    if (!box.open) box.showModal();
    big.focus();
    show();
  };
  document.querySelectorAll('[data-matrix]').forEach(b =>
    b.addEventListener('click', () => open(Number(b.dataset.matrix))));
  const turn = by => open((now + by + data.matrices.length) % data.matrices.length);
  box.querySelector('.before').addEventListener('click', () => turn(-1));
  box.querySelector('.after').addEventListener('click', () => turn(1));
  box.querySelector('.close').addEventListener('click', () => box.close());
  if (location.hash.startsWith('#matrix-')) open(Number(location.hash.slice(8)));
}
)js";

}  // namespace

std::string_view page_script() { return kScript; }

}  // namespace weft::train
