// What the page has asked, as lines for a shell.

import { key } from "/ask.js";
import { element } from "/words.js";

const COPIED_MS = 2000;

// `chosen` is a video as page.js has it.
export function commandsOf({ name, sample, context, id }, hasAttention) {
  const curl = key() === null ? "curl" : 'curl -H "Authorization: Bearer $RBFT_KEY"';
  const url = `${location.origin}/v1`;
  // A comma or semicolon would mean something to curl.
  const path = /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
  const text = context ? ` --form-string ${quoted(`context=${context}`)}` : "";
  const again = id ? `-F video_id=${id}` : `-F ${quoted(`video=@${path}`)}${text}`;
  return [
    ...(sample ? [`${curl} -o ${name} ${url}/samples/${sample}`] : []),
    `${curl} -F ${quoted(`video=@${path}`)}${text} ${url}/classify`,
    `${curl} -N -H "Accept: text/event-stream" ${again} ${url}/rationale`,
    ...(hasAttention ? [`${curl} ${again} ${url}/attention`] : []),
  ];
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

// The line with a button that copies it; `say` is told what became of that.
export function command(line, say) {
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
