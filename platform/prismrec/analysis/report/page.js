"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const root = document.documentElement;
  const drawn = new Map();
  const ink = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const palette = () => Array.from({ length: 8 }, (_, n) => ink("--c" + n));

  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themed = (choice) => { root.dataset.theme = choice || (dark.matches ? "dark" : "light"); };
  themed(stored());
  dark.addEventListener("change", () => { if (!stored()) { themed(null); repaint(); } });

  const axes = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));

  function styled(plot, narrow) {
    const layout = structuredClone(plot.layout);
    for (const key of new Set(["xaxis", "yaxis", ...axes(layout)])) {
      layout[key] = { automargin: true, gridcolor: ink("--line"), zerolinecolor: ink("--line"), ...layout[key] };
    }
    const upright = layout.legend?.orientation === "v";
    return {
      ...layout,
      colorway: palette(),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13, color: ink("--ink") },
      margin: { l: 44, r: 12, t: 30, b: 44, ...(plot.layout.margin || {}) },
      legend: narrow && upright
        ? { orientation: "h", y: -0.2, yanchor: "top", font: { size: 10 } }
        : { orientation: "h", y: 1.02, yanchor: "bottom", ...(plot.layout.legend || {}) },
    };
  }

  function draw(box) {
    const plot = report.plots[Number(box.dataset.plot)];
    const traces = plot.traces.map((trace) => {
      const copy = structuredClone(trace);
      if (copy.type === "heatmap" && !copy.colorscale) copy.colorscale = "Viridis";
      if (Number.isInteger(copy.model)) {
        const colour = palette()[copy.model % 8];
        copy.marker = { color: colour, ...(copy.marker || {}) };
        copy.line = { color: colour, ...(copy.line || {}) };
      }
      delete copy.model;
      return copy;
    });
    const narrow = box.clientWidth < 520;
    if (plot.layout.height) box.style.height = plot.layout.height + "px";
    const options = { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" };
    drawn.set(box, Plotly.react(box, traces, styled(plot, narrow), options));
  }

  function drawIn(section) {
    for (const box of section.querySelectorAll(".plot")) if (!drawn.has(box)) draw(box);
  }

  function repaint() {
    for (const dot of document.querySelectorAll(".dot")) dot.style.background = palette()[Number(dot.dataset.model) % 8];
    for (const box of drawn.keys()) if (box.clientWidth) draw(box); else { Plotly.purge(box); drawn.delete(box); }
  }

  const tabs = Array.from(document.querySelectorAll("nav a"));
  function show(key) {
    const chosen = tabs.find((tab) => tab.hash === "#" + key) || tabs[0];
    for (const tab of tabs) {
      const section = document.getElementById("chapter-" + tab.hash.slice(1));
      const isChosen = tab === chosen;
      section.hidden = !isChosen;
      tab.setAttribute("aria-selected", String(isChosen));
      if (isChosen) drawIn(section);
    }
    root.dataset.shown = chosen.hash.slice(1);
  }
  function go(key) {
    show(key);
    scrollTo(0, 0);
  }
  for (const name of ["hashchange", "popstate"]) addEventListener(name, () => go(location.hash.slice(1)));
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    // In the frame of another page, following a link to a part of this one may not be allowed.
    link.addEventListener("click", (event) => {
      event.preventDefault();
      try { history.pushState(null, "", link.hash); } catch { /* no address to keep it in */ }
      go(link.hash.slice(1));
    });
  }
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = tabs.indexOf(document.activeElement);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });

  document.getElementById("theme").addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", next); } catch { /* a page from disk may have no storage */ }
    themed(next);
    repaint();
  });

  const cell = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  for (const button of document.querySelectorAll("button[data-save]")) {
    button.addEventListener("click", () => {
      const { numbers, file } = report.plots[Number(button.dataset.save)];
      const lines = [numbers.columns, ...numbers.rows].map((row) => row.map(cell).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
      link.download = file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  }

  addEventListener("beforeprint", () => {
    for (const section of document.querySelectorAll("main section")) {
      section.dataset.was = String(section.hidden);
      section.hidden = false;
      drawIn(section);
    }
  });
  addEventListener("afterprint", () => show(root.dataset.shown));

  repaint();
  show(location.hash.slice(1));
})();
