// The page at `/`: a client of /v1 like any other. Whatever comes from outside becomes text, never HTML; nothing is kept but the key, and that in this tab.
"use strict";

const KEY = "rbft-key";
const MAX_BARS = 8;
const COPIED_MS = 2000;
const byId = (id) => document.getElementById(id);

let task = null; // TaskAnswer
let video = null; // what was chosen last: file, the name it has in a shell, number of the sample, context, and once answered its id
let running = new AbortController(); // whatever is being asked about it

class Refusal extends Error {
  constructor(detail, { status = 0, code = "", retryAfterS = null } = {}) {
    super(detail);
    Object.assign(this, { status, code, retryAfterS });
  }
}

// --- asking the service ---

async function ask(path, { form = null, accept = "application/json", signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { Accept: accept, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: form ? "POST" : "GET", body: form, headers, signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service does not answer.", { retryAfterS: 0 });
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const retryAfterS = [429, 502, 503, 504].includes(response.status) ? Number(response.headers.get("Retry-After")) || 0 : null;
  throw new Refusal(problem.detail || `The service answers ${response.status}.`, { status: response.status, code: problem.code, retryAfterS });
}

function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, "video"); // the file's own name stays here
    else if (value) form.append(name, value);
  }
  return form;
}

// The events of a stream, as [name, data].
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n");
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

// --- what goes on ---

// Do `work(signal)` in place of what was going on; says what it comes to, or what went wrong and, where that may help, how to try `again`.
async function run(said, work, again = () => run(said, work)) {
  running.abort();
  const mine = (running = new AbortController());
  hideError();
  say(said, true);
  try {
    const outcome = await work(mine.signal);
    if (mine === running) say(outcome);
  } catch (error) {
    if (mine !== running) return; // something else goes on already
    if (error.name === "AbortError") return say("Stopped.");
    say("");
    showError(error, again);
  }
}

function say(text, isBusy = false) {
  byId("status").textContent = text || "";
  byId("status").classList.toggle("busy", isBusy);
}

