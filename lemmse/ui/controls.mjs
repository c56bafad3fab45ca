// The controls of an explorable: native inputs with labels, a reset button, and the line of Python that restores the state.
// The model holds `request` = {positions: {key: index}, resting, by}; this file writes it by "page", Python by "python".

const SETTLE_MS = 200; // a control rests when nothing has moved for this long

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// JupyterLab looks for this attribute from the focused element upwards, and its command mode claims arrows and Enter on any
// focused element, so that the attribute must stand on the element itself.
function focusable(tag, attributes, ...children) {
  return node(tag, { ...attributes, "data-lm-suppress-shortcuts": "true" }, ...children);
}

function slider({ label, texts }, id, moved) {
  const input = focusable("input", { type: "range", id, min: 0, max: texts.length - 1, step: 1 });
  const output = node("output", { for: id });
  const say = (index) => {
    output.textContent = texts[index];
    input.setAttribute("aria-valuetext", texts[index]);
  };
  input.addEventListener("input", () => {
    say(Number(input.value));
    moved(Number(input.value));
  });
  const element = node("div", { class: "lemmse-control" }, node("label", { for: id }, label), input, output);
  return { element, set: (index) => { input.value = index; say(index); } };
}

function radios({ label, texts }, id, moved) {
  const inputs = texts.map((_, index) => focusable("input", { type: "radio", name: id, id: `${id}-${index}`, value: index }));
  const options = texts.flatMap((text, index) => [inputs[index], node("label", { for: `${id}-${index}` }, text)]);
  inputs.forEach((input, index) => input.addEventListener("change", () => moved(index)));
  const group = node("div", { class: "lemmse-options" }, ...options);
  const element = node("fieldset", { class: "lemmse-control" }, node("legend", {}, label), group);
  return { element, set: (index) => { inputs[index].checked = true; } };
}

function menu({ label, texts }, id, moved) {
  const options = texts.map((text, index) => node("option", { value: index }, text));
  const select = focusable("select", { id }, ...options);
  select.addEventListener("change", () => moved(Number(select.value)));
  const element = node("div", { class: "lemmse-control" }, node("label", { for: id }, label), select);
  return { element, set: (index) => { select.value = index; } };
}

function make(control, id, moved) {
  if (control.kind === "slider") return slider(control, id, moved);
  return control.texts.length <= 6 && control.texts.join("").length <= 60
    ? radios(control, id, moved)
    : menu(control, id, moved);
}

async function copy(line, button) {
  try {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(line); // no permission: leave it selected
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function render({ model, el }) {
  el.classList.add("lemmse", "lemmse-controls");
  const unique = `lemmse-${Math.random().toString(36).slice(2)}`;
  const controls = model.get("controls");
  let settling;

  const ask = (positions, resting) => {
    model.set("request", { positions, resting, by: "page" });
    model.save_changes();
  };
  const move = (changed) => {
    const positions = { ...model.get("request").positions, ...changed };
    clearTimeout(settling);
    if (model.get("settles")) settling = setTimeout(() => ask(positions, true), SETTLE_MS);
    ask(positions, !model.get("settles"));
  };

  const made = controls.map((control, index) =>
    make(control, `${unique}-${index}`, (position) => move({ [control.key]: position })));
  const inSight = made.filter((_, index) => !controls[index].folded).map(({ element }) => element);
  const folded = made.filter((_, index) => controls[index].folded).map(({ element }) => element);
  const reset = focusable("button", { type: "button" }, "Reset");
  reset.addEventListener("click", () => move(Object.fromEntries(controls.map(({ key, default: start }) => [key, start]))));
  const line = focusable("code", { tabindex: 0 });
  const copying = focusable("button", { type: "button" }, "Copy");
  copying.addEventListener("click", () => copy(line, copying));

  const title = node("div", { class: "lemmse-title", id: `${unique}-title` }, model.get("title"));
  const summary = focusable("summary", {}, folded.length ? "More controls, and this state in Python" : "This state in Python");
  const more = node("details", {}, summary, ...folded, node("div", { class: "lemmse-state" }, line, copying));
  el.setAttribute("role", "group");
  el.setAttribute("aria-labelledby", `${unique}-title`);
  el.append(node("div", { class: "lemmse-head" }, title, reset), ...inSight, more);

  const follow = () => made.forEach(({ set }, index) => set(model.get("request").positions[controls[index].key]));
  const name = () => { line.textContent = model.get("state_line"); };
  follow();
  name();
  model.on("change:request", follow);
  model.on("change:state_line", name);
  return () => {
    clearTimeout(settling);
    model.off("change:request", follow);
    model.off("change:state_line", name);
  };
}

export default { render };
