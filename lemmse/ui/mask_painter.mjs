// A mask over a picture, painted by pointer or keyboard. Python keeps the mask: this file sends orders and draws `rows`.
// Orders are messages, so that none is merged with another; a stroke sends its next pixels once the last were heard.

const SETTLE_MS = 200; // where there is a coarse answer, the mask rests when nothing has changed for this long
const SIDE = 308; // the longer side on the page, in CSS pixels, rounded down to whole multiples of its pixels
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const BRUSHES = [1, 3, 5, 7, 9];

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// JupyterLab looks for this attribute from the focused element upwards; its command mode claims arrows and Enter.
function focusable(tag, attributes, ...children) {
  return node(tag, { ...attributes, "data-lm-suppress-shortcuts": "true" }, ...children);
}

// Two tones of stripes: hidden pixels differ from every picture by their pattern, not by a colour alone.
function hatch(context) {
  const tile = document.createElement("canvas");
  Object.assign(tile, { width: 8, height: 8 });
  const drawing = tile.getContext("2d");
  drawing.fillStyle = "#14344f";
  drawing.fillRect(0, 0, 8, 8);
  drawing.strokeStyle = "#e69f00";
  drawing.lineWidth = 2;
  for (const shift of [-8, 0, 8]) {
    drawing.beginPath();
    drawing.moveTo(shift - 1, 9);
    drawing.lineTo(shift + 9, -1);
    drawing.stroke();
  }
  return context.createPattern(tile, "repeat");
}

function radios(legend, options, chosen, unique, changed) {
  const inputs = options.map(([value], index) =>
    focusable("input", { type: "radio", name: unique, id: `${unique}-${index}`, value }));
  inputs.forEach((input) => {
    input.checked = input.value === chosen;
    input.addEventListener("change", () => changed(input.value));
  });
  const group = options.flatMap(([, text], index) => [inputs[index], node("label", { for: `${unique}-${index}` }, text)]);
  return node("fieldset", { class: "lemmse-control" },
    node("legend", {}, legend), node("div", { class: "lemmse-options" }, ...group));
}

