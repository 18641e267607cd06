// Elements and how quantities are written. Whatever comes from outside becomes text, never HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
export const seconds = (time_s) => `${time_s.toFixed(1)}\u00a0s`;
export const lasting = (time_s) => (time_s >= 120 ? `${Math.round(time_s / 60)} minutes` : `${time_s} s`);
export const rate = (fps) => (fps === 1 ? "a frame a second" : `${fps} frames a second`);
export const listed = (words) => (words.length > 6 ? `${words.length} kinds of videos apart` : `${words.slice(0, -1).join(", ")} and ${words.at(-1)} videos apart`);
