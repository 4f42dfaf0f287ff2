"use strict";
// All data come from the JSON in the page and are inserted as text, because class names are untrusted.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const number = (value) => value.toLocaleString("en");
  const images = (count) => `${number(count)} ${count === 1 ? "image" : "images"}`;

  function create(tag, text = "", kind = "") {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  // --- tables that sort -----------------------------------------------------------------------------------

  function sortBy(table, column, header) {
    const falling = header.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const numeric = header.classList.contains("n");
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (numeric && (x === "" || y === "")) return (x === "") - (y === "");  // Missing values stay at the end.
      return (numeric ? x - y : x.localeCompare(y)) * (falling ? -1 : 1);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
    for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }

  for (const table of all("table.sortable")) {
    all("thead th[aria-sort]", table).forEach((header) => {
      const column = [...header.parentElement.cells].indexOf(header);
      one("button", header).addEventListener("click", () => sortBy(table, column, header));
    });
  }

  // --- thumbnails ------------------------------------------------------------------------------------

  const sheetStyles = new Set();

  function useSheets(number) {
    if (sheetStyles.has(number)) return;
    sheetStyles.add(number);
    const style = document.createElement("style");
    style.textContent = data.imageSets[number].sheets
      .map((sheet, index) => `.a${number}s${index}{background-image:url("${sheet}")}`)
      .join("\n");
    document.head.append(style);
  }

  function thumb(setNumber, image, shown = 96) {
    const imageSet = data.imageSets[setNumber];
    const tile = imageSet.tiles[image];
    const picture = create("span", "", "thumb");
    if (tile < 0) {
      picture.classList.add("missing");
      picture.textContent = "no picture";
      return picture;
    }
    useSheets(setNumber);
    const place = tile % data.perSheet;
    picture.classList.add(`a${setNumber}s${Math.floor(tile / data.perSheet)}`);
    if (imageSet.side < 24) picture.classList.add("coarse");
    picture.style.backgroundSize = `${shown * data.columns}px auto`;
    picture.style.backgroundPosition =
      `${-shown * (place % data.columns)}px ${-shown * Math.floor(place / data.columns)}px`;
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", `picture of ${imageSet.ids[image]}`);
    return picture;
  }

  function textOf(run, image) {
    const imageSet = data.imageSets[run.imageSet];
    const [label, predicted] = [imageSet.labels[image], run.predicted[image]];
    const confidence = `${(run.confidences[image] / 10).toFixed(1)}\u00a0%`;
    return { label: imageSet.classes[label], predicted: imageSet.classes[predicted], right: label === predicted, confidence, id: imageSet.ids[image] };
  }

  function describe(run, image) {
    const text = textOf(run, image);
    const parts = document.createDocumentFragment();
    const prediction = create("span", `predicted ${text.predicted} `, text.right ? "prediction right" : "prediction");
    const id = create("span", text.id, "id");
    prediction.append(create("span", text.confidence, "confidence"));
    id.title = text.id;
    parts.append(create("strong", text.label), prediction, id);
    return parts;
  }

  const AT_ONCE = 60;

  function gallery(container, run, chosen) {
    container.replaceChildren();
    const list = create("ul", "", "gallery");
    const more = create("button", "", "button more");
    more.type = "button";
    let shown = 0;
    const grow = () => {
      const first = shown;
      for (const image of chosen.slice(shown, shown + AT_ONCE)) {
        const item = create("li");
        item.append(thumb(run.imageSet, image), describe(run, image));
        list.append(item);
      }
      shown = Math.min(shown + AT_ONCE, chosen.length);
      more.hidden = shown >= chosen.length;
      more.textContent = `Show more (${number(chosen.length - shown)} left)`;
      if (first) { list.children[first].tabIndex = -1; list.children[first].focus(); }
    };
    more.addEventListener("click", grow);
    container.append(list, more);
    grow();
  }

  // --- one run in detail ----------------------------------------------------------------------------------

  const state = { run: 0 };
  const chooser = one("#run");
  const run = () => data.runs[state.run];
  const imageSet = () => data.imageSets[run().imageSet];
  const chart = () => imageSet().maps[run().map];
  const byConfidence = (rows) => rows.sort((a, b) => run().confidences[b] - run().confidences[a]);
  const rowsWhere = (holds) => [...run().predicted.keys()].filter(holds);

  function show(number) {
    state.run = number;
    if (chooser) chooser.value = String(number);
    for (const part of all("[data-run]")) part.hidden = Number(part.dataset.run) !== number;
    closeCell();
    showMistakes();
    plane.reset();
  }

  chooser?.addEventListener("change", () => show(Number(chooser.value)));
  for (const button of all("button[data-detail]")) {
    button.addEventListener("click", () => {
      show(Number(button.dataset.detail));
      const heading = one("#detail-title");
      heading.focus();
      heading.scrollIntoView();
    });
  }

  function showMistakes() {
    const wrong = byConfidence(rowsWhere((image) => run().predicted[image] !== imageSet().labels[image]));
    const box = one("#mistakes");
    one("#mistakes-count").textContent = wrong.length
      ? `The most confident first: ${images(wrong.length)} of ${number(imageSet().labels.length)} on this page are wrong.`
      : "None: every image on this page was predicted correctly.";
    gallery(box, run(), wrong);
  }

  // --- the confusion matrix -------------------------------------------------------------------------------

  const cell = one("#cell");
  let opener = null;

  function openCell(button) {
    const [label, predicted] = [Number(button.dataset.label), Number(button.dataset.predicted)];
    const found = byConfidence(rowsWhere((image) => imageSet().labels[image] === label && run().predicted[image] === predicted));
    const classes = imageSet().classes;
    closeCell();
    opener = button;
    button.setAttribute("aria-pressed", "true");
    const counted = Number(button.dataset.images);
    const shown = found.length === counted ? "" : `, ${number(found.length)} of them on this page`;
    one("#cell-title").textContent = `${classes[label]}, predicted ${classes[predicted]}: ${images(counted)}${shown}`;
    gallery(one("#cell-images"), run(), found);
    cell.hidden = false;
    button.closest("[data-run]").querySelector(".cell-place").append(cell);
    one("#cell-title").focus({ preventScroll: true });
  }

  function closeCell() {
    if (!cell) return;
    cell.hidden = true;
    opener?.setAttribute("aria-pressed", "false");
    opener = null;
  }

  one("#cell-close")?.addEventListener("click", () => { const back = opener; closeCell(); back?.focus(); });
  cell?.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { const back = opener; closeCell(); back?.focus(); }
  });
  for (const button of all("button[data-predicted]")) button.addEventListener("click", () => openCell(button));

  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const table of all(".matrix table")) {
    const buttons = all("button[data-predicted]", table);
    if (buttons.length) buttons[0].tabIndex = 0;
    table.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      const from = event.target.closest("button[data-predicted]");
      if (!step || !from) return;
      event.preventDefault();
      let [row, column] = [from.closest("tr").rowIndex, from.closest("td").cellIndex];
      for (;;) {  // Cells without images have no button.
        row += step[0]; column += step[1];
        const place = table.rows[row]?.cells[column];
        if (!place || row < 1 || column < 1) return;
        const next = one("button", place);
        if (next) { buttons.forEach((each) => { each.tabIndex = -1; }); next.tabIndex = 0; next.focus(); return; }
      }
    });
  }

  // --- the map --------------------------------------------------------------------------------------------

  const PALETTE = ["#4269d0", "#e8871e", "#3ca951", "#d94f70", "#7c5cd6", "#2a9d9d", "#9c6b4e", "#c9a400", "#e377c2", "#8a8f98"];
  const colour = (index, count) =>
    count <= PALETTE.length ? PALETTE[index] : `hsl(${Math.round((index * 137.508) % 360)} 60% 52%)`;

  const PAD = 16;

  const plane = (() => {
    const canvas = one("#map");
    if (!canvas) return { reset() {} };
    const [tip, status, table] = [one("#map-tip"), one("#map-status"), one("#map-rows")];
    const [byClass, byError, paint, box] = [one("#map-class"), one("#map-error"), one("#map-colour"), one("#map-box")];
    const brush = canvas.getContext("2d");
    let points = [], scale = { each: 1, left: 0, below: 0 }, current = -1, listed = 0;

    function choose() {
      const [wanted, error] = [byClass.value, byError.value];
      const { labels } = imageSet();
      const { x } = chart();
      const predicted = run().predicted;
      points = rowsWhere((image) => {
        if (x[image] < 0) return false;
        if (wanted !== "" && labels[image] !== Number(wanted)) return false;
        return error === "all" || (error === "right") === (labels[image] === predicted[image]);
      });
      const on = x.filter((place) => place >= 0).length;
      status.textContent = `${number(points.length)} of ${number(on)} points`;
      current = -1;
      tip.hidden = true;
      listed = 0;
      table.replaceChildren();
      list();
      draw();
      legend();
    }

    function place(image) {
      const { x, y } = chart();
      return [scale.left + x[image] * scale.each, scale.below - y[image] * scale.each];
    }

    function tint(image) {
      const { labels, classes } = imageSet();
      if (paint.value === "class") return colour(labels[image], classes.length);
      return getComputedStyle(box).getPropertyValue(labels[image] === run().predicted[image] ? "--right" : "--wrong");
    }

    function draw() {
      const width = box.clientWidth;
      const { highest } = chart();
      // One scale for both axes, so that distances along both are comparable.
      const space = width - 2 * PAD;
      const height = Math.round(Math.max(260, Math.min(width, 680, (space * highest[1]) / highest[0] + 2 * PAD)));
      const each = Math.min(space / highest[0], (height - 2 * PAD) / highest[1]);
      scale = { each, left: (width - each * highest[0]) / 2, below: (height + each * highest[1]) / 2 };
      const dense = window.devicePixelRatio || 1;
      canvas.style.height = `${height}px`;
      canvas.width = width * dense;
      canvas.height = height * dense;
      brush.setTransform(dense, 0, 0, dense, 0, 0);
      brush.clearRect(0, 0, width, height);
      brush.globalAlpha = points.length > 2000 ? 0.65 : 0.85;
      const radius = points.length > 3000 ? 1.9 : points.length > 500 ? 2.6 : 4;
      const groups = new Map();
      for (const image of points) {
        const shade = tint(image);
        if (!groups.has(shade)) groups.set(shade, []);
        groups.get(shade).push(image);
      }
      for (const [shade, some] of groups) {
        brush.fillStyle = shade;
        brush.beginPath();
        for (const image of some) {
          const [left, top] = place(image);
          brush.moveTo(left + radius, top);
          brush.arc(left, top, radius, 0, 7);
        }
        brush.fill();
      }
      if (current >= 0) ring();
    }

    function ring() {
      const [left, top] = place(current);
      brush.globalAlpha = 1;
      brush.lineWidth = 2.5;
      brush.strokeStyle = getComputedStyle(box).color;
      brush.beginPath();
      brush.arc(left, top, 7, 0, 7);
      brush.stroke();
    }

    function legend() {
      const { classes, labels } = imageSet();
      const list = one("#map-legend");
      list.replaceChildren();
      const there = [...new Set(points.map((image) => labels[image]))].sort((a, b) => a - b).slice(0, 40);
      const entries = paint.value === "class"
        ? there.map((label) => [classes[label], colour(label, classes.length)])
        : [["correct", "var(--right)"], ["wrong", "var(--wrong)"]];
      for (const [name, shade] of entries) {
        const [item, dot] = [create("li"), create("i")];
        dot.style.background = shade;
        item.append(dot, name);
        list.append(item);
      }
    }

    function focusOn(image) {
      if (image === current) return;
      current = image;
      draw();
      if (image < 0) { tip.hidden = true; return; }
      tip.replaceChildren(thumb(run().imageSet, image), describe(run(), image));
      tip.hidden = false;
      const [left, top] = place(image);
      const beside = left + 150 > box.clientWidth ? left - 144 : left + 12;
      tip.style.left = `${Math.max(2, beside)}px`;
      tip.style.top = `${Math.max(2, Math.min(top - 40, box.clientHeight - tip.offsetHeight - 2))}px`;
    }

    function nearest(left, top, within, holds = () => true) {
      let [best, least] = [-1, within * within];
      for (const image of points) {
        const [x, y] = place(image);
        const far = (x - left) ** 2 + (y - top) ** 2;
        if (far < least && holds(x - left, y - top)) [best, least] = [image, far];
      }
      return best;
    }

    function list() {
      for (const image of points.slice(listed, listed + AT_ONCE)) {
        const text = textOf(run(), image);
        const row = create("tr");
        row.append(create("th", text.id), create("td", text.label), create("td", text.predicted), create("td", text.confidence, "n"));
        row.cells[0].scope = "row";
        table.append(row);
      }
      listed = Math.min(listed + AT_ONCE, points.length);
      one("#map-more").hidden = listed >= points.length;
    }

    canvas.addEventListener("pointermove", (event) => {
      const rectangle = canvas.getBoundingClientRect();
      focusOn(nearest(event.clientX - rectangle.left, event.clientY - rectangle.top, event.pointerType === "touch" ? 24 : 12));
    });
    canvas.addEventListener("pointerdown", (event) => {
      const rectangle = canvas.getBoundingClientRect();
      focusOn(nearest(event.clientX - rectangle.left, event.clientY - rectangle.top, 24));
    });
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") focusOn(-1); });
    canvas.addEventListener("blur", () => focusOn(-1));
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { focusOn(-1); return; }
      const step = STEPS[event.key];
      if (!step && event.key !== "Home") return;
      event.preventDefault();
      if (event.key === "Home" || current < 0) {
        focusOn(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6));
      } else {
        const [from, [down, right]] = [place(current), step];
        const ahead = (x, y) => (right ? x * right >= Math.abs(y) && x !== 0 : y * down > Math.abs(x));
        const next = nearest(...from, 1e6, ahead);
        if (next >= 0) focusOn(next);
      }
      if (current >= 0) {
        const text = textOf(run(), current);
        status.textContent = `${text.id}: ${text.label}, predicted ${text.predicted}, ${text.confidence}, ${text.right ? "correct" : "wrong"}`;
      }
    });
    for (const control of [byClass, byError, paint]) control.addEventListener("change", choose);
    one("#map-more").addEventListener("click", list);
    let width = 0;
    new ResizeObserver(() => { if (chart() && box.clientWidth !== width) { width = box.clientWidth; draw(); } }).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (chart()) draw(); });

    return {
      reset() {
        const { classes } = imageSet();
        one("#map-part").hidden = !chart();
        one("#no-map").hidden = Boolean(chart());
        if (!chart()) return;
        one("#map-title").textContent = chart().title;
        byClass.replaceChildren(new Option("all classes", ""), ...classes.map((name, index) => new Option(name, index)));
        byError.value = "all";
        choose();
      },
    };
  })();

  // --- charts show their numbers under the mouse ---------------------------------------------------------------

  const hint = one("#hint");
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest?.(".chart svg [aria-label]");
    const label = mark?.getAttribute("role") === "graphics-symbol" ? mark.getAttribute("aria-label") : null;
    hint.hidden = !label || label.includes("legend");
    if (hint.hidden) return;
    hint.textContent = label.replaceAll("; ", "\n");
    hint.style.whiteSpace = "pre-line";
    hint.style.left = `${Math.min(event.clientX + 12, innerWidth - 220)}px`;
    hint.style.top = `${event.clientY + 14}px`;
  });

  for (const slot of all("[data-image]")) {
    slot.replaceWith(thumb(data.imageSets.length - 1, Number(slot.dataset.image)));
  }

  if (data.runs.length) show(data.first);
  document.documentElement.dataset.ready = "yes";
})();
