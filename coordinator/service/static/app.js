// The status page: polls /api/v1 and shows it. No framework, no inline script or style, all text through textContent.
"use strict";
(() => {
  const PERIOD_MS = 2000;
  const PAGE = 500; // VMs shown at once; pick a host to see the rest of a large fleet
  const RESOURCES = {
    cpu_millicores: { name: "CPU", unit: "cores", scale: 1e-3 },
    memory_bytes: { name: "Memory", unit: "GiB", scale: 2 ** -30 },
    disk_bytes_per_s: { name: "Disk", unit: "MB/s", scale: 1e-6 },
    net_rx_bits_per_s: { name: "Network in", unit: "Mbit/s", scale: 1e-6 },
    net_tx_bits_per_s: { name: "Network out", unit: "Mbit/s", scale: 1e-6 },
  };
  const KIND = {
    vcpus: ["vCPUs", 1, ""], cpu_quota: ["CPU quota", 1e-3, "cores"], cpu_shares: ["CPU shares", 1, ""],
    memory: ["memory", 2 ** -30, "GiB"], net_rx: ["net in", 1e-6, "Mbit/s"], net_tx: ["net out", 1e-6, "Mbit/s"],
  };
  const $ = (id) => document.getElementById(id);
  const state = { vm: null, host: "", steps: "", sort: { key: "violation", down: true }, names: new Map(), lostAt: null, token: null, hosts: new Map(), learned: "", told: "" };

  function el(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props || {})) {
      if (key === "class") node.className = value;
      else if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const badge = (word, kind, title) => el("span", { class: `badge ${kind || word}`, title: title || "" }, word);
  const cell = (content, kind) => el("td", { class: kind || "" }, content === null || content === undefined ? "–" : content);

  const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
  const number = (value, places) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: places ?? digits(value) }));
  const even = (value) => value.toLocaleString("en", { minimumFractionDigits: digits(value), maximumFractionDigits: digits(value) });
  const inUnit = (value, scale) => (value === null || value === undefined ? "?" : value === -1 ? "unlimited" : scale === 1 ? number(value) : even(value * scale));
  const percent = (share) => (share === null || share === undefined ? "–" : `${number(share * 100, 0)} %`);
  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 19);
  const date = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

  async function api(path) {
    const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
    const response = await fetch(`/api/v1/${path}`, { headers });
    $("token-form").hidden = response.status !== 401;
    if (response.status === 404) return null;
    if (!response.ok) throw new Error(`${response.status} for ${path}`);
    return response.json();
  }

  // Rows stay the same elements from poll to poll, so that focus, scroll position and text selection survive.
  function syncRows(body, items, key, fill, empty) {
    const rows = new Map([...body.rows].map((row) => [row.dataset.key, row]));
    const wanted = items.map((item) => {
      const row = rows.get(key(item)) || el("tr", {});
      row.dataset.key = key(item);
      fill(row, item);
      return row;
    });
    const focused = document.activeElement;
    if (!items.length) wanted.push(el("tr", {}, el("td", { class: "empty", colSpan: 20 }, empty)));
    body.replaceChildren(...wanted);
    if (focused && body.contains(focused)) focused.focus({ preventScroll: true });
  }
  function setCells(row, first, cells) {
    if (!row.cells.length) row.append(el("td", {}, first()));
    while (row.cells.length > 1) row.lastChild.remove();
    row.append(...cells);
    return row.cells[0].firstChild;
  }

  function meter(used, limit, text, kind, mark) {
    const track = el("span", { class: "track" });
    const share = used === null || !limit || limit < 0 ? null : used / limit;
    if (share !== null) {
      const fill = el("span", { class: `fill${share > 1 ? " over" : share > 0.9 ? " high" : ""}` });
      fill.style.width = `${Math.min(100, share * 100)}%`;
      track.append(fill);
    }
    if (mark !== null && mark !== undefined && limit > 0 && mark <= limit) {
      const tick = el("span", { class: "mark" });
      tick.style.left = `${(mark / limit) * 100}%`;
      track.append(tick);
    }
    return el("span", { class: `meter ${kind || ""}` }, track, el("span", { class: "text" }, text));
  }

  function showFleet(fleet) {
    const speed = fleet.clock_speed === null ? "real time" : `× ${number(fleet.clock_speed)}`;
    const fact = (name, value, note, kind) => el("div", { class: kind || "" }, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, ` ${note}`) : null));
    $("facts").replaceChildren(
      fact("Hosts", `${fleet.hosts_alive} alive`),
      fact("Silent", String(fleet.hosts_silent), fleet.hosts_silent ? "count as full" : "", fleet.hosts_silent ? "bad" : ""),
      fact("VMs", number(fleet.vms)),
      fact("Agents", number(fleet.agents_connected), "connected"),
      fact("Epoch", String(fleet.epoch)),
      fact("Cycle", number(fleet.cycle, 0)),
      fact("Clock", clock(fleet.now_s), `${date(fleet.now_s)} · ${speed}`),
    );
    $("fleet-name").textContent = fleet.name;
    $("cycle-total").textContent = fleet.last_cycle_wall_ms === null ? "none yet" : `${number(fleet.last_cycle_wall_ms)} ms`;
    const bars = fleet.stages.map((stage, i) => {
      const bar = el("i", { class: `s${i % 8}`, title: `${stage.stage}: ${number(stage.wall_ms)} ms` });
      bar.style.flexGrow = String(Math.max(stage.wall_ms, 0.01));
      return bar;
    });
    $("stages").replaceChildren(...bars);
    $("stage-list").replaceChildren(...fleet.stages.map((stage, i) => el("li", {}, el("i", { class: `s${i % 8}` }), `${stage.stage} `, el("b", {}, number(stage.wall_ms)), " ms")));
  }

  function showScores(scores) {
    const reactive = scores.modes.find((score) => score.mode === "reactive");
    const cards = scores.modes.map((score) => {
      let delta = null;
      if (score.mode === "predictive" && reactive && reactive.violation_minutes > 0 && reactive.vms && score.vms && score.violation_minutes !== null) {
        const change = score.violation_minutes / score.vms / (reactive.violation_minutes / reactive.vms) - 1;
        delta = el("span", { class: `delta ${change <= 0 ? "good" : "worse"}` }, `${change <= 0 ? "−" : "+"}${number(Math.abs(change) * 100, 0)} % per VM against reactive`);
      }
      const item = (name, value, title) => el("div", { title: title || "" }, el("dt", {}, name), el("dd", {}, value));
      const skill = score.pinball === null || !score.naive_pinball ? "–" : `${number(score.pinball / score.naive_pinball, 2)} × Naive`;
      return el("article", { class: "card" },
        el("h3", {}, badge(score.mode), ` ${score.hosts} hosts, ${score.vms} VMs`),
        el("div", { class: "top" }, el("span", { class: "big" }, number(score.violation_minutes, 0)), el("span", { class: "muted" }, "violation minutes"), delta),
        el("dl", {},
          item("allocation / use", number(score.allocation_over_use, 2), "mean allocation over mean demand"),
          item("depth", percent(score.violation_depth), "mean share of demand not served while in violation"),
          item("applied", number(score.steps_applied, 0)),
          item("refused", number(score.steps_refused, 0)),
          item("forecast loss", skill, "pinball loss of the forecasts against Naive; below 1 is better")));
    });
    $("scores").replaceChildren(...(cards.length ? cards : [el("article", { class: "card muted" }, "No scores yet: they need one closed 5-minute bucket.")]));
  }

  function showHosts(hosts) {
    $("hosts-count").textContent = String(hosts.length);
    syncRows($("hosts").tBodies[0], hosts, (host) => host.id, (row, host) => {
      row.classList.toggle("silent", !host.alive);
      const mode = el("span", {}, badge(host.mode), host.mode_pinned ? badge("pinned", "", "pinned on the host itself: the API cannot change it") : null,
        host.paused_by.length || host.paused ? badge("paused", "full", `kill switch held by ${host.paused_by.join(", ") || "the API, not yet confirmed by the host"}: nothing is changed here`) : null,
        host.vms_yielded ? badge(`${host.vms_yielded} yielded`, "", "VMs left alone because somebody else changed them") : null);
      const full = host.counts_as_full ? badge("counts as full", "full", host.silent_reason || "") : null;
      const alive = el("span", {}, el("span", { class: "together" }, badge(host.alive ? "alive" : "silent", host.alive ? "alive" : "full"), full), host.silent_reason ? el("span", { class: "sub" }, host.silent_reason) : null);
      const { capacity, committed } = host;
      const sums = (used, limit, scale, unit) => `${inUnit(used, scale)} / ${number(limit * scale)} ${unit}`;
      const spool = host.spool_frames === null ? null : `${host.spool_frames}${host.spool_dropped ? ` (${host.spool_dropped} lost)` : ""}`;
      setCells(row, () => el("b", {}, host.id), [
        cell(mode), cell(alive, "wrap"),
        cell(meter(committed.cpu_millicores, capacity.cpu_commit_millicores, sums(committed.cpu_millicores, capacity.cpu_commit_millicores, 1e-3, "cores"))),
        cell(meter(committed.memory_bytes, capacity.memory_commit_bytes, sums(committed.memory_bytes, capacity.memory_commit_bytes, 2 ** -30, "GiB"))),
        cell(String(host.vm_ids.length), "num"), cell(spool, "num"),
      ]);
    }, "No host has registered yet.");
    const known = new Set([...$("host-filter").options].map((option) => option.value));
    for (const host of hosts) if (!known.has(host.id)) $("host-filter").add(new Option(host.id, host.id));
  }

  const resourceOf = (vm, name) => vm.resources.find((entry) => entry.resource === name) || {};
  const use = (vm, name) => { const { demand, allocation } = resourceOf(vm, name); return demand > 0 && allocation > 0 ? demand / allocation : null; };
  const COLUMNS = [
    { key: "name", title: "VM", of: (vm) => vm.name },
    { key: "violation", title: "Violation min", of: (vm) => vm.violation_minutes, num: true },
    { key: "cpu", title: "CPU, cores", hint: "demand / allocation in force; the tick is the largest 5-second demand", of: (vm) => use(vm, "cpu_millicores"), num: true },
    { key: "memory", title: "Memory, GiB", hint: "demand / allocation in force; the tick is the largest 5-second demand", of: (vm) => use(vm, "memory_bytes"), num: true },
    { key: "censored", title: "State", of: (vm) => Math.max(0, ...vm.resources.map((entry) => entry.censored || 0)), num: true },
    { key: "model", title: "CPU model", of: (vm) => resourceOf(vm, "cpu_millicores").model || "" },
  ];

  function demandCell(vm, name) {
    const { scale } = RESOURCES[name];
    const { demand, allocation, peak } = resourceOf(vm, name);
    return cell(meter(demand ?? null, allocation, `${inUnit(demand, scale)} / ${inUnit(allocation, scale)}`, "vm", peak));
  }
  function stateBadges(vm) {
    const list = el("span", {});
    const capped = vm.resources.filter((entry) => entry.censored > 0);
    if (!vm.running) list.append(badge("stopped"));
    if (vm.policy.excluded) list.append(badge("excluded", "", "its policy opts it out"));
    if (vm.mode_reason) list.append(badge(vm.mode, vm.mode, vm.mode_reason));
    if (capped.length) list.append(badge("censored", "censored", `ran into its limit: ${capped.map((entry) => `${RESOURCES[entry.resource].name} ${percent(entry.censored)} of samples`).join(", ")}`));
    return list;
  }
  function showVms(page) {
    state.names = new Map(page.items.map((vm) => [vm.id, vm.name]));
    $("vms-count").textContent = page.items.length < page.total ? `first ${page.items.length} of ${page.total}` : String(page.total);
    const { key, down } = state.sort;
    const column = COLUMNS.find((entry) => entry.key === key);
    const order = (a, b) => {
      const [x, y] = [column.of(a), column.of(b)];
      if (x === y) return a.id < b.id ? -1 : 1;
      if (x === null || y === null) return x === null ? 1 : -1; // unknown last, whichever way
      return (x < y ? -1 : 1) * (down ? -1 : 1);
    };
    const vms = [...page.items].sort(order);
    if (!state.vm && vms.length) choose(vms[0].id, false);
    syncRows($("vms").tBodies[0], vms, (vm) => vm.id, (row, vm) => {
      const cpu = resourceOf(vm, "cpu_millicores");
      const model = cpu.reason ? badge(cpu.reason.replaceAll("_", " "), "cold", "no model of its own") : cpu.model;
      const button = setCells(row, () => el("button", { class: "name", type: "button", onclick: () => choose(row.dataset.key) }), [
        cell(number(vm.violation_minutes, 1), "num"), demandCell(vm, "cpu_millicores"), demandCell(vm, "memory_bytes"),
        cell(stateBadges(vm)), cell(model, "small"),
      ]);
      button.replaceChildren(vm.name, el("span", { class: "sub" }, `${vm.host_id} · ${vm.priority}`));
      button.title = `${vm.id}, client ${vm.client || "none"}, application ${vm.application || "none"}`;
      button.setAttribute("aria-pressed", String(vm.id === state.vm));
      row.classList.toggle("chosen", vm.id === state.vm);
    }, "No VM here.");
  }
  function sortHeads() {
    const heads = COLUMNS.map((column) => {
      const head = el("th", { scope: "col", class: column.key === "violation" ? "num" : "" }, el("button", { type: "button", onclick: () => {
        state.sort = { key: column.key, down: state.sort.key === column.key ? !state.sort.down : Boolean(column.num) };
        sortHeads();
        poll();
      } }, column.title));
      head.title = column.hint || "";
      if (column.key === state.sort.key) head.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
      return head;
    });
    const row = $("vms").tHead.rows[0];
    const at = [...row.cells].findIndex((head) => head.contains(document.activeElement));
    row.replaceChildren(...heads);
    if (at >= 0) heads[at].firstChild.focus();
  }

  const change = (kind, before, after) => { const [name, scale, unit] = KIND[kind]; return `${name} ${inUnit(before, scale)} → ${inUnit(after, scale)} ${unit}`; };
  const applied = (outcome) => outcome.state === "verified" || outcome.state === "partial" || outcome.state === "shadowed";
  function showSteps(entries) {
    const shown = entries.filter(({ outcome }) => !state.steps || applied(outcome) === (state.steps === "applied"));
    $("steps-count").textContent = `newest ${shown.length}`;
    syncRows($("steps").tBodies[0], shown, ({ host_id, outcome }) => `${host_id}/${outcome.step.id}/${outcome.state}`, (row, { host_id, vm_name, outcome }) => {
      const { step } = outcome;
      const reason = el("span", {}, outcome.code ? el("span", { class: "code" }, outcome.code) : step.reason.replaceAll("_", " ") || "–", el("span", { class: "sub" }, outcome.code ? step.reason.replaceAll("_", " ") : `by ${outcome.origin}`));
      const value = outcome.state === "partial" ? outcome.value : step.value;
      setCells(row, () => document.createTextNode(outcome.finished_ns ? clock(outcome.finished_ns / 1e9) : "–"), [
        cell(el("span", {}, vm_name || step.vm_id, el("span", { class: "sub" }, host_id))), cell(change(step.kind, step.before, value)),
        cell(badge(outcome.state, outcome.state, outcome.detail)), cell(reason, "wrap"),
      ]);
    }, "No step yet.");
  }

  function showReceipts(receipts) {
    $("why-vm").textContent = state.vm ? state.names.get(state.vm) || state.vm : "";
    const cards = receipts.map((receipt) => el("article", { class: "receipt" },
      el("header", {}, el("b", {}, clock(receipt.issued_s)), receipt.shadow ? badge("shadow", "shadowed", "observe mode: nothing was sent to act") : null,
        el("span", { class: "muted" }, receipt.steps.length ? receipt.steps.map((step) => change(step.kind, step.before, step.value)).join("; ") : "no change")),
      el("ol", {}, ...receipt.trail.map((line) => el("li", {}, line)), ...receipt.refused.map((line) => el("li", { class: "no" }, `not taken: ${line}`)))));
    $("receipts").replaceChildren(...(cards.length ? cards : [el("p", { class: "receipt muted" }, "No decision about this VM yet.")]));
  }

  const total = (money) => Object.values(money).reduce((sum, part) => sum + part, 0);
  function showPlacement({ plan }, hosts, migration) {
    const moves = plan ? plan.moves : [];
    const course = migration.plan;
    const done = course ? course.moves.filter((move) => move.phase === "done").length : 0;
    const fate = !migration.execute ? "advice only" : course ? `plan ${course.status}: ${done} of ${course.moves.length} moved` : "no plan yet";
    $("moves-count").textContent = plan ? `${moves.length} · ${fate}` : "none yet";
    const kwh = (when) => plan.energy.reduce((sum, pool) => sum + pool[when], 0);
    $("placement-note").textContent = !plan ? "" : plan.status === "hold" ? `Everything is held: ${plan.code}: ${plan.detail}` : [
      `cost of the coming hour ${number(total(plan.before))} → ${number(total(plan.after))}`, `${number(kwh("kwh_before"))} → ${number(kwh("kwh_after"))} kWh`,
      `${plan.hosts_before} → ${plan.hosts_after} hosts in use`, plan.gap === null ? "gap to the bound not known" : `at most ${number(plan.gap * 100)} % above the bound`,
      ...(plan.wake.length ? [`wake ${plan.wake.join(", ")}`] : []), ...(plan.sleep.length ? [`may sleep: ${plan.sleep.join(", ")}`] : []), ...plan.notes,
    ].join(" · ");
    const lines = moves.map((move) => el("li", {}, el("b", {}, state.names.get(move.vm_id) || move.vm_id), ` ${move.from_host} → ${move.to_host}, worth ${number(move.gain)} for a cost of ${number(move.cost)}: `, el("span", { class: "muted" }, move.why)));
    $("moves").replaceChildren(...(lines.length ? lines : [el("li", { class: "muted" }, "No move beats staying by more than it costs.")]));
    const peak = (resources, name) => {
      const found = resources.find((entry) => entry.resource === name);
      return [Math.max(...found.high), found.room];
    };
    const cellOf = (ahead, name) => {
      const [now, room] = peak(ahead.before, name);
      const [then] = peak(ahead.after, name);
      return cell(meter(then, room, room ? `${percent(now / room)} → ${percent(then / room)}` : "–", "", now));
    };
    syncRows($("hosts-ahead").tBodies[0], hosts, (ahead) => ahead.host_id, (row, ahead) => {
      const name = setCells(row, () => el("span", {}), [
        cell(`${ahead.vms_before} → ${ahead.vms_after}`, "num"), cellOf(ahead, "cpu_millicores"), cellOf(ahead, "memory_bytes"),
      ]);
      name.replaceChildren(el("b", {}, ahead.host_id), el("span", { class: "sub" }, ahead.closed ? "kept empty" : ahead.pool));
    }, "No placement yet.");
  }

  function sumCell(outlook, limit) {
    const { scale, unit } = RESOURCES[outlook.resource];
    const text = `${inUnit(outlook.mean_now, scale)} → ${inUnit(outlook.mean_hour, scale)} (${inUnit(outlook.low_hour, scale)} to ${inUnit(outlook.high_hour, scale)})`;
    const found = cell(meter(outlook.mean_now, limit, text, "", outlook.highest));
    found.title = `the highest of the hour stays below ${inUnit(outlook.highest, scale)} ${unit} 19 times in 20; the 80 % band covered ${percent(outlook.coverage)} of late`;
    return found;
  }
  function showGroups(groups) {
    $("groups-count").textContent = groups.items.length < groups.total ? `first ${groups.items.length} of ${groups.total}` : String(groups.total);
    syncRows($("groups").tBodies[0], groups.items, (group) => `${group.kind}/${group.name}`, (row, group) => {
      const [cpu, memory] = ["cpu_millicores", "memory_bytes"].map((name) => resourceOf(group, name));
      const capacity = group.kind === "host" ? state.hosts.get(group.name) : null;
      const name = setCells(row, () => el("span", {}), [
        cell(String(group.members), "num"), sumCell(cpu, capacity ? capacity.cpu_millicores : null), sumCell(memory, capacity ? capacity.memory_bytes : null),
      ]);
      const why = cpu.reason || (cpu.known < 1 ? `${percent(cpu.known)} of VMs` : "");
      name.replaceChildren(el("b", {}, group.name || "whole fleet"), el("span", { class: "sub" }, group.kind === "fleet" ? "" : group.kind), why ? badge(why.replaceAll("_", " "), "cold") : "");
    }, "No sums yet: they come with the first forecast.");
  }

  function scoreCells(score) {
    const { scale, unit } = RESOURCES[score.resource];
    const ratio = score.to_naive === null || score.to_naive === undefined ? "–" : score.to_naive.toFixed(2);
    const bias = score.bias === null || score.bias === undefined ? "–" : `${score.bias > 0 ? "+" : ""}${inUnit(score.bias, scale)} ${unit}`;
    return [cell(ratio, "num"), cell(percent(score.coverage_80), "num"), cell(percent(score.coverage_95), "num"), cell(bias, "num"), cell(number(score.pairs, 0), "num")];
  }
  function showAccuracy(accuracy) {
    const by = $("accuracy-by").value;
    const chosen = $("resource").value;
    const { name: resource } = RESOURCES[chosen];
    $("accuracy-what").textContent = { fleet: "Resource", horizons: "Minutes ahead", models: "Model", clients: "Client", applications: "Application", worst: "VM" }[by];
    $("accuracy-of").textContent = by === "fleet" || by === "worst" ? "" : resource;
    const rows = by === "fleet" ? accuracy.fleet.map((score) => ({ key: score.resource, label: RESOURCES[score.resource].name, score }))
      : by === "worst" ? accuracy.worst.map((series) => ({ key: `${series.vm_id}/${series.resource}`, label: `${series.vm_name} · ${RESOURCES[series.resource].name}`, vm: series.vm_id, score: series }))
      : accuracy[by].map((part) => ({ key: part.name, label: part.name || "none", score: resourceOf(part, chosen) }));
    const scored = rows.filter(({ score }) => score.pairs > 0);
    syncRows($("accuracy").tBodies[0], scored, ({ key }) => `${by}/${key}`, (row, { label, vm, score }) => {
      setCells(row, () => (vm ? el("button", { class: "name", type: "button", onclick: () => choose(vm) }) : el("span", {})), scoreCells(score)).textContent = label;
    }, "Nothing scored yet: a forecast is scored when the bucket it spoke of has closed.");
  }
  function showVmAccuracy(accuracy) {
    const scored = (accuracy ? accuracy.horizons : []).map((part) => ({ name: part.name, score: resourceOf(part, $("resource").value) })).filter(({ score }) => score.pairs > 0);
    syncRows($("vm-accuracy").tBodies[0], scored, ({ name }) => name, (row, { name, score }) => {
      setCells(row, () => document.createTextNode(name), scoreCells(score));
    }, "No forecast of this VM was scored yet.");
  }
  function showOutlook(ahead, nowS) {
    const { scale, unit } = RESOURCES[$("resource").value];
    const found = ahead && ahead.resources.find((entry) => entry.resource === $("resource").value);
    const said = (quantiles, level) => inUnit(quantiles[ahead.levels.indexOf(level)], scale);
    const blocks = found ? found.blocks.filter((block) => block.start_s + 1800 > nowS) : []; // the newest outlook may be half an hour old
    syncRows($("outlook").tBodies[0], blocks, (block) => String(block.start_s), (row, block) => {
      const band = `${said(block.quantiles, 0.1)} – ${said(block.quantiles, 0.9)}`;
      const texts = [`${said(block.quantiles, 0.5)} ${unit}`, band, said(block.peak_quantiles, 0.95)];
      setCells(row, () => document.createTextNode(clock(block.start_s).slice(0, 5)), texts.map((text) => cell(text, "num")));
    }, "No outlook yet: it comes each half hour, once two hours are known.");
  }
  // Forecasts and scores change once a cycle: they are asked for only then, or when another choice was made.
  async function showLearned(cycle) {
    const [kind, window_, by] = [$("kind").value, $("window").value, `${$("accuracy-by").value}/${$("resource").value}`];
    const wanted = `${cycle}/${kind}/${window_}/${by}`;
    if (wanted === state.learned) return;
    const [groups, accuracy] = await Promise.all([`aggregates?limit=${PAGE}${kind ? `&kind=${kind}` : ""}`, `accuracy?limit=30&window=${window_}`].map(api));
    showGroups(groups);
    showAccuracy(accuracy);
    state.learned = wanted;
  }

  function choose(vm, now = true) {
    state.vm = vm;
    history.replaceState(null, "", `#vm=${encodeURIComponent(vm)}&resource=${$("resource").value}`);
    if (now) poll();
  }

  const LEFT_OUT = { cut: "left out: errs too much", silent: "nothing to say yet", unscored: "not scored anywhere yet" };
  function showTold(told) {
    const found = told && told.resources[0];
    $("told-of").textContent = found ? RESOURCES[found.resource].name : "";
    $("told-link").hidden = !found || Boolean(state.token); // a link carries no token
    if (found) $("told-link").href = `/api/v1/vms/${encodeURIComponent(told.vm_id)}/forecast/why?resource=${found.resource}`;
    const lines = found ? [...found.summary, ...(told.not_now ? [`No details now: ${told.not_now}.`] : [])] : ["Choose a VM."];
    $("told").replaceChildren(...lines.map((line) => el("li", { class: found ? "" : "muted" }, line)));
    const target = found && found.details ? found.details.targets.find((entry) => entry.target === $("told-target").value) : null;
    const rows = (target ? target.parts : []).flatMap((part) => {
      const { scale, unit } = RESOURCES[found.resource];
      const left = part.network ? 1 - part.network.weight : 1;
      const pooled = part.leaves ? left * (1 - part.leaves.weight) : left;
      // LightGBM speaks twice, as a member of the pool and with quantiles of its own: one model, one row
      const own = part.leaves ? left * part.leaves.weight : 0;
      const twice = part.members.some((member) => member.member === "boosting");
      const noteOf = (member) => (part.leaves && member.member === "boosting" ? `${percent(own)} by its own quantiles` : LEFT_OUT[member.state] || "");
      const members = part.members.map((member) => ({ key: `${part.minutes}/${member.member}`, minutes: part.minutes, name: member.member, note: noteOf(member), weight: member.weight * pooled + (member.member === "boosting" ? own : 0),
        error: member.error === null ? "–" : `${inUnit(member.error, scale)} ${unit}`, ratio: member.error_to_naive, score: member.score, evidence: member.evidence }));
      const network = part.network ? [{ key: `${part.minutes}/network`, minutes: part.minutes, name: "network", note: "", weight: part.network.weight, error: "–", ratio: null, score: null, evidence: part.network.evidence }] : [];
      const leaves = part.leaves && !twice ? [{ key: `${part.minutes}/leaves`, minutes: part.minutes, name: "boosting", note: "by its own quantiles", weight: own, error: "–", ratio: null, score: null, evidence: part.leaves.evidence }] : [];
      return [...network, ...leaves, ...members].sort((a, b) => b.weight - a.weight);
    });
    syncRows($("members").tBodies[0], rows, (row) => row.key, (row, { minutes, name, note, weight, error, ratio, score, evidence }) => {
      const shown = (value) => cell(value === null || value === undefined ? "–" : value.toFixed(2), "num");
      setCells(row, () => el("span", {}), [
        cell(el("span", {}, el("b", {}, name), note ? el("span", { class: "sub" }, ` ${note}`) : null)), cell(percent(weight), "num"), cell(error, "num"), shown(ratio), shown(score), cell(number(evidence, 0), "num"),
      ]).textContent = minutes;
    }, found ? "No details now." : "No VM chosen.");
  }
  // It changes once a cycle; what could not be told is asked for again.
  async function showWhyForecast(cycle, vm, resource) {
    const wanted = `${cycle}/${vm}/${resource}/${$("told-target").value}`;
    if (wanted === state.told) return;
    const told = await api(`vms/${encodeURIComponent(vm)}/forecast/why?resource=${resource}`);
    if (vm !== state.vm || resource !== $("resource").value) return;
    showTold(told);
    state.told = told && !told.not_now ? wanted : "";
  }

  async function showChosen(cycle) {
    if (!state.vm) { showReceipts([]); showVmAccuracy(null); showOutlook(null, 0); showTold(null); state.told = ""; return; }
    const [vm, resource] = [state.vm, $("resource").value];
    const id = encodeURIComponent(vm);
    const [past, ahead, receipts, accuracy, outlook] = await Promise.all([
      api(`vms/${id}/history?hours=${$("hours").value}&resource=${resource}`), api(`vms/${id}/forecast?horizon_minutes=60`), api(`receipts?limit=12&vm=${id}`),
      api(`vms/${id}/accuracy?window=${$("window").value}`), api(`vms/${id}/outlook`),
    ]);
    if (vm !== state.vm || resource !== $("resource").value) return; // the choice changed meanwhile
    $("chart-vm").textContent = `${state.names.get(vm) || vm}${past === null ? " (gone)" : ""}`;
    showReceipts(receipts || []);
    showVmAccuracy(accuracy);
    showOutlook(outlook, ahead === null ? 0 : ahead.issued_s);
    if (past === null || ahead === null) { state.vm = null; return; }
    await showWhyForecast(cycle, vm, resource);
    const series = past.resources[0];
    const forecast = ahead.resources.find((entry) => entry.resource === resource);
    const how = forecast && (forecast.reason ? `No model of its own (${forecast.reason.replaceAll("_", " ")}): wide prior.` : `Model ${forecast.model || "none"}; its 80 % band covered ${percent(forecast.coverage)} of late.`);
    $("chart-note").textContent = `${how || "No forecast yet."} Behind the line: what was forecast ${past.lead_minutes} minutes before.`;
    if (window.TidegateChart) window.TidegateChart.draw($("chart"), series, forecast, ahead.levels, past.lead_minutes, RESOURCES[resource], `${vm}/${resource}/${$("hours").value}`);
  }

  function link(live, text) {
    $("link").className = `link ${live ? "live" : "lost"}`;
    if ($("link-text").textContent !== text) $("link-text").textContent = text;
  }
  let running = false;
  let again = false;
  async function poll() {
    if (running) { again = true; return; }
    running = true;
    try {
      const filter = state.host ? `&host=${encodeURIComponent(state.host)}` : "";
      const [fleet, scores, hosts, vms, steps, placement, ahead, migration] = await Promise.all(["fleet", "scores", "hosts", `vms?limit=${PAGE}${filter}`, "outcomes?limit=60", "placement", "placement/hosts?limit=12", "migration"].map(api));
      showFleet(fleet);
      showScores(scores);
      showHosts(hosts);
      showVms(vms);
      showSteps(steps);
      showPlacement(placement, ahead, migration);
      state.hosts = new Map(hosts.map((host) => [host.id, host.capacity]));
      await showLearned(fleet.cycle);
      await showChosen(fleet.cycle);
      state.lostAt = null;
      document.body.dataset.cycle = String(fleet.cycle);
      link(true, "live");
    } catch (error) {
      state.lostAt = state.lostAt || new Date();
      link(false, `no answer since ${state.lostAt.toTimeString().slice(0, 8)} (${error.message})`);
    } finally {
      running = false;
    }
    if (again) { again = false; poll(); }
  }

  function start() {
    for (const [key, { name }] of Object.entries(RESOURCES)) $("resource").add(new Option(name, key));
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (RESOURCES[wanted.get("resource")]) $("resource").value = wanted.get("resource");
    state.vm = wanted.get("vm");
    sortHeads();
    $("resource").addEventListener("change", () => (state.vm ? choose(state.vm) : poll()));
    for (const id of ["hours", "kind", "window", "accuracy-by", "told-target"]) $(id).addEventListener("change", poll);
    $("host-filter").addEventListener("change", (event) => { state.host = event.target.value; poll(); });
    $("steps-filter").addEventListener("change", (event) => { state.steps = event.target.value; poll(); });
    $("token-form").addEventListener("submit", (event) => { event.preventDefault(); state.token = $("token").value.trim(); $("token").value = ""; poll(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", poll);
    window.addEventListener("load", poll);
    setInterval(() => { if (!document.hidden) poll(); }, PERIOD_MS);
    poll();
  }
  start();
})();
