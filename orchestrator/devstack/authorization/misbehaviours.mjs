// What servers do that a careful client must bear. The tokens beneath are real ones, issued before the answer is spoilt.
import { setTimeout as sleep } from 'node:timers/promises';

import { decodeJwt } from 'jose';

import { mintRefreshToken } from './grants.mjs';

const ENDPOINTS = { '/token': 'token', '/token/revocation': 'revocation', '/token/introspection': 'introspection' };
const OF_ENDPOINT = { revocation_ignored: 'revocation', always_inactive: 'introspection' };

const union = (...lists) => [...new Set(lists.flatMap((list) => (list ?? '').split(' ')))].filter(Boolean).join(' ');

// The scope that an assertion asks for, where no parameter does.
const claimed = (assertion) => (assertion ? decodeJwt(assertion).scope : undefined);

// Done to the request, so that the token itself is another one than was asked for.
const BEFORE = {
  wider_scope(ctx, { scope }) {
    ctx.state.asked = union(ctx.req.body.scope ?? claimed(ctx.req.body.assertion), scope);
    ctx.state.wider = scope;
    ctx.req.body.scope = ctx.state.asked;
  },
  narrower_scope(ctx, { scope }) {
    const asked = (ctx.req.body.scope ?? '').split(' ');
    const left = scope === null ? asked.slice(0, 1) : asked.filter((each) => scope.split(' ').includes(each));
    ctx.req.body.scope = left.join(' ');
  },
  longer_expiry(ctx, { seconds }) {
    ctx.state.seconds = seconds;
  },
  revocation_ignored(ctx) {
    ctx.req.body.token = 'nothing';
  },
  always_inactive(ctx) {
    ctx.req.body.token = 'nothing';
  },
};

// Done to the answer that grants a token.
const GRANTED = {
  wider_scope(ctx) {
    ctx.body.scope = union(ctx.body.scope, ctx.state.asked);
  },
  no_scope(ctx) {
    delete ctx.body.scope;
  },
  no_expires_in(ctx) {
    delete ctx.body.expires_in;
  },
  other_token_type(ctx, { token_type: type }) {
    ctx.body.token_type = type;
  },
  async unasked_refresh_token(ctx, wish, provider) {
    const { client, entities } = ctx.oidc;
    const token = entities.AccessToken ?? entities.ClientCredentials;
    const wanted = { account: token.accountId ?? client.clientId, resource: token.aud, scope: token.scope ?? '' };
    ctx.body.refresh_token = await mintRefreshToken(provider, client, wanted);
  },
};

// Done to whatever would have been answered.
const ANSWER = {
  garbage(ctx) {
    ctx.body = JSON.stringify(ctx.body ?? {}).slice(0, -1);
    ctx.type = 'application/json';
    ctx.status = 200;
  },
  html(ctx) {
    ctx.body = '<!doctype html><title>Maintenance</title><p>We will be back soon.</p>';
    ctx.type = 'text/html';
    ctx.status = 200;
  },
  server_error(ctx, { status, retry_after: after }) {
    ctx.body = { error: 'server_error', error_description: 'oops! something went wrong' };
    ctx.status = status;
    if (after !== null) ctx.set('Retry-After', String(after));
  },
  redirect(ctx, { status, location }, provider) {
    ctx.set('Location', location ?? `${provider.issuer}/moved`);
    ctx.body = '';
    ctx.status = status;
  },
  async late(ctx, { seconds }) {
    await sleep(seconds * 1000, undefined, { ref: false });
  },
  hang_up(ctx) {
    ctx.respond = false;
    ctx.req.socket.destroy();
  },
};

export class Misbehaviours {
  #planned = [];

  plan(wishes) {
    this.#planned.push(...wishes.map((wish) => ({ ...wish })));
  }

  clear() {
    this.#planned = [];
  }

  planned() {
    return this.#planned;
  }

  // Those that are meant for this request, each as often as it was asked for.
  #taken(ctx) {
    const endpoint = ENDPOINTS[ctx.path];
    if (endpoint === undefined || ctx.method !== 'POST') return [];
    const taken = this.#planned.filter((wish) => (
      (OF_ENDPOINT[wish.kind] ?? wish.endpoint) === endpoint
      && (wish.client_id ?? ctx.state.client) === ctx.state.client
      && (wish.grant_type ?? ctx.req.body?.grant_type) === ctx.req.body?.grant_type
    ));
    for (const wish of taken) {
      if (wish.times !== null) wish.times -= 1;
    }
    this.#planned = this.#planned.filter((wish) => wish.times !== 0);
    return taken;
  }

  middleware(provider) {
    return async (ctx, next) => {
      const taken = this.#taken(ctx);
      ctx.state.entry.misbehaviours = taken.map(({ kind }) => kind);
      for (const wish of taken) await BEFORE[wish.kind]?.(ctx, wish, provider);
      await next();
      ctx.state.issued = ctx.body;
      if (ctx.body?.access_token) {
        for (const wish of taken) await GRANTED[wish.kind]?.(ctx, wish, provider);
      }
      ctx.state.issued = ctx.body;
      for (const wish of taken) await ANSWER[wish.kind]?.(ctx, wish, provider);
    };
  }
}
