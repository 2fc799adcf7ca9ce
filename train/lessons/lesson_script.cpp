#include "train/lessons/lesson_script.h"

namespace weft::train {
namespace {

constexpr std::string_view kStyle = R"css(
section{max-width:80rem}
nav ol{display:grid;gap:.1rem 1.5rem;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));
 padding-left:1.4rem;margin:.6rem 0}
li{max-width:75ch}.equations li,nav li{max-width:none}
h2{margin-top:2rem;padding-top:.4rem;border-top:1px solid var(--line)}
section section h2{border:0;margin-top:.8rem;font-size:1rem}
h3{margin-top:1.2rem}
math{font-size:1.08em}
ol.equations{list-style:none;padding:0;margin:.4rem 0}
ol.equations ol{padding-left:1.6rem;margin:0;border-left:1px solid var(--line)}
.line{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;align-items:center;padding:.3rem .5rem;
 min-height:1.7em}
.note{color:var(--soft);font-size:.85rem}
.now>.line{background:var(--none);box-shadow:inset 3px 0 var(--c0)}
.steps{border:1px solid var(--line);border-radius:.4rem;padding:.4rem .8rem;position:sticky;
 top:.5rem}
.steps button,.knobs button{padding:.15rem .7rem}
.steps output{min-height:2.8em;font-size:.95rem}
.steps table{margin:.2rem 0 .5rem}
.steps td{min-width:3.6em}
.knobs{display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;align-items:center;max-width:75ch}
.knobs label{white-space:normal;display:inline-flex;gap:.5rem;align-items:center;flex-wrap:wrap}
.knobs .at{min-width:3.5em;font-variant-numeric:tabular-nums}
input[type=number]{font:inherit;width:6em;background:var(--paper);color:var(--ink);
 border:1px solid var(--line);border-radius:.3rem}
input[type=range]{accent-color:var(--c0)}
.check{border-left:3px solid var(--c2);padding-left:.7rem}
.check.bad{border-color:var(--c1)}
.display{font-size:1.1rem;padding-left:1rem;overflow-x:auto;max-width:none}
td{white-space:nowrap}
table.names td,table.names th{text-align:left;white-space:normal}
table.names td:nth-child(3){min-width:10rem}
table.signs td,table.signs th{text-align:left;white-space:normal}
td output{min-height:0}
pre{background:var(--none);padding:.5rem .8rem;overflow-x:auto;font-size:.85rem;max-width:75ch}
code{font-size:.9em}
.key.dots{width:.5em;height:.5em;border-radius:50%}
.exercises li{margin:.5rem 0}
svg.chart{max-width:40rem}
@media(max-width:30rem){ol.equations ol{padding-left:.7rem}.line{padding:.2rem .3rem}}
@media print{html{font-size:11px}.now>.line{background:none;box-shadow:none}
 .steps,.knobs,.check{display:none}details:not([open])>*{display:none}
 .pair{display:block}svg.chart{max-width:34rem}.form,.experiment{break-inside:auto}}
)css";

