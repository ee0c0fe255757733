// What the server remembers, until it ends. The memory of the package itself forgets the oldest of a thousand entries.
import { createHash } from 'node:crypto';

const TOKENS = /^(AccessToken|ClientCredentials|RefreshToken):/;

export const digest = (text) => createHash('sha256').update(text).digest('hex');

export class Store {
  #entries = new Map();

  get(key) {
    const entry = this.#entries.get(key);
    if (entry && entry.until <= Date.now()) {
      this.#entries.delete(key);
      return undefined;
    }
    return entry?.value;
  }

  set(key, value, { maxAge = Infinity } = {}) {
    this.#entries.set(key, { value, until: Date.now() + maxAge });
  }

  delete(key) {
    return this.#entries.delete(key);
  }

  // The tokens that count now, without their text. Signed ones are not among them: nobody keeps those.
  tokens() {
    const found = [];
    for (const key of [...this.#entries.keys()]) {
      const value = TOKENS.test(key) ? this.get(key) : undefined;
      if (value && !value.consumed) {
        found.push({
          kind: value.kind,
          client_id: value.clientId,
          subject: value.accountId ?? null,
          scope: value.scope ?? null,
          resource: value.aud ?? value.resource ?? null,
          sha256: digest(value.jti),
          expires: value.exp,
        });
      }
    }
    return found;
  }
}
