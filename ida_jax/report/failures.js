// The pairs to look at that the boxes ask for. Each row: the places of its variant, method, kind
// and group, then of both names, then the texts of its cells; by descending score.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const data = dataOf("pairs");
  const section = document.getElementById("failures");
  const [body, count] = ["tbody", "#failures-count"].map((of) => section.querySelector(of));
  const boxes = [...section.querySelectorAll("select")], order = boxes.pop(), kind = boxes[2];
  // A picture of the rows that stand there without script is in the page once.
  for (const face of section.querySelectorAll("img")) data.images[face.dataset.face] = face.src;

  function line([, , kind, group, first, second, ...cells]) {
    const faces = [first, second].filter((face) => data.images[face]);
    const texts = [data.kinds[kind], ...(data.groups.length ? [data.groups[group]] : []), ...cells];
    return element("tr", {},
      element("th", { scope: "row" },
        ...faces.map((face) => element("img", { alt: "", src: data.images[face] })),
        ...[first, second].map((name) => element("div", {}, data.names[name]))),
      ...texts.map((text) => element("td", {}, text)));
  }

  function show() {
    const rows = data.rows.filter((row) =>
      boxes.every((box, i) => box.value === "" || Number(box.value) === row[i]));
    if (order.value === "-1") rows.reverse();
    body.replaceChildren(...rows.map(line));
    count.textContent = `${rows.length} ${rows.length === 1 ? "pair" : "pairs"}`;
  }

  for (const box of [...boxes, order]) box.addEventListener("change", show);
  // The worst first: of genuine pairs the lowest scores.
  kind.addEventListener("change", () => {
    order.value = data.kinds[kind.value].endsWith("genuine") ? "-1" : "1";
    show();
  });
  section.querySelector(".controls").hidden = false;
  show();
});
