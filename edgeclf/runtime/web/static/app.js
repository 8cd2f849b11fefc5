// The preview page: one stream from the server carries status, events and pictures; everything shown comes from it.

const $ = id => document.getElementById(id);
const SILENCE_MS = 5000, FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 5000, SPEAK_APART_MS = 3000, MINUTE_MS = 60000, STRIP_LEAST_MS = 60000, STRIP_MS = 600000;
const DRAW_MS = 500, KEPT_LINES = 200, LARGEST_SIDE = 1600, SHUTTER_MS = 120;
const STAGES = [["decode", "Decode"], ["resize", "Resize"], ["invoke", "Invoke"], ["decide", "Decide"], ["age", "Age at label"]];
const COLOURS = ["#8fd3c1", "#f4c38b", "#a9c7f5", "#e6b3d6", "#d7d98a", "#b9b4ee", "#f2a9a0", "#9fdcea"];

const now = { run: "", status: null, shown: "all", paused: false, latency: [], history: [], spokenAt: 0, said: "", drawnAt: 0 };
const percent = score => `${(score * 100).toFixed(1)}%`;
const clock = text => new Date(text).toLocaleTimeString();

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- the stream: lines of JSON, and after a line of type "picture" so many bytes of JPEG -----------------------------

async function* messages(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let parts = [], length = 0;
  const take = count => {
    const whole = new Uint8Array(length);
    let at = 0;
    for (const part of parts) { whole.set(part, at); at += part.length; }
    parts = count < length ? [whole.subarray(count)] : [];
    length -= count;
    return whole.subarray(0, count);
  };
  const newline = () => {
    let before = 0;
    for (const part of parts) {
      const at = part.indexOf(10);
      if (at >= 0) return before + at;
      before += part.length;
    }
    return -1;
  };
  try {
    let picture = null;
    for (;;) {
      const end = picture ? (length >= picture.bytes ? picture.bytes : -1) : newline() + 1 || -1;
      if (end < 0) {
        const { done, value } = await reader.read();
        if (done) return;
        parts.push(value);
        length += value.length;
        continue;
      }
      const bytes = take(end);
      if (picture) {
        yield { ...picture, data: new Blob([bytes], { type: "image/jpeg" }) };
        picture = null;
      } else {
        const message = JSON.parse(decoder.decode(bytes));
        if (message.type === "picture") picture = message;
        else yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let current = null;

async function follow(signal) {
  const query = now.shown === "all" ? "" : `?source=${now.shown}`;
  const response = await fetch(`/api/stream${query}`, { signal, cache: "no-store" });
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw Object.assign(new Error(said.error || `the server answers ${response.status}`), { status: response.status });
  }
  for await (const message of messages(response.body)) {
    heard();
    if (message.type === "status") takeStatus(message);
    else if (message.type === "event") takeEvent(message);
    else if (message.type === "picture") takePicture(message);
  }
}

let watchdog = 0;
function heard() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => current?.abort(), SILENCE_MS);
}

async function stayConnected() {
  let wait = FIRST_WAIT_MS;
  for (;;) {
    while (now.paused || document.hidden) {
      setConnection("starting", now.paused ? "Paused" : "Waiting in the background");
      await new Promise(done => { resume = done; });
    }
    current = new AbortController();
    heard();
    const began = Date.now();
    let trouble = "the connection was lost";
    try {
      await follow(current.signal);
    } catch (error) {
      if (error.status) trouble = error.message;
      if (error.status === 401) return askForToken();
    }
    clearTimeout(watchdog);
    if (changing || now.paused || document.hidden) { changing = false; wait = FIRST_WAIT_MS; continue; }
    if (Date.now() - began > 10000) wait = FIRST_WAIT_MS;
    setConnection("lost", "Reconnecting…");
    banner(`No live picture: ${trouble}. Trying again by itself; what stands here is old.`);
    for (const view of document.querySelectorAll(".view")) {
      view.classList.add("old");
      view.querySelector(".chip").className = "chip lost";
      setText(view.querySelector(".state"), "no news");
      setText(view.querySelector(".fps"), "");
    }
    await new Promise(done => { resume = done; setTimeout(done, wait * (0.75 + Math.random() / 2)); });
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

let resume = () => {}, changing = false;

function restartStream() {
  changing = true;
  current?.abort();
  resume();
}

function askForToken() {
  setConnection("lost", "Token needed");
  banner("The server was started again with another token. Open the address that it printed.");
}

function setConnection(kind, text) {
  $("connection").className = `chip ${kind}`;
  setText($("connection-text"), text);
}

function banner(text) {
  $("banner").hidden = !text;
  setText($("banner"), text);
}

// --- what comes -------------------------------------------------------------------------------------------------------

function takeStatus(status) {
  if (status.run !== now.run) {
    const before = now.run;
    now.run = status.run;
    now.history = [];
    now.latency = [];
    $("history").replaceChildren();
    buildViews(status);
    if (before) line({ time: status.started, text: "the run was started again" });
  }
  now.status = status;
  setConnection("live", "Connected");
  banner("");
  setText($("model"), status.model);
  status.sources.forEach((source, place) => {
    if (source.seen && source.seen.frame !== now.latency.last?.[place]) {
      (now.latency.last ||= [])[place] = source.seen.frame;
      now.latency.push({ at: Date.now(), place, seen: source.seen });
    }
  });
  if (Date.now() - now.drawnAt >= DRAW_MS || !document.querySelector(".one")) {
    now.drawnAt = Date.now();
    drawLatency();
    drawStrip();
    drawDevice(status);
  }
  drawViews(status);
  drawAnswers(status);
  speak(status);
}

function takeEvent(event) {
  if (now.history.some(old => old.number === event.number)) return;
  now.history.push(event);
  if (now.history.length > KEPT_LINES) now.history.shift();
  const several = now.status?.sources.length > 1 ? `${event.source}: ` : "";
  if (event.event === "source") line({ time: event.time, text: `${event.source}: ${event.state}${event.detail ? `, ${event.detail}` : ""}` });
  else if (event.event === "skipped") line({ time: event.time, text: `${several}skipped: ${event.reason}` });
  else line({ time: event.time, text: `${several}${event.stable}`, score: event.score });
}

function line({ time, text, score }) {
  const list = $("history");
  list.prepend(make("li", {}, make("time", { dateTime: time, textContent: clock(time) }), make("span", { textContent: score === undefined ? text : `${text} (${percent(score)})` })));
  while (list.children.length > KEPT_LINES) list.lastChild.remove();
}

function takePicture({ source, data }) {
  const image = document.querySelector(`[data-place="${source}"] img`);
  if (!image) return;
  const url = URL.createObjectURL(data), before = image.src;
  image.onload = () => { if (before.startsWith("blob:")) URL.revokeObjectURL(before); };
  image.src = url;
  image.dataset.count = Number(image.dataset.count || 0) + 1;
}

// --- drawing ----------------------------------------------------------------------------------------------------------

function places(status) {
  return status.sources.map((source, place) => place).filter(place => now.shown === "all" || now.shown === String(place));
}

function buildViews(status) {
  if (now.shown !== "all" && Number(now.shown) >= status.sources.length) now.shown = "all";
  const several = status.sources.length > 1;
  $("picker").hidden = !several;
  $("picker").replaceChildren(...(several ? ["all", ...status.sources.keys()] : []).map(value => {
    const button = make("button", { type: "button", textContent: value === "all" ? "All" : status.sources[value].name });
    button.setAttribute("aria-pressed", String(now.shown === String(value)));
    button.onclick = () => {
      now.shown = String(value);
      for (const other of $("picker").children) other.setAttribute("aria-pressed", String(other === button));
      buildCards(now.status);
      restartStream();
    };
    return button;
  }));
  const select = $("latency-source"), chosen = select.value;
  select.hidden = !several;
  select.replaceChildren(...status.sources.map((source, place) => make("option", { value: place, textContent: source.name })));
  if (chosen && Number(chosen) < status.sources.length) select.value = chosen;
  buildCards(status);
}

function buildCards(status) {
  $("views").replaceChildren(...places(status).map(place => {
    const image = make("img", { alt: `Live picture of ${status.sources[place].name}`, src: "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 4 3'/%3E" });
    const figure = make("figure", { className: "view" }, image, make("figcaption", {},
      make("span", { className: "chip starting" }, make("span", { className: "dot" }), make("span", { className: "state" })),
      make("span", { className: "name", textContent: status.sources[place].name }), make("span", { className: "fps soft" }),
      make("span", { className: "detail soft" })));
    figure.dataset.place = place;
    return figure;
  }));
  $("answer-list").replaceChildren(...places(status).map(place => {
    const one = make("div", { className: "one" });
    if (status.sources.length > 1) one.append(make("h3", { textContent: status.sources[place].name }));
    const bars = make("ul", { className: "bars" });
    bars.setAttribute("aria-label", `Likeliest classes, ${status.sources[place].name}`);
    one.append(make("p", { className: "label" }, make("span", { className: "what" }), " ", make("span", { className: "score" })), bars, make("p", { className: "other soft" }));
    one.dataset.answer = place;
    return one;
  }));
}

function drawViews(status) {
  for (const place of places(status)) {
    const source = status.sources[place], view = document.querySelector(`[data-place="${place}"]`);
    if (!view) continue;
    view.classList.toggle("old", source.state === "stalled" || source.state === "reconnecting");
    const chip = view.querySelector(".chip");
    if (!chip.classList.contains(source.state)) chip.className = `chip ${source.state}`;
    setText(view.querySelector(".state"), source.state);
    setText(view.querySelector(".detail"), source.detail);
    setText(view.querySelector(".fps"), source.state === "live" && source.seen ? `frame ${source.seen.frame}, age ${source.seen.age_ms.toFixed(0)} ms` : "");
  }
}

function drawAnswers(status) {
  for (const place of places(status)) {
    const { seen } = status.sources[place], one = document.querySelector(`[data-answer="${place}"]`);
    if (!one) continue;
    setText(one.querySelector(".what"), seen ? seen.stable || seen.label : "no answer yet");
    setText(one.querySelector(".score"), seen ? (seen.label === (seen.stable || seen.label) ? percent(seen.score) : `now ${seen.label} ${percent(seen.score)}`) : "");
    drawBars(one.querySelector(".bars"), seen ? seen.top : []);
    const other = seen?.other;
    setText(one.querySelector(".other"), other ? `Other model: ${other.label} ${percent(other.score)}, ${other.agrees ? "agrees" : "disagrees"}` : "");
  }
  const compared = status.compared;
  $("compared").hidden = !compared;
  if (compared) {
    const newest = places(status).map(place => status.sources[place].seen).find(seen => seen?.other);
    const cost = newest ? `; it takes ${newest.other.classify_ms.toFixed(1)} ms, this one ${(newest.resize_ms + newest.invoke_ms).toFixed(1)} ms` : "";
    setText($("compared-text"), `They agree on ${percent(compared.agreed / compared.frames)} of ${compared.frames} frames${cost}.`);
  }
}

function drawBars(list, top) {
  while (list.children.length > top.length) list.lastChild.remove();
  while (list.children.length < top.length) list.append(make("li", {}, make("span", { className: "fill" }), make("span"), make("span")));
  top.forEach(({ label, score }, at) => {
    const [fill, name, value] = list.children[at].children;
    fill.style.width = percent(score);
    setText(name, label);
    setText(value, percent(score));
  });
}

function speak(status) {
  // Only an answer that lasts is read out, and not more often than somebody can listen.
  const said = places(status).map(place => status.sources[place]).filter(source => source.seen)
    .map(source => `${status.sources.length > 1 ? `${source.name}: ` : ""}${source.state === "live" || source.state === "ended" ? source.seen.stable || source.seen.label : source.state}`).join(", ");
  if (said === now.said || Date.now() - now.spokenAt < SPEAK_APART_MS) return;
  now.said = said;
  now.spokenAt = Date.now();
  setText($("spoken"), said);
}

function drawDevice(status) {
  const health = status.health, facts = [["Frames a second", status.sources.some(source => source.state === "live") ? status.fps.toFixed(1) : "–"], ["Frames classified", status.frames.toLocaleString()]];
  if (status.skipped) facts.push(["Skipped", status.skipped.toLocaleString()]);
  if (health) {
    if (health.temperature_c !== null) facts.push(["Temperature", `${health.temperature_c.toFixed(1)} °C`]);
    facts.push(["Throttling", health.throttled.length ? health.throttled.join(", ") : "none reported"]);
    if (health.clock_mhz !== null) facts.push(["Clock", `${Math.round(health.clock_mhz)} MHz`]);
    if (health.cpu_share !== null) facts.push(["Processor", `${Math.round(health.cpu_share * 100)}% of a core`]);
    if (health.memory_bytes !== null) facts.push(["Memory", `${Math.round(health.memory_bytes / 1048576)} MB`]);
  }
  facts.push(["Running for", duration(status.running_s)], ["Watching", `${status.watching} of ${status.most_watching}`]);
  const list = $("device");
  if (list.children.length !== facts.length * 1) list.replaceChildren(...facts.map(([name]) => make("div", {}, make("dt", { textContent: name }), make("dd"))));
  facts.forEach(([name, value], at) => {
    setText(list.children[at].firstChild, name);
    setText(list.children[at].lastChild, value);
    list.children[at].lastChild.className = name === "Throttling" && health.throttled.length ? "warn" : "";
  });
  $("device-warning").hidden = !health?.warning;
  setText($("device-warning"), health?.warning || "");
}

function duration(seconds) {
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min${Math.floor(seconds) % 60 ? ` ${Math.floor(seconds) % 60} s` : ""}` : `${Math.floor(seconds)} s`;
}

function quantile(sorted, share) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

function drawLatency() {
  const end = Date.now(), last = now.latency.last;
  now.latency = now.latency.filter(sample => end - sample.at < MINUTE_MS);
  now.latency.last = last;
  const place = Number($("latency-source").value || 0), samples = now.latency.filter(sample => sample.place === place);
  const rows = $("latency-rows");
  if (!rows.children.length) rows.append(...STAGES.map(([key, name]) => {
    const mark = make("span", { className: "key" });
    mark.style.background = key === "age" ? "var(--ink)" : `var(--${key})`;
    const head = make("th", { scope: "row" }, mark, name);
    return make("tr", {}, head, make("td"), make("td"), make("td"));
  }));
  STAGES.forEach(([key], at) => {
    const values = samples.map(sample => sample.seen[`${key}_ms`]).sort((a, b) => a - b), cells = rows.children[at].children;
    const shown = [samples.at(-1)?.seen[`${key}_ms`], quantile(values, 0.5), quantile(values, 0.9)];
    shown.forEach((value, column) => setText(cells[column + 1], samples.length ? value.toFixed(2) : "–"));
  });
  const ages = samples.map(sample => sample.seen.age_ms).sort((a, b) => a - b);
  const work = samples.map(sample => STAGES.slice(0, 4).reduce((sum, [key]) => sum + sample.seen[`${key}_ms`], 0)).sort((a, b) => a - b);
  // A single slow frame would flatten everything else.
  const top = Math.max(1, quantile(ages, 0.98), quantile(work, 0.98)) * 1.15;
  const x = sample => 600 - (end - sample.at) / MINUTE_MS * 600, y = value => 150 - Math.min(1, value / top) * 150;
  setText($("chart-top"), `full height is ${top.toFixed(1)} ms; the line is the age at label`);
  const shapes = [];
  const floor = samples.map(() => 0);
  for (const [key] of STAGES.slice(0, 4)) {
    if (!samples.length) break;
    const lower = samples.map((sample, at) => `${x(sample).toFixed(1)},${y(floor[at]).toFixed(1)}`).reverse();
    const upper = samples.map((sample, at) => `${x(sample).toFixed(1)},${y(floor[at] += sample.seen[`${key}_ms`]).toFixed(1)}`);
    shapes.push(drawn("polygon", { points: [...upper, ...lower].join(" "), fill: `var(--${key})` }));
  }
  if (samples.length) shapes.push(drawn("polyline", { points: samples.map(sample => `${x(sample).toFixed(1)},${y(sample.seen.age_ms).toFixed(1)}`).join(" "), fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" }));
  $("chart").replaceChildren(...shapes);
}

function drawn(tag, attributes) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "fill" || name === "stroke") shape.style[name] = value;
    else shape.setAttribute(name, value);
  }
  return shape;
}

function drawStrip() {
  const end = Date.now(), place = now.shown === "all" ? 0 : Number(now.shown), name = now.status?.sources[place]?.name;
  const changes = now.history.filter(event => event.source === name && event.stable !== undefined);
  const oldest = changes.length ? end - new Date(changes[0].time) : 0, span_ms = Math.min(STRIP_MS, Math.max(STRIP_LEAST_MS, oldest));
  const share = event => 1 - (end - new Date(event.time)) / span_ms;
  setText($("strip-from"), `${duration(span_ms / 1000)} ago`);
  setText($("strip-name"), now.status?.sources.length > 1 ? name : "");
  $("strip").replaceChildren(...changes.map((event, at) => {
    const from = Math.max(0, share(event)), to = at + 1 < changes.length ? share(changes[at + 1]) : 1;
    if (to <= 0 || to <= from) return "";
    const span = make("span", { textContent: event.stable, title: `${event.stable}, ${clock(event.time)}` });
    span.style.left = percent(from);
    span.style.width = percent(to - from);
    span.style.background = COLOURS[[...event.stable].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) >>> 0, 7) % COLOURS.length];
    return span;
  }));
}

// --- pictures of one's own --------------------------------------------------------------------------------------------

const note = text => setText($("try-note"), text);

async function classify(blob, explain) {
  const response = await fetch(`/api/classify?explain=${explain ? 1 : 0}`, { method: "POST", body: blob, headers: { "content-type": blob.type || "application/octet-stream" } });
  const answer = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

function showAnswer(answer) {
  $("tried").hidden = false;
  $("tried-label").replaceChildren(make("span", { textContent: answer.label }), " ", make("span", { className: "score", textContent: percent(answer.score) }));
  drawBars($("tried-bars"), answer.top);
  setText($("tried-cost"), `${answer.width} × ${answer.height} pixels, ${(answer.resize_ms + answer.invoke_ms).toFixed(1)} ms`);
  $("heat").hidden = !answer.heatmap;
  if (answer.heatmap) {
    $("heat-picture").src = answer.heatmap;
    $("heat-picture").alt = `Heatmap: what speaks for ${answer.explained} in orange, against it in blue`;
    setText($("heat-caption"), `Orange speaks for “${answer.explained}”, blue against it.`);
  }
}

async function smaller(file) {
  // Kept as it is unless it is larger than the server takes.
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture) return file;
  const fits = file.size < 8 << 20 && picture.width * picture.height < 15e6 && /^image\/(jpeg|png|webp)$/.test(file.type);
  if (fits) return file;
  return snapshot(picture, picture.width, picture.height, LARGEST_SIDE);
}

function snapshot(picture, width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  const canvas = make("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done, failed) => canvas.toBlob(blob => blob ? done(blob) : failed(new Error("the picture cannot be encoded")), "image/jpeg", 0.9));
}

async function tryFile(file) {
  if (!file) return;
  stopCamera();
  note($("explain").checked ? "Classifying, and looking for what counted…" : "Classifying…");
  try {
    const sent = await smaller(file), image = $("own-picture");
    const answer = await classify(sent, $("explain").checked);
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(sent);
    image.alt = `Your picture ${file.name || ""}`;
    image.hidden = false;
    setText($("own-caption"), file.name || "pasted picture");
    showAnswer(answer);
    note(`${file.name || "Your picture"}: ${answer.label}, ${percent(answer.score)}`);
  } catch (error) {
    note(`That did not work: ${error.message || "the server cannot be reached"}.`);
  }
}

$("file").onchange = () => { tryFile($("file").files[0]); $("file").value = ""; };
for (const kind of ["dragover", "drop", "dragleave"]) document.addEventListener(kind, event => {
  if (kind !== "dragleave") event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") {
    $("try-title").scrollIntoView({ block: "nearest" });
    tryFile([...event.dataTransfer.files].find(file => file.type.startsWith("image/")) || event.dataTransfer.files[0]);
  }
});
document.addEventListener("paste", event => tryFile([...event.clipboardData.files].find(file => file.type.startsWith("image/"))));

// --- the browser's own camera -----------------------------------------------------------------------------------------

let camera = null;

const REFUSALS = {
  NotAllowedError: "the browser was told not to allow the camera; allow it in the address bar and try again",
  NotFoundError: "this computer has no camera that the browser can see",
  NotReadableError: "another program holds the camera",
  OverconstrainedError: "that camera is not there any more",
};

async function startCamera(device) {
  stopCamera();
  if (!navigator.mediaDevices?.getUserMedia) {
    note(window.isSecureContext ? "This browser cannot use a camera." :
      `Browsers give their camera to pages of localhost or https only, and this is ${location.origin}. From the other machine: ssh -L 8080:localhost:${location.port || 80} ${location.hostname}, then open http://localhost:8080 there.`);
    return;
  }
  const mine = camera = { stream: null };
  try {
    note("Waiting for the camera…");
    const size = { width: { ideal: 640 }, height: { ideal: 480 } };
    mine.stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: device ? { deviceId: { exact: device }, ...size } : { facingMode: "environment", ...size } });
    if (camera !== mine) { for (const track of mine.stream.getTracks()) track.stop(); return; }
    const video = $("own-camera");
    video.srcObject = mine.stream;
    await video.play();
    mine.stream.getVideoTracks()[0].onended = () => { if (camera === mine) { stopCamera(); note("The camera was taken away."); } };
    $("camera").setAttribute("aria-pressed", "true");
    setText($("camera"), "Stop the camera");
    $("tried").hidden = $("own-camera").hidden = false;
    $("own-picture").hidden = $("heat").hidden = true;
    setText($("own-caption"), "This browser's camera; its pictures are sent to the device and not kept.");
    note("");
    await listCameras(mine.stream);
    watchCamera(mine, video);
  } catch (error) {
    if (camera === mine) stopCamera();
    note(`No camera: ${REFUSALS[error.name] || error.message}.`);
  }
}

