// Makes pages smoother; each of them works without it. Times in the reader's zone, copy buttons,
// and charts of the numbers in the tables beside them.
"use strict";

(() => {
  const language = document.documentElement.lang || "en";
  const times = new Intl.DateTimeFormat(language, {
    year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
  });

  function localTimes(root) {
    for (const element of root.querySelectorAll("time[datetime]:not([data-local])")) {
      const time = new Date(element.dateTime);
      if (!Number.isNaN(time.getTime())) element.textContent = times.format(time);
      element.dataset.local = "";
    }
  }

  function announce(text) {
    document.getElementById("announce").textContent = text;
  }

  function copyButtons(root) {
    if (!navigator.clipboard) return;
    for (const button of root.querySelectorAll("button[data-copy]")) {
      button.hidden = false;
      button.onclick = async () => {
        await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
        const text = button.textContent;
        button.textContent = "✓";
        announce(`${text} ✓`);
        setTimeout(() => { button.textContent = text; }, 1200);
      };
    }
  }

  // ------------------------------------------------------------------------------------ charts

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let logarithmic = false;
  let axis = "step";

  function clock(seconds) {
    const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
    const [hours, ...rest] = parts;
    const texts = rest.map((part) => String(part).padStart(2, "0"));
    return hours ? `${hours}:${texts.join(":")}` : texts.join(":");
  }

  function series(name, root) {
    // The points of every curve with this name, joined on the numbers of the chosen axis.
    const curves = [];
    for (const table of root.querySelectorAll("table[data-curve]")) {
      if (table.dataset.curve !== name) continue;
      const heads = [...table.tHead.rows[0].cells];
      const x = Math.max(0, heads.findIndex((head) => head.dataset.column === axis));
      const points = new Map();
      for (const row of table.tBodies[0].rows) {
        const value = Number.parseFloat(row.cells[heads.length - 1].textContent);
        points.set(Number(row.cells[x].textContent), Number.isFinite(value) ? value : null);
      }
      curves.push({ label: `run/${table.dataset.run}`, points });
    }
    const places = [...new Set(curves.flatMap((one) => [...one.points.keys()]))].sort((a, b) => a - b);
    return { places, curves };
  }

  function draw(place, root) {
    const { places, curves } = series(place.dataset.plot, root);
    place.replaceChildren();
    if (!window.uPlot || places.length < 2) return;
    place.hidden = false;
    const positive = curves.every((one) => [...one.points.values()].every((v) => v === null || v > 0));
    const style = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    const across = axis === "time" ? { ...style, values: (plot, ticks) => ticks.map(clock) } : style;
    new uPlot({
      width: Math.max(240, place.clientWidth),
      height: 240,
      scales: { x: { time: false }, y: { distr: logarithmic && positive ? 3 : 1 } },
      axes: [across, { ...style, size: 64, values: (plot, ticks) => ticks.map((tick) => tick === null ? "" : `${Number(tick.toPrecision(4))}`) }],
      legend: { show: curves.length > 1 },
      series: [
        { label: axis },
        ...curves.map((one, index) => ({
          label: one.label, stroke: color(`--series-${(index % 8) + 1}`), width: 2, spanGaps: true,
          points: { show: places.length < 60, size: 5 },
        })),
      ],
    }, [places, ...curves.map((one) => places.map((x) => one.points.get(x) ?? null))], place);
  }

  function charts(root) {
    for (const options of root.querySelectorAll(".plot-options")) {
      options.hidden = false;
      const box = options.querySelector("[data-log]");
      box.checked = logarithmic;
      box.onchange = () => { logarithmic = box.checked; charts(document); };
      const choice = options.querySelector("[data-axis]");
      const offered = choice ? [...choice.options].map((one) => one.value) : ["step"];
      if (!offered.includes(axis)) axis = "step";
      if (!choice) continue;
      choice.value = axis;
      choice.onchange = () => { axis = choice.value; charts(document); };
    }
    for (const place of root.querySelectorAll("[data-plot]")) draw(place, root);
  }

  function enhance(root) {
    localTimes(root);
    copyButtons(root);
    charts(root);
  }

  document.addEventListener("htmx:after:swap", () => enhance(document));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts(document));
  let resizing;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => charts(document), 150); });
  enhance(document);
})();
