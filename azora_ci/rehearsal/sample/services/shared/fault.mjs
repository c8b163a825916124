// Faults on purpose: what a fault file says about one request. Pure.

export const ANSWERS = ["error", "hang", "html", "wrong-version", "unhealthy", "slow", "exit"];
const KEYS = ["answer", "version", "service", "path", "health_only", "share"];

/**
 * Return the answer that a fault file asks for, or null.
 * `text` is the file's content (null: no file); `request` is {service, version, path, health, chance} with chance in [0, 1).
 */
export function faultOf(text, request) {
  const trimmed = (text ?? "").trim();
  if (!trimmed) return null;
  const fault = trimmed.startsWith("{") ? JSON.parse(trimmed) : { answer: trimmed };
  if (!ANSWERS.includes(fault.answer)) throw new Error(`fault file: ${JSON.stringify(fault.answer)} is none of ${ANSWERS.join(", ")}`);
  const unknown = Object.keys(fault).filter((key) => !KEYS.includes(key));
  if (unknown.length > 0) throw new Error(`fault file: unknown ${unknown.join(", ")}`);
  if (fault.version !== undefined && fault.version !== request.version) return null;
  if (fault.service !== undefined && fault.service !== request.service) return null;
  if (fault.path !== undefined && fault.path !== request.path) return null;
  if (fault.health_only && !request.health) return null;
  if (fault.share !== undefined && request.chance >= fault.share) return null;
  return fault.answer;
}