function showError(error, again) {
  if (error.status === 401) return askForKey();
  if (!(error instanceof Refusal)) console.error(error);
  const box = byId("error");
  const detail = error instanceof Refusal ? error.message : "The connection broke off, or this page has a mistake.";
  box.replaceChildren(detail[0].toUpperCase() + detail.slice(1));
  const mayHelp = error instanceof Refusal ? error.retryAfterS !== null : true;
  if (mayHelp) {
    const wait = error.retryAfterS ? ` (best in ${error.retryAfterS} s)` : "";
    box.append(element("button", { type: "button", textContent: `Try again${wait}`, onclick: again }));
  }
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

function hideError() {
  byId("error").hidden = true;
  byId("error").replaceChildren();
}

function askForKey() {
  const hadOne = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  byId("forget").hidden = true;
  byId("choose").hidden = byId("result").hidden = true;
  byId("key-form").hidden = false;
  if (hadOne) showError(new Refusal("The service does not know this key, or not any more."));
  byId("key").focus();
}

async function begin() {
  await run("", async (signal) => {
    task = await (await ask("/v1/task", { signal })).json();
    const hasKey = sessionStorage.getItem(KEY) !== null;
    byId("key-form").hidden = true;
    byId("forget").hidden = !hasKey;
    showTask();
    if (hasKey && document.activeElement === document.body) byId("file").focus();
    return "";
  });
}

function showTask() {
  const { limits, sampled } = task;
  document.title = `Video classification · ${task.name}`;
  byId("question").textContent = `The model tells ${listed(task.labels)}.`;
  byId("limits").textContent = `Up to ${Math.round(limits.max_upload_bytes / 2 ** 20)} MB and ${lasting(limits.max_duration_s)}. It sees ${rate(sampled.fps)}, at most ${sampled.max_frames}.`;
  byId("model").textContent = `Model ${task.model.name}, ${task.model.fingerprint}`;
  byId("context").maxLength = limits.max_context_characters;
  const buttons = Array.from({ length: task.num_samples }, (_, index) =>
    element("button", { type: "button", textContent: `Sample ${index + 1}`, onclick: () => chooseSample(index + 1) }),
  );
  byId("samples").replaceChildren(byId("samples").firstElementChild, ...buttons);
  byId("samples").hidden = buttons.length === 0;
  byId("choose").hidden = false;
}

function chooseSample(number) {
  run("Fetching the sample …", async (signal) => {
    const file = await (await ask(`/v1/samples/${number}`, { accept: "*/*", signal })).blob();
    classify({ file, sample: number, name: `sample-${number}.mp4` });
  });
}

function chooseFile(file) {
  if (!task || !file) return;
  classify({ file, sample: null, name: file.name });
}

function classify(chosen) {
  byId("result").hidden = true;
  const context = byId("context").value.trim();
  video = { ...chosen, context, id: null };
  const mine = video;
  run("Looking at the video …", async (signal) => {
    if (mine.file.size > task.limits.max_upload_bytes) throw new Refusal("This file is larger than the service takes; choose a shorter or smaller video.");
    const answer = await (await ask("/v1/classify", { form: formOf({ video: mine.file, context }), signal })).json();
    mine.id = answer.video_id;
    showAnswer(answer);
    showFrames(mine);
    return `Answered: ${answer.label}, ${percent(answer.probabilities[answer.label])}.`;
  });
}

async function why() {
  if (byId("ask").dataset.writes) return running.abort();
  const mine = video;
  byId("why").hidden = false;
  byId("checks").textContent = "";
  byId("ask").dataset.writes = "yes";
  byId("ask").textContent = "Stop";
  const text = element("p");
  byId("rationale").replaceChildren(text);
  byId("rationale").classList.add("writing");
  await run("The model writes …", async (signal) => {
    for await (const [name, data] of eventsOf(await askWhy(mine, signal))) {
      if (name === "text") text.append(data.text);
      else if (name === "problem") throw new Refusal(data.detail, { status: data.status, code: data.code, retryAfterS: data.status >= 502 ? 0 : null });
      else if (name === "end") {
        showRationale(data);
        return "The rationale is complete.";
      }
    }
    throw new Refusal("The service broke off.", { retryAfterS: 0 });
  }, why);
  if (mine === video) endOfWhy(text.textContent !== "");
}

function endOfWhy(hasText) {
  delete byId("ask").dataset.writes;
  byId("rationale").classList.remove("writing");
  byId("ask").textContent = hasText ? "Ask again" : "Ask why";
  byId("why").hidden = !hasText;
}

// By the id; by the file where the service has the video no more.
async function askWhy(chosen, signal) {
  const accept = "text/event-stream";
  if (chosen.id) {
    try {
      return await ask("/v1/rationale", { form: formOf({ video_id: chosen.id }), accept, signal });
    } catch (error) {
      if (error.code !== "clip_expired") throw error;
    }
  }
  return ask("/v1/rationale", { form: formOf({ video: chosen.file, context: chosen.context }), accept, signal });
}

// --- what is shown ---

function showAnswer(answer) {
  byId("source").textContent = video.sample ? `Sample ${video.sample}` : video.name;
  byId("label").textContent = answer.label;
  const bars = Object.entries(answer.probabilities).map(([label, share]) => bar(label, share, label === answer.label));
  const left = bars.slice(MAX_BARS);
  for (const one of left) one.hidden = true;
  byId("bars").replaceChildren(...bars);
  if (left.length) {
    const showAll = (event) => {
      for (const one of left) one.hidden = false;
      event.target.parentElement.remove();
    };
    byId("bars").append(element("li", {}, element("button", { type: "button", className: "link", textContent: `All ${bars.length} labels`, onclick: showAll })));
  }
  byId("how").textContent = howOf(answer);
  endOfWhy(false);
  byId("shell").replaceChildren(...commandsOf(video).map(command));
  byId("result").hidden = false;
  if (byId("result").getBoundingClientRect().top > innerHeight / 2) byId("result").scrollIntoView({ block: "start" });
}

function bar(label, share, isAnswer) {
  const filled = element("span", { className: "bar" });
  filled.style.width = `${100 * share}%`;
  const track = element("span", { className: "track" }, filled);
  track.setAttribute("aria-hidden", "true");
  const name = element("span", { className: "name", textContent: label });
  return element("li", { className: isAnswer ? "answered" : "" }, name, track, element("span", { className: "value", textContent: percent(share) }));
}

function howOf({ calibration, threshold, video: seen, timing_s }) {
  const parts = [calibration ? `Calibrated on ${calibration.num_clips} videos` : "Not calibrated"];
  if (threshold !== null && threshold !== undefined) parts.push(`“${task.labels[1]}” from ${percent(threshold)} on`);
  parts.push(`${seen.num_frames} frames seen of ${seconds(seen.duration_s)}`);
  if (timing_s.total !== undefined) parts.push(`answered in ${timing_s.total.toFixed(2)} s`);
  return `${parts.join("; ")}.`;
}

async function showFrames(chosen) {
  byId("frames").replaceChildren();
  const miss = (text) => {
    byId("no-frames").textContent = text;
    byId("no-frames").hidden = !text;
    byId("frames").hidden = Boolean(text);
  };
  if (!chosen.id) return miss("The service keeps no frames of this video.");
  miss("");
  try {
    const { frames } = await (await ask("/v1/frames", { form: formOf({ video_id: chosen.id }) })).json();
    if (chosen === video) byId("frames").replaceChildren(...frames.map(picture));
  } catch (error) {
    if (chosen === video) miss(`The frames cannot be shown: ${error.message}`);
  }
}

function picture({ time_s, uri, width, height }) {
  const image = element("img", { src: uri, width, height, alt: `Frame at ${seconds(time_s)}` });
  const caption = element("figcaption", { textContent: seconds(time_s) });
  caption.setAttribute("aria-hidden", "true"); // the picture says it
  return element("figure", {}, image, caption);
}

function showRationale({ text, sections, gates, finish_reason }) {
  const found = Object.entries(sections);
  const isWhole = found.length > 0 && found.length === task.headings.length;
  const list = () => element("dl", {}, ...found.flatMap(([heading, said]) => [element("dt", { textContent: heading }), element("dd", { textContent: said })]));
  byId("rationale").replaceChildren(isWhole ? list() : element("p", { textContent: text }));
  const failed = Object.keys(gates).filter((gate) => !gates[gate]);
  const num = Object.keys(gates).length;
  const said = [];
  if (finish_reason === "length") said.push("Cut off: it would have been longer.");
  if (num) said.push(failed.length ? `${num - failed.length} of ${num} checks of the text passed; not: ${failed.join(", ").replaceAll("_", " ")}.` : `All ${num} checks of the text passed.`);
  byId("checks").textContent = said.join(" ");
}

// --- the same from a shell ---

function commandsOf({ name, sample, context, id }) {
  const curl = sessionStorage.getItem(KEY) === null ? "curl" : 'curl -H "Authorization: Bearer $RBFT_KEY"';
  const url = `${location.origin}/v1`;
  // A comma or semicolon would mean something to curl.
  const path = /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
  const text = context ? ` --form-string ${quoted(`context=${context}`)}` : "";
  return [
    ...(sample ? [`${curl} -o ${name} ${url}/samples/${sample}`] : []),
    `${curl} -F ${quoted(`video=@${path}`)}${text} ${url}/classify`,
    `${curl} -N -H "Accept: text/event-stream" ${id ? `-F video_id=${id}` : `-F ${quoted(`video=@${path}`)}${text}`} ${url}/rationale`,
  ];
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function command(line) {
  const shown = element("pre", { textContent: line, tabIndex: 0 }); // for whoever scrolls it by keyboard
  const button = element("button", { type: "button", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy: ${line}`);
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(line); // there over https and on this machine only
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(shown);
      button.textContent = "Selected";
    }
    say(`${button.textContent}.`);
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  };
  return element("div", { className: "command" }, shown, button);
}

// --- words ---

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const seconds = (time_s) => `${time_s.toFixed(1)}\u00a0s`;
const lasting = (time_s) => (time_s >= 120 ? `${Math.round(time_s / 60)} minutes` : `${time_s} s`);
const rate = (fps) => (fps === 1 ? "a frame a second" : `${fps} frames a second`);
const listed = (words) => (words.length > 6 ? `${words.length} kinds of videos apart` : `${words.slice(0, -1).join(", ")} and ${words.at(-1)} videos apart`);

// --- the person ---

byId("file").addEventListener("change", () => {
  chooseFile(byId("file").files[0]);
  byId("file").value = ""; // so that the same file can be chosen again
});
byId("ask").addEventListener("click", why);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  byId("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(key)) return showError(new Refusal("That is no key of this service: they are made of plain letters, digits and signs."));
  sessionStorage.setItem(KEY, key);
  begin();
});
byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  chooseFile(event.dataTransfer.files[0]);
});
begin();
