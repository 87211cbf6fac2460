// The film on a canvas: window and level, zoom, invert, boxes.

// As in runtime/overlay.py: told apart with the common colour-vision deficiencies.
const COLOURS = ["#ffb000", "#64b5f6", "#fe6d8c", "#9ccc65", "#b39ddb"];
const SVG = "http://www.w3.org/2000/svg";
const AS_IS = { width: 255, level: 127.5, inverted: false };
const OPPOSITE = { L: "R", R: "L", A: "P", P: "A", H: "F", F: "H" };

export class FilmView {
  constructor(stage, { onChange }) {
    this.stage = stage;
    this.canvas = stage.querySelector("canvas");
    this.overlay = stage.querySelector("svg#overlay");
    this.onChange = onChange;
    this.tool = "pan";
    this.bitmap = null;
    this.found = [];
    this.boxesShown = true;
    this.grey = { ...AS_IS };
    this.place = { scale: 1, x: 0, y: 0 };
    this.pending = 0;
    new ResizeObserver(() => this.resized()).observe(stage);
    this.listen();
  }

  show(bitmap) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.found = [];
    this.reset();
  }

  reset() {
    this.grey = { ...AS_IS };
    this.fit();
  }

  boxes(found) {
    this.found = found;
    this.draw();
  }

  set(change) {
    Object.assign(this.grey, change);
    this.grey.width = Math.min(Math.max(this.grey.width, 2), 510);
    this.grey.level = Math.min(Math.max(this.grey.level, 0), 255);
    this.draw();
  }

  fitScale() {
    const { clientWidth: w, clientHeight: h } = this.stage;
    return this.bitmap ? Math.min(w / this.bitmap.width, h / this.bitmap.height) : 1;
  }

  fit() {
    if (!this.bitmap) return;
    const { clientWidth: w, clientHeight: h } = this.stage;
    const scale = this.fitScale();
    this.fitted = true;
    this.place = { scale, x: (w - this.bitmap.width * scale) / 2, y: (h - this.bitmap.height * scale) / 2 };
    this.draw();
  }

  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.bitmap) return;
    const least = this.fitScale() / 2;
    const scale = Math.min(Math.max(this.place.scale * factor, least), 16);
    const ratio = scale / this.place.scale;
    this.fitted = false;
    this.place = { scale, x: x - (x - this.place.x) * ratio, y: y - (y - this.place.y) * ratio };
    this.draw();
  }

  move(dx, dy) {
    if (!this.bitmap) return;
    const { clientWidth: w, clientHeight: h } = this.stage;
    const [wide, high] = [this.bitmap.width * this.place.scale, this.bitmap.height * this.place.scale];
    this.fitted = false;
    // A strip of the film always stays in sight.
    this.place.x = Math.min(Math.max(this.place.x + dx, 40 - wide), w - 40);
    this.place.y = Math.min(Math.max(this.place.y + dy, 40 - high), h - 40);
    this.draw();
  }

  resized() {
    if (this.fitted) this.fit();
    else this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
      this.paintBoxes();
      this.onChange(this);
    });
  }

  paint() {
    const { canvas, stage, bitmap, place } = this;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
    context.fillStyle = "#000";
    context.fillRect(0, 0, w, h);
    if (!bitmap) return;
    const scale = place.scale * ratio;
    context.imageSmoothingEnabled = scale < 3;
    context.imageSmoothingQuality = "high";
    const [left, top] = [place.x * ratio, place.y * ratio];
    context.drawImage(bitmap, left, top, bitmap.width * scale, bitmap.height * scale);
    const [x0, y0] = [Math.max(Math.round(left), 0), Math.max(Math.round(top), 0)];
    const x1 = Math.min(Math.round(left + bitmap.width * scale), w);
    const y1 = Math.min(Math.round(top + bitmap.height * scale), h);
    if (x1 <= x0 || y1 <= y0) return;
    const seen = context.getImageData(x0, y0, x1 - x0, y1 - y0);
    const table = this.table();
    const words = new Uint32Array(seen.data.buffer);
    for (let i = 0; i < words.length; i += 1) words[i] = table[words[i] & 255];
    context.putImageData(seen, x0, y0);
  }

  // Grey value → RGBA; DICOM PS3.3 C.11.2.1.2.1 for 8 bits, then the inversion.
  table() {
    const { width, level, inverted } = this.grey;
    return Uint32Array.from({ length: 256 }, (_, value) => {
      const part = Math.min(Math.max((value - level) / width + 0.5, 0), 1);
      const grey = Math.round(255 * (inverted ? 1 - part : part));
      return ((255 << 24) | (grey << 16) | (grey << 8) | grey) >>> 0;
    });
  }

  paintBoxes() {
    this.overlay.replaceChildren();
    if (!this.bitmap || !this.boxesShown) return;
    const names = [...new Set(this.found.map((box) => box.label ?? ""))].sort();
    const { scale, x, y } = this.place;
    for (const { label, xyxy_fraction: [l, t, r, b] } of this.found) {
      const colour = COLOURS[names.indexOf(label ?? "") % COLOURS.length];
      const [wide, high] = [this.bitmap.width * scale, this.bitmap.height * scale];
      const [left, top] = [x + l * wide, y + t * high];
      this.mark("rect", { class: "box", x: left, y: top, width: (r - l) * wide, height: (b - t) * high, stroke: colour, rx: 2 });
      if (!label) continue;
      const line = Math.max(top - 6, 14);
      const text = this.mark("text", { x: left + 4, y: line, fill: colour }, label);
      const { width } = text.getBBox();
      const back = this.mark("rect", { class: "back", x: left, y: line - 14, width: width + 8, height: 19, rx: 3 });
      this.overlay.insertBefore(back, text);
    }
  }

  mark(name, attributes, text = "") {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    this.overlay.append(node);
    return node;
  }

  listen() {
    const { stage } = this;
    const fingers = new Map();
    const at = (event) => {
      const { left, top } = stage.getBoundingClientRect();
      return { x: event.clientX - left, y: event.clientY - top };
    };
    stage.addEventListener("pointerdown", (event) => {
      if (!this.bitmap || event.target.closest("button")) return;
      stage.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { ...at(event), button: event.button });
      stage.classList.add("dragging");
    });
    stage.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = { ...at(event), button: before.button };
      if (fingers.size === 2) this.pinch(fingers, event.pointerId, now);
      else this.drag(now.x - before.x, now.y - before.y, before.button === 2);
      fingers.set(event.pointerId, now);
    });
    const end = (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) stage.classList.remove("dragging");
    };
    stage.addEventListener("pointerup", end);
    stage.addEventListener("pointercancel", end);
    stage.addEventListener("contextmenu", (event) => { if (this.bitmap) event.preventDefault(); });
    stage.addEventListener("dblclick", () => this.fit());
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = at(event);
      this.zoom(Math.exp(-event.deltaY / 400), x, y);
    }, { passive: false });
  }

  drag(dx, dy, right) {
    if ((this.tool === "window") !== right) this.set({ width: this.grey.width + dx, level: this.grey.level + dy / 2 });
    else this.move(dx, dy);
  }

  pinch(fingers, moved, now) {
    const [other] = [...fingers].filter(([id]) => id !== moved).map(([, place]) => place);
    const before = fingers.get(moved);
    const apart = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
    const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.zoom(apart(now, other) / apart(before, other), middle.x, middle.y);
    this.move((now.x - before.x) / 2, (now.y - before.y) / 2);
  }
}

// Patient Orientation (rows' direction first) → letters at the left and right edge.
export function sides(orientation) {
  const towards = orientation?.[0]?.[0];
  return towards in OPPOSITE ? [OPPOSITE[towards], towards] : ["", ""];
}