function render({ model, el }) {
  el.classList.add("lemmse", "lemmse-paint");
  const unique = `lemmse-${Math.random().toString(36).slice(2)}`;
  const rows = () => model.get("rows");
  const height = rows().length;
  const width = rows()[0].length;
  const zoom = Math.max(1, Math.floor(SIDE / Math.max(width, height)));

  const canvas = focusable("canvas", {
    tabindex: 0, role: "application", "aria-roledescription": "mask to paint", "aria-describedby": `${unique}-help ${unique}-says`,
    width: width * zoom, height: height * zoom,
  });
  canvas.style.width = `${Math.min(SIDE, width * zoom)}px`;
  const context = canvas.getContext("2d");
  const pattern = hatch(context);
  const backdrop = document.createElement("canvas");
  Object.assign(backdrop, { width, height });

  let visible = false; // what the brush does
  let brush = 3;
  let cursor = [Math.floor(height / 2), Math.floor(width / 2)];
  let stroke = null; // the one that goes on: its name and where the brush is
  let count = 0;
  let serial = 0;
  let settling; // the timer that tells Python that the mask rests
  let awaited = null; // the part of a stroke that Python has not answered yet
  let unsent = new Map(); // pixels painted here and not sent, and the orders that they belong to
  let sent = new Map(); // pixels sent and not yet heard
  let pointed = false; // whether the frame of the brush follows the pointer

  const order = (content) => {
    clearTimeout(settling);
    const later = content.resting && content.kind !== "rest" && model.get("settles");
    if (later) settling = setTimeout(() => order({ kind: "rest", resting: true }), SETTLE_MS);
    serial += 1;
    model.send({ ...content, resting: content.resting && !later, serial: `${unique}-${serial}` });
    return `${unique}-${serial}`;
  };
  const flush = (resting) => {
    if (!stroke || (!resting && (awaited || !unsent.size))) return;
    for (const [pixel, value] of unsent) sent.set(pixel, value);
    awaited = order({ kind: "paint", pixels: [...unsent.keys()], visible: stroke.visible, stroke: stroke.name, resting });
    unsent = new Map();
  };
  const press = (content) => {
    finish();
    order({ ...content, resting: true });
  };

  function shown(row, column) {
    const pixel = row * width + column;
    return unsent.get(pixel) ?? sent.get(pixel) ?? rows()[row][column] === "1";
  }

  function draw() {
    context.imageSmoothingEnabled = false;
    context.drawImage(backdrop, 0, 0, canvas.width, canvas.height);
    context.fillStyle = pattern;
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        if (!shown(row, column)) context.fillRect(column * zoom, row * zoom, zoom, zoom);
      }
    }
    if (!pointed && document.activeElement !== canvas) return;
    const half = Math.floor(brush / 2);
    const frame = [(cursor[1] - half) * zoom, (cursor[0] - half) * zoom, brush * zoom, brush * zoom];
    context.lineWidth = 4;
    context.strokeStyle = "#000000";
    context.strokeRect(...frame);
    context.lineWidth = 2;
    context.strokeStyle = "#ffffff";
    context.strokeRect(...frame);
  }

  function stamp(row, column) {
    const half = Math.floor(brush / 2);
    for (let i = Math.max(0, row - half); i <= Math.min(height - 1, row + half); i++) {
      for (let j = Math.max(0, column - half); j <= Math.min(width - 1, column + half); j++) {
        if (shown(i, j) !== stroke.visible) unsent.set(i * width + j, stroke.visible);
      }
    }
  }
  function begin() {
    if (stroke) return;
    clearTimeout(settling);
    count += 1;
    stroke = { name: `${unique}-${count}`, visible, at: cursor };
    stamp(...cursor);
  }
  function go(row, column) {
    const steps = Math.max(Math.abs(row - cursor[0]), Math.abs(column - cursor[1]), 1);
    const [from, by] = [cursor, [row - cursor[0], column - cursor[1]]];
    cursor = [row, column];
    if (stroke) {
      for (let k = 1; k <= steps; k++) stamp(...from.map((start, axis) => Math.round(start + (by[axis] * k) / steps)));
      flush(false);
    }
    draw();
  }
  function finish() {
    if (stroke) flush(true);
    stroke = null;
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size, pixels) => Math.min(pixels - 1, Math.max(0, Math.floor((offset / size) * pixels)));
    return [at(event.clientY - box.top, box.height, height), at(event.clientX - box.left, box.width, width)];
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    finish();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    [cursor, pointed] = [place(event), true];
    where.textContent = ""; // said to those who paint by keyboard
    begin();
    flush(false);
    draw();
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    pointed = true;
    const seen = event.getCoalescedEvents?.() ?? [];
    for (const each of stroke && seen.length ? seen : [event]) go(...place(each));
  });
  const lift = () => { finish(); draw(); };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { pointed = false; draw(); });

  const where = node("div", { class: "lemmse-where", "aria-live": "polite" });
  const tell = () => {
    where.textContent = `Row ${cursor[0]}, column ${cursor[1]}: ${shown(...cursor) ? "visible" : "hidden"}.`;
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.key !== "Shift") pointed = false;
    const step = STEPS[event.key];
    if (step) {
      if (event.shiftKey) begin();
      const far = event.ctrlKey || event.metaKey ? 5 : 1;
      const within = (value, size) => Math.min(size - 1, Math.max(0, value));
      go(within(cursor[0] + far * step[0], height), within(cursor[1] + far * step[1], width));
    } else if (event.key === " " || event.key === "Enter") {
      begin();
      finish();
      draw();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      press({ kind: "undo" });
    } else {
      return;
    }
    tell();
    event.preventDefault();
    event.stopPropagation();
  });
  canvas.addEventListener("keyup", (event) => { if (event.key === "Shift") finish(); });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", () => { finish(); where.textContent = ""; draw(); });

  const button = (text, act) => {
    const made = focusable("button", { type: "button" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const undo = button("Undo", () => press({ kind: "undo" }));
  const invert = button("Invert", () => press({ kind: "invert" }));
  const share = focusable("select", { "aria-label": "Share hidden by Random" },
    ...model.get("percents").map((percent) => node("option", { value: percent }, `${percent} %`)));
  share.value = 50;
  const presets = model.get("presets").flatMap(({ name, label }) => {
    const made = button(label, () => press({ kind: "preset", name, percent: Number(share.value) }));
    return name === "random" ? [node("span", { class: "lemmse-joined" }, made, share)] : [made];
  });

  const size = focusable("input", { type: "range", id: `${unique}-size`, min: 0, max: BRUSHES.length - 1, step: 1, value: BRUSHES.indexOf(brush) });
  const sized = node("output", { for: `${unique}-size` });
  const resize = () => {
    brush = BRUSHES[Number(size.value)];
    sized.textContent = `${brush} × ${brush}`;
    size.setAttribute("aria-valuetext", `${brush} by ${brush} pixels`);
    draw();
  };
  size.addEventListener("input", resize);

  const tools = radios("brush", [["hide", "Hide"], ["show", "Show"]], "hide", `${unique}-tool`, (value) => {
    finish();
    visible = value === "show";
  });
  const sizes = node("div", { class: "lemmse-control" }, node("label", { for: `${unique}-size` }, "brush size"), size, sized);
  const help = node("p", { class: "lemmse-note", id: `${unique}-help` },
    "Paint with the pointer, or: arrows move the brush (with Ctrl by five), Space paints, Shift with arrows draws a line, Ctrl+Z takes back.");
  const problem = node("div", { class: "lemmse-problem", role: "alert" });
  const sentence = node("p", { class: "lemmse-sentence", id: `${unique}-says`, "aria-live": "polite" });
  const panel = node("div", { class: "lemmse-panel" }, tools, sizes,
    node("div", { class: "lemmse-buttons", role: "group", "aria-label": "Change the mask" }, undo, invert),
    node("div", { class: "lemmse-buttons", role: "group", "aria-label": "Presets" }, ...presets), help, where);
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Mask painter");
  el.append(problem, node("div", { class: "lemmse-desk" }, canvas, panel), sentence);

  function paint() {
    const facts = model.get("facts");
    problem.textContent = facts.error ?? "";
    if (sentence.textContent !== facts.sentence) sentence.textContent = facts.sentence;
    undo.setAttribute("aria-disabled", String(!facts.can_undo)); // not `disabled`, which would take the focus away
    canvas.setAttribute("aria-label", `Mask, ${height} by ${width} pixels`);
    draw();
    if (where.textContent) tell();
  }
  function back() {
    const bytes = model.get("backdrop");
    const rgba = new Uint8ClampedArray(bytes.buffer, bytes.byteOffset, 4 * width * height);
    backdrop.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
    draw();
  }
  function hear() {
    if (!awaited || model.get("heard") !== awaited) return;
    [awaited, sent] = [null, new Map()];
    flush(false);
    draw();
    if (where.textContent) tell();
  }
  back();
  resize();
  paint();
  const following = [["change:facts", paint], ["change:rows", paint], ["change:backdrop", back], ["change:heard", hear]];
  following.forEach(([event, follow]) => model.on(event, follow));
  return () => {
    clearTimeout(settling);
    following.forEach(([event, follow]) => model.off(event, follow));
  };
}

export default { render };
