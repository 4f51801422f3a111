"use strict";

// Sorting: a click on a column's name, the other way round with the next click.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = head.cellIndex;
    const now = head.getAttribute("aria-sort");
    const descending = now === "ascending" || (column > 0 && now !== "descending");
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const key = row => row.cells[column].dataset.v;
    const names = new Intl.Collator(undefined, { numeric: true });
    const compare = column === 0
      ? (a, b) => names.compare(key(a), key(b))
      : (a, b) => (x => (x === x ? x : 0))(Number(key(a)) - Number(key(b)));
    const rows = [...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(a, b));
    body.append(...rows);
  });
}

// Radiance: mantissas above, exponents below, shown through a table of 256 display values for each exponent.
const srgb = x => (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055);
const TONES = {
  mu: x => Math.log1p(5000 * x) / Math.log1p(5000),
  srgb: x => srgb(Math.min(x, 1)),
  soft: x => srgb(x / (1 + x)),
};
const controls = document.getElementById("controls");
const pictures = new Map();  // image in the page -> its canvas and radiance, once it was needed
const visible = new Set();

async function load(image) {
  const source = new Image();
  source.src = image.dataset.radiance;
  await source.decode();
  const [width, height] = [source.naturalWidth, source.naturalHeight / 2];
  const canvas = Object.assign(document.createElement("canvas"), { width, height: 2 * height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  const bytes = context.getImageData(0, 0, width, 2 * height).data;
  canvas.height = height;
  canvas.role = "img";
  canvas.ariaLabel = image.alt;
  canvas.className = image.className;
  return { canvas, context, bytes, output: context.createImageData(width, height) };
}

function show({ context, bytes, output }) {
  const tone = TONES[controls.tone.value];
  const gain = 2 ** Number(controls.ev.value);
  const tables = {};
  const pixels = output.data;
  for (let i = 0; i < pixels.length; i += 4) {
    const exponent = bytes[pixels.length + i];
    const table = tables[exponent] ??= Uint8ClampedArray.from(
      { length: 256 }, (_, mantissa) => 255 * tone((mantissa / 256) * 2 ** (exponent - 128) * gain));
    pixels[i] = table[bytes[i]];
    pixels[i + 1] = table[bytes[i + 1]];
    pixels[i + 2] = table[bytes[i + 2]];
    pixels[i + 3] = 255;
  }
  context.putImageData(output, 0, 0);
}

async function refresh(image) {
  if (!pictures.has(image)) pictures.set(image, load(image));
  const picture = await pictures.get(image);
  show(picture);
  if (image.isConnected) image.hidden = true, picture.canvas.isConnected || image.after(picture.canvas);
}

if (controls) {
  controls.hidden = false;
  const watcher = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      for (const image of target.querySelectorAll("img[data-radiance]")) {
        if (isIntersecting) visible.add(image), refresh(image);
        else visible.delete(image);
      }
    }
  }, { rootMargin: "200px" });
  for (const image of document.querySelectorAll("img[data-radiance]")) watcher.observe(image.parentElement);
  let waiting = 0;
  const changed = () => {
    const ev = Number(controls.ev.value);
    controls.shown.value = `${ev > 0 ? "+" : ""}${ev} EV`;
    clearTimeout(waiting);
    waiting = setTimeout(() => visible.forEach(refresh), 10);
  };
  controls.addEventListener("input", changed);
  controls.addEventListener("reset", () => setTimeout(changed));
  controls.addEventListener("submit", event => event.preventDefault());
}

// Wipe: the target over each result of a scene, from the right; the copies are made when they are needed.
for (const wipe of document.querySelectorAll(".wipe")) {
  const grid = wipe.nextElementSibling;
  const [target, ...results] = [...grid.querySelectorAll(".view > img")].reverse();
  wipe.hidden = results.length === 0;
  wipe.addEventListener("input", event => {
    for (const result of grid.querySelector(".over") ? [] : results) {
      const over = target.cloneNode();
      over.hidden = false;
      over.classList.add("over");
      result.parentElement.append(over);
      visible.add(over);
      refresh(over);
    }
    grid.style.setProperty("--wipe", `${event.target.value}%`);
  });
}

// Zoom: all large pictures of a scene at the same place, by pointer, finger or keys.
const STEPS = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] };
for (const scene of document.querySelectorAll(".scene")) {
  let place = [50, 50];
  const move = (x, y) => {
    place = [x, y].map(value => Math.min(Math.max(value, 0), 100));
    scene.style.setProperty("--x", `${place[0]}%`);
    scene.style.setProperty("--y", `${place[1]}%`);
  };
  const zoom = () => {
    const zoomed = scene.classList.toggle("zoomed");
    for (const view of scene.querySelectorAll(".grid .view")) view.ariaPressed = zoomed;
  };
  const follow = event => {
    const view = event.target.closest(".grid .view");
    if (!view) return;
    const box = view.getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height);
  };
  for (const view of scene.querySelectorAll(".grid .view")) {
    const ariaLabel = `zoom ${view.querySelector("img").alt}`;
    Object.assign(view, { tabIndex: 0, role: "button", ariaLabel, ariaPressed: false });
  }
  scene.addEventListener("pointermove", follow);
  scene.addEventListener("click", event => {
    if (!event.target.closest(".grid .view")) return;
    if (!scene.classList.contains("zoomed")) follow(event);
    zoom();
  });
  scene.addEventListener("keydown", event => {
    if (!event.target.closest(".grid .view")) return;
    const zoomed = scene.classList.contains("zoomed");
    if (event.key === "Enter" || event.key === " " || (event.key === "Escape" && zoomed)) zoom();
    else if (zoomed && STEPS[event.key]) move(place[0] + STEPS[event.key][0], place[1] + STEPS[event.key][1]);
    else return;
    event.preventDefault();
  });
}
