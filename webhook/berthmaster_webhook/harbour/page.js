// Shows harbour.json. Everything comes in as text (textContent), so nothing that users name is markup.
"use strict";

const EVERY_MS = 5000;
const CONCERNS = {
  resources: "", diskio: "disk", numa: "NUMA", xpu: "XPU", power: "power", dataset: "data",
};
const UNITS = {
  bytes: [1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]],
  bytes_per_second: [1024, ["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s", "PiB/s"]],
  watts: [1000, ["W", "kW", "MW", "GW"]],
};
let shown = null;

function amount(value, unit) {
  const [step, names] = UNITS[unit] || [Infinity, [unit === "cores" ? "cores" : unit]];
  let at = 0;
  while (Math.abs(value) >= step && at < names.length - 1) { value /= step; at += 1; }
  return `${value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 })} ${names[at]}`;
}

function share(it) {
  const [used, there] = [amount(it.used, it.unit), amount(it.capacity, it.unit)];
  const unit = ` ${there.split(" ")[1]}`;
  return `${used.endsWith(unit) ? used.slice(0, -unit.length) : used} of ${there}`;
}

function label(it) {
  const concern = it.concern in CONCERNS ? CONCERNS[it.concern] : it.concern;
  return concern === it.resource ? concern : `${concern} ${it.resource}`.trim();
}

function isPast(it) { return it.concern !== "power" && it.used > it.capacity * (1 + 1e-9); }

function percent(it) {
  if (!it.capacity) return it.used ? "none" : "0%";
  return `${Math.round((100 * it.used) / it.capacity)}%`;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function bar(it) {
  const meter = make("meter", [it.concern, isPast(it) ? "past" : ""].join(" ").trim());
  meter.max = it.capacity || it.used || 1;
  meter.value = Math.min(it.used, meter.max);
  meter.title = share(it);
  return meter;
}

function tile(it) {
  const box = make("div", "tile");
  box.append(
    make("div", "name", label(it)),
    make("div", isPast(it) ? "share past" : "share", percent(it)),
    make("div", "amount", share(it)),
    bar(it),
  );
  if (it.over && it.concern !== "power") box.append(make("div", "past", `${it.over} past the line`));
  return box;
}

function berth(node) {
  const box = make("article", node.levels.some(isPast) ? "berth over" : "berth");
  box.append(make("h3", "", node.name));
  for (const it of node.levels) {
    const line = make("div", "level");
    const part = make("span", isPast(it) ? "share past" : "share", percent(it));
    line.append(make("span", "what", label(it)), bar(it), part);
    box.append(line);
  }
  for (const trouble of node.troubles) box.append(make("p", "trouble", trouble));
  return box;
}

function table(id, heads, rows, nothing) {
  const head = make("tr");
  head.append(...heads.map((text) => make("th", "", text)));
  const body = rows.map((cells) => {
    const row = make("tr");
    row.append(...cells.map(([text, className]) => make("td", className || "", text)));
    return row;
  });
  if (!body.length) {
    const cell = make("td", "none", nothing);
    cell.colSpan = heads.length;
    body.push(make("tr"));
    body[0].append(cell);
  }
  document.getElementById(id).replaceChildren(head, ...body);
}

function age(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function write(id, text) { document.getElementById(id).textContent = text; }

function say(text, mood) {
  const chip = document.getElementById("status");
  chip.textContent = text;
  chip.className = `chip ${mood}`;
}

function showNodes() {
  const wanted = document.getElementById("filter").value.trim().toLowerCase();
  const found = shown.nodes.filter((it) => it.name.toLowerCase().includes(wanted));
  document.getElementById("nodes").replaceChildren(...found.map(berth));
  const some = shown.nodeCount > shown.nodes.length ? `the fullest ${shown.nodes.length} of ` : "";
  write("node-count", `${some}${shown.nodeCount}`);
}

function show(state) {
  shown = state;
  say(state.deciding ? `not deciding: ${state.deciding}` : "deciding", state.deciding ? "bad" : "good");
  write("moment", new Date(state.time * 1000).toLocaleTimeString());
  const known = state.resources.filter((it) => it.capacity || it.used);
  document.getElementById("totals").replaceChildren(...known.map(tile));
  showNodes();
  write("waiting-count", state.waitingCount);
  table("waiting", ["Pod", "For", "Why"], state.waiting.map((it) => [
    [it.pod], [age(state.time - it.since), "number"], [it.message || it.reason, "wide"],
  ]), "No pod waits.");
  write("bypassed-count", state.bypassedCount ? `${state.bypassedCount} pods run past us` : "");
  table("decisions", ["Pod", "Node", "Score", "Refused", "Ago"], state.decisions.map((it) => [
    [it.pod], [it.node || "nowhere", it.node ? "" : "none"],
    [it.node ? it.score.toFixed(1) : "", "number"],
    [it.refused.map((why) => `${why.nodes} ${why.reason}`).join(", "), "wide"],
    [age(state.time - it.time), "number"],
  ]), "Nothing was decided by this process yet.");
}

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch("harbour.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).slice(0, 200)}`);
      show(await answer.json());
    } catch (error) {
      say(`no answer: ${error.message}`, "bad");
    }
  }
  setTimeout(refresh, EVERY_MS);
}

document.getElementById("filter").addEventListener("input", () => shown && showNodes());
refresh();
