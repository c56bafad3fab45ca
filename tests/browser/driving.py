"""How a reader drives an explorable: by keyboard, watching its pixels and its sentence."""

from dataclasses import dataclass

import nbformat
from playwright.sync_api import Locator, expect

DIGEST = """
  (root) => {
    const sheet = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const sources = [...root.querySelectorAll("canvas"), ...root.querySelectorAll("img:not([hidden])")];
    let hash = 0;
    for (const source of sources) {
      if (source.tagName === "IMG" && !(source.complete && source.naturalWidth)) return null; // still being decoded
      const [width, height] = [source.naturalWidth ?? source.width, source.naturalHeight ?? source.height];
      const shrink = Math.min(1, 240 / width); // a large plot would take longer to read than to draw
      Object.assign(sheet.canvas, { width: shrink * width, height: shrink * height });
      sheet.drawImage(source, 0, 0, sheet.canvas.width, sheet.canvas.height);
      const { data } = sheet.getImageData(0, 0, sheet.canvas.width, sheet.canvas.height);
      for (let i = 0; i < data.length; i++) hash = (Math.imul(hash, 31) + data[i]) | 0;
    }
    return `${sources.length}:${hash}`;
  }
"""

ARM = (
    "(root) => { const digest = "
    + DIGEST
    + """;
    const before = digest(root);
    window.lemmseChanged = new Promise((resolve) => {
      root.addEventListener("keydown", () => {
        const pressed = performance.now();
        const look = () => {
          const now = digest(root);
          if (now !== null && now !== before) resolve(performance.now() - pressed);
          else requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
      }, { once: true, capture: true });
    });
  }"""
)

CONTRASTS = """
  (root) => {
    const sheet = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
      sheet.clearRect(0, 0, 1, 1);
      sheet.fillStyle = colour;
      sheet.fillRect(0, 0, 1, 1);
      return Array.from(sheet.getImageData(0, 0, 1, 1).data);
    };
    const over = ([r, g, b, a], behind) => [r, g, b].map((v, i) => (v * a + behind[i] * (255 - a)) / 255);
    const ground = (node) => {
      if (!node) return [255, 255, 255];
      const colour = rgba(getComputedStyle(node).backgroundColor);
      return colour[3] === 255 ? colour.slice(0, 3) : over(colour, ground(node.parentElement));
    };
    const luminance = (colour) => {
      const [r, g, b] = colour.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratios = {};
    for (const node of root.querySelectorAll("*")) {
      const own = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
      const text = own.map((child) => child.data).join("").trim();
      if (!text || !node.checkVisibility()) continue;
      const behind = ground(node);
      const both = [luminance(over(rgba(getComputedStyle(node).color), behind)), luminance(behind)];
      ratios[text] = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    }
    return ratios;
  }
"""


@dataclass(frozen=True)
class Card:
    """One explorable on the page."""

    root: Locator

    @property
    def title(self) -> str:
        """Its title."""
        return self.root.locator(".lemmse-title").text_content()

    @property
    def sentence(self) -> Locator:
        """The live sentence."""
        return self.root.locator(".lemmse-sentence")

    @property
    def code(self) -> Locator:
        """The line of Python that restores the state."""
        return self.root.locator(".lemmse-state code")

    def control(self, label: str) -> Locator:
        """The input with this accessible name; of a radio group, the group."""
        return self.root.get_by_label(label, exact=True).first

    def unfold(self) -> None:
        """Show the folded controls and the state line."""
        if self.root.locator("details:not([open])").count():
            self.root.locator("summary").press("Enter")

    def reset(self) -> None:
        """Press "Reset" and wait until it has taken effect."""
        self.root.get_by_role("button", name="Reset").click()

    def pixels(self) -> str:
        """A digest of everything drawn."""
        self.root.page.wait_for_function(f"(root) => ({DIGEST})(root) !== null", arg=self.root.element_handle())
        return self.root.evaluate(DIGEST)

    def contrasts(self) -> dict[str, float]:
        """The contrast of each visible text with its background."""
        return self.root.evaluate(CONTRASTS)

    def press(self, control: Locator, key: str) -> float:
        """Press a key on a control and return the milliseconds until other pixels are drawn."""
        self.root.evaluate(ARM)
        control.press(key)
        return self.root.page.evaluate(
            "() => Promise.race([window.lemmseChanged, new Promise((_, fail) => "
            "setTimeout(() => fail(new Error('no other pixels 10 s after the key press')), 10000))])"
        )

    def move_every_control(self) -> None:
        """Move each control by one key and see other pixels and another sentence."""
        self.unfold()
        controls = self.root.locator(".lemmse-control")
        for index in range(controls.count()):
            control = controls.nth(index)
            said = self.sentence.text_content()
            focus, key = _next_key(control)
            self.press(focus, key)
            expect(self.sentence, f"the sentence after {key} on {control.text_content()!r}").not_to_have_text(said)

    def latency(self, presses: int) -> list[float]:
        """Walk the first slider to and fro and return the milliseconds from each key press to other pixels."""
        slider = self.root.get_by_role("slider").first
        times = []
        while len(times) < presses:
            position, last = (int(slider.evaluate(f"input => input.{name}")) for name in ("value", "max"))
            forward = "ArrowRight" if len(times) % (2 * last) < last and position < last else "ArrowLeft"
            times.append(self.press(slider, forward if position else "ArrowRight"))
        return times


def _next_key(control: Locator) -> tuple[Locator, str]:
    """What to focus and the key that moves this control to a neighbouring value."""
    radios = control.get_by_role("radio")
    if radios.count():
        chosen = control.locator("input:checked")
        return chosen, "ArrowRight"
    widget = control.locator("input, select")
    at_end = widget.evaluate("input => input.value === (input.max ?? String(input.length - 1))")
    select = widget.evaluate("input => input.tagName === 'SELECT'")
    return widget, {(False, False): "ArrowRight", (True, False): "ArrowLeft", (False, True): "ArrowDown"}.get(
        (at_end, select), "ArrowUp"
    )


def cards(lab, count: int) -> list[Card]:
    """The ``count`` explorables of the open notebook, top to bottom, each with its first view drawn."""
    roots = lab.page.locator(".lemmse-explorable")
    expect(roots).to_have_count(count)
    for index in range(count):
        expect(roots.nth(index).locator(".lemmse-sentence")).not_to_be_empty()
    return [Card(roots.nth(index)) for index in range(count)]


def holds(lab, claim: str) -> None:
    """Assert a line of Python in the kernel of the open notebook."""
    reply = lab.page.evaluate(
        """async (code) => {
             const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
             return (await kernel.requestExecute({ code }).done).content;
           }""",
        f"assert {claim}",
    )
    assert reply["status"] == "ok", (claim, reply)


def middle_of(picture: Locator, row: int, column: int, side: int = 28) -> dict[str, float]:
    """The place of a pixel's middle on a square picture of ``side`` pixels."""
    box = picture.bounding_box()
    return {"x": (column + 0.5) * box["width"] / side, "y": (row + 0.5) * box["height"] / side}


def run_cells(lab, name: str, cells: list[str]) -> None:
    """Write the cells into a notebook of their own, open it and run them all."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, lab.server.root / name)
    lab.open(name)
    lab.run_all()
