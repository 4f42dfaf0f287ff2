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

  // How targets and predictions of each kind are compared and shown.
  const KINDS = {
    classes: {
      right: (target, predicted) => target === predicted,
      text: (target, names) => names[target],
      size: (size) => `${(size * 100).toFixed(1)}\u00a0%`,
      has: (target, label) => target === label,
      heading: "Confidence",
    },
    lists: {
      right: (target, predicted) => String(target) === String(predicted),
      text: (target, names) => target.map((label) => names[label]).join(", ") || "none",
      size: (size) => `loss ${size}`,
      has: (target, label) => target.includes(label),
      heading: "Loss",
    },
    numbers: {
      right: () => null,
      text: (target, names) => target.map((value, place) => (names.length > 1 ? `${names[place]} ${value}` : String(value))).join(", "),
      size: (size) => `off by ${size} deviations`,
      has: () => true,
      heading: "Error in deviations",
    },
  };
  const kindOf = (run) => KINDS[data.imageSets[run.imageSet].kind];

  function textOf(run, image) {
    const imageSet = data.imageSets[run.imageSet];
    const kind = kindOf(run);
    const [label, predicted] = [imageSet.labels[image], run.predicted[image]];
    return {
      label: kind.text(label, imageSet.classes), predicted: kind.text(predicted, imageSet.classes),
      right: kind.right(label, predicted), size: kind.size(run.sizes[image]), id: imageSet.ids[image],
    };
  }

  const verdict = (right) => (right === null ? "" : right ? ", correct" : ", wrong");

  function describe(run, image) {
    const text = textOf(run, image);
    const parts = document.createDocumentFragment();
    const prediction = create("span", `predicted ${text.predicted} `, text.right === false ? "prediction" : text.right ? "prediction right" : "prediction plain");
    const id = create("span", text.id, "id");
    prediction.append(create("span", text.size, "confidence"));
    id.title = text.id;
    parts.append(create("strong", text.label), prediction, id);
    return parts;
  }

  const [AT_FIRST, AT_ONCE] = [24, 60];

  function gallery(container, run, chosen) {
    container.replaceChildren();
    const list = create("ul", "", "gallery");
    const more = create("button", "", "button more");
    more.type = "button";
    let shown = 0;
    const grow = () => {
      const first = shown;
      for (const image of chosen.slice(shown, shown + AT_FIRST)) {
        const item = create("li");
        item.append(thumb(run.imageSet, image), describe(run, image));
        list.append(item);
      }
      shown = Math.min(shown + AT_FIRST, chosen.length);
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
  const bySize = (rows) => rows.sort((a, b) => run().sizes[b] - run().sizes[a]);
  const isRight = (image) => kindOf(run()).right(imageSet().labels[image], run().predicted[image]);
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
    const wrong = bySize(rowsWhere((image) => !isRight(image)));
    const box = one("#mistakes");
    const numbers = imageSet().kind === "numbers";
    const order = { classes: "The most confident", lists: "The largest loss", numbers: "The largest error" }[imageSet().kind];
    one("#mistakes-title").textContent = numbers ? "The largest errors" : "The worst mistakes";
    one("#mistakes-count").textContent = !wrong.length
      ? "None: every image on this page was predicted correctly."
      : `${order} first${numbers ? "." : `: ${images(wrong.length)} of ${number(imageSet().labels.length)} on this page ${wrong.length === 1 ? "is" : "are"} wrong.`}`;
    gallery(box, run(), wrong);
  }

  // --- the confusion matrix -------------------------------------------------------------------------------

  const cell = one("#cell");
  let opener = null;

  function openCell(button) {
    const [label, predicted] = [Number(button.dataset.label), Number(button.dataset.predicted)];
    const found = bySize(rowsWhere((image) => imageSet().labels[image] === label && run().predicted[image] === predicted));
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
    const [byColumn, from, to, least] = [one("#map-column"), one("#map-from"), one("#map-to"), one("#map-least")];
    const numbers = () => imageSet().kind === "numbers";
    const valueOf = (image) => imageSet().labels[image][Number(byColumn.value)];
    const errorOf = (image) => Math.abs(run().predicted[image][Number(byColumn.value)] - valueOf(image));
    let range = [0, 1, 1];
    const brush = canvas.getContext("2d");
    let points = [], scale = { each: 1, left: 0, below: 0 }, current = -1, listed = 0;

    function matches(image) {
      if (numbers()) {
        return (from.value === "" || valueOf(image) >= Number(from.value))
          && (to.value === "" || valueOf(image) <= Number(to.value))
          && (least.value === "" || errorOf(image) >= Number(least.value));
      }
      if (byClass.value !== "" && !kindOf(run()).has(imageSet().labels[image], Number(byClass.value))) return false;
      return byError.value === "all" || (byError.value === "right") === isRight(image);
    }

    function choose() {
      const { x } = chart();
      points = rowsWhere((image) => x[image] >= 0 && matches(image));
      if (numbers()) {
        const all = rowsWhere((image) => x[image] >= 0);
        const values = all.map(valueOf);
        range = [Math.min(...values), Math.max(...values), Math.max(...all.map(errorOf)) || 1];
      }
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

    // Viridis, without its darkest part.
    const shade = (share) => `hsl(${Math.round(265 - 205 * share)} 62% ${Math.round(44 + 12 * share)}%)`;

    function tint(image) {
      const { labels, classes, kind } = imageSet();
      if (kind === "numbers") {
        const [low, high, worst] = range;
        return shade(paint.value === "target" ? (valueOf(image) - low) / (high - low || 1) : errorOf(image) / worst);
      }
      if (kind === "classes" && paint.value === "target") return colour(labels[image], classes.length);
      return getComputedStyle(box).getPropertyValue(isRight(image) ? "--right" : "--wrong");
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
      const { classes, labels, kind } = imageSet();
      const list = one("#map-legend");
      list.replaceChildren();
      let entries = [["correct", "var(--right)"], ["wrong", "var(--wrong)"]];
      if (kind === "numbers") {
        const [low, high] = paint.value === "target" ? range : [0, range[2]];
        entries = [0, 0.25, 0.5, 0.75, 1].map((share) => [Number((low + share * (high - low)).toPrecision(3)).toLocaleString("en"), shade(share)]);
      } else if (kind === "classes" && paint.value === "target") {
        const there = [...new Set(points.map((image) => labels[image]))].sort((a, b) => a - b);
        entries = there.slice(0, 40).map((label) => [classes[label], colour(label, classes.length)]);
        if (there.length > 40) entries.push([`and ${there.length - 40} more classes`, "transparent"]);
      }
      for (const [name, tone] of entries) {
        const [item, dot] = [create("li"), create("i")];
        dot.style.background = tone;
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
        row.append(create("th", text.id), create("td", text.label), create("td", text.predicted), create("td", text.size, "n"));
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
        status.textContent = `${text.id}: ${text.label}, predicted ${text.predicted}, ${text.size}${verdict(text.right)}`;
      }
    });
    for (const control of [byClass, byError, paint, byColumn, from, to, least]) control.addEventListener("change", choose);
    for (const control of [from, to, least]) control.addEventListener("input", choose);
    one("#map-more").addEventListener("click", list);
    let width = 0;
    new ResizeObserver(() => { if (chart() && box.clientWidth !== width) { width = box.clientWidth; draw(); } }).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (chart()) draw(); });

    return {
      reset() {
        const { classes, kind } = imageSet();
        one("#map-part").hidden = !chart();
        one("#no-map").hidden = Boolean(chart());
        if (!chart()) return;
        one("#map-title").textContent = chart().title;
        for (const part of all(".of-numbers")) part.hidden = kind !== "numbers";
        for (const part of all(".of-classes")) part.hidden = kind === "numbers";
        byColumn.parentElement.hidden = kind !== "numbers" || classes.length < 2;
        paint.parentElement.hidden = kind === "lists";
        one("#map-size").textContent = kindOf(run()).heading;
        byColumn.replaceChildren(...classes.map((name, index) => new Option(name, index)));
        for (const field of [from, to, least]) field.value = "";
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
