// Draws a view: canvases of raw RGBA bytes, a plot, numbers, and the sentence that says what they show.
// The model holds `frame` (JSON) and `pixels` (a DataView of all bytes); Python changes both in one message.

const SIDE = 140; // the longer side of a picture on the page, in CSS pixels, rounded to whole multiples of its pixels

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function cell() {
  const title = node("div", { class: "lemmse-picture-title", "aria-hidden": "true" });
  // The attribute keeps JupyterLab's command mode from taking the arrow keys, which walk over the pictures.
  const canvas = node("canvas", { role: "img", tabindex: -1, "data-lm-suppress-shortcuts": "true" });
  const low = node("span");
  const high = node("span");
  const colours = node("div", { class: "lemmse-bar" });
  const bar = node("div", { "aria-hidden": "true" }, colours, node("div", { class: "lemmse-ends" }, low, high));
  const note = node("div", { class: "lemmse-note", "aria-hidden": "true" });
  const element = node("div", { class: "lemmse-picture" }, title, canvas, bar, note);

  function paint(facts, bytes, longest) {
    const { width, height, start } = facts;
    const zoom = (longest <= SIDE ? longest * Math.round(SIDE / longest) : SIDE) / Math.max(width, height);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.style.width = `${zoom * width}px`;
    canvas.style.height = `${zoom * height}px`;
    const rgba = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset + start, 4 * width * height);
    canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    title.textContent = facts.title;
    note.textContent = facts.note;
    bar.hidden = !facts.bar;
    if (facts.bar) {
      colours.style.background = `linear-gradient(to right, ${facts.bar.colours.join(", ")})`;
      low.textContent = facts.bar.low;
      high.textContent = facts.bar.high;
    }
    const range = facts.bar ? `, colours from ${facts.bar.low} to ${facts.bar.high}` : "";
    canvas.setAttribute("aria-label", `${facts.title}${facts.note && `, ${facts.note}`}, ${height} by ${width} pixels${range}`);
  }
  return { element, canvas, paint };
}

function render({ model, el }) {
  el.classList.add("lemmse", "lemmse-view");
  const problem = node("div", { class: "lemmse-problem", role: "alert" });
  const pictures = node("div", { class: "lemmse-pictures", role: "group", "aria-label": "Pictures" });
  const plot = node("img", { class: "lemmse-plot", hidden: "" });
  const numbers = node("div", { class: "lemmse-numbers" });
  const sentence = node("p", { class: "lemmse-sentence", "aria-live": "polite" });
  el.append(problem, pictures, plot, numbers, sentence);
  let cells = [];

  pictures.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const here = cells.findIndex(({ canvas }) => canvas === event.target);
    const next = cells[here + step];
    if (!next) return;
    cells.forEach(({ canvas }) => { canvas.tabIndex = canvas === next.canvas ? 0 : -1; });
    next.canvas.focus();
    event.preventDefault();
  });

  function paint() {
    const frame = model.get("frame");
    if (!frame.revision) return;
    problem.textContent = frame.error;
    if (!frame.cells) return; // the first view failed: there is only the message
    const bytes = model.get("pixels");
    if (bytes.byteLength !== frame.bytes) return; // of another view: those of this one are on their way
    if (cells.length !== frame.cells.length) {
      cells = frame.cells.map(cell);
      pictures.replaceChildren(...cells.map(({ element }) => element));
      if (cells.length) cells[0].canvas.tabIndex = 0;
    }
    const longest = Math.max(...frame.cells.map(({ width, height }) => Math.max(width, height)));
    frame.cells.forEach((facts, index) => cells[index].paint(facts, bytes, longest));
    plot.hidden = !frame.plot;
    if (frame.plot) {
      const { start, length, width } = frame.plot;
      URL.revokeObjectURL(plot.src);
      plot.src = URL.createObjectURL(new Blob([new Uint8Array(bytes.buffer, bytes.byteOffset + start, length)], { type: "image/png" }));
      plot.width = width;
      plot.alt = frame.sentence;
    }
    numbers.replaceChildren(...frame.numbers.map(([name, text]) => node("span", {}, `${name} `, node("b", {}, text))));
    if (sentence.textContent !== frame.sentence) sentence.textContent = frame.sentence;
  }

  paint();
  model.on("change", paint); // once both have changed
  return () => {
    model.off("change", paint);
    URL.revokeObjectURL(plot.src);
  };
}

export default { render };
