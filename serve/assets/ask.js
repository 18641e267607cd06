// Asking the service, with the key if it has been told one.

const KEY = "rbft-key";
export const key = () => sessionStorage.getItem(KEY);
export const keepKey = (told) => sessionStorage.setItem(KEY, told);
export const forgetKey = () => sessionStorage.removeItem(KEY);

export class Refusal extends Error {
  constructor(detail, { status = 0, code = "", retryAfterS = null } = {}) {
    super(detail);
    Object.assign(this, { status, code, retryAfterS });
  }
}

export async function ask(path, { form = null, accept = "application/json", signal } = {}) {
  const known = key();
  const headers = { Accept: accept, ...(known && { Authorization: `Bearer ${known}` }) };
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

export function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, "video"); // the file's own name stays here
    else if (value) form.append(name, value);
  }
  return form;
}

// The events of a stream, as [name, data].
export async function* eventsOf(response) {
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
