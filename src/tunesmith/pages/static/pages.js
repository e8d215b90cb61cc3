/* What the pages of `tunesmith serve` do beyond links and forms: copy a command, ask before what cannot be undone, keys, live curves, and
   a word when the server is away. Everything is there without it, too. */
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = (text, bad) => {
    const notice = document.getElementById("notice");
    if (!notice) return;
    const line = document.createElement("p");
    line.textContent = text;
    if (bad) line.className = "bad";
    notice.replaceChildren(line);
  };

  // The server is away: say so, and go on asking; htmx asks again by itself.
  let away = null;
  const gone = (more = "Trying again…") => {
    if (!away) {
      away = document.createElement("p");
      away.className = "away";
      away.setAttribute("role", "status");
      document.body.append(away);
    }
    away.textContent = `The server does not answer. ${typeof more === "string" ? more : "Trying again…"}`;
  };
  const there = () => { if (away) { away.remove(); away = null; } };

  const here = document.querySelector(".side [aria-current]");
  if (here) here.scrollIntoView({ block: "nearest", inline: "center" });

  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]");
    if (!copy || !navigator.clipboard) return;
    navigator.clipboard.writeText(copy.dataset.copy).then(() => {
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1500);
    });
  });

  // What somebody writes stays in this tab until the server has it: a page that is left, or a server that is away, loses no text.
  const kept = (field) => `kept ${field.dataset.keep}`;
  const sent = new URLSearchParams(location.search).has("said");
  all("[data-keep]").forEach((field) => {
    const text = sessionStorage.getItem(kept(field)), fresh = sent && sessionStorage.getItem(`sent ${field.dataset.keep}`);
    if (fresh) { sessionStorage.removeItem(kept(field)); sessionStorage.removeItem(`sent ${field.dataset.keep}`); return; }
    if (text !== null && text !== field.value && !field.readOnly) { field.value = text; say("What you had written before is in the field again."); }
  });
  document.addEventListener("input", (event) => { if (event.target.dataset.keep) sessionStorage.setItem(kept(event.target), event.target.value); });

  // A form is sent once the server is there; until then the page, and what is written in it, stays.
  const lives = () => fetch(`/static/icon.svg?at=${Date.now()}`, { method: "HEAD", cache: "no-store" }).then(() => true, () => false);
  const sending = new WeakSet();
  document.addEventListener("submit", async (event) => {
    const form = event.target, own = event.submitter;
    if (sending.has(form)) return;
    const question = form.dataset.confirm;
    if (question && !window.confirm(question)) { event.preventDefault(); return; }
    if (form.method !== "post" || form.hasAttribute("hx-post")) return;
    event.preventDefault();
    if (form.dataset.waits) return;
    form.dataset.waits = "1";
    while (!(await lives())) { gone("It is sent as soon as the server is back."); await new Promise((done) => { setTimeout(done, 1000); }); }
    there();
    delete form.dataset.waits;
    all("[data-keep]", form).forEach((field) => sessionStorage.setItem(`sent ${field.dataset.keep}`, "1"));
    sending.add(form);
    form.requestSubmit(own);
    sending.delete(form);
  });

  document.addEventListener("htmx:sendError", gone);
  document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) there(); });
  document.addEventListener("htmx:responseError", (event) => {
    const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
    const what = page.querySelector(".what");
    say(what ? what.textContent : `The server answered ${event.detail.xhr.status}.`, true);
  });

  // What is asked again and again leaves alone what somebody is at.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const polls = (event.detail.elt.getAttribute("hx-trigger") || "").startsWith("every");
    if (polls && event.detail.target.contains(document.activeElement)) event.detail.shouldSwap = false;
  });

  // Keys: one element for each letter, named in the page beside what it does.
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    if (event.key === "Escape" && typing) { typing.blur(); return; }
    if (event.ctrlKey && event.key === "Enter" && typing && typing.form) {
      const own = typing.form.querySelector("[data-send]");
      if (own) { event.preventDefault(); own.click(); }
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
      return;
    }
    const meant = all("[data-key]").find((element) => element.dataset.key === event.key);
    if (!meant) return;
    event.preventDefault();
    if (meant.matches("textarea, input")) meant.focus(); else meant.click();
  });

  // Live curves: the figures since the last look are fetched each second until the work has ended.
  const colours = () => ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"].map((name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  const drawn = new Map();
  const draw = (box, data) => {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--soft").trim(), rule = style.getPropertyValue("--line").trim();
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 }, font: "12px system-ui" };
    const dash = [[], [7, 4], [2, 3], [9, 3, 2, 3], [], [7, 4]];
    const series = data.names.map((name, i) => ({
      label: name, stroke: colours()[i % 6], width: 2, dash: dash[i % 6], spanGaps: true, points: { show: data.steps.length < 60 },
      value: (_, value) => (value === null || value === undefined ? "–" : value.toPrecision(4)),
    }));
    box.replaceChildren();
    const options = { legend: { live: false }, width: box.clientWidth, height: 280, scales: { x: { time: false } }, axes: [{ ...axis, incrs: [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6].map((power) => n * 10 ** power)).sort((a, b) => a - b), label: "step", labelFont: "12px system-ui" }, axis], series: [{ label: "step" }, ...series] };
    const plot = new uPlot(options, [data.steps, ...data.values], box);
    drawn.set(box, { plot, names: data.names.join() });
  };
  const merge = (known, fresh) => {
    const names = [...new Set([...known.names, ...fresh.names])], places = new Map(known.steps.map((step, i) => [step, i]));
    const steps = known.steps.slice(), values = names.map((name) => {
      const at = known.names.indexOf(name);
      return at < 0 ? steps.map(() => null) : known.values[at].slice();
    });
    fresh.steps.forEach((step, i) => {
      if (!places.has(step)) { places.set(step, steps.length); steps.push(step); values.forEach((column) => column.push(null)); }
      fresh.names.forEach((name, j) => { if (fresh.values[j][i] !== null) values[names.indexOf(name)][places.get(step)] = fresh.values[j][i]; });
    });
    return { names, steps, values };
  };
  const follow = async (box) => {
    let data = { names: [], steps: [], values: [] }, after = "", wait = 700;
    for (;;) {
      if (!box.isConnected) return;
      try {
        const answer = await fetch(`${box.dataset.curve}&after=${after}`, { headers: { "HX-Request": "true" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const fresh = await answer.json();
        there();
        wait = 700;
        if (fresh.steps.length) {
          data = merge(data, fresh);
          const begun = performance.now(), known = drawn.get(box);
          if (known && known.names === data.names.join()) known.plot.setData([data.steps, ...data.values]); else draw(box, data);
          await new Promise((painted) => { requestAnimationFrame(() => setTimeout(painted)); });
          box.dataset.drawnMs = (performance.now() - begun).toFixed(1);
          box.dataset.points = String(data.steps.length);
          const words = box.parentElement.querySelector("[data-last]");
          if (words) words.textContent = `step ${data.steps.at(-1)}: ` + data.names.map((name, i) => [name, data.values[i].findLast((value) => value !== null)]).filter(([, value]) => value !== undefined).map(([name, value]) => `${name} ${value.toPrecision(4)}`).join(", ");
        }
        after = fresh.after;
        if (fresh.ended && !fresh.more) return;
        if (fresh.more) wait = 0;
      } catch { gone(); wait = Math.min(wait * 2, 5000); }
      await new Promise((done) => { setTimeout(done, wait); });
    }
  };
  const begin = () => { if (window.uPlot) all("[data-curve]").forEach(follow); };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin); else begin();
  const redraw = () => drawn.forEach(({ plot }, box) => plot.setSize({ width: box.clientWidth, height: 280 }));
  window.addEventListener("resize", redraw);
})();