async function listCameras(stream) {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(device => device.kind === "videoinput");
  $("camera-choice").hidden = devices.length < 2;
  $("camera-list").replaceChildren(...devices.map((device, at) => make("option", { value: device.deviceId, textContent: device.label || `Camera ${at + 1}` })));
  $("camera-list").value = stream.getVideoTracks()[0].getSettings().deviceId || "";
}

async function watchCamera(mine, video) {
  let said = "", saidAt = 0;
  while (camera === mine) {
    let rest = SHUTTER_MS;
    if (!document.hidden && video.videoWidth) {
      try {
        const answer = await classify(await snapshot(video, video.videoWidth, video.videoHeight, 640), false);
        if (camera !== mine) return;
        showAnswer(answer);
        if (answer.label !== said && Date.now() - saidAt > SPEAK_APART_MS) {
          said = answer.label;
          saidAt = Date.now();
          note(`Your camera: ${said}`);
        }
      } catch (error) {
        rest = 1000;
        if (camera === mine) note(error.status ? `The server says: ${error.message}. Trying again.` : "The server cannot be reached. Trying again.");
        said = "";
      }
    }
    await new Promise(done => setTimeout(done, rest));
  }
}

function stopCamera() {
  for (const track of camera?.stream?.getTracks() || []) track.stop();
  camera = null;
  $("own-camera").srcObject = null;
  $("own-camera").hidden = true;
  $("camera-choice").hidden = true;
  $("camera").setAttribute("aria-pressed", "false");
  setText($("camera"), "Use this browser's camera");
}

$("camera").onclick = () => camera ? (stopCamera(), note("The camera is off.")) : startCamera();
$("camera-list").onchange = () => startCamera($("camera-list").value);

// --- keeping on -------------------------------------------------------------------------------------------------------

$("pause").onclick = () => {
  now.paused = !now.paused;
  $("pause").setAttribute("aria-pressed", String(now.paused));
  setText($("pause"), now.paused ? "Go on" : "Pause");
  restartStream();
};
document.addEventListener("visibilitychange", restartStream);
window.addEventListener("online", () => resume());
stayConnected();
