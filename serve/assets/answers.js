// Answers of the service as elements of the page.

import { byId, element, percent, seconds } from "/words.js";

const MAX_BARS = 8;

// The likeliest labels; the others when they are asked for.
export function showBars({ probabilities, label: answered }) {
  const bars = Object.entries(probabilities).map(([label, share]) => bar(label, share, label === answered));
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
}

function bar(label, share, isAnswer) {
  const filled = element("span", { className: "bar" });
  filled.style.width = `${100 * share}%`;
  const track = element("span", { className: "track" }, filled);
  track.setAttribute("aria-hidden", "true");
  const name = element("span", { className: "name", textContent: label });
  return element("li", { className: isAnswer ? "answered" : "" }, name, track, element("span", { className: "value", textContent: percent(share) }));
}

export function howOf({ calibration, threshold, video: seen, timing_s }, labels) {
  const parts = [calibration ? `Calibrated on ${calibration.num_clips} videos` : "Not calibrated"];
  if (threshold !== null && threshold !== undefined) parts.push(`“${labels[1]}” from ${percent(threshold)} on`);
  parts.push(`${seen.num_frames} frames seen of ${seconds(seen.duration_s)}`);
  if (timing_s.total !== undefined) parts.push(`answered in ${timing_s.total.toFixed(2)} s`);
  return `${parts.join("; ")}.`;
}

// A frame, or a heatmap, which has a share.
export function picture({ time_s, uri, width, height, share }) {
  const looked = share === undefined ? "" : `, ${percent(share)} of the attention to the video`;
  const image = element("img", { src: uri, width, height, alt: `Frame at ${seconds(time_s)}${looked}` });
  const caption = element("figcaption", { textContent: seconds(time_s) });
  caption.setAttribute("aria-hidden", "true"); // the picture says it
  return element("figure", {}, image, caption);
}

// By its headings where all of them are there, else as it was written.
export function showRationale({ text, sections, gates, finish_reason }, headings) {
  const found = Object.entries(sections);
  const isWhole = found.length > 0 && found.length === headings.length;
  const list = () => element("dl", {}, ...found.flatMap(([heading, said]) => [element("dt", { textContent: heading }), element("dd", { textContent: said })]));
  byId("rationale").replaceChildren(isWhole ? list() : element("p", { textContent: text }));
  const failed = Object.keys(gates).filter((gate) => !gates[gate]);
  const num = Object.keys(gates).length;
  const said = [];
  if (finish_reason === "length") said.push("Cut off: it would have been longer.");
  if (num) said.push(failed.length ? `${num - failed.length} of ${num} checks of the text passed; not: ${failed.join(", ").replaceAll("_", " ")}.` : `All ${num} checks of the text passed.`);
  byId("checks").textContent = said.join(" ");
}
