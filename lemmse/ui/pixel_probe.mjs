// Choose a pixel of the estimate by hovering, clicking or arrow keys, and see what it is made of.
// Python does all sums: this file sends `request`, and draws `view` (the estimate) and `facts` (one pixel).

const SIDE = 224; // the longer side of the estimate on the page, in CSS pixels, rounded down to whole multiples
const SMALL = 84; // the same for the images of the sources
const TINY = 56; // ... and for single windows
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Draws raw RGBA bytes with whole pixels, and a frame in two tones, seen on any picture, that may go on at the other side.
function draw(canvas, bytes, { start, width, height }, longest, frames = [], wraps = false) {
  const zoom = Math.max(1, Math.floor(longest / Math.max(width, height)));
  const sheet = document.createElement("canvas");
  Object.assign(sheet, { width, height });
  const rgba = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset + start, 4 * width * height);
  sheet.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  Object.assign(canvas, { width: width * zoom, height: height * zoom });
  canvas.style.width = `${Math.min(longest, width * zoom)}px`;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  const over = wraps ? [-1, 0, 1] : [0];
  for (const { row, column, side, dashed } of frames) {
    const half = Math.floor(side / 2);
    for (const [thickness, colour] of [[4, "#000000"], [2, "#ffffff"]]) {
      context.lineWidth = thickness;
      context.strokeStyle = colour;
      context.setLineDash(dashed && colour === "#ffffff" ? [4, 3] : []);
      for (const a of over) {
        for (const b of over) {
          context.strokeRect((column - half + b * width) * zoom, (row - half + a * height) * zoom, side * zoom, side * zoom);
        }
      }
    }
  }
}

function plate(title, canvas) {
  const heading = node("div", { class: "lemmse-picture-title", "aria-hidden": "true" }, title);
  return { element: node("div", { class: "lemmse-picture" }, heading, canvas), heading };
}

function swatch(colour, text) {
  const patch = node("span", { class: "lemmse-swatch", "aria-hidden": "true" });
  patch.style.background = colour;
  return node("span", { class: "lemmse-joined" }, patch, text);
}