constexpr std::string_view kScript = R"js(
const lesson = data.lesson;
if (lesson) {
  // Values are numbers, arrays, and arrays of arrays.
  const rank = v => !Array.isArray(v) ? 0 : Array.isArray(v[0]) ? 2 : 1;
  const each1 = (v, f) => Array.isArray(v) ? v.map(x => each1(x, f)) : f(v);
  const pairs = (a, b, f) => Array.isArray(a) ? a.map((x, i) => pairs(x, b[i], f)) : f(a, b);
  const add = (a, b, sign) => b === 0 ? a : a === 0 ? each1(b, x => sign * x)
    : pairs(a, b, (x, y) => x + sign * y);
  const scale = (a, b) => Array.isArray(a) ? each1(a, x => x * b) : each1(b, x => a * x);
  const flat = v => Array.isArray(v) ? v.flatMap(flat) : [v];
  const inner = (a, b) => {
    const y = flat(b);
    return flat(a).reduce((sum, x, i) => sum + x * y[i], 0);
  };
  const columns = S => S[0].map((_, c) => S.map(row => row[c]));
  const plain = {
    exp: Math.exp, log: Math.log, tanh: Math.tanh, sqrt: Math.sqrt, floor: Math.floor,
    ceil: Math.ceil, sigmoid: x => 1 / (1 + Math.exp(-x)),
    softplus: x => x > 30 ? x : Math.log1p(Math.exp(x))};
  const functions = {
    dot: inner, inner, outer: (a, b) => a.map(x => b.map(y => x * y)),
    read: (S, a) => columns(S).map(column => inner(column, a)),
    times: (S, b) => S.map(row => inner(row, b)),
    rows: (A, B) => A.map((row, i) => inner(row, B[i])),
    each: (a, b) => a.map((x, i) => scale(x, b[i])),
    larger: Math.max, smaller: Math.min, above: (x, y) => x > y ? 1 : 0,
    at: (v, i) => v[i - 1], vector: (...v) => v,
    zeros: (n, m) => Array.from({length: n}, () => m ? Array(m).fill(0) : 0)};
  const value = (e, env) => {
    if (typeof e === 'number') return e;
    const part = i => value(e[i], env);
    switch (e[0]) {
      case 'name': {
        if (e[1] === 'infinity') return Infinity;
        const found = env[e[1]]?.[e.slice(2).map(i => Math.round(value(i, env))).join()];
        if (found === undefined) throw Error(`${e[1]} has no value`);
        return found;
      }
      case 'call': {
        const x = e.slice(2).map(a => value(a, env));
        return plain[e[1]] ? each1(x[0], plain[e[1]]) : functions[e[1]](...x);
      }
      case 'sum': case 'largest': {
        let all = e[0] === 'sum' ? 0 : -Infinity;
        for (let j = Math.round(part(2)), to = Math.round(part(3)); j <= to; ++j) {
          env[e[1]] = {'': j};
          const one = value(e[4], env);
          all = e[0] === 'sum' ? add(all, one, 1) : Math.max(all, one);
        }
        delete env[e[1]];
        return all;
      }
      case '+': return add(part(1), part(2), 1);
      case '-': return add(part(1), part(2), -1);
      case '*': return scale(part(1), part(2));
      case '/': return scale(part(1), 1 / part(2));
      case 'neg': return each1(part(1), x => -x);
    }
  };
  // Every name that an expression takes, with its value.
  const taken = (e, env, list) => {
    if (!Array.isArray(e)) return list;
    if (e[0] === 'name') {
      const at = e.slice(2).map(i => Math.round(value(i, env)));
      const label = [e[1], at.join(', ')], key = label.join();
      if (e[1] !== 'infinity' && !list.has(key)) list.set(key, [label, value(e, env)]);
    } else if (e[0] === 'sum' || e[0] === 'largest') {
      for (let j = Math.round(value(e[2], env)); j <= Math.round(value(e[3], env)); ++j) {
        env[e[1]] = {'': j};
        taken(e[4], env, list);
      }
      for (const key of list.keys()) if (key === e[1] + ',') list.delete(key);
      delete env[e[1]];
    } else {
      e.slice(e[0] === 'call' ? 2 : 1).forEach(a => taken(a, env, list));
    }
    return list;
  };
  const loops = new Set();
  const run = (lines, env, each) => {
    for (const line of lines) {
      if (line.for) {
        const from = Math.round(value(line.from, env)), to = Math.round(value(line.to, env));
        loops.add(line.for);
        for (let i = from; line.down ? i >= to : i <= to; i += line.down ? -1 : 1) {
          env[line.for] = {'': i};
          run(line.body, env, each);
        }
        delete env[line.for];
        continue;
      }
      const at = line.index.map(i => Math.round(value(i, env))), v = value(line.value, env);
      if (each) each(line, at, v, env);
      (env[line.name] ??= {})[at.join()] = v;
    }
    return env;
  };

  const copy = o => structuredClone(o);
  const example = places => {
    const env = copy(lesson.inputs);
    lesson.sliders.forEach((s, i) => {
      for (const key of Object.keys(env[s.name]))
        if (s.token === 0 || key === String(s.token)) {
          if (s.entry) env[s.name][key][s.entry - 1] = places[i];
          else env[s.name][key] = places[i];
        }
    });
    return env;
  };
  const solved = (form, env, each) => {
    if (form < lesson.forms.length) return run(lesson.forms[form], env, each);
    return run(lesson.gradient, run(lesson.forms[0], env), each);
  };

  // The page's numbers against the program's.
  const distance = (want, env) => {
    let most = 0, count = 0;
    for (const name in want)
      for (const at in want[name]) {
        if (env[name]?.[at] === undefined) continue;
        const a = flat(want[name][at]), b = flat(env[name][at]);
        a.forEach((x, i) => { most = Math.max(most, Math.abs(x - b[i])); ++count; });
      }
    return [most, count];
  };
  const check = document.getElementById('check');
  let most = 0, count = 0;
  const compare = (want, env) => {
    const [m, n] = distance(want, env);
    most = Math.max(most, Number.isNaN(m) ? Infinity : m);
    count += n;
  };
  for (const one of lesson.checks) {
    for (let f = 0; f < lesson.forms.length; ++f) compare(one.want[f], solved(f, example(one.at)));
    if (lesson.gradient.length)
      compare(one.gradients, solved(lesson.forms.length, example(one.at)));
  }
  for (const e of lesson.experiments) {
    const env = {};
    e.knobs.forEach((k, i) => { env[k] = {'': Number(document.querySelector(`[data-experiment="${
      lesson.experiments.indexOf(e)}"] [data-knob="${i}"]`).getAttribute('value'))}; });
    compare(e.want, run(e.equations, env));
  }
  const good = most < 1e-9 && count > 0;
  check.classList.toggle('bad', !good);
  check.textContent = `Check: this page computed ${count} numbers by itself, at ${
    lesson.checks.length} places of the sliders, all forms${
    lesson.gradient.length ? ' and the gradient' : ''}. The largest ` +
    `difference from the program's numbers is ${most.toExponential(1).replaceAll('-', '−')}` +
    (good ? '.' : ': the page and the program do not agree.');

  // A value as small cells; blue adds, orange takes away.
  const element = (name, text, attributes = {}) => {
    const e = document.createElement(name);
    if (text !== undefined) e.textContent = text;
    for (const k in attributes) e.setAttribute(k, attributes[k]);
    return e;
  };
  const minus = text => text.replaceAll('-', '−');
  const short = v => minus(Number.isInteger(v) && Math.abs(v) < 1e7 ? String(v)
    : Number.isFinite(v) ? String(Number(v.toPrecision(4))) : v > 0 ? '∞' : '−∞');
  const cells = v => {
    const rows = rank(v) === 2 ? v : [rank(v) === 1 ? v : [v]];
    const largest = Math.max(1e-12, ...flat(v).filter(Number.isFinite).map(Math.abs));
    const table = element('table');
    for (const row of rows) {
      const tr = element('tr');
      for (const x of row) {
        const td = element('td', short(x));
        const part = Number.isFinite(x) ? Math.round(35 * Math.abs(x) / largest) : 0;
        td.style.background =
          `color-mix(in srgb, var(--c${x < 0 ? 1 : 0}) ${part}%, transparent)`;
        td.style.textAlign = 'right';
        tr.append(td);
      }
      table.append(tr);
    }
    return table;
  };
  const greek = {alpha: 'α', beta: 'β', gamma: 'γ', delta: 'δ', lambda: 'λ', Gamma: 'Γ',
                 dbeta: 'dβ', eps: 'ε'};
  const label = ([name, at]) => {
    const e = element('span', greek[name] ?? name);
    if (at) e.append(element('sub', at));
    return e;
  };

  const tell = k => {
    k.closest('label').querySelector('.at').textContent = short(+k.value);
  };
  const sliders = [...document.querySelectorAll('#sliders [data-knob]')];
  const places = () => sliders.map(s => Number(s.value));
  const steppers = [...document.querySelectorAll('.form')].map(box => {
    const form = Number(box.dataset.form), step = box.querySelector('.step'),
          out = box.querySelector('output'), shown = box.querySelector('.shown');
    let steps = [];
    const show = () => {
      const at = Number(step.value), now = steps[at];
      box.querySelectorAll('.now').forEach(e => e.classList.remove('now'));
      box.querySelector(`[data-line="${now.line}"]`).classList.add('now');
      out.replaceChildren(`Step ${at + 1} of ${steps.length}`,
        ...(now.loops.length ? [', at ' + now.loops.join(', ')] : []), ':');
      const result = element('p');
      result.append(label([now.name, now.at.join(', ')]), ' =');
      shown.replaceChildren(result, cells(now.value));
      if (now.from.length) shown.append(element('p', 'made from'));
      const from = element('div', undefined, {class: 'from'});
      for (const [name, v] of now.from) {
        const row = element('p');
        row.append(label(name), ' = ',
          rank(v) === 0 ? short(v)
          : rank(v) === 1 ? `(${v.map(short).join(', ')})`
          : `[${v.map(r => r.map(short).join(', ')).join(' | ')}]`);
        from.append(row);
      }
      shown.append(from);
    };
    const move = by => {
      step.value = Number(step.value) + by;
      show();
    };
    step.addEventListener('input', show);
    box.querySelector('.back').addEventListener('click', () => move(-1));
    box.querySelector('.on').addEventListener('click', () => move(1));
    return () => {
      steps = [];
      solved(form, example(places()), (line, at, v, env) => {
        const from = [...taken(line.value, env, new Map()).values()]
          .filter(([[name]]) => !loops.has(name));
        steps.push({line: line.line, name: line.name, at, value: copy(v), from: copy(from),
                    loops: [...loops].filter(k => env[k]).map(k => `${k} = ${env[k]['']}`)});
      });
      step.max = steps.length - 1;
      show();
    };
  });
  const follow = () => {
    sliders.forEach(tell);
    steppers.forEach(f => f());
  };
  sliders.forEach(s => s.addEventListener('input', follow));
  document.getElementById('reset')?.addEventListener('click', () => {
    sliders.forEach(s => { s.value = s.getAttribute('value'); });
    follow();
  });
  follow();

  // An experiment's picture is drawn anew on the axes that it has, or on wider ones.
  document.querySelectorAll('.experiment').forEach((box, n) => {
    const e = lesson.experiments[n], chart = box.querySelector('svg.chart');
    const [x0, y0, w, h] = numbers(chart.dataset.box), [xa, xb] = numbers(chart.dataset.x);
    const knobs = [...box.querySelectorAll('[data-knob]')];
    const lines = [...chart.querySelectorAll('[data-name]')];
    const [low, high] = numbers(chart.dataset.y);
    const ticks = [...chart.querySelectorAll('.soft.end')], first = ticks.map(t => t.textContent);
    const draw = () => {
      const env = {};
      e.knobs.forEach((k, i) => { env[k] = {'': Number(knobs[i].value)}; });
      knobs.forEach(tell);
      run(e.equations, env);
      const all = e.curves.flatMap(c => Object.values(env[c.name])).filter(Number.isFinite);
      const ya = Math.min(low, ...all), yb = Math.max(high, ...all);
      chart.dataset.y = `${ya} ${yb}`;
      ticks.forEach((t, i) => {
        t.textContent = ya === low && yb === high ? first[i]
          : short(ya + (yb - ya) * i / (ticks.length - 1));
      });
      e.curves.forEach((c, i) => {
        const d = Object.entries(env[c.name]).map(([x, y]) => [
          x0 + w * (x - xa) / (xb - xa), y0 + h * (yb - y) / (yb - ya)]);
        lines[i].setAttribute('d', d.map(([x, y], k) => `${c.dots || !k ? 'M' : 'L'}${
          +x.toFixed(3)} ${+y.toFixed(3)}${c.dots ? 'h0' : ''}`).join(''));
      });
      chart.dispatchEvent(new Event('redrawn'));
    };
    knobs.forEach(k => k.addEventListener('input', draw));
    draw();
  });

  // The floor of a shape at the rates that the reader gives.
  const card = document.getElementById('card');
  const floors = () => {
    const products = 1e12 * card.querySelector('.tflops').value,
          memory = 1e12 * card.querySelector('.tbytes').value;
    for (const out of document.querySelectorAll('.floor')) {
      const a = out.dataset.flops / products, b = out.dataset.bytes / memory;
      out.textContent = products > 0 && memory > 0
        ? `${short(1e3 * Math.max(a, b))} ms, ${a > b ? 'products' : 'memory'}` : 'give both rates';
    }
  };
  card?.addEventListener('input', floors);
  if (card) floors();
}
)js";

}  // namespace

std::string_view lesson_script() { return kScript; }
std::string_view lesson_style() { return kStyle; }

}  // namespace weft::train
