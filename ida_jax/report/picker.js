// Choosing a threshold on the report: what a score, or the FAR that it gives, would do.
// Counts are those of the tested pairs; every threshold is one of the table inside the page.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const data = dataOf("thresholds");
  const at = (id) => document.getElementById(`picker-${id}`);
  const [variantBox, methodBox, farBox, slider] = ["variant", "method", "far", "score"].map(at);
  const copy = at("copy");
  const state = { variant: 0, method: 0, point: 0, far: null };

  const percent = (rate) => `${(100 * rate).toFixed(2)} %`;
  const count = (number) => number.toLocaleString("en");
  const score = (value) => minus(value.toFixed(4));
  // As Python's :g, the key of a FAR in results.json and deploy.json.
  const farKey = (far) =>
    String(Number(far.toPrecision(6))).replace(/e([+-])(\d)$/, "e$10$2");
  const farText = (rate) => (rate && rate < 1e-3
    ? minus(rate.toExponential(2)) : String(Number(rate.toPrecision(3))));
  const far = (method, point) => method.false_accepts[point] / method.impostor;
  const tar = (method, point) => method.true_accepts[point] / method.genuine;

  // The most lenient threshold that does not exceed the FAR; the strictest gives no false accept.
  function pointOfFar(method, wanted) {
    let point = 0;
    while (point + 1 < method.threshold.length && far(method, point + 1) <= wanted) point += 1;
    return point;
  }

  function pointNearest(method, value) {
    const away = method.threshold.map((threshold) => Math.abs(threshold - value));
    return away.indexOf(Math.min(...away));
  }

  const methods = () => data.variants[state.variant].methods;
  const chosen = () => methods()[state.method];
  const baseline = () => methods().find((method) => method.key === data.baseline);
  const asked = () => (state.far === null ? far(chosen(), state.point) : state.far);

  variantBox.addEventListener("change", () => {
    const key = chosen().key;
    state.variant = Number(variantBox.value);
    listMethods(key);
    choose(asked());
  });
  methodBox.addEventListener("change", () => {
    const wanted = asked();
    state.method = Number(methodBox.value);
    choose(wanted);
  });
  farBox.addEventListener("input", () => {
    const wanted = Number(farBox.value);
    const good = farBox.value.trim() !== "" && wanted > 0 && wanted <= 1;
    farBox.setAttribute("aria-invalid", String(!good));
    if (good) choose(wanted, farBox);
  });
  slider.addEventListener("input", () => {
    state.point = pointNearest(chosen(), Number(slider.value));
    state.far = null;
    show(slider);
  });
  // An arrow goes to the next threshold of the table, however near it is.
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: -1, ArrowUp: -1, ArrowLeft: 1, ArrowDown: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const last = chosen().threshold.length - 1;
    state.point = Math.min(last, Math.max(0, state.point + steps[event.key]));
    state.far = null;
    show();
  });
  copy.addEventListener("click", () => {
    getSelection().selectAllChildren(at("row"));
    copy.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });

  function listMethods(key) {
    methodBox.replaceChildren(
      ...methods().map((method, i) => element("option", { value: i }, method.title)));
    const place = methods().findIndex((method) => method.key === key);
    state.method = place < 0 ? methods().length - 1 : place;
    const least = Math.ceil(Math.log10(1 / chosen().impostor));
    at("presets").replaceChildren();
    for (let power = -1; power >= Math.max(least, -7); power -= 1) {
      const button = element("button", { type: "button" }, minus(`1e${power}`));
      button.addEventListener("click", () => choose(Number(`1e${power}`)));
      at("presets").append(button);
    }
  }

  function choose(wanted, source) {
    state.point = pointOfFar(chosen(), wanted);
    state.far = wanted > 0 ? wanted : null;
    show(source);
  }

  function show(source) {
    const method = chosen();
    const { point } = state;
    variantBox.value = state.variant;
    methodBox.value = state.method;
    slider.min = method.threshold[method.threshold.length - 1];
    slider.max = method.threshold[0];
    if (source !== slider) slider.value = method.threshold[point];
    slider.setAttribute("aria-valuetext", score(method.threshold[point]));
    at("label").textContent = `Score (${method.score})`;
    if (source !== farBox) {
      farBox.value = farKey(Number(asked().toPrecision(3)));
      farBox.setAttribute("aria-invalid", "false");
    }
    const other = baseline();
    const shown = [[method, point]];
    if (other && other !== method) shown.push([other, pointOfFar(other, asked())]);
    at("rows").replaceChildren(...shown.map((of) => resultRow(...of)));
    at("groups").replaceChildren(...groupRows(shown));
    at("notes").textContent = remarks(shown);
    at("row").textContent = configRow(method, point);
    draw(shown);
  }

  function resultRow(method, point) {
    const cell = (text, below, name) => element("td", { "data-name": name }, text,
      ...(below ? [element("small", {}, below)] : []));
    const ends = method.tar_interval[point];
    const range = method.threshold_interval[point];
    const few = method.false_accepts[point] < data.fewest;
    return element("tr", { "data-method": method.key },
      element("th", { scope: "row" }, method.title),
      cell(score(method.threshold[point]),
        range ? `${score(range[0])} … ${score(range[1])}` : "", "threshold"),
      cell(farText(far(method, point)), "", "far"),
      cell(count(method.false_accepts[point]) + (few ? " †" : ""),
        `of ${count(method.impostor)}`, "false_accepts"),
      cell(percent(tar(method, point)),
        ends ? `${(100 * ends[0]).toFixed(2)}–${(100 * ends[1]).toFixed(2)}` : "", "tar"),
      cell(count(method.genuine - method.true_accepts[point]),
        `of ${count(method.genuine)}`, "false_rejects"));
  }

  // Each group's FAR at the one threshold, of the methods shown.
  function groupRows(shown) {
    if (!chosen().groups.length) return [];
    const names = ["FAR in group", ...shown.map(([method]) => method.title)];
    const cell = ([method, at], i) => {
      const group = method.groups[i];
      const wrong = group.false_accepts[at];
      return element("td", { "data-group": group.name }, farText(wrong / group.impostor),
        element("small", {}, `${count(wrong)}${wrong < data.fewest ? " †" : ""} of ${count(group.impostor)}`));
    };
    return [
      element("thead", {}, element("tr", {}, ...names.map((n) => element("th", { scope: "col" }, n)))),
      element("tbody", {}, ...chosen().groups.map((group, i) => element("tr", {},
        element("th", { scope: "row" }, group.name), ...shown.map((of) => cell(of, i))))),
    ];
  }

  function remarks(shown) {
    const said = [];
    const few = shown.some(([method, point]) => [method, ...method.groups].some((of) =>
      of.false_accepts[point] < data.fewest));
    if (few) said.push(`† Fewer than ${data.fewest} false accepts: conclude nothing from it.`);
    if (shown.length > 1) said.push("The second row, dashed in the figure, is the cosine at the same FAR.");
    const known = shown.some(([method, point]) => method.tar_interval[point]);
    said.push(known
      ? "Small ranges are 95 % intervals, interpolated between the FARs that were resampled."
      : "No interval is known here.");
    said.push("A pair is accepted above the threshold. The rates are those of these pairs: "
      + "other cameras, ages or people have others.");
    return said.join(" ");
  }

  // One entry as deploy.json has it.
  function configRow(method, point) {
    const key = farKey(Number(asked().toPrecision(3)));
    const entry = {
      threshold: method.threshold[point],
      interval: method.threshold_interval[point],
      false_accepts: method.false_accepts[point],
      impostor_pairs: method.impostor,
    };
    return JSON.stringify({ method: method.key, far: key, threshold: { [key]: entry } }, null, 1)
      .replace(/\n\s*/g, " ");
  }

  function draw(shown) {
    const n = chosen().impostor;
    const low = Math.min(...shown.map(([method]) => tar(method, 0)));
    const floor = [0.96, 0.8, 0.6, 0.4, 0.2, 0].find((rate) => rate <= low);
    const x = (rate) => 60 + 560 * (1 + Math.log10(Math.max(rate, 1 / n)) / Math.log10(n));
    const y = (rate) => 15 + 175 * (1 - rate) / (1 - floor);
    const made = [];
    const text = (at, height, words, anchor) => made.push(
      element("text", { x: at, y: height, "text-anchor": anchor }, words));
    for (let power = Math.ceil(-Math.log10(n)); power <= 0; power += 1) {
      made.push(element("line", { class: "grid", x1: x(10 ** power), x2: x(10 ** power), y1: 15, y2: 190 }));
      text(x(10 ** power), 206, minus(`1e${power}`), "middle");
    }
    for (let tick = 0; tick <= 4; tick += 1) {
      const rate = floor + (1 - floor) * tick / 4;
      made.push(element("line", { class: "grid", x1: 60, x2: 620, y1: y(rate), y2: y(rate) }));
      text(52, y(rate) + 4, (100 * rate).toFixed(0), "end");
    }
    text(340, 224, "FAR", "middle");
    text(60, 3, "TAR %", "middle");
    shown.forEach(([method, point], second) => {
      const places = method.threshold.map((_, i) => i).filter((i) => method.false_accepts[i]);
      const path = places.map((i, first) =>
        `${first ? "L" : "M"}${x(far(method, i)).toFixed(1)},${y(tar(method, i)).toFixed(1)}`).join("");
      const kind = second ? "base" : "own";
      made.push(element("path", { class: kind, d: path }));
      const at = { cx: x(far(method, point)), cy: y(tar(method, point)) };
      if (!second) made.push(element("line", { class: "at", x1: at.cx, x2: at.cx, y1: 15, y2: 190 }));
      made.push(element("circle", { class: kind, r: 4.5, ...at }));
    });
    at("plot").replaceChildren(...made);
  }

  // report.html#far=1e-4&method=ida_r&variant=all_pairs, or #score=0.31
  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const variant = data.variants.findIndex((v) => v.name === wanted.get("variant"));
    state.variant = Math.max(0, variant);
    listMethods(wanted.get("method") || data.method);
    const rate = Number(wanted.get("far"));
    choose(rate > 0 && rate <= 1 ? rate : Math.min(0.1, Math.max(1e-3, 10 / chosen().impostor)));
    const value = wanted.get("score");
    if (value !== null && Number.isFinite(Number(value))) {
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
    }
  }
  fromAddress();
  addEventListener("hashchange", fromAddress);
  document.getElementById("picker").hidden = false;
});
