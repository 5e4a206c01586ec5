// What the page's scripts share. Names are text, never HTML.
"use strict";

const minus = (text) => text.replace(/-/g, "−");

function element(tag, attributes = {}, ...children) {
  const svg = ["path", "line", "circle", "text"].includes(tag);
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const dataOf = (id) => JSON.parse(document.getElementById(id).textContent);