function render({ model, el }) {
  el.classList.add("lemmse", "lemmse-probe");
  const unique = `lemmse-${Math.random().toString(36).slice(2)}`;
  const seen = node("canvas", { role: "img" });
  // The attribute keeps JupyterLab's command mode from taking the arrow keys.
  const estimate = node("canvas", {
    role: "application", "aria-roledescription": "picture to walk over", tabindex: 0, "data-lm-suppress-shortcuts": "true",
    "aria-describedby": `${unique}-help`,
  });
  const zoomed = node("canvas", { role: "img" });
  const [left, middle, right] = [plate("", seen), plate("", estimate), plate("", zoomed)];
  const problem = node("div", { class: "lemmse-problem", role: "alert" });
  const sentence = node("p", { class: "lemmse-sentence", "aria-live": "polite" });
  const help = node("p", { class: "lemmse-note", id: `${unique}-help` },
    "Hover over x̂, click to keep a pixel, or walk with the arrow keys (with Ctrl by five).");
  const body = node("tbody");
  const foot = node("tfoot");
  const heads = ["source", "in its image", "window", "weight", "its pixel", "gives", "sum so far"];
  const table = node("table", { class: "lemmse-sources" },
    node("caption", {}, "The windows that this pixel is made of, heaviest first"),
    node("thead", {}, node("tr", {}, ...heads.map((head) => node("th", { scope: "col" }, head)))), body, foot);
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", model.get("title"));
  el.append(node("div", { class: "lemmse-title" }, model.get("title")), problem,
    node("div", { class: "lemmse-pictures" }, left.element, middle.element, right.element), help, sentence,
    node("div", { class: "lemmse-scroll" }, table));

  let hovered = null; // the pixel under the pointer, drawn before Python has answered
  let chosen = model.get("facts").chosen;
  const size = () => model.get("view").pictures[1];

  let awaited = null; // the last request, until Python has answered it: older answers do not move the chosen pixel back
  let count = 0;
  const ask = ([row, column], hovering) => {
    count += 1;
    awaited = `${unique}-${count}`;
    model.set("request", { row, column, hovered: hovering, serial: awaited });
    model.save_changes();
  };
  const choose = (pixel) => {
    [chosen, hovered] = [pixel, null];
    mark();
    ask(pixel, false);
  };

  function mark() {
    const view = model.get("view");
    const bytes = model.get("view_pixels");
    const [row, column] = hovered ?? chosen;
    const { wraps } = view;
    draw(seen, bytes, view.pictures[0], SIDE, [{ row, column, side: view.patch_size }], wraps);
    const kept = hovered ? [{ row: chosen[0], column: chosen[1], side: 1, dashed: true }] : [];
    draw(estimate, bytes, view.pictures[1], SIDE, [...kept, { row, column, side: 1 }]);
  }

  function source(each, bytes, { same, wraps, side }) {
    const [row, column] = each.at;
    const name = `training image ${each.image}, row ${row}, column ${column}`;
    const picture = node("canvas", { role: "img", "aria-label": `${name}, the window framed` });
    draw(picture, bytes, each.picture, SMALL, [{ row, column, side }], wraps);
    const stored = node("canvas", { role: "img", "aria-label": `window of ${name}` });
    draw(stored, bytes, each.stored, TINY);
    const windows = [stored];
    if (!same) {
      const measured = node("canvas", { role: "img", "aria-label": `the same window as it would be measured` });
      draw(measured, bytes, each.measured, TINY);
      windows.push(node("span", { class: "lemmse-as", "aria-hidden": "true" }, "as measured"), measured);
    }
    const bar = node("div", { class: "lemmse-weight", "aria-hidden": "true" }, node("div"));
    bar.firstChild.style.width = `${100 * each.share}%`;
    return node("tr", {},
      node("th", { scope: "row" }, `image ${each.image}`, node("br"), node("span", {}, `row ${row}, column ${column}`)),
      node("td", {}, picture), node("td", {}, node("div", { class: "lemmse-windows" }, ...windows)),
      node("td", {}, each.percent, bar, node("span", {}, each.weight)),
      node("td", {}, swatch(each.swatch, each.colour)), node("td", {}, each.contribution), node("td", {}, each.sum));
  }

  function paint() {
    const facts = model.get("facts");
    const view = model.get("view");
    const bytes = model.get("pixels");
    problem.textContent = facts.error;
    if (facts.answers === awaited) awaited = null;
    if (!awaited) chosen = facts.chosen;
    const [row, column] = facts.pixel;
    const [v, x] = view.pictures;
    [left, middle].forEach(({ heading }, index) => { heading.textContent = view.pictures[index].title; });
    right.heading.textContent = `window of ${v.title}`;
    seen.setAttribute("aria-label", `${v.title}, ${v.height} by ${v.width} pixels, the window around row ${row}, column ${column} framed`);
    estimate.setAttribute("aria-label", `${x.title}, ${x.height} by ${x.width} pixels, row ${row}, column ${column} chosen`);
    zoomed.setAttribute("aria-label", `the ${view.patch_size} by ${view.patch_size} window of ${v.title} around row ${row}, column ${column}`);
    mark();
    draw(zoomed, bytes, facts.window, SIDE / 2);
    const how = { same: facts.same, wraps: view.wraps, side: view.patch_size };
    body.replaceChildren(...facts.sources.map((each) => source(each, bytes, how)));
    const line = (name, weight, gives, sum, kind) => node("tr", { class: kind },
      node("th", { scope: "row", colspan: 3 }, name), node("td", {}, weight), node("td"), node("td", {}, gives), node("td", {}, sum));
    const { rest, total } = facts;
    foot.replaceChildren(line("all other windows", rest.weight, rest.share, "", "lemmse-rest"),
      line("together: all the weight, and the pixel", total.weight, "", swatch(total.swatch, total.pixel), "lemmse-total"));
    sentence.setAttribute("aria-live", facts.hovered ? "off" : "polite"); // a moving pointer would never let it end
    if (sentence.textContent !== facts.sentence) sentence.textContent = facts.sentence;
  }

  const place = (event) => {
    const box = estimate.getBoundingClientRect();
    const at = (offset, length, pixels) => Math.min(pixels - 1, Math.max(0, Math.floor((offset / length) * pixels)));
    return [at(event.clientY - box.top, box.height, size().height), at(event.clientX - box.left, box.width, size().width)];
  };
  const same = (one, other) => one && other && one[0] === other[0] && one[1] === other[1];
  estimate.addEventListener("pointermove", (event) => {
    const pixel = place(event);
    if (event.pointerType === "touch" || same(pixel, hovered ?? chosen)) return;
    hovered = pixel;
    mark();
    ask(pixel, true);
  });
  estimate.addEventListener("pointerleave", () => { if (hovered) choose(chosen); });
  estimate.addEventListener("click", (event) => {
    estimate.focus({ preventScroll: true });
    choose(place(event));
  });
  estimate.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    const far = event.ctrlKey || event.metaKey ? 5 : 1;
    const limits = [size().height, size().width];
    choose(chosen.map((value, axis) => Math.min(limits[axis] - 1, Math.max(0, value + far * step[axis]))));
    event.preventDefault();
    event.stopPropagation();
  });

  paint();
  model.on("change:facts", paint);
  return () => model.off("change:facts", paint);
}

export default { render };
